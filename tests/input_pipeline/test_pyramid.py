import msgpack
import numpy as np
import pytest

from input_pipeline import images, pyramid


def _smooth(height, width, seed=0):
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width] / 30
  waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(-1, 1, (3, 3))]
  return np.round(127 + 100 * np.stack(waves, -1)).astype(np.uint8)


@pytest.fixture(scope="module")
def stored():
  """107 x 181 pixels in tiles of 32: no side is a multiple of a tile or of a level's factor."""
  pixels = _smooth(107, 181)
  return pixels, pyramid.make(pixels, full_colour=True, tile=32)


def test_levels_halve_until_one_tile_holds_the_image(stored):
  _, made = stored
  sizes = [made.size(k) for k in range(len(made.levels))]
  assert sizes == [(181, 107), (91, 54), (46, 27), (23, 14)]
  assert [len(tiles) for tiles in made.levels] == [6 * 4, 3 * 2, 2, 1]


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_a_pixel_of_a_level_is_the_mean_of_those_it_stands_for(stored, level):
  pixels, made = stored
  width, height = made.size(level)
  f = 2**level
  got = pyramid.read(made, level, (0, 0, width, height), "x").astype(float)
  for y, x in [(0, 0), (3, 5), (height - 1, 2), (4, width - 1), (height - 1, width - 1)]:
    # Beyond the border the last row and column are repeated.
    rows = np.minimum(np.arange(y * f, y * f + f), 106)
    columns = np.minimum(np.arange(x * f, x * f + f), 180)
    want = pixels[np.ix_(rows, columns)].astype(float).mean((0, 1))
    # JPEG at quality 95 leaves a smooth image within a few grey levels.
    np.testing.assert_allclose(got[y, x], want, atol=5)


def test_a_window_has_the_pixels_of_the_whole_level(stored):
  _, made = stored
  rng = np.random.default_rng(0)
  for level in range(3):
    width, height = made.size(level)
    whole = pyramid.read(made, level, (0, 0, width, height), "x")
    for _ in range(20):
      x0, y0 = int(rng.integers(width)), int(rng.integers(height))
      x1, y1 = int(rng.integers(x0, width)) + 1, int(rng.integers(y0, height)) + 1
      got = pyramid.read(made, level, (x0, y0, x1, y1), "x")
      np.testing.assert_array_equal(got, whole[y0:y1, x0:x1])


def test_only_the_tiles_that_a_window_touches_are_decoded(stored):
  _, made = stored
  touched = []

  def spy(key, decode):
    touched.append(key)
    return decode()

  pyramid.read(made, 0, (32, 31, 65, 64), "x", spy)
  # Columns 1 and 2, rows 0 and 1, of six columns.
  assert touched == [(0, 1), (0, 2), (0, 7), (0, 8)]


@pytest.mark.parametrize("shrink, level", [(0.3, 0), (1.99, 0), (2, 1), (3.99, 1), (4, 2), (99, 3)])
def test_the_level_for_a_size_never_has_to_be_enlarged(stored, shrink, level):
  assert stored[1].level_for(shrink) == level


def test_halved_colours_blur_colours_and_full_ones_do_not():
  pixels = np.zeros((64, 64, 3), np.uint8)
  pixels[:, ::2, 0], pixels[:, 1::2, 2] = 255, 255
  off = {}
  for full in (True, False):
    made = pyramid.make(pixels, full_colour=full, tile=32)
    got = pyramid.read(made, 0, (0, 0, 64, 64), "x")
    off[full] = np.abs(got.astype(int) - pixels).mean()
  assert off[True] < 10 < 40 < off[False]


def test_a_pyramid_survives_its_fields_unchanged_and_is_the_same_every_time(stored):
  pixels, made = stored
  packed = msgpack.packb(pyramid.to_fields(made))
  assert pyramid.from_fields(msgpack.unpackb(packed), 181, 107) == made
  assert pyramid.make(pixels, full_colour=True, tile=32) == made


@pytest.mark.parametrize("changes, says", [
  ({"tile": 0}, "side of 0"),
  ({"tile": True}, "side of True"),
  ({"levels": []}, "at least one"),
  ({"levels": [[b"x"]]}, "level 0 has 1 tiles, expected 24 of 32 pixels for 181 x 107"),
  ({"levels": [[b""] * 24]}, "level 0 is no list of encoded tiles"),
  ({"levels": [b"x"]}, "level 0 is no list of encoded tiles"),
])
def test_fields_that_describe_no_pyramid_say_why(stored, changes, says):
  with pytest.raises(pyramid.PyramidError, match=says):
    pyramid.from_fields(pyramid.to_fields(stored[1]) | changes, 181, 107)


def test_a_damaged_tile_is_named(stored):
  _, made = stored
  for bad, says in ((made.levels[0][3][:60], "is damaged"), (made.levels[0][5], "has 21 x 32 pix")):
    tiles = [list(level) for level in made.levels]
    tiles[0][7] = bad
    broken = pyramid.Pyramid(181, 107, 32, tiles)
    with pytest.raises(images.ImageError, match=f"record 4: tile 7 of level 0 {says}"):
      pyramid.read(broken, 0, (0, 0, 181, 107), "record 4")
    pyramid.read(broken, 0, (0, 0, 32, 32), "record 4")
