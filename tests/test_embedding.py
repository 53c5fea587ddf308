"""Models of one vector per image encode folders, and show what they make of what is hidden."""

import re

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import embedding, encode, features, weights
from input_pipeline import images
from tests import tiny_run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return tiny_run.save(tmp_path_factory.mktemp("run"), name="mae")


@pytest.fixture(scope="module")
def embedder(workdir):
  return embedding.Embedder(workdir, batch_size=2)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  return embedding.Embedder(tiny_run.save(tmp_path_factory.mktemp("clip"), name="clip"))


@pytest.fixture
def photos(tmp_path):
  folder = tmp_path / "photos"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for name, shape in {"a.png": (40, 70), "b.png": (32, 32), "c.png": (90, 50)}.items():
    Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / name)
  return folder


def test_features_are_those_of_the_task(embedder):
  pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
  found = embedder(pixels)
  task, params = embedder.task, tiny_run.params(name="mae")
  want = jax.jit(task.embed_image)(params, {"image": pixels[None]})[0]
  np.testing.assert_allclose(found["pooled"], want, rtol=1e-5, atol=1e-6)
  tokens = jax.jit(task.tokens)(params, {"image": pixels[None]})[0]
  # In raster order: `features.maps` puts them at their places.
  np.testing.assert_allclose(
      features.maps(found | {"selected_scale": np.zeros(0), "selected_index": np.zeros(0)})[0],
      np.moveaxis(np.asarray(tokens), -1, 0), rtol=1e-5, atol=1e-6)


def test_what_is_drawn_does_not_depend_on_the_batch(embedder):
  rng = np.random.default_rng(2)
  one, two = (rng.integers(0, 256, (32, 32, 3), np.uint8) for _ in range(2))
  alone, (_, beside) = embedder.encode_prepared([one])[0], embedder.encode_prepared([two, one])
  for key in ("hidden", "prediction", "input", "pooled"):
    np.testing.assert_allclose(alone[key], beside[key], atol=1e-3)
  hidden = np.kron(alone["hidden"], np.ones((8, 8)))[..., None] > 0
  assert hidden.mean() == 0.75
  # What is visible is the image itself, on both pictures; what is hidden is grey, and predicted.
  for key in ("input", "prediction"):
    np.testing.assert_allclose(np.where(hidden, one, alone[key]), one, atol=1e-2)
  np.testing.assert_allclose(np.where(hidden, alone["input"], 127.5), 127.5, atol=1e-3)


def test_a_folder_becomes_features_and_pictures(workdir, photos, tmp_path, capsys):
  out = tmp_path / "out"
  command = ["--workdir", str(workdir), "--image", str(photos), "--out", str(out), "--batch", "2"]
  assert encode.main(command) == 0
  assert "a vector of 24 numbers" in capsys.readouterr().out
  for name in "abc":
    arrays = features.read(out / f"{name}.npz")
    assert arrays["pooled"].shape == (24,) and arrays["last_hidden"].shape == (16, 24)
    assert "prediction" not in arrays
    assert arrays["about"]["seed"] == 0
    picture = np.asarray(Image.open(out / f"{name}.png"))
    # Image, visible, prediction, each of the image's shape.
    assert picture.shape[1] > 3 * (355 if name == "c" else 640)
  assert encode.main(command) == 0
  assert "3 were there already" in capsys.readouterr().out


@pytest.mark.parametrize("option, message", [
    (["--looks", "2"], "--looks=2: .* is of task 'mae', which encodes whole images"),
    (["--prompt", "a cat"], "does not look around"),
    (["--aspect", "keep"], "--aspect=keep")])
def test_options_of_looks_are_refused(workdir, photos, tmp_path, capsys, option, message):
  command = ["--workdir", str(workdir), "--image", str(photos), "--out", str(tmp_path / "o")]
  assert encode.main([*command, *option]) == 2
  assert re.search(message, capsys.readouterr().err, re.DOTALL)


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (32, 32), (20, 31)], ids=str)
def test_clip_sees_the_middle_square_as_torchvision_cuts_it(clip, size):
  """Pillow resizes the whole, as torchvision does; regions differ by rounding alone."""
  y, x = np.mgrid[:size[0], :size[1]]
  pixels = np.stack([127 + 90 * np.sin(y / 5 + x / 7 + c) for c in range(3)], -1).astype(np.uint8)
  short = min(size)
  height, width = (32 if s == short else int(32 * s / short) for s in size)
  top, left = (int(round((s - 32) / 2)) for s in (height, width))
  whole = Image.fromarray(pixels).resize((width, height), Image.BICUBIC)
  want = np.asarray(whole.crop((left, top, left + 32, top + 32)), int)
  got = clip.prepare(pixels)
  assert got.shape == (32, 32, 3) and got.dtype == np.uint8
  np.testing.assert_allclose(got.astype(int), want, atol=2)
  assert abs(got - want).mean() < 0.3


def test_masked_models_see_the_whole_that_their_pictures_show(workdir, photos):
  run = weights.load(workdir)
  run.input["eval_crop"] = 0.875
  wide = np.asarray(Image.open(photos / "a.png"))
  np.testing.assert_array_equal(
      embedding.Embedder(run).prepare(wide),
      images.resize_region(wide, (0, 0, 70, 40), (32, 32), "bicubic"))


def test_maps_of_tokens_are_refused_of_a_model_that_writes_none(tmp_path, photos, capsys):
  run = tiny_run.save(tmp_path / "run", name="focusmim")
  command = ["--workdir", str(run), "--image", str(photos), "--out", str(tmp_path / "o")]
  assert encode.main([*command, "--maps"]) == 2
  assert re.search("--maps: .* is of task 'focusmim', .* no tokens", capsys.readouterr().err)
  assert not (tmp_path / "o").exists()


def test_a_seed_of_masks_means_nothing_to_a_model_that_looks(tmp_path, photos, capsys):
  run = tiny_run.save(tmp_path / "ps3")
  assert encode.main(["--workdir", str(run), "--image", str(photos), "--out", str(tmp_path / "o"),
                      "--seed", "1"]) == 2
  assert "--seed=1" in capsys.readouterr().err
