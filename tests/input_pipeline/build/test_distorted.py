"""Distorted photographs: deterministic, worse with strength, one photograph on one side."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline import contents, records, splits
from input_pipeline.build import cli, distorted
from input_pipeline.build.captions import measures, prompts
from input_pipeline.loader import InputConfig

SIDE = 64


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  out = tmp_path_factory.mktemp("distorted")
  assert cli.main(["--from", "distorted", "--out", str(out), "--crops", "2", "--side", str(SIDE),
                   "--quiet"]) == 0
  return str(out)


@pytest.fixture(scope="module")
def samples(built):
  return list(records.open_dataset(built, "all"))


def pixels_of(sample):
  return np.asarray(Image.open(io.BytesIO(sample.image)))


def test_it_has_every_kind_and_strength_of_every_square(samples, built):
  assert len(samples) == len(distorted.PHOTOS) * 2 * 25 == len({s.id for s in samples})
  assert all(pixels_of(s).shape == (SIDE, SIDE, 3) for s in samples[::9])
  assert records.read_manifest(built)["info"]["all"]["rated"]["mos_range"] == [1, 5]


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads_and_counts(samples, tmp_path):
  distorted.build(tmp_path / "a", crops=1, side=SIDE, threads=1, progress=False)
  first = list(records.open_dataset(tmp_path / "a", "all"))
  for one, other in zip(first, samples):
    assert records.encode_sample(one) == records.encode_sample(other)


def test_scores_fall_by_a_fifth_with_each_strength_and_captions_say_so(samples):
  by_strength = {}
  for s in samples:
    by_strength.setdefault(int(s.id[-1]), []).append(s)
  for strength, some in by_strength.items():
    scores = np.array([s.rating.score for s in some])
    # 140 draws with a standard deviation of 0.02: five standard errors are below 0.009.
    assert abs(scores.mean() - (0.9 - 0.2 * strength)) < 0.009 and 0.015 < scores.std() < 0.025
    level = prompts.LEVELS[4 - strength]
    assert all(level in s.global_text for s in some)
    assert all(s.caption_sources == ["iqa", "iqa"] for s in some)
    assert {s.captions[1] for s in some} == {
      f"{level} image", f"a picture of {level} quality", f"an image of {level} quality"}
  mos = np.array([s.rating.mos for s in samples])
  np.testing.assert_allclose(mos, [1 + 4 * s.rating.score for s in samples], atol=1e-12)


def test_each_kind_makes_worse_what_it_is_to_make_worse(samples):
  """Over the squares, the mean measure is monotone in the strength."""
  measured = {}
  for s in samples:
    kind, strength = s.id.split("-")[-2:]
    measured.setdefault((kind, int(strength)), []).append(measures.measure(pixels_of(s)))

  def means(kind, name):
    return [np.mean([getattr(m, name) for m in measured[kind, k]]) for k in range(5)]

  assert (np.diff(means("blur", "sharpness")) < 0).all()
  assert (np.diff(means("noise", "noise")) > 0).all()
  assert (np.diff(means("jpeg", "blockiness")) > 0).all()
  assert (np.diff(means("fade", "contrast")) < 0).all()
  assert (np.diff(means("fade", "colourfulness")) < 0).all()
  far = [np.mean([abs(m.luma - 128) for m in measured["exposure", k]]) for k in range(5)]
  assert (np.diff(far) > 0).all()


def test_squares_of_one_photograph_are_on_one_side_of_every_split(built):
  entries = contents.of_config(InputConfig(data=built, split="all"))
  for number in range(1, 11):
    sides = splits.assign(entries, f"reference_{number}")
    photos = {}
    for entry, side in zip(entries, sides):
      photos.setdefault(entry.id.split("-")[2], set()).add(side)
    assert all(len(found) == 1 for found in photos.values())
    assert sum(found == {"test"} for found in photos.values()) == 3


@pytest.mark.parametrize("change, words", [
  ({"crops": 0}, "crops is 0"), ({"side": 16}, "side is 16"), ({"seed": -1}, "seed is -1")])
def test_impossible_arguments_are_refused(tmp_path, change, words):
  with pytest.raises(ValueError, match=words):
    distorted.build(tmp_path, progress=False, **change)
