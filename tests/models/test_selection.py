"""Which tokens are looked at: budgets, plans, and the order among equals."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import boxes
from big_vision_ext.models import selection

PS3_4K = (378, 756, 1512, 3780)
GRIDS_4K = [(54, 54), (108, 108), (270, 270)]
TINY = (64, 128, 256)
GRIDS = [(8, 8), (16, 16)]


@pytest.mark.parametrize(
  "hw, expected",
  [
    ((256, 256), [(8, 8), (16, 16)]),
    ((256, 160), [(8, 4), (16, 8)]),
    ((128, 256), [(4, 8), (8, 16)]),
    ((1000, 3), [(8, 2), (16, 4)]),
  ],
)
def test_grids_follow_the_aspect_of_the_image(hw, expected):
  sizes = selection.scale_sizes(TINY, 16, hw)
  assert [(h // 16, w // 16) for h, w in sizes] == expected


def test_budgets_are_the_published_ones():
  assert selection.split_budget(PS3_4K, 2560) == (85, 341, 2134)
  assert selection.split_budget(PS3_4K[:3], 2560) == (512, 2048)
  assert selection.split_budget(TINY, 40) == (8, 32)
  assert selection.split_budget(PS3_4K, 2560, remainder_to_last=False) == (85, 341, 2133)


@pytest.mark.parametrize(
  "scales, patch, looks, unseen",
  [
    (PS3_4K, 14, 35, 0),
    (PS3_4K[:3], 14, 6, 0),
    ((384, 768, 1536), 16, 5, 0),
    # Here the top scale runs dry first, and a debt of the last scale is dropped.
    ((384, 768, 1536, 3840), 16, 27, 18),
  ],
)
def test_seeing_all_takes_the_published_number_of_looks(scales, patch, looks, unseen):
  grids = [(s // patch, s // patch) for s in scales[1:]]
  plan = selection.plan_looks(grids, selection.split_budget(scales, 2560), num_looks="all")
  assert len(plan) == looks
  assert sum(map(sum, plan)) == sum(h * w for h, w in grids) - unseen
  assert max(map(sum, plan)) <= 2560


@pytest.mark.parametrize(
  "kw, plan",
  [
    (dict(num_looks=1), [(8, 32)]),
    (dict(num_looks=2), [(8, 32)] * 2),
    (dict(num_looks=99), [(8, 32)] * 8),
    (dict(num_tokens=17), [(3, 14)]),
    (dict(num_tokens=17, remainder_to_last=False), [(3, 13)]),
    (dict(num_tokens=70), [(8, 32), (6, 24)]),
    (dict(num_tokens=80), [(8, 32)] * 2),
    (dict(num_tokens=10**6), [(8, 32)] * 8),
    (dict(num_looks=1, only_first_n_scales=1), [(40, 0)]),
    (dict(num_looks="all", only_first_n_scales=1), [(40, 0), (24, 16)]),
    (dict(num_looks=0), []),
    (dict(num_tokens=0), []),
  ],
)
def test_plans_are_those_of_the_release(kw, plan):
  assert selection.plan_looks(GRIDS, (8, 32), **kw) == plan


def test_an_exhausted_scale_passes_its_share_on():
  assert selection.plan_looks([(2, 2), (4, 4)], (3, 3), num_looks="all") == [(3, 3), (1, 5), (0, 6),
                                                                             (0, 2)]  # fmt: skip


def test_left_out_scales_never_get_a_negative_count():
  plan = selection.plan_looks(GRIDS_4K, (85, 341, 2134), num_looks=2, only_first_n_scales=1)
  assert plan == [(2560, 0, 0), (356, 2204, 0)]


def test_a_scale_may_be_switched_off():
  assert selection.plan_looks(GRIDS, (0, 40), num_looks=1) == [(0, 40)]


@pytest.mark.parametrize(
  "budget, kw, said",
  [
    ((8, 32), dict(), "either num_looks or num_tokens"),
    ((8, 32), dict(num_looks=1, num_tokens=5), "either"),
    ((8,), dict(num_looks=1), "one count"),
    ((0, 0), dict(num_looks=1), "positive sum"),
    ((8, 32), dict(num_looks=-1), "negative"),
    ((8, 32), dict(num_looks=1, only_first_n_scales=3), "between 1 and 2"),
    ((0, 40), dict(num_looks=1, only_first_n_scales=1), "no tokens"),
  ],
)
def test_impossible_plans_are_explained(budget, kw, said):
  with pytest.raises(ValueError, match=said):
    selection.plan_looks(GRIDS, budget, **kw)


def nearest_maps(cell_map, grids):
  out = []
  for h, w in grids:
    rows = boxes.nearest_index(cell_map.shape[1], h)
    out.append(cell_map[:, rows][:, :, boxes.nearest_index(cell_map.shape[2], w)])
  return out


def cell_of(grid, cells, index):
  y, x = index // grid[1], index % grid[1]
  return (y * cells[0] // grid[0]) * cells[1] + x * cells[1] // grid[1]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("grids", [[(8, 8), (16, 16)], [(8, 5), (16, 10)]])
def test_looks_partition_all_tokens_in_falling_order_of_score(seed, grids):
  score = np.random.default_rng(seed).random((2, 4, 4)).astype(np.float32)
  maps = nearest_maps(score, grids)
  plan = selection.plan_looks(grids, (8, 32), num_looks="all")
  looks = selection.select([jnp.asarray(m) for m in maps], plan, cells=(4, 4))
  for s, (h, w) in enumerate(grids):
    for b in range(2):
      parts = [np.asarray(look[s][b]) for look in looks]
      assert all(np.all(np.diff(p) > 0) for p in parts)
      np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(h * w))
      values = [maps[s][b].ravel()[p] for p in parts if p.size]
      for before, after in zip(values, values[1:]):
        assert before.min() >= after.max()


def test_equal_scores_are_taken_cell_by_cell_in_raster_order():
  (index,), (finer,) = (
    look for look in zip(*selection.select(
      [jnp.ones((1, 8, 8)), jnp.ones((1, 16, 16))], [(6, 24)], cells=(4, 4)))
  )  # fmt: skip
  # One cell and a half: cell (0, 0) whole, then the upper half of cell (0, 1).
  np.testing.assert_array_equal(index[0], [0, 1, 2, 3, 8, 9])
  assert set(cell_of((16, 16), (4, 4), np.asarray(finer[0]))) == {0, 1}
  np.testing.assert_array_equal(np.sort(np.asarray(finer[0])), finer[0])
  assert sum(cell_of((16, 16), (4, 4), np.asarray(finer[0])) == 1) == 8


@pytest.mark.parametrize("seed", range(5))
def test_every_scale_takes_the_same_share_of_the_same_cells(seed):
  # Few distinct scores, so ties abound; budgets in proportion to area.
  score = np.random.default_rng(seed).integers(0, 3, (1, 4, 4)).astype(np.float32)
  grids, cells = [(8, 8), (16, 16), (40, 40)], (4, 4)
  count = 11
  plan = [(count, 4 * count, 25 * count)]
  (look,) = selection.select(
    [jnp.asarray(m) for m in nearest_maps(score, grids)], plan, cells=cells
  )
  shares = []
  for grid, index in zip(grids, look):
    counts = np.bincount(cell_of(grid, cells, np.asarray(index[0])), minlength=16)
    shares.append(counts * 16 / (grid[0] * grid[1]))
  np.testing.assert_allclose(shares[0], shares[1])
  np.testing.assert_allclose(shares[0], shares[2])


def test_forced_tokens_come_first_and_by_score_among_themselves():
  score = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32)
  box = jnp.asarray([[0.0, 0, 30, 14]])
  forced = boxes.dilated_hit_maps(box, (64, 64), [(8, 8), (16, 16)])
  maps = [jnp.asarray(m) for m in nearest_maps(score, [(8, 8), (16, 16)])]
  n = int(forced[0].sum())
  for k in (n // 2, n, n + 3):
    (look,) = selection.select(maps, [(k, 4 * k)], cells=(4, 4), forced=forced)
    for index, f, m in zip(look, forced, maps):
      inside = np.asarray(f).ravel()[index[0]]
      assert inside.sum() == min(len(inside), int(f.sum()))
      if k < n:
        taken = np.asarray(m).ravel()[index[0]]
        rest = np.setdiff1d(np.flatnonzero(np.asarray(f).ravel()), np.asarray(index[0]))
        assert taken.min() >= np.asarray(m).ravel()[rest].max()
