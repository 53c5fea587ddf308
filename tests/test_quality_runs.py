"""From towers to ratings: features once, runs on them and on images, tables that go on."""

import copy
import csv
import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import (
  cache_features,
  clip_model,
  encode,
  evaluate,
  export,
  jobs,
  rating,
  rating_run,
  train,
  weights,
)
from big_vision_ext.objectives import levels
from input_pipeline import crop_features, loader
from tests import tiny_run, toy_ratings

CONFIG = "configs/uniqa/adapter.py"
BROKEN = {3, 17}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return toy_ratings.write(tmp_path_factory.mktemp("rated"), broken=BROKEN)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  return str(tiny_run.save(tmp_path_factory.mktemp("clip"), name="clip"))


@pytest.fixture(scope="module")
def features(tmp_path_factory, data, clip):
  out = tmp_path_factory.mktemp("features") / "f"
  assert cache(clip, data, out) == 1  # Done, but for two pictures.
  return str(out)


def cache(clip, data, out, *more):
  return cache_features.main([
      "--weights", clip, "--data", data, "--out", str(out), "--crops", "3", "--batch", "16",
      "--shard", "16", *more])


def run_config(data, features, **changes):
  return loader.InputConfig(**{
      "data": data, "split": "all", "image_size": 32, "captions": False, "crop": "plain",
      "flip": True, "scores": True, "features": features, "eval_crops": "ten_random",
      "threads": 1, "max_skip_share": 0.2, **changes})


def test_features_are_those_of_the_crops_that_evaluation_shows(data, clip, features):
  config = run_config(data, features)
  kept = {}
  for batch in loader.eval_stream(config, batch_size=7, items="rated"):
    for k in np.flatnonzero(batch["mask"]):
      kept.setdefault(int(batch["image_index"][k]), []).append(batch["feature"][k])
  towers = clip_model.ClipTowers(clip, batch_size=16)
  stream = loader.eval_stream(
      dataclasses.replace(config, features=""), batch_size=16, items="rated")
  found = {}
  for batch in stream:
    z = towers.image_features(batch["image"])
    for k in np.flatnonzero(batch["mask"]):
      found.setdefault(int(batch["image_index"][k]), []).append(z[k])
  assert sorted(found) == sorted(kept) == [i for i in range(40) if i not in BROKEN]
  for i in found:
    # The same float32 program on batches of other crops.
    np.testing.assert_allclose(kept[i], found[i], rtol=1e-4, atol=1e-5)


def test_what_a_run_reads_of_a_picture_is_one_of_its_own_crops(data, features):
  stored = crop_features.open_folder(features)
  stream = loader.train_stream(run_config(data, features), batch_size=8, seed=0)
  rows = np.concatenate([next(stream)["feature"] for _ in range(10)])
  assert stream.skipped.keys() <= {"no-feature"} and stream.skipped["no-feature"] > 0
  every = {i: stored._rows(f"p{i:03d}.png", "")[:3] for i in range(40) if i not in BROKEN}
  flat = np.concatenate(list(every.values()))
  which = [int(np.flatnonzero((flat == row).all(1))[0]) for row in rows]
  assert len(set(which)) > 40  # Of 114: several of each picture.
  stream.close()


def test_crops_depend_on_neither_the_part_nor_the_shards(tmp_path, data, clip, features):
  other = tmp_path / "f"
  assert cache(clip, data, other, "--batch", "5", "--shard", "7") == 1
  a, b = crop_features.open_folder(features), crop_features.open_folder(str(other))
  for name in ("p000.png", "p016.png", "p039.png"):
    np.testing.assert_allclose(a._rows(name, ""), b._rows(name, ""), rtol=1e-4, atol=1e-5)


