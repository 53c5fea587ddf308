"""Masks: exact counts, nothing both seen and predicted, and a sample's mask is its own affair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_vision_ext.objectives import masks

GRID = (6, 9)
CASES = [("random", 14, 1), ("shared", 14, 1), ("cell", 18, 3), ("block", 14, 1), ("grid", 14, 1),
         ("disc", 14, 1)]


def keys(n=5, seed=0):
  return masks.sample_keys(jax.random.key(seed), n)


def draw(family, k, cell=1, at=None, of=None):
  of = keys() if of is None else of
  return jax.device_get(masks.make(family, of, GRID, k, cell=cell, centre=at))


def as_map(mask):
  seen = np.ones((len(mask.visible), 54), bool)
  np.put_along_axis(seen, mask.target, False, axis=1)
  return seen.reshape(-1, *GRID)


@pytest.mark.parametrize("family, k, cell", CASES)
def test_every_token_is_either_seen_or_predicted_and_k_of_them_are_seen(family, k, cell):
  mask = draw(family, k, cell)
  assert mask.visible.shape == (5, k) and mask.target.shape == (5, 54 - k)
  both = np.concatenate([mask.visible, mask.target], axis=1)
  np.testing.assert_array_equal(np.sort(both, axis=1), np.broadcast_to(np.arange(54), (5, 54)))
  assert np.all(np.diff(mask.visible, axis=1) > 0) and np.all(np.diff(mask.target, axis=1) > 0)
  assert np.all(mask.weight == 1)


@pytest.mark.parametrize("family, k, cell", CASES)
def test_a_mask_depends_on_its_own_key_and_on_nothing_else(family, k, cell):
  if family == "shared":
    return
  mask, order = draw(family, k, cell), np.array([3, 0, 4, 1, 2])
  mixed = draw(family, k, cell, of=keys()[order])
  np.testing.assert_array_equal(mixed.visible, mask.visible[order])
  assert len({tuple(row) for row in mask.visible}) > 1
  again = draw(family, k, cell, of=keys(seed=1))
  assert not np.array_equal(again.visible, mask.visible)


def test_shared_masks_are_those_of_the_first_sample():
  mask = draw("shared", 14)
  assert np.all(mask.visible == mask.visible[:1])


def test_masks_do_not_depend_on_the_mesh():
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"))
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  make = lambda key: masks.make("random", masks.sample_keys(key, 8), GRID, 14).visible
  alone = jax.jit(make)(jax.random.key(3))
  np.testing.assert_array_equal(jax.jit(make, out_shardings=rows)(jax.random.key(3)), alone)


def test_cells_are_seen_or_hidden_as_a_whole():
  seen = as_map(draw("cell", 18, 3)).reshape(5, 2, 3, 3, 3)
  assert np.all(seen.all(axis=(2, 4)) | ~seen.any(axis=(2, 4)))


@pytest.mark.parametrize("at", [(0.5, 0.5), (0.0, 0.0), (1.0, 0.3), (0.1, 0.95)])
def test_a_disc_holds_the_tokens_nearest_to_the_gaze_also_at_a_border(at):
  mask = draw("disc", 14, at=jnp.array([at] * 5))
  y, x = np.mgrid[:6, :9] + 0.5
  squared = ((y - at[0] * 6) ** 2 + (x - at[1] * 9) ** 2).reshape(-1)
  for seen, hidden in zip(mask.visible, mask.target):
    assert squared[seen].max() <= squared[hidden].min() + 1e-3


def test_a_lattice_is_spread_evenly():
  seen = as_map(draw("grid", 14))
  # 14 of 54: every 2 x 2 square of the middle has one or none, never two neighbours.
  assert not np.any(seen[:, :-1] & seen[:, 1:]) or not np.any(seen[:, :, :-1] & seen[:, :, 1:])
  halves = seen[:, :, :4].sum(axis=(1, 2)), seen[:, :, 5:].sum(axis=(1, 2))
  assert np.all(np.abs(halves[0] - halves[1]) <= 5)


def test_blocks_hide_neighbours_more_often_than_random_masks_do():
  def joined(family):
    hidden = ~as_map(draw(family, 27, of=keys(40)))
    return (hidden[:, 1:] & hidden[:, :-1]).mean() + (hidden[:, :, 1:] & hidden[:, :, :-1]).mean()

  assert joined("block") > 1.3 * joined("random")


def test_a_subset_of_targets_is_drawn_without_repeats():
  mask = masks.make("random", keys(), GRID, 14)
  part = jax.device_get(masks.subset(mask, keys(), 10))
  np.testing.assert_array_equal(part.visible, mask.visible)
  for few, every in zip(part.target, np.asarray(mask.target)):
    assert len(set(few)) == 10 and set(few) <= set(every)
  assert len({tuple(row) for row in part.target}) > 1


def test_a_mask_by_hand_hides_what_it_says():
  hidden = np.zeros((2, *GRID), bool)
  hidden[0, :2], hidden[1, 2:4] = True, True
  mask = masks.explicit(hidden)
  np.testing.assert_array_equal(masks.hidden_map(mask, GRID), hidden)
  hidden[1, 5] = True
  with pytest.raises(ValueError, match=r"hides \[18, 27\] of 54"):
    masks.explicit(hidden)


@pytest.mark.parametrize("settings, message", [
  (("disk", 14), "'disk' is unknown"), (("random", 54), "between 1 and 53"),
  (("random", 0), "between 1 and 53"), (("cell", 16, 3), "cell=3"), (("cell", 16, 4), "cell=4")])
def test_impossible_masks_are_refused(settings, message):
  family, k, *cell = settings
  with pytest.raises(ValueError, match=message):
    draw(family, k, *cell)
