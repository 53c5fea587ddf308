"""Targets per cell against painted masks, token by token."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.objectives import regions
from tests.models import ps3_reference

CASES = [
  ((64, 64), [(8, 8), (16, 16), (40, 40)], (4, 4)),
  ((64, 40), [(8, 5), (16, 10)], (4, 4)),  # cells do not divide the grid
  ((30, 50), [(6, 10)], (3, 3)),
]


def random_boxes(hw, n, seed=0):
  rng = np.random.default_rng(seed)
  x, y = np.sort(rng.uniform(-2, hw[1] + 2, (n, 2))), np.sort(rng.uniform(-2, hw[0] + 2, (n, 2)))
  return np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1).astype(np.float32)


def cell_sums(tokens, cells):
  """(b, y, x) tokens -> sums over the tokens that take their score from each cell."""
  out = np.zeros((len(tokens), *cells))
  h, w = tokens.shape[1:]
  for i in range(h):
    for j in range(w):
      out[:, i * cells[0] // h, j * cells[1] // w] += tokens[:, i, j]
  return out


@pytest.mark.parametrize("hw, grids, cells", CASES)
def test_box_targets_count_the_tokens_of_a_painted_mask(hw, grids, cells):
  box = random_boxes(hw, 60)
  painted = ps3_reference.paint(box, hw)
  counts = regions.box_targets(jnp.asarray(box), hw, grids, cells)
  maps = regions.token_targets(jnp.asarray(box), hw, grids)
  for grid, (positive, total), ours in zip(grids, counts, maps):
    target = ps3_reference.pool(painted, grid, np.mean) > 0
    np.testing.assert_array_equal(ours, target)
    np.testing.assert_array_equal(positive, cell_sums(target, cells))
    np.testing.assert_array_equal(total, cell_sums(np.ones((1, *grid)), cells)[0])


@pytest.mark.parametrize("hw, grids, cells", CASES)
def test_union_targets_count_the_tokens_of_all_real_boxes(hw, grids, cells):
  box = random_boxes(hw, 60).reshape(12, 5, 4)
  num = np.arange(12) % 6
  painted = np.stack([ps3_reference.paint(b[:n], hw).sum(0) for b, n in zip(box, num)])
  counts = regions.union_targets(jnp.asarray(box), jnp.asarray(num), hw, grids, cells)
  for grid, (positive, _) in zip(grids, counts):
    target = ps3_reference.pool(painted, grid, np.mean) > 0
    np.testing.assert_array_equal(positive, cell_sums(target, cells))
