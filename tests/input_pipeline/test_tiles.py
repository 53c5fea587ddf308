import numpy as np
import pytest

from input_pipeline import tiles


def _blocks(grid, tile, count, n=400):
  """Random boxes, from a point to the whole, and the blocks chosen for them."""
  rng = np.random.default_rng(grid * count)
  side = grid * tile
  for _ in range(n):
    size = side * rng.uniform(0, 1, 2) ** 3
    low = rng.uniform(0, side - size)
    box = np.float32([*low, *(low + size)])
    yield box, tiles.block_around(box, grid, tile, count, rng)


@pytest.mark.parametrize("grid, tile, count", [(27, 140, 64), (4, 32, 9), (5, 7, 1), (3, 10, 9)])
def test_a_block_covers_the_box_if_it_can_and_uses_nearly_all_tiles(grid, tile, count):
  for box, (top, bottom, left, right) in _blocks(grid, tile, count):
    assert 0 <= top < bottom <= grid and 0 <= left < right <= grid
    area = (bottom - top) * (right - left)
    # The model relies on it: at most a row of tiles is left unused.
    assert count - grid < area <= count
    # Pixels of the box by PS3's rule: floor(x0) to ceil(x1), both included.
    x0, y0 = np.floor(box[:2]).astype(int)
    x1, y1 = np.minimum(np.ceil(box[2:]).astype(int), grid * tile - 1)
    rows, columns = (y0 // tile, y1 // tile), (x0 // tile, x1 // tile)
    needs = (rows[1] - rows[0] + 1) * (columns[1] - columns[0] + 1)
    if needs <= count:
      assert top <= rows[0] and rows[1] < bottom and left <= columns[0] and columns[1] < right
    else:
      assert rows[0] <= top and bottom <= rows[1] + 1
      assert columns[0] <= left and right <= columns[1] + 1


def test_a_box_that_has_room_is_in_the_middle_of_its_block():
  box = np.float32([13.2 * 140, 9.1 * 140, 13.8 * 140, 9.9 * 140])
  block = tiles.block_around(box, 27, 140, 64, np.random.default_rng(0))
  assert block == (6, 14, 10, 18)


def test_every_part_of_a_box_that_does_not_fit_is_drawn_sometimes():
  box = np.float32([0, 0, 27 * 140, 27 * 140])
  rng = np.random.default_rng(0)
  blocks = [tiles.block_around(box, 27, 140, 64, rng) for _ in range(500)]
  assert {b[0] for b in blocks} == set(range(20)) == {b[2] for b in blocks}


def test_tiles_lie_at_their_places():
  image = np.random.default_rng(0).integers(0, 256, (30, 30, 3), dtype=np.uint8)
  block = (1, 3, 0, 3)
  out = np.full((8, 6, 6, 3), 9, np.uint8)
  tiles.cut(image[6:18, :18], 6, out)
  at = tiles.places(block, 5, 8)
  np.testing.assert_array_equal(at, [5, 6, 7, 10, 11, 12, -1, -1])
  for tile, place in zip(out, at):
    y, x = 6 * (place // 5), 6 * (place % 5)
    np.testing.assert_array_equal(tile, image[y:y + 6, x:x + 6] if place >= 0 else 0)