def test_what_is_whole_is_kept_and_what_is_not_is_made_again(tmp_path, data, clip, features,
                                                             capsys):
  out = tmp_path / "f"
  cache(clip, data, out)
  shards = sorted(out.glob("shard-*.npy"))
  before = {p: p.read_bytes() for p in shards}
  damaged = bytearray(before[shards[1]])
  damaged[-5] ^= 1
  shards[1].write_bytes(damaged)
  shards[2].unlink()
  (out / crop_features.MANIFEST).unlink()
  kept = shards[0].stat().st_mtime_ns
  assert cache(clip, data, out) == 1
  assert {p: p.read_bytes() for p in shards} == before
  assert shards[0].stat().st_mtime_ns == kept
  for more, message in ((["--crops", "4"], "crops=3 .asked for: 4"), (["--seed", "1"], "seed=0")):
    assert cache(clip, data, out, *more) == 2
    assert re.search(message, capsys.readouterr().err)
  with pytest.raises(loader.InputError, match="no features.json, which is written last"):
    crop_features.read_manifest(tmp_path)


@pytest.mark.parametrize("change, message", [
    ({"flip": False}, "flip=True, and input.flip is False"),
    ({"image_size": 48}, "image_size=32"),
    ({"eval_crops": "five_crop"}, "eval_crops='ten_random'"),
    ({"captions": True, "crop": "resized"}, "input.captions=False"),
])
def test_features_of_something_else_are_refused(data, features, change, message):
  with pytest.raises(loader.InputError, match=message):
    loader.train_stream(run_config(data, features, **change), batch_size=2, seed=0)


def test_features_of_other_data_are_refused(tmp_path, features):
  other = toy_ratings.write(tmp_path, count=12)
  with pytest.raises(loader.InputError, match="another dataset.json"):
    loader.train_stream(run_config(other, features), batch_size=2, seed=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory, data, features):
  """A short run on features, with few labels."""
  workdir = tmp_path_factory.mktemp("runs") / "few"
  assert train.main([
      "--config", f"{CONFIG}:dataset=other,data={data},features={features},labels=16,epochs=6",
      "--workdir", str(workdir), "--config.input.max_skip_share=0.3",
      *(f"--config.evals.{name}.bootstrap=20" for name in ("test", "zero_shot", "linear"))]) == 0
  return workdir


def test_a_run_on_features_is_small_and_measures_itself(run, data):
  results = json.loads((run / "evaluation.json").read_text())
  assert results["step"] == 12
  for name in ("test", "zero_shot", "linear"):
    assert {f"{name}/{k}" for k in ("srcc", "krcc", "plcc", "plcc_fit", "rmse", "srcc_low")} <= (
        results.keys())
  # Two of eight references; three of the broken pictures' places may be among them.
  assert 8 <= results["test/images"] <= 10 and results["linear/labels"] <= 16
  loaded = weights.load(run)
  assert set(loaded.params) == {"adapter", "texts", "t"}
  assert loaded.model["towers"]["path"] and loaded.model["width"] == 20


def test_evaluate_finds_again_what_training_measured(run, capsys):
  before = json.loads((run / "evaluation.json").read_text())
  assert evaluate.main(["--workdir", str(run), "--out", str(run / "again.json")]) == 0
  after = json.loads((run / "again.json").read_text())
  assert after.keys() == before.keys()
  assert after["test/srcc"] == pytest.approx(before["test/srcc"])


def test_the_best_on_the_test_pictures_stands_beside_the_last_and_is_called_so(run, capsys):
  assert evaluate.main(["--workdir", str(run), "--compare", str(run), "--summary"]) == 0
  out = capsys.readouterr().out
  assert re.search(r"test/srcc +\S+ +\S+ +\S+", out) and "best_on_test/test/srcc" in out
  lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  values = [line["test/srcc"] for line in lines if line.get("test/srcc") is not None]
  assert len(values) > 5
  best = re.search(r"best_on_test/test/srcc +(\S+)", out)[1]
  assert float(best) == pytest.approx(max(values), abs=1e-4)


