"""UniQA's adapter file comes in and goes out bit by bit, without PyTorch."""

import pickletools
import zipfile

import ml_dtypes
import numpy as np
import pytest

from big_vision_ext import convert
from big_vision_ext.convert import ConvertError, files, lazy, torch_zip, uniqa
from tests.convert import cases


def weights(width=12, levels=5, seed=0, **model):
  rng = np.random.default_rng(seed)
  params = {n: rng.standard_normal(s).astype(np.float32)
            for n, s in uniqa.shapes(width, 2, levels).items()}
  # As in a run: what an adapter's file does not hold.
  params |= {"texts": np.ones((1, levels, 1, width), np.float32), "t": np.ones((1,), np.float32)}
  return convert.Weights(params, "quality", {"width": width, **model})


@pytest.mark.parametrize("name", uniqa.FILES)
def test_a_round_trip_is_bitwise(tmp_path, name):
  mine = weights()
  convert.write("uniqa", tmp_path / "e", mine)
  for path in (tmp_path / "e" / name, tmp_path / "e"):
    assert convert.detect(path) == "uniqa"
    found = convert.read(path)
    assert found.task == "quality" and found.model["width"] == 12
    assert (found.model["reduction"], found.model["levels"]) == (2, 5)
    cases.assert_same(found.params, {n: x for n, x in mine.params.items() if "/" in n})
  theirs = files.read_tensors(tmp_path / "e" / name)
  np.testing.assert_array_equal(
      theirs["adapter.fc.0.weight"], mine.params["adapter/fc_0/kernel"].T)
  assert theirs["score_level"].shape == (5,)


def test_what_is_written_for_pytorch_is_what_its_own_reader_wants(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {"a": rng.normal(size=(3, 5)).astype(np.float32), "b": np.float16([1.5, -2]),
            "c": rng.normal(size=(2, 0)).astype(np.float64), "d": np.int64(7).reshape(()),
            "e": rng.normal(size=(2, 3, 4)).astype(ml_dtypes.bfloat16)}
  path = tmp_path / "x.pt"
  torch_zip.write(path, {"params": {n: lazy.of(x) for n, x in arrays.items()}})
  found = torch_zip.read(path)
  cases.assert_same(found, arrays)
  with zipfile.ZipFile(path) as archive:
    names = archive.namelist()
    assert {"x/data.pkl", "x/version", "x/byteorder", "x/data/0"} <= set(names)
    for info in archive.infolist():
      archive.fp.seek(info.header_offset + 26)
      name, extra = np.frombuffer(archive.fp.read(4), "<u2").astype(int)
      assert (info.header_offset + 30 + name + extra) % 64 == 0
    # The opcodes are whole: every mark is used and one object is left.
    pickletools.dis(archive.read("x/data.pkl"), out=open(tmp_path / "listing", "w"))
  torch_zip.write(tmp_path / "y.pt", {"params": {n: lazy.of(x) for n, x in arrays.items()}})
  assert (tmp_path / "y.pt").stat().st_size == path.stat().st_size


@pytest.mark.parametrize("name, shape, message", [
    ("score_level", None, "score_level is missing"),
    ("score_level", (5, 1), r"score_level is \[5, 1\], expected an array of 1 axes"),
    ("adapter.fc.2.weight", (12, 7), "misshapen.*adapter.fc.2.weight"),
    ("adapter.fc.0.bias", (6,), "extra in it.*adapter.fc.0.bias"),
])
def test_a_file_that_is_not_whole_is_refused_by_name(tmp_path, name, shape, message):
  theirs = uniqa.export(weights())
  tensors = {n: theirs.lazy(n) for n in theirs}
  tensors.pop(name, None)
  if shape:
    tensors[name] = lazy.of(np.zeros(shape, np.float32))
  files.write_safetensors(tmp_path / "m.safetensors", tensors)
  with pytest.raises(ConvertError, match=f"(?s){message}"):
    convert.read(tmp_path / "m.safetensors")


def test_other_models_are_refused(tmp_path):
  with pytest.raises(ConvertError, match="holds adapters .*'siglip'"):
    convert.write("uniqa", tmp_path / "e", cases.weights("siglip", cases.SIGLIP))
  with pytest.raises(ConvertError, match="no second ReLU"):
    convert.write("uniqa", tmp_path / "e", weights(zero_init_last=True))
