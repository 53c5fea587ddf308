"""Looks and targets: constant counts, nothing predicted that was seen, boxes as pixels are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_vision_ext.objectives import glimpses, masks, mim

# Pixels divide by all of these.
GRIDS, SIDE = ((3, 4), (6, 8), (12, 16)), 48
WINDOWS = (2, 3, 4)


def path(b=5, t=3, seed=0):
  return jax.random.uniform(jax.random.key(seed), (b, t, 2))


def looks_of(gaze, grids=GRIDS, windows=WINDOWS):
  look = jax.jit(lambda at: glimpses.retina(at, grids, windows))
  return jax.device_get([look(gaze[:, t]) for t in range(gaze.shape[1])])


def boxes_of(index, grid, shape):
  """Pixel masks of tokens, painted one by one."""
  h, w = shape[0] // grid[0], shape[1] // grid[1]
  out = np.zeros((len(index), *shape), bool)
  for mask, i in zip(out, index):
    y, x = divmod(int(i), grid[1])
    mask[y * h:(y + 1) * h, x * w:(x + 1) * w] = True
  return out


@pytest.mark.parametrize("at", [(0.0, 0.0), (1.0, 1.0), (0.5, 0.03), (0.37, 0.81), (0.999, 0.5)])
def test_a_window_is_inside_and_holds_the_nearest_square_of_tokens(at):
  for grid, side in zip(GRIDS, WINDOWS):
    got = np.asarray(glimpses.window(jnp.array(at), grid, side)).reshape(side, side)
    y, x = got // grid[1], got % grid[1]
    assert np.all(y == y[:, :1]) and np.all(x == x[:1]) and got.max() < grid[0] * grid[1]
    np.testing.assert_array_equal(np.diff(y[:, 0]), 1)
    np.testing.assert_array_equal(np.diff(x[0]), 1)
    # No other place of the window has its middle nearer to the gaze.
    for line, count, gaze in ((y[:, 0], grid[0], at[0]), (x[0], grid[1], at[1])):
      away = np.abs(np.arange(count - side + 1) + side / 2 - gaze * count)
      assert away[line[0]] == pytest.approx(away.min(), abs=1e-5)


def test_a_window_larger_than_the_grid_is_the_grid_and_of_side_zero_nothing():
  whole = glimpses.window(jnp.array([0.2, 0.9]), (3, 4), 9)
  np.testing.assert_array_equal(whole, np.arange(12))
  assert glimpses.window(jnp.array([0.2, 0.9]), (3, 4), 0).shape == (0,)


def test_every_look_has_the_same_number_of_tokens_and_none_twice():
  for look in looks_of(path(b=40)):
    assert [i.shape for i in look] == [(40, 4), (40, 9), (40, 16)]
    assert all(len(set(row)) == len(row) for index in look for row in index)


def test_targets_are_what_no_look_before_showed_at_the_same_or_a_finer_scale():
  """Against pixel masks painted token by token; that these grids nest makes it exact."""
  shape = (SIDE, 64)
  # Near each other, so that there is something to leave out at every scale.
  gaze = 0.3 + 0.4 * path(b=4, t=4)
  looks = looks_of(gaze)
  tokens, weights, _ = glimpses.next_targets(looks, GRIDS)
  assert len(tokens) == 3
  for row in range(4):
    painted = [np.zeros(shape, bool) for _ in GRIDS]
    for t, (step, weight) in enumerate(zip(tokens, np.asarray(weights))):
      for s, index in enumerate(looks[t]):
        painted[s] |= boxes_of(index[row], GRIDS[s], shape).any(axis=0)
      want = []
      for s, index in enumerate(step):
        finer = np.any(painted[s:], axis=0)
        want += [not finer[box].all() for box in boxes_of(np.asarray(index)[row], GRIDS[s], shape)]
      np.testing.assert_array_equal(weight[row], np.float32(want))
  share = [np.mean(np.concatenate(weights, 1)), np.mean(np.asarray(weights)[..., :4])]
  assert all(0.05 < s < 0.98 for s in share), share


def test_grids_that_do_not_nest_leave_out_no_more_than_was_seen():
  grids, shape = ((2, 2), (3, 3), (5, 5)), (30, 30)
  looks = looks_of(path(b=30, t=3), grids, (2, 2, 3))
  seen = glimpses.nothing(grids, 30)
  for look in looks:
    seen = glimpses.see(seen, look)
  assert not np.any(seen[0] & ~glimpses.covered(seen)[0])
  covered = jax.device_get(glimpses.covered((jnp.zeros_like(seen[0]), *seen[1:])))
  for row in range(30):
    finer = [boxes_of(np.flatnonzero(np.asarray(seen[s])[row]), grids[s], shape).any(axis=0)
             for s in (1, 2)]
    for i in np.flatnonzero(covered[0][row]):
      assert np.any(finer, axis=0)[boxes_of([i], grids[0], shape)[0]].all()


def test_with_one_look_the_rest_is_the_complement_of_a_mask():
  keys = masks.sample_keys(jax.random.key(0), 5)
  for family in ("random", "block", "disc"):
    mask = masks.make(family, keys, (4, 6), 7)
    tokens, weight, _ = glimpses.rest_targets([(mask.visible,)], [(4, 6)])
    np.testing.assert_array_equal(tokens[0], mask.target)
    np.testing.assert_array_equal(weight, mask.weight)


def test_a_disc_is_that_of_the_masks():
  keys, gaze = masks.sample_keys(jax.random.key(0), 5), path()[:, 0]
  got = glimpses.retina(gaze, [(6, 9)], [4], "disc", keys)[0]
  np.testing.assert_array_equal(got, masks.make("disc", keys, (6, 9), 16, centre=gaze).visible)
  with pytest.raises(ValueError, match="shape='circle'"):
    glimpses.retina(gaze, [(6, 9)], [4], "circle", keys)


def test_the_rest_is_everything_unseen_once_and_weighs_nothing_beyond():
  looks = looks_of(path(b=20, t=4))
  tokens, weight, seen = jax.device_get(glimpses.rest_targets(looks, GRIDS))
  assert tokens[0].shape[1] == tokens[1].shape[1] == 0 and tokens[2].shape == (20, 192 - 16)
  for row in range(20):
    assert len(set(tokens[2][row])) == 176
    unseen = set(range(192)) - {i for look in looks for i in look[2][row]}
    assert set(tokens[2][row][weight[row] == 1]) == unseen
    assert set(np.flatnonzero(~seen[2][row].reshape(-1))) == unseen
  assert len({int(w.sum()) for w in weight}) > 1


def test_looks_and_targets_do_not_depend_on_the_mesh_or_the_order_of_the_batch():
  def make(gaze):
    looks = [glimpses.retina(gaze[:, t], GRIDS, WINDOWS) for t in range(3)]
    return glimpses.next_targets(looks, GRIDS)[:2], glimpses.rest_targets(looks, GRIDS)[:2]

  gaze, order = path(b=8), np.array([3, 0, 4, 1, 2, 7, 6, 5])
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=auto)
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  alone = jax.jit(make)(gaze)
  spread = jax.jit(make, out_shardings=rows)(jax.device_put(gaze, rows))
  mixed = jax.jit(make)(gaze[order])
  jax.tree.map(np.testing.assert_array_equal, alone, spread)
  same = lambda a, b: np.testing.assert_array_equal(a[order], b)
  jax.tree.map(same, jax.device_get(alone), mixed)


def test_a_residual_is_the_difference_to_the_finest_view_that_was_seen():
  rng = np.random.default_rng(0)
  patches, low, mid = rng.normal(size=(3, 2, 5, 4)).astype(np.float32)
  seen = rng.random((2, 2, 5)) < 0.5
  got, base = glimpses.residual(patches, [low, mid], list(seen))
  want = np.where(seen[1][..., None], mid, np.where(seen[0][..., None], low, 0))
  np.testing.assert_array_equal(base, want)
  np.testing.assert_array_equal(got, patches - want)
  assert 0 < seen[0].mean() < 1


def test_beta_is_one_over_the_variance_of_what_is_predicted_at_a_scale():
  rng = np.random.default_rng(0)
  scale = np.array([0, 0, 1, 1, 1, 3])
  target = (rng.normal(size=(4, 6, 5)) * (1 + scale)[:, None] + 3).astype(np.float32)
  weight = np.float32(rng.random((4, 6)) < 0.6)
  weight[:, 5] = 0
  got = np.asarray(glimpses.inverse_variance(target, weight, scale, 4))
  for s in range(2):
    counted = target[:, scale == s][weight[:, scale == s] > 0].astype(np.float64)
    # Float32 sums of some fifty numbers.
    np.testing.assert_allclose(got[s], 1 / counted.var(), rtol=1e-5)
  # Nothing at scale 2, nothing that counts at scale 3.
  np.testing.assert_array_equal(got[2:], 1)


def test_the_loss_is_a_ratio_of_sums_and_ignores_what_does_not_count():
  rng = np.random.default_rng(0)
  error, weight = rng.random((2, 4, 6)).astype(np.float32)
  weight[weight < 0.4] = 0
  factor = rng.random(6).astype(np.float32)
  want = (np.float64(error) * weight * factor).sum() / np.float64(weight).sum()
  broken = np.where(weight > 0, error, np.inf).astype(np.float32)
  np.testing.assert_allclose(glimpses.weighted_mean(broken, weight, factor), want, rtol=1e-6)
  assert float(glimpses.weighted_mean(broken, np.zeros_like(weight))) == 0
  pred, target = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
  mse = glimpses.weighted_mean(np.mean((pred - target) ** 2, axis=-1), weight)
  np.testing.assert_allclose(mse, mim.masked_mse(pred, target, weight), rtol=1e-6)


def test_a_tokens_cell_is_the_one_its_centre_lies_in():
  for grids in (GRIDS, ((2, 3), (5, 7))):
    whole = tuple(jnp.arange(h * w)[None] for h, w in grids)
    got = np.asarray(glimpses.cell_of(whole, grids))[0]
    want = []
    for h, w in grids:
      y, x = (np.mgrid[:h, :w] + 0.5).reshape(2, -1)
      want.append(np.floor(y / h * grids[0][0]) * grids[0][1] + np.floor(x / w * grids[0][1]))
    # A centre on an edge belongs to the later cell in both.
    np.testing.assert_array_equal(got, np.concatenate(want))
