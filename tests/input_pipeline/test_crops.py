"""Crops of a picture depend on it alone, lie within it, and are its own pixels."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline import crops, images, transforms


def picture(width, height, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind, count", [
  ("ten_random", 10), ("five_crop", 5), ("grid", 6), ("center", 1)])
def test_crops_are_squares_within_the_picture_and_untouched(kind, count):
  pixels = picture(300, 130)
  found = crops.boxes(kind, "a", 300, 130, 64)
  if kind == "grid":
    count = 5 * 3
  assert found.shape == (count, 4) and (found[:, 2:] == 64).all()
  assert (found[:, :2] >= 0).all() and (found[:, 0] <= 236).all() and (found[:, 1] <= 66).all()
  for box in found:
    x, y = box[:2]
    np.testing.assert_array_equal(crops.cut(pixels, box, 64), pixels[y : y + 64, x : x + 64])


def test_by_hand():
  assert crops.boxes("center", "a", 11, 8, 4).tolist() == [[3, 2, 4, 4]]
  assert crops.boxes("five_crop", "a", 11, 8, 4)[:, :2].tolist() == [
    [3, 2], [0, 0], [7, 0], [0, 4], [7, 4]]
  assert crops.boxes("grid", "a", 11, 8, 4)[:, :2].tolist() == [
    [0, 0], [3, 0], [7, 0], [0, 4], [3, 4], [7, 4]]
  assert crops.boxes("grid", "a", 4, 4, 4).tolist() == [[0, 0, 4, 4]]


def test_a_grid_leaves_no_pixel_out_and_has_no_crop_too_many():
  for width, height in ((100, 33), (64, 65), (129, 200)):
    seen = np.zeros((height, width), bool)
    found = crops.boxes("grid", "a", width, height, 32)
    for x, y, w, h in found:
      seen[y : y + h, x : x + w] = True
    assert seen.all() and len(found) == -(-width // 32) * -(-height // 32)


def test_random_places_are_of_the_name_and_all_over_the_picture():
  same = crops.boxes("ten_random", "koniq/1", 512, 384, 224)
  np.testing.assert_array_equal(same, crops.boxes("ten_random", "koniq/1", 512, 384, 224))
  assert (same != crops.boxes("ten_random", "koniq/2", 512, 384, 224)).any()
  # Fixed for ever: a score must be the same next year. SHA-256("koniq/1" + NUL + "0").
  import hashlib
  word = int.from_bytes(hashlib.sha256(b"koniq/1\x000").digest()[:8], "big")
  assert same[0, 0] == word * 289 >> 64
  many = np.concatenate([crops.boxes("ten_random", str(k), 40, 40, 32)[:, :2] for k in range(200)])
  counts = np.stack([np.bincount(axis, minlength=9) for axis in many.T])
  # 2,000 draws of 9 places: 222 each, and five standard deviations of it are 70.
  assert (abs(counts - 2000 / 9) < 70).all()


def test_a_picture_smaller_than_a_crop_is_enlarged_till_its_shorter_side_fits():
  pixels = picture(50, 20)
  found = crops.boxes("five_crop", "a", 50, 20, 64)
  assert (found[:, 2:] == 20).all() and found[2].tolist() == [30, 0, 20, 20]
  large = np.asarray(Image.fromarray(pixels).resize((160, 64), Image.Resampling.BICUBIC))
  # The same crop of the enlarged picture. Pillow rounds once on the way: one grey level.
  got = crops.cut(pixels, found[2], 64).astype(int)
  assert abs(got - large[:, 96:].astype(int)).max() <= 1


def test_an_unknown_kind_names_those_there_are():
  with pytest.raises(ValueError, match="ten_random, five_crop, grid, center"):
    crops.boxes("ten", "a", 50, 50, 32)


def test_a_region_of_whole_pixels_at_its_own_size_is_cut_out_by_every_method():
  pixels = picture(40, 30)
  for method in images.RESIZE_METHODS:
    got = images.resize_region(pixels, (3.0, 5.0, 23.0, 15.0), (10, 20), method)
    np.testing.assert_array_equal(got, pixels[5:15, 3:23])


def test_plain_training_crops_reach_every_place():
  rng = np.random.default_rng(0)
  found = {transforms.plain_crop(rng, 7, 5, 4) for _ in range(300)}
  assert found == {(x, y, 4, 4) for x in range(4) for y in range(2)}
  assert transforms.plain_crop(rng, 30, 9, 16)[2:] == (9, 9)
