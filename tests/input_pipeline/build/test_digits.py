"""Digits over photographs: deterministic, disjoint, evenly drawn, and to be seen."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline import records
from input_pipeline.build import cli, digits, sample_glyphs, sample_items, sample_photos


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  out = tmp_path_factory.mktemp("digits")
  assert cli.main(["--from", "digits", "--out", str(out), "--train-images", "60",
                   "--val-images", "30", "--quiet"]) == 0
  return out


@pytest.fixture(scope="module")
def splits(built):
  return {split: list(records.open_dataset(built, split)) for split in ("train", "val")}


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads_and_counts(splits, tmp_path):
  digits.build(tmp_path, train=5, val=4, threads=1, progress=False)
  for split in ("train", "val"):
    for one, other in zip(records.open_dataset(tmp_path, split), splits[split]):
      assert records.encode_sample(one) == records.encode_sample(other)


def test_train_and_val_share_neither_digit_instances_nor_photographs(splits):
  for seed in (0, 5):
    photos = digits.split_photos(seed)
    files = [{p.file for p in photos[s]} for s in ("train", "val")]
    assert not files[0] & files[1] and len(files[1]) == digits.VAL_PHOTOS
    assert len(files[0] | files[1]) == len(sample_photos.PHOTOS)
  shown = [{s.source for s in splits[name]} for name in ("train", "val")]
  assert not shown[0] & shown[1] and min(map(len, shown)) == 30
  assert digits.split_photos(0) != digits.split_photos(5)


def test_every_class_is_shown_and_named_as_its_digit_is(splits):
  labels = sample_glyphs.digits()[1]
  for sample in splits["train"]:
    number = int(sample.source.removeprefix("load_digits "))
    assert sample.label == sample_glyphs.DIGIT_NAMES[labels[number]]
  assert {s.label for s in splits["train"]} == set(sample_glyphs.DIGIT_NAMES)


def test_digits_are_large_and_near_the_middle_and_stand_out_from_what_is_behind(splits):
  boxes = np.concatenate([s.boxes for s in splits["train"]])
  heights = boxes[:, 3] - boxes[:, 1]
  assert 56 <= heights.min() < 62 and 78 < heights.max() <= 84
  assert boxes.min() >= 0 and boxes.max() <= 96
  middle = (boxes[:, :2] + boxes[:, 2:]) / 2 - 48
  assert 6 < np.abs(middle).max() < 9 and np.abs(middle.mean(0)).max() < 3
  for sample in splits["train"]:
    pixels = np.asarray(Image.open(io.BytesIO(sample.image)), np.float64)
    assert pixels.shape == (96, 96, 3)
    x0, y0, x1, y1 = sample.boxes[0].astype(int)
    inside = pixels[y0:y1, x0:x1].reshape(-1, 3)
    # The ink is the most frequent colour in the box: nothing in a photograph is so even.
    colours, counts = np.unique(inside, axis=0, return_counts=True)
    ink = colours[counts.argmax()]
    behind = inside[np.abs(inside - ink).max(1) > 40]
    assert len(behind) and sample_items.ratio(tuple(ink), tuple(behind.mean(0))) > 1.5


def test_a_picture_can_be_read_where_it_is_pasted():
  """The nearest handwritten digit to the ink's shape is, mostly, of the same class."""
  ink, labels = sample_glyphs.digits()
  pools = sample_glyphs.split_pools(0)
  photos = digits.split_photos(0)["train"]
  right = 0
  for k, digit in enumerate(pools["val"].digits[:40]):
    image, box = digits.draw(np.random.default_rng(k), digit, photos)
    inside = np.asarray(image.crop(box), np.float64)
    colours, counts = np.unique(inside.reshape(-1, 3), axis=0, return_counts=True)
    shape = np.abs(inside - colours[counts.argmax()]).max(-1) < 30
    small = np.asarray(Image.fromarray(255 * shape.astype(np.uint8)).resize((8, 8))) / 255
    train = ink[list(pools["train"].digits)]
    cut = np.stack([_to_box(x) for x in train[:400]])
    near = np.argmin(((cut - small) ** 2).sum((1, 2)))
    right += labels[pools["train"].digits[near]] == labels[digit]
  assert right > 20


def _to_box(x):
  ys, xs = np.nonzero(x > 0.3)
  part = x[ys.min():ys.max() + 1, xs.min():xs.max() + 1]
  return np.asarray(Image.fromarray(part.astype(np.float32)).resize((8, 8)))


def test_the_manifest_names_the_sources_and_the_next_command(built, capsys):
  info = records.read_manifest(built)["info"]
  assert len(info["sources"]) == len(sample_photos.PHOTOS) + 1
  assert cli.main(["--from", "digits", "--out", str(built), "--train-images", "60",
                   "--val-images", "30", "--quiet"]) == 0
  assert f"configs/mim/focusmim.py:data={built}" in capsys.readouterr().out
  assert cli.main(["--from", "digits", "--out", str(built), "--limit", "3"]) == 1


def test_impossible_arguments_are_refused(tmp_path):
  with pytest.raises(ValueError, match="val is 0 for the digits"):
    digits.build(tmp_path, val=0, progress=False)
