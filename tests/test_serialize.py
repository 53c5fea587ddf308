"""An exported encoder is the encoder: for any batch, on any platform, without this project."""

import inspect
import json
import re
import shutil
import textwrap

import jax
import numpy as np
import pytest
from jax import export

from big_vision_ext import features, serialize, weights
from tests import tiny_run

LIMITS = dict(num_looks=2)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
  return weights.load(tiny_run.save(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
  """A top-down encoder of square images for three platforms."""
  out = tmp_path_factory.mktemp("artefact") / "E"
  files = serialize.export_encoder(loaded, out, **LIMITS)
  assert sorted(files) == sorted(out.iterdir())
  return out


@pytest.fixture(scope="module")
def artefact(folder):
  return serialize.load(folder)


@pytest.fixture(scope="module")
def inputs():
  rng = np.random.default_rng(0)
  return (rng.integers(0, 256, (3, 128, 128, 3), np.uint8),
          rng.integers(3, 259, (3, 16), np.int32))


@pytest.fixture(scope="module")
def want(loaded, inputs):
  """What the task itself gives, jitted as ever."""
  from big_vision_ext import tasks
  task = tasks.make(loaded.task_name, loaded.model)
  run = jax.jit(lambda p, image, text: task.encode(p, {"image": image, "text": text}, **LIMITS))
  return jax.device_get(run(loaded.params, *inputs))


def close(found, want, rows):
  for name in features.TENSORS:
    scale = np.abs(want[name]).max()
    # The same arithmetic in another program; 1.6e-7 was measured.
    np.testing.assert_allclose(found[name], want[name][rows], rtol=0, atol=1e-6 * scale,
                               err_msg=name)
  index = np.concatenate([x for look in want["looks"] for x in look], axis=1)
  np.testing.assert_array_equal(found["selected_index"], index[rows])


def test_a_batch_of_three_equals_the_jitted_model(artefact, inputs, want):
  close(artefact(*inputs), want, slice(None))


def test_the_documented_loader_runs_a_batch_of_one_without_this_project(folder, inputs, want):
  documentation = inspect.getdoc(serialize)
  code = textwrap.dedent(re.search(r"it takes:\n\n((?:    .*\n)+)", documentation)[1])
  assert "big_vision_ext" not in code and len(code.splitlines()) == 3
  names = {"numpy": np, "image": inputs[0][1:2], "text": inputs[1][1:2]}
  exec(code.replace('"E/', f'"{folder}/'), names)
  close(names["out"], want, slice(1, 2))


def test_one_program_serves_all_platforms_and_each_its_own_attention(folder):
  program = export.deserialize(bytearray((folder / serialize.PROGRAM).read_bytes()))
  assert program.platforms == ("cpu", "tpu", "cuda")
  # Which branch runs is decided by an argument that the platform fills in.
  assert "stablehlo.case" in program.mlir_module() and "tensor<?x" in program.mlir_module()
  # Parameters are its inputs, each of them: it stays small however large the model.
  with np.load(folder / serialize.PARAMS) as file:
    assert len(file.files) == len(jax.tree.leaves(tiny_run.params()))
    assert len(program.in_avals) == len(file.files) + 2


def test_the_description_says_what_goes_in_and_comes_out(folder, artefact, inputs):
  description = json.loads((folder / serialize.DESCRIPTION).read_text())
  assert description["inputs"]["image"] == {"dtype": "uint8", "shape": ["b", 128, 128, 3]}
  assert description["preprocessing"]["tokenizer"] == "bytes"
  found = artefact(*inputs)
  assert found.keys() == description["outputs"].keys()
  for name, spec in description["outputs"].items():
    assert [3 if d == "b" else d for d in spec["shape"]] == list(found[name].shape), name
    assert spec["dtype"] == found[name].dtype
  grids = np.prod(description["grids"], axis=1)
  for i in (0, 1):
    assert found["selected_index"][:, found["selected_scale"] == i].max() < grids[i + 1]


def test_bottom_up_encoders_of_flat_images_take_no_text(loaded, tmp_path):
  serialize.export_encoder(loaded, tmp_path / "E", ("cpu",), prompt=False, size=(64, 128),
                           num_looks=None, num_tokens=7)
  artefact = serialize.load(tmp_path / "E")
  image = np.random.default_rng(1).integers(0, 256, (2, 64, 128, 3), np.uint8)
  found = artefact(image)
  assert found["last_hidden"].shape == (2, 16 + 7, 32) and "score_topdown" not in found
  assert artefact.description["grids"] == [[4, 4], [4, 8], [8, 16]]
  with pytest.raises(serialize.ArtefactError, match="takes image, got image, text"):
    artefact(image, np.zeros((2, 16), np.int32))


@pytest.mark.parametrize("change,message", [
  (lambda image, text: (image[:, :64], text), r"image is uint8 \[3, 64, 128, 3\]"),
  (lambda image, text: (image / 255, text), "image is float64"),
  (lambda image, text: (image, text[:2]), "with b = 3"),
  (lambda image, text: (image,), "takes image, text, got image"),
])
def test_inputs_that_do_not_fit_are_named(artefact, inputs, change, message):
  with pytest.raises(serialize.ArtefactError, match=message):
    artefact(*change(*inputs))


def _truncate(folder):
  path = folder / serialize.PROGRAM
  path.write_bytes(path.read_bytes()[:1000])


def _other_params(folder):
  with np.load(folder / serialize.PARAMS) as file:
    arrays = dict(file)
  arrays["t"] = arrays["t"].astype(np.float16)
  np.savez(folder / serialize.PARAMS, **arrays)


def _describe(**changes):
  def act(folder):
    path = folder / serialize.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  return act


@pytest.mark.parametrize("damage,message", [
  (lambda folder: (folder / serialize.DESCRIPTION).unlink(), "is no exported encoder"),
  (_describe(version=2), "version 2, this program reads"),
  (_describe(platforms=["tpu"]), "for tpu, not for cpu"),
  (_truncate, "encoder.stablehlo: cannot be read"),
  (lambda folder: (folder / serialize.PARAMS).write_bytes(b"x"), "params.npz: cannot be read"),
  (_other_params, "1 arrays differ, e.g. t"),
])
def test_damaged_artefacts_are_named(folder, tmp_path, damage, message):
  shutil.copytree(folder, tmp_path / "E")
  damage(tmp_path / "E")
  with pytest.raises(serialize.ArtefactError, match=message):
    serialize.load(tmp_path / "E")


@pytest.mark.parametrize("kwargs,message", [
  (dict(platforms=["npu"]), "platforms="), (dict(size=(64,)), "size="),
  (dict(num_tokens=-2), "num_tokens=-2"), (dict(only_first_scales=5), "=5")])
def test_settings_that_do_not_fit_are_named_and_nothing_is_written(
    loaded, tmp_path, kwargs, message):
  with pytest.raises(ValueError, match=message):
    serialize.export_encoder(loaded, tmp_path / "E", **kwargs)
  assert not (tmp_path / "E").exists()


def test_a_folder_with_something_in_it_is_left_alone(loaded, tmp_path):
  (tmp_path / "thesis.txt").write_text("mine")
  for overwrite in (False, True):
    with pytest.raises(serialize.ArtefactError, match="not empty.*thesis.txt"):
      serialize.export_encoder(loaded, tmp_path, overwrite=overwrite)


def test_an_artefact_is_replaced_only_when_asked(folder):
  with pytest.raises(serialize.ArtefactError, match="not empty"):
    serialize.check_target(folder, overwrite=False)
  serialize.check_target(folder, overwrite=True)
