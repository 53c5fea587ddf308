"""Clean crops of the study: nested, distinct, disjoint; pairs by name; rain as layers."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext.objectives import degradations, rain_layers
from input_pipeline import contents, loader, records
from input_pipeline.build import backgrounds, cli, digits, painters, paired
from input_pipeline.build.durable import BuildError


def build(out, **options):
  backgrounds.build(out, progress=False, **{"count": 6, "val_count": 3, "side": 32} | options)
  return {s: list(records.open_dataset(str(out), s)) for s in ("train", "val")}


def pixels(sample):
  return np.asarray(Image.open(io.BytesIO(sample.image)))


def save(path, values, mode=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(values, mode).save(path)


@pytest.fixture
def photos(tmp_path):
  """Five pictures, one of them with alpha, one too small and one of 16 bits."""
  rng = np.random.default_rng(0)
  for i in range(4):
    save(tmp_path / "mine" / f"{i}.png", rng.integers(0, 256, (40 + i, 50, 3), np.uint8))
  save(tmp_path / "mine" / "alpha.png", rng.integers(0, 256, (45, 41, 4), np.uint8))
  save(tmp_path / "mine" / "small.png", rng.integers(0, 256, (20, 90, 3), np.uint8))
  return tmp_path / "mine"


@pytest.mark.parametrize("category", backgrounds.CATEGORIES)
def test_the_first_crops_are_the_same_however_many_there_are(category, tmp_path):
  few, many = build(tmp_path / "a", category=category, count=3), build(
    tmp_path / "b", category=category, count=6)
  for split in few:
    for one, other in zip(few[split], many[split]):
      assert records.encode_sample(one) == records.encode_sample(other)
  every = [s.image for split in many.values() for s in split]
  assert len(set(every)) == len(every) == 9
  other = build(tmp_path / "c", category=category, count=1, seed=1)
  assert other["train"][0].image != many["train"][0].image


def test_photographs_of_validation_are_none_of_training(tmp_path):
  found = build(tmp_path, category="natural", count=40, val_count=20)
  shown = [{s.source for s in found[split]} - {"drawn"} for split in ("train", "val")]
  assert not shown[0] & shown[1]
  names = [{p.file for p in digits.split_photos(0)[s]} for s in ("train", "val")]
  assert shown[0] == names[0] and shown[1] <= names[1]


def test_more_detail_is_more_to_code():
  """By the size of a PNG, which is what the complexity of a picture costs a lossless coder."""
  for category, paint in painters.PAINTERS.items():
    size = [np.mean([len(painters.png(paint(np.random.default_rng(i), 48, detail)))
                     for i in range(6)]) for detail in (0.4, 2.5)]
    assert size[1] > 1.05 * size[0], category


def test_own_pictures_are_cut_at_their_resolution_at_places_that_do_not_repeat(photos, tmp_path):
  found = build(tmp_path / "out", category="mine", image_dir=photos, count=60, val_count=5)
  sources = [{s.source for s in found[split]} for split in ("train", "val")]
  assert not sources[0] & sources[1] and "small.png" not in sources[0] | sources[1]
  assert len({s.id for s in found["train"]}) == 60
  for sample in found["train"][:8]:
    _, x, y = sample.id.rsplit("-", 2)
    whole = Image.open(photos / sample.source)
    if sample.source == "alpha.png":
      whole = Image.alpha_composite(Image.new("RGBA", whole.size, (255,) * 4), whole)
    crop = np.asarray(whole.convert("RGB"))[int(y):int(y) + 32, int(x):int(x) + 32]
    # Alpha is blended in other steps, one level apart.
    np.testing.assert_allclose(pixels(sample).astype(int), crop, atol=1)
  fewer = build(tmp_path / "fewer", category="mine", image_dir=photos, count=7, val_count=1)
  assert [s.id for s in fewer["train"]] == [s.id for s in found["train"][:7]]


def test_every_place_is_taken_once_and_those_of_large_pictures_are_not_listed():
  sizes = {"a": (34, 33), "b": (32, 36), "c": (32, 32)}
  room = {"a": 6, "b": 5, "c": 1}
  every = backgrounds._places(list(sizes), sizes, 12, 0, 32, "train")
  assert {n: len({(c.x, c.y) for c in every if c.file == n}) for n in sizes} == room
  assert every[:7] == backgrounds._places(list(sizes), sizes, 7, 0, 32, "train")
  # A list of these places would have 80 GB.
  large = {n: (10**5, 10**5) for n in "ab"}
  found = backgrounds._places(list(large), large, 400, 0, 32, "train")
  assert len(set(found)) == 400
  for axis in ("x", "y"):
    values = [getattr(c, axis) for c in found]
    assert max(values) > 9e4 and min(values) < 1e4 and abs(np.mean(values) - 5e4) < 5e3


def test_a_folder_with_too_little_is_named_before_anything_is_written(photos, tmp_path):
  out = tmp_path / "out"
  for options, message in ((dict(side=46), "0 pictures of at least 46 x 46"),
                           (dict(count=10**6), "places for crops of 32 pixels, expected 1000000"),
                           (dict(image_dir=tmp_path / "none"), "no such directory"),
                           (dict(category="faces", image_dir=None, detail=0.0), "detail is 0.0"),
                           (dict(category="mine", image_dir=None), "is none of faces, natural")):
    with pytest.raises(BuildError, match=message):
      build(out, **{"category": "mine", "image_dir": photos} | options)
  assert not list(out.glob("*.arrayrecord")) and not (out / records.MANIFEST).exists()


def test_training_takes_the_first_of_a_split_and_evaluation_its_middle(tmp_path):
  found = build(tmp_path, category="faces", count=6)
  config = loader.InputConfig(data=str(tmp_path), first=2, image_size=32, crop="plain",
                              captions=False, threads=1, eval_plain=True)
  assert loader.dataset_size(config) == 2 == len(contents.of_config(config))
  with loader_closed(loader.train_stream(config, batch_size=8, seed=0)) as stream:
    batch = next(stream)
  assert {x.tobytes() for x in batch["image"]} == {pixels(s).tobytes() for s in found["train"][:2]}
  smaller = loader.InputConfig(data=str(tmp_path), split="val", image_size=20, captions=False,
                               threads=1, eval_plain=True)
  with loader_closed(loader.eval_stream(smaller, batch_size=3, items="all")) as stream:
    shown = next(stream)["image"]
  np.testing.assert_array_equal(shown, [pixels(s)[6:26, 6:26] for s in found["val"]])
  with pytest.raises(ValueError, match="input.first is 9, but .* has 6 records"):
    loader.dataset_size(loader.InputConfig(data=str(tmp_path), first=9))


class loader_closed:
  def __init__(self, stream):
    self._stream = stream

  def __enter__(self):
    return self._stream

  def __exit__(self, *_):
    self._stream.close()


@pytest.fixture
def folders(tmp_path):
  """Six pairs as in Rain100L: the last number names them; rain of 60 levels on one column."""
  rng = np.random.default_rng(1)
  for i in range(6):
    clean = rng.integers(0, 150, (24, 30 + i, 3), np.uint8)
    rainy = clean.copy()
    rainy[:, i] += 60
    save(tmp_path / "clean" / f"norain-{i:03d}.png", clean)
    save(tmp_path / "rainy" / f"rain-{i}.png", rainy)
  return tmp_path / "clean", tmp_path / "rainy"


def test_pairs_are_cropped_and_mirrored_at_the_same_place(folders, tmp_path):
  out = str(tmp_path / "out")
  assert cli.main(["--from", "pairs", "--clean", str(folders[0]), "--rainy", str(folders[1]),
                   "--out", out, "--quiet", "--val-share", "0.3"]) == 0
  for split in ("train", "val"):
    assert len(records.open_dataset(out, split)) >= 1
  config = loader.InputConfig(data=out, image_size=16, crop="plain", captions=False, pairs=True,
                              flip=True, threads=1)
  with loader_closed(loader.train_stream(config, batch_size=64, seed=0)) as stream:
    batch = next(stream)
  extra = batch["degraded"].astype(int) - batch["image"]
  assert set(np.unique(extra)) == {0, 60} and batch["degraded"].shape == (64, 16, 16, 3)
  # Whole columns: never a crop from another place.
  assert set(np.unique((extra == 60).sum(axis=(1, 3)))) == {0, 48}
  columns = (extra == 60).any(axis=(1, 3)).argmax(axis=1)
  assert columns.min() < 4 and columns.max() > 11  # Mirrored ones are at the right.
  with loader_closed(loader.eval_stream(
      loader.InputConfig(data=out, split="val", image_size=24, captions=False, pairs=True,
                         threads=1), batch_size=4, items="all")) as stream:
    shown = next(stream)
  assert shown["degraded"].shape == shown["image"].shape
  assert (shown["degraded"][~shown["mask"]] == 127).all()


def test_records_without_a_pair_are_named(tmp_path):
  build(tmp_path, category="faces")
  config = loader.InputConfig(data=str(tmp_path), image_size=32, crop="plain", captions=False,
                              pairs=True, threads=1)
  with pytest.raises(loader.LoadError, match="no degraded picture, which input.pairs asks for"):
    next(loader.train_stream(config, batch_size=2, seed=0))


def test_folders_that_make_no_pairs_are_named_before_anything_is_written(folders, tmp_path, capsys):
  clean, rainy = folders
  out = tmp_path / "out"
  command = ["--from", "pairs", "--clean", str(clean), "--rainy", str(rainy), "--out", str(out)]
  save(rainy / "rain-5.png", np.zeros((24, 31, 3), np.uint8))
  assert cli.main(command) == 1
  assert "norain-005.png has 35 x 24 pixels and rain-5.png 31 x 24" in capsys.readouterr().err
  (rainy / "rain-5.png").unlink()
  assert cli.main(command) == 1
  assert "1 pictures have no counterpart there, the first is norain-005.png" in (
    capsys.readouterr().err)
  (rainy / "rain-5.png").write_bytes(b"no picture")
  assert cli.main(command) == 1 and "rain-5.png" in capsys.readouterr().err
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(BuildError, match="no pictures in this folder"):
    paired.build(out, empty, rainy)
  assert not out.exists()


def test_streaks_are_what_rain_added_and_fall_on_other_pictures(folders, tmp_path):
  out = tmp_path / "out"
  assert cli.main(["--from", "streaks", "--clean", str(folders[0]), "--rainy", str(folders[1]),
                   "--out", str(out)]) == 0
  layers = rain_layers.load(str(out / paired.LAYERS))
  # All have the middle 24 x 30 of pictures of 30 to 35 pixels.
  want = np.zeros((6, 24, 30), np.uint8)
  for i in range(6):
    want[i, :, i - i // 2] = 60
  np.testing.assert_array_equal(layers, want)
  degrade = degradations.make({"kind": "layers", "file": str(out / paired.LAYERS)})
  keys = jax.random.split(jax.random.key(0), 64)
  rainy, aux = degrade(keys, np.full((64, 16, 16, 3), 0.5, np.float32))
  layer = np.rint(np.asarray(aux["layer"]) * 255)
  assert set(np.unique(layer)) == {0, 60} and set(np.unique((layer == 60).sum(axis=1))) == {0, 16}
  np.testing.assert_allclose(rainy, 0.5 + aux["layer"][..., None] * np.ones(3), atol=1e-6)
  with pytest.raises(ValueError, match="pictures of 25 x 16 pixels, but layers of rain of 24 x 30"):
    degrade(keys, np.zeros((64, 25, 16, 3), np.float32))


def test_files_that_are_no_layers_are_named(tmp_path):
  with pytest.raises(ValueError, match="there is no such file"):
    degradations.make({"kind": "layers", "file": str(tmp_path / "none.npz")})
  for name, content in (("a", dict(rain=np.zeros((2, 3, 4), np.uint8))),
                        ("b", dict(layers=np.zeros((2, 3))))):
    np.savez(tmp_path / f"{name}.npz", **content)
    with pytest.raises(ValueError, match="uint8"):
      degradations.make({"kind": "layers", "file": str(tmp_path / f"{name}.npz")})
