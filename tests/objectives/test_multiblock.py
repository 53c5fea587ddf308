"""Target blocks and context of I-JEPA: constant sizes, block shapes, no token on both sides."""

import jax
import numpy as np
import pytest

from big_vision_ext.objectives import masks, multiblock

GRIDS = {"square": ((16, 16), 64, 45), "flat": ((12, 20), 40, 30), "tight": ((8, 8), 16, 12)}


def draw(name, n=64, seed=0):
  grid, k, m = GRIDS[name]
  keys = masks.sample_keys(jax.random.key(seed), n)
  return grid, jax.device_get(jax.jit(
    lambda keys: multiblock.make(keys, grid, k, 4, m))(keys))


@pytest.mark.parametrize("name", GRIDS)
def test_no_target_is_seen_and_all_lists_are_of_constant_length(name):
  grid, drawn = draw(name)
  _, k, m = GRIDS[name]
  assert drawn.context.shape == (64, k) and drawn.target.shape == (64, 4, m)
  total = grid[0] * grid[1]
  for context, target in zip(*drawn):
    assert len(set(context)) == k and not set(context) & set(target.ravel())
    assert all(len(set(block)) == m for block in target)
    assert context.min() >= 0 and max(context.max(), target.max()) < total
    assert np.all(np.diff(context) > 0) and np.all(np.diff(target, axis=1) > 0)


@pytest.mark.parametrize("name", GRIDS)
def test_targets_are_rectangles_but_for_their_rim(name):
  (rows, cols), drawn = draw(name)
  m = GRIDS[name][2]
  aspects, tops = [], set()
  for block in drawn.target.reshape(-1, m):
    y, x = np.divmod(block, cols)
    height, width = np.ptp(y) + 1, np.ptp(x) + 1
    # A rim of a token at most is left out of its bounding box, or sticks out of it.
    assert m <= height * width <= m + height + width + 1
    aspects.append(height / width)
    tops.add(int(y.min()))
  # Drawn in 0.75 to 1.5, then rounded to whole tokens.
  assert 0.5 < min(aspects) < 0.9 and 1.2 < max(aspects) < 2.1
  assert {0} < tops


def test_the_context_is_inside_of_its_block_where_that_has_enough():
  """With small targets seen tokens lie in 85 to 100 % of the grid: a rim is often unseen."""
  keys = masks.sample_keys(jax.random.key(1), 200)
  grid = (16, 16)
  drawn = jax.device_get(jax.jit(lambda keys: multiblock.make(keys, grid, 150, 1, 20))(keys))
  rim_free = 0
  for context in drawn.context:
    y, x = np.divmod(context, 16)
    rim_free += (np.ptp(y) < 15) + (np.ptp(x) < 15)
  # Of tokens drawn from all of the grid no row would stay free.
  assert rim_free > 40


def test_a_sample_s_blocks_depend_on_its_key_alone():
  grid, k, m = GRIDS["square"]
  keys = masks.sample_keys(jax.random.key(0), 8)
  whole = multiblock.make(keys, grid, k, 4, m)
  part = multiblock.make(keys[5:6], grid, k, 4, m)
  np.testing.assert_array_equal(whole.context[5], part.context[0])
  np.testing.assert_array_equal(whole.target[5], part.target[0])
  assert not np.array_equal(whole.target[0], whole.target[1])
  assert not np.array_equal(whole.target[0, 0], whole.target[0, 1])


@pytest.mark.parametrize("grid, k, g, m", [
  ((16, 16), 80, 4, 45), ((16, 16), 0, 4, 45), ((4, 40), 10, 2, 20), ((40, 4), 10, 2, 20)])
def test_sizes_that_leave_no_context_or_do_not_fit_are_refused(grid, k, g, m):
  with pytest.raises(ValueError, match=f"num_context={k}, num_blocks={g}, block_size={m}"):
    multiblock.check(grid, k, g, m)