@pytest.mark.slow
def test_a_run_on_images_gives_the_same_kind_of_result(tmp_path, data, clip, photos):
  workdir = tmp_path / "run"
  assert train.main([
      "--config", f"{CONFIG}:runlocal,dataset=other,data={data}", "--workdir", str(workdir),
      f"--config.model.clip={tiny_run.CLIP!r}", f"--config.init.path={clip}",
      "--config.init.allow_missing=('adapter/.*','texts')",
      "--config.input.max_skip_share=0.3"]) == 0
  results = json.loads((workdir / "evaluation.json").read_text())
  assert {"test/srcc", "test/plcc_fit", "test/rmse"} <= results.keys()
  params = weights.load(workdir).params
  towers = weights.load(clip).params
  np.testing.assert_array_equal(params["img"]["head"]["kernel"], towers["img"]["head"]["kernel"])
  want = clip_model.ClipTowers(clip).prompts([levels.READOUTS["uniqa"]])[0]
  np.testing.assert_allclose(params["texts"], want, rtol=1e-4, atol=1e-5)
  # Whole as it is: towers and adapter are in it.
  assert rate(photos, tmp_path, "--workdir", str(workdir)) == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
  """Three pictures, two of too few pixels, one that is cut off, and a file that is none."""
  folder = tmp_path_factory.mktemp("photos")
  (folder / "more").mkdir()
  for number, name in enumerate(("b.png", "a.png", "more/c.jpg")):
    Image.fromarray(toy_ratings.pixels(number, 60, 80)).save(folder / name, quality=95)
  Image.fromarray(toy_ratings.pixels(0, 20, 300)).save(folder / "line.png")
  Image.fromarray(toy_ratings.pixels(0, 90, 31)).save(folder / "tall.png")
  (folder / "broken.jpg").write_bytes((folder / "more/c.jpg").read_bytes()[:300])
  (folder / "notes.txt").write_text("not a picture")
  return folder


def rate(photos, folder, *more, out="ratings.csv"):
  return encode.main(["--task", "quality", "--image", str(photos), "--out", str(folder / out),
                      *more])


