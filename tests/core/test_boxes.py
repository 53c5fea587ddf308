"""Box geometry in closed form against painted masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import boxes
from tests.models import ps3_reference

SIZES = [((40, 40), (10, 10)), ((37, 53), (8, 12)), ((24, 24), (9, 7)), ((16, 48), (16, 48))]


def some_boxes(hw, n=200, seed=0):
  """Random boxes, and those at the border: whole image, one pixel, integer edges, half outside."""
  rng = np.random.default_rng(seed)
  h, w = hw
  x, y = np.sort(rng.uniform(0, w, (n, 2))), np.sort(rng.uniform(0, h, (n, 2)))
  random = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
  edge = [[0, 0, w, h], [3, 4, 3, 4], [4, 4, 8, 8], [w - 1, h - 1, w, h], [-5, -5, 2, 2],
          [w - 2.5, h - 2.5, w + 9, h + 9]]  # fmt: skip
  return np.concatenate([random, np.round(random), edge]).astype(np.float32)


@pytest.mark.parametrize("hw, grid", SIZES)
def test_hit_map_is_the_pooled_painted_mask_above_zero(hw, grid):
  box = some_boxes(hw)
  painted = ps3_reference.pool(ps3_reference.paint(box, hw), grid, np.mean) > 0
  ours = boxes.hit_map(jnp.asarray(box), hw, grid)
  np.testing.assert_array_equal(ours, painted)
  index = np.random.default_rng(1).integers(0, grid[0] * grid[1], (len(box), 5))
  expected = np.take_along_axis(painted.reshape(len(box), -1), index, 1)
  np.testing.assert_array_equal(boxes.hits_at(jnp.asarray(box), hw, grid, index), expected)


def test_dilated_maps_repeat_the_cells_of_the_first_grid():
  hw, grids = (48, 40), [(8, 6), (16, 12), (40, 30)]
  box = some_boxes(hw)
  first = ps3_reference.pool(ps3_reference.paint(box, hw), grids[0], np.mean)
  for ours, grid in zip(boxes.dilated_hit_maps(jnp.asarray(box), hw, grids), grids):
    np.testing.assert_array_equal(ours, ps3_reference.nearest(first, grid) > 0)
    assert np.all(ours | ~boxes.hit_map(jnp.asarray(box), hw, grid) | (grid != grids[0]))


@pytest.mark.parametrize("hw, grid", SIZES)
def test_union_paints_the_real_boxes_only(hw, grid):
  box = some_boxes(hw)[:200].reshape(40, 5, 4)
  num = np.arange(40) % 6
  mask = np.stack([ps3_reference.paint(b[:n], hw).sum(0) for b, n in zip(box, num)])
  expected = ps3_reference.pool(mask, grid, np.mean) > 0
  ours = jax.jit(boxes.union_hit_map, static_argnums=(2, 3))(box, num, hw, grid)
  np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("bad", [[8, 2, 3, 9], [2, 9, 8, 3], [np.nan, 2, 8, 9], [50, 2, 60, 9]])
def test_boxes_without_pixels_hit_nothing(bad):
  assert not np.any(boxes.hit_map(jnp.asarray([bad], jnp.float32), (20, 20), (5, 5)))


def test_nearest_index_covers_the_source_in_order():
  for n_in, n_out in [(27, 54), (27, 108), (27, 270), (8, 3), (27, 34), (54, 34), (1, 7), (7, 1)]:
    index = boxes.nearest_index(n_in, n_out)
    assert np.all(np.diff(index) >= 0) and index[0] == 0 and index[-1] < n_in
    exact = np.arange(n_out) * n_in // n_out
    # float32 rounding may differ only where the position is an exact integer.
    assert np.all((index == exact) | (np.arange(n_out) * n_in % n_out == 0))
