"""FocusMIM's state dict: its names, both ways, to the bit."""

import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import files, focusmim, lazy
from big_vision_ext.convert.lazy import ConvertError
from tests.convert import cases

SMALL = {"image": dict(widths=[4, 6, 8], depth=3, image_size=96), "pool": "mean"}


@pytest.fixture
def weights():
  return cases.weights("focusmim", SMALL)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_written_and_read_again_has_the_same_bits(tmp_path, dtype):
  before = cases.weights("focusmim", SMALL, dtype=dtype)
  convert.write("focusmim", tmp_path / "e", before)
  after = convert.read(tmp_path / "e")
  assert after.task == "focusmim" and convert.detect(tmp_path / "e") == "focusmim"
  cases.assert_same(after.params, before.params)
  # What the file cannot say comes from the note, and the sizes from the file.
  assert after.model["pool"] == "mean" and after.model["image"] == SMALL["image"]
  assert "arXiv 2404.08526" in (tmp_path / "e" / "README.md").read_text()
  bare = tmp_path / "bare"
  bare.mkdir()
  (tmp_path / "e" / "model.safetensors").rename(bare / "weights.safetensors")
  found = convert.read(bare / "weights.safetensors")
  cases.assert_same(found.params, before.params)
  assert found.model["image"] == SMALL["image"]
  assert tuple(found.input["std"]) == (1.0, 1.0, 1.0)


def test_their_names_and_shapes_are_those_of_the_released_class():
  theirs = focusmim.export(lazy.Tensors(cases.weights("focusmim", {"image": {}}).params),
                           {"image": {}})
  shapes = {n: theirs.lazy(n).shape for n in theirs}
  # 18 blocks of three convolutions with weight and bias.
  assert len(shapes) == 18 * 6
  assert shapes["encoder.0.conv1.weight"] == (32, 3, 3, 3)
  assert shapes["encoder.6.match_dim.weight"] == (64, 32, 1, 1)
  assert shapes["decoder.4.upconv1.weight"] == (128, 64, 3, 3)
  assert shapes["decoder.16.upconv2.weight"] == (3, 3, 3, 3)
  assert shapes["decoder.16.match_dim.weight"] == (32, 3, 1, 1)
  assert {n.split(".")[1] for n in shapes} == {str(i) for i in range(0, 18, 2)}
  for name in ("encoder.2.match_dim.weight", "decoder.0.match_dim.bias"):
    assert not np.any(theirs[name]), "registered there, and never used"
  assert np.all(theirs["encoder.6.match_dim.weight"] != 0)


def test_kernels_of_transposed_convolutions_are_turned(weights):
  theirs = focusmim.export(lazy.Tensors(weights.params), SMALL)
  mine = weights.params["decoder/block_2/conv1/kernel"]
  assert mine.shape == (3, 3, 8, 6)
  np.testing.assert_array_equal(theirs["decoder.4.upconv1.weight"],
                                mine[::-1, ::-1].transpose(2, 3, 0, 1))
  plain = weights.params["encoder/block_0/conv2/kernel"]
  np.testing.assert_array_equal(theirs["encoder.0.conv2.weight"], plain.transpose(3, 2, 0, 1))


def test_npz_holds_it_too(tmp_path, weights):
  convert.write("npz", tmp_path / "e", weights)
  found = convert.read(tmp_path / "e")
  assert found.task == "focusmim"
  cases.assert_same(found.params, weights.params)


def _tensors(weights):
  theirs = focusmim.export(lazy.Tensors(weights.params), weights.model)
  return {n: theirs.lazy(n) for n in theirs}


@pytest.mark.parametrize("name, shape, message", [
  ("encoder.2.match_dim.bias", None, r"missing in it \(1\):\s+encoder.2.match_dim.bias \[4\]"),
  ("encoder.9.weight", (3,), "extra in it"),
  ("decoder.4.upconv2.weight", (6, 8, 3, 3), "misshapen.*decoder.4.upconv2.weight"),
])
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path, weights, name, shape, message):
  tensors = _tensors(weights)
  if shape is None:
    del tensors[name]
  else:
    tensors[name] = lazy.of(np.zeros(shape, np.float32))
  files.write_safetensors(tmp_path / "m.safetensors", tensors)
  with pytest.raises(ConvertError, match=f"(?s){message}"):
    convert.read(tmp_path / "m.safetensors")


def test_other_models_and_tasks_are_refused(tmp_path, weights):
  other = cases.weights("siglip", cases.SIGLIP)
  with pytest.raises(ConvertError, match="holds models of the task 'focusmim'.*'siglip'"):
    convert.write("focusmim", tmp_path / "e", other)
  with pytest.raises(ConvertError):
    convert.write("timm", tmp_path / "e", weights)