def rows(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


def test_a_folder_is_rated_by_words_alone(tmp_path, clip, photos, capsys):
  assert rate(photos, tmp_path, "--weights", clip) == 1
  said = capsys.readouterr()
  for named in ("broken.jpg", "line.png: the picture has 300 x 20 pixels", "tall.png",
                "left out: 1"):
    assert named in said.err
  assert "3 pictures rated" in said.out and "3 left out" in said.out
  found = rows(tmp_path / "ratings.csv")
  assert [r["file"] for r in found] == ["a.png", "b.png", "more/c.jpg"]
  for row in found:
    shares = [float(row[f"p_{word}"]) for word in levels.LEVELS]
    assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert 0.2 <= float(row["quality"]) <= 1 and 0.2 <= float(row["aesthetic"]) <= 1
    assert (row["width"], row["height"]) == ("80", "60")
  picture = np.asarray(Image.open(tmp_path / "ratings.png"))
  assert picture.shape[0] > 200 and picture.shape[1] >= 620


@pytest.fixture(scope="module")
def rater(clip):
  return rating.Rater(clip, prompts="uniqa", crops="five_crop", batch_size=2)


def test_a_rating_is_the_mean_over_crops_whatever_the_batch(rater, clip, photos):
  names = ("a.png", "b.png", "more/c.jpg")
  crops = [rater.cut(rater.open(photos / name), name) for name in names]
  assert crops[0].shape == (5, 32, 32, 3)
  towers = clip_model.ClipTowers(clip, batch_size=10)
  texts, score = towers.prompts([levels.READOUTS["uniqa"]])[0], jax.jit(levels.score)
  for found, cut in zip(rater.rate(crops), crops, strict=True):
    want = score(towers.image_features(cut), texts, towers.log_scale,
                 np.float32(levels.UNIQA_VALUES))
    # float32 through a tower, in batches of other neighbours.
    assert found.quality == pytest.approx(float(want["score"].mean()), abs=1e-5)
    np.testing.assert_allclose(found.levels, want["probs"].mean(0), atol=1e-5)


def test_large_pictures_are_reduced_and_small_ones_enlarged_as_asked(rater):
  image = toy_ratings.pixels(0, 90, 130)
  assert rater.cut(image, "x").shape == (5, 32, 32, 3)
  whole = rating.Rater.cut(_like(rater, "whole", 0), image, "x")
  square = Image.fromarray(image).resize((46, 32), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(whole[0], np.asarray(square)[:, 7:39])
  reduced = rating.Rater.cut(_like(rater, "center", 45), image, "x")
  square = np.asarray(Image.fromarray(image).resize((65, 45), Image.Resampling.BICUBIC))
  np.testing.assert_array_equal(reduced[0], square[6:38, 16:48])
  assert rater.cut(toy_ratings.pixels(0, 32, 40), "x").shape == (5, 32, 32, 3)


def _like(rater, crops, short_side):
  """The rater's way to cut, with other settings."""
  other = copy.copy(rater)
  other._crops, other._short_side = crops, short_side
  return other


def test_a_table_is_gone_on_with(tmp_path, rater, photos, capsys):
  todo, _ = jobs.of_files([str(photos)])
  path = tmp_path / "ratings.csv"

  def again(rater, **how):
    table = rating_run.Table(path, rater, **how)
    return rating_run.Run(rater, table, threads=2, pictures=False)(todo)

  assert again(rater) == 1
  whole = path.read_text()
  # Killed while it wrote its third row.
  path.write_text(whole[:whole.rindex("more/c.jpg") + 15])
  capsys.readouterr()
  assert again(rater) == 1
  assert "1 pictures rated" in (said := capsys.readouterr().out) and "2 were there" in said
  assert path.read_text() == whole and not path.with_suffix(".png").exists()
  other = copy.copy(rater)
  other.settings = rater.settings | {"crops": "whole"}
  with pytest.raises(rating_run.RatingsError, match="crops='five_crop'; now .*crops='whole'"):
    again(other)
  assert again(other, overwrite=True) == 1
  assert json.loads(path.with_suffix(".json").read_text())["crops"] == "whole"


def test_an_adapter_rates_by_its_run_and_by_its_exported_file_alike(tmp_path, run, clip, photos):
  assert export.main(["--workdir", str(run), "--format", "uniqa", "--out",
                      str(tmp_path / "e")]) == 0
  of_run = rating.Rater(run, crops="center")
  of_file = rating.Rater(clip, adapter=tmp_path / "e", crops="center")
  image = of_run.open(photos / "a.png")
  a, b = of_run(image), of_file(image)
  # Texts were embedded in batches of other sizes.
  assert (a.quality, a.aesthetic) == pytest.approx((b.quality, b.aesthetic), abs=1e-5)
  other = tiny_run.save(tmp_path / "other", seed=5, name="clip")
  with pytest.raises(ValueError, match="are not the weights that"):
    rating.Rater(run, towers=other)
  with pytest.raises(ValueError, match="was trained with prompts of its own"):
    rating.Rater(run, prompts="uniqa")


@pytest.mark.parametrize("options, message", [
    (["--prompts", "unica"], "none of uniqa, "),
    (["--looks", "2"], "--looks=2: means nothing with --task quality"),
    (["--prompt", "a cat"], "--prompt="),
    (["--short-side", "-1"], "--short-side=-1"),
])
def test_options_that_mean_nothing_are_refused(
    tmp_path, clip, photos, capsys, options, message):
  assert rate(photos, tmp_path, "--weights", clip, *options) == 2
  assert message in capsys.readouterr().err


def test_other_models_and_names_are_refused(tmp_path, clip, photos, capsys):
  assert rate(photos, tmp_path, "--weights", clip, out="ratings.txt") == 2
  assert "expected the name of a table, like ratings.csv" in capsys.readouterr().err
  other = tiny_run.save(tmp_path / "mae", name="mae")
  with pytest.raises(ValueError, match="without CLIP's towers"):
    rating.Rater(other)
  assert encode.main(["--workdir", clip, "--image", str(photos), "--out", str(tmp_path / "x"),
                      "--crops", "grid"]) == 2
  assert "--crops=grid: is of --task quality" in capsys.readouterr().err
