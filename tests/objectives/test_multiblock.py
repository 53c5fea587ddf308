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


def depth_by_definition(key, grid, area, aspect):
  """How deep tokens lie in a rectangle, in float64; only the four draws are shared."""
  keys = jax.random.split(key, 4)
  draws = [float(jax.random.uniform(k)) for k in keys[:3]]
  ratio = aspect[0] + draws[0] * (aspect[1] - aspect[0])
  height = min((area * ratio) ** 0.5, grid[0])
  width = min(area / height, grid[1])
  # At either end with the chance of a whole place.
  top, left = (min(max(u * (n - side + 1) - 0.5, 0), n - side)
               for u, n, side in zip(draws[1:], grid, (height, width)))
  depth = np.array([[min(y + 0.5 - top, top + height - y - 0.5, x + 0.5 - left,
                         left + width - x - 0.5) for x in range(grid[1])] for y in range(grid[0])])
  noise = np.float64(jax.random.uniform(keys[3], (grid[0] * grid[1],)))
  return depth.reshape(-1) + 1e-4 * noise


@pytest.mark.parametrize("name, seed", [("square", 0), ("flat", 2)])
def test_blocks_are_those_of_the_definition_in_float64(name, seed):
  """Rectangle by rectangle and token by token; sizes and places drawn as the module says."""
  grid, k, m = GRIDS[name]
  keys = masks.sample_keys(jax.random.key(seed), 3)
  got = jax.device_get(jax.jit(lambda keys: multiblock.make(keys, grid, k, 4, m))(keys))
  total = grid[0] * grid[1]
  for key, context, target in zip(keys, *got):
    of_targets, of_context, of_rest = jax.random.split(key, 3)
    for block, its in zip(target, jax.random.split(of_targets, 4)):
      depth = depth_by_definition(its, grid, m, (0.75, 1.5))
      cut = np.sort(depth)[-m]
      # What differs by less than float32's rounding may fall on either side.
      assert set(np.flatnonzero(depth > cut + 1e-5)) <= set(block)
      assert set(block) <= set(np.flatnonzero(depth > cut - 1e-5))
    k_scale, k_place = jax.random.split(of_context)
    scale = 0.85 + 0.15 * float(jax.random.uniform(k_scale))
    inside = depth_by_definition(k_place, grid, scale * total, (grid[0] / grid[1],) * 2)
    free = np.setdiff1d(np.arange(total), target)
    order = np.float64(jax.random.uniform(of_rest, (total,)))
    best = sorted(free, key=lambda i: (inside[i] <= 0, -order[i]))[:k]
    if np.abs(inside).min() > 1e-5:
      np.testing.assert_array_equal(context, np.sort(best))


def test_blocks_lie_where_the_published_sampler_puts_them():
  """Its rectangles have whole sides, 15 to 20 % of the grid, and whole places, here drawn in NumPy:
  how often a token is in a target, and seen, is nearly the same for each token."""
  grid, k, m = GRIDS["square"]
  rng = np.random.default_rng(0)
  n = 800
  covered, seen = np.zeros(grid), np.zeros(grid)
  for _ in range(n):
    hidden = np.zeros(grid, bool)
    for _ in range(4):
      area, ratio = 256 * rng.uniform(0.15, 0.2), rng.uniform(0.75, 1.5)
      h, w = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
      y, x = rng.integers(17 - h), rng.integers(17 - w)
      covered[y:y + h, x:x + w] += 1 / (4 * n)
      hidden[y:y + h, x:x + w] = True
    side = round((256 * rng.uniform(0.85, 1.0)) ** 0.5)
    y, x = rng.integers(17 - side, size=2)
    inside = np.zeros(grid, bool)
    inside[y:y + side, x:x + side] = True
    left = inside & ~hidden
    # Of what is left, as many as ours sees, drawn at random.
    seen += left * min(1.0, k / max(left.sum(), 1)) / n
  drawn = jax.device_get(jax.jit(lambda keys: multiblock.make(keys, grid, k, 4, m))(
    masks.sample_keys(jax.random.key(5), n)))
  ours_covered = np.bincount(drawn.target.ravel(), minlength=256).reshape(grid) / (4 * n)
  ours_seen = np.bincount(drawn.context.ravel(), minlength=256).reshape(grid) / n
  # A mean of 3,200 draws is off by 0.009 at most, one time in a thousand; sizes are constant here.
  assert np.abs(ours_covered - covered).max() < 0.04 and covered.max() > 0.3
  assert np.corrcoef(ours_covered.ravel(), covered.ravel())[0, 1] > 0.99
  assert np.corrcoef(ours_seen.ravel(), seen.ravel())[0, 1] > 0.95
