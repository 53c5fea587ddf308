"""The budget rule "cells": exact budgets, one sequence of cells for all scales."""

import functools

import jax
import numpy as np
import pytest

from big_vision_ext.core import boxes
from big_vision_ext.models import ps3, selection, selection_cells
from tests.models import ps3_reference

SCALES_4K, ZOOMS_4K = (378, 756, 1512, 3780), (2, 4, 10)
MODEL = ps3.PS3Vision(
  width=8, depth=1, mlp_dim=8, num_heads=1, posemb_grid=(4, 4), patch_size=4, scales=(16, 32, 64),
  budget_rule="cells")  # fmt: skip


def sides(scales, patch):
  return [(s // patch, s // patch) for s in scales[1:]]


@pytest.mark.parametrize("kw, plan", [
  # A cell has 4 + 16 tokens. 25: a cell, all 4 of the next and 1 of its 16.
  (dict(num_looks=1), [(8, 17)]),
  # The second look first takes the 15 that are left of it.
  (dict(num_looks=3), [(8, 17), (4, 21), (4, 21)]),
  (dict(num_tokens=27), [(8, 17), (0, 2)]),
  (dict(num_tokens=0), []),
  (dict(num_looks=2, only_first_n_scales=1), [(25, 0), (25, 0)]),
  (dict(num_looks="all", only_first_n_scales=1), [(25, 0), (25, 0), (14, 0)]),
])  # fmt: skip
def test_plans_cut_one_sequence_of_cells(kw, plan):
  got = selection_cells.plan_looks([(8, 8), (16, 16)], (2, 4), 25, **kw)
  assert got == plan


@pytest.mark.parametrize("scales, patch, looks", [
  (SCALES_4K, 14, 35), (SCALES_4K[:3], 14, 6), ((384, 768, 1536, 3840), 16, 27),
])  # fmt: skip
def test_every_look_has_its_budget_and_all_looks_see_every_token(scales, patch, looks):
  grids = sides(scales, patch)
  zooms = [s // scales[0] for s in scales[1:]]
  plan = selection_cells.plan_looks(grids, zooms, 2560, num_looks="all")
  assert len(plan) == looks
  assert {sum(counts) for counts in plan[:-1]} == {2560}
  assert selection.totals(plan, len(grids)) == tuple(h * w for h, w in grids)
  assert min(map(min, plan)) >= 0


def test_the_published_budget_buys_21_cells_and_begins_one_with_its_coarse_scales():
  assert selection_cells.counts(ZOOMS_4K, 2560) == (22 * 4, 22 * 16, 21 * 100 + 20)
  assert selection_cells.counts((2, 4), 2560) == (512, 2048)


@functools.partial(jax.jit, static_argnums=1)
def rankings(maps, counts, forced, seen):
  return MODEL.rankings(maps, counts, forced=forced, seen=seen)


def ranked(score, grids, counts, forced=None, seen=None):
  maps = [ps3_reference.nearest(score, grid) for grid in grids]
  return maps, [np.asarray(x) for x in rankings(maps, counts, forced, seen)]


@pytest.mark.parametrize("hw, forced", [((64, 64), True), ((64, 40), False), ((33, 70), True)])
def test_looks_equal_a_sequence_of_tuples(hw, forced):
  rng = np.random.default_rng(hw[1])
  # Few distinct scores: ties are broken by place.
  score = rng.integers(0, 4, (3, 4, 4)).astype(np.float32)
  grids = MODEL.grids(hw)
  plan = selection_cells.plan_looks(grids, (2, 4), 33, num_looks="all")
  box = np.array([[5.3, 7.7, 21.2, 19.1], [0, 0, hw[1], hw[0]], [30, 30, 9, 9]], np.float32)
  force = jax.jit(MODEL.forced_maps, static_argnums=1)(box, hw) if forced else None
  maps, order = ranked(score, grids, selection.totals(plan, 2), force)
  reference = ps3_reference.Reference({}, MODEL)
  none = [np.zeros(x.shape, bool) for x in maps]
  hits = [ps3_reference.pool(ps3_reference.paint(box, hw), g, np.mean) > 0 for g in grids]
  want = reference.choose_cells([np.float64(x) for x in maps], hits if forced else none, plan)
  taken = [0, 0]
  for counts, look in zip(plan, want):
    for i, theirs in enumerate(look):
      ours = np.sort(order[i][:, taken[i] : taken[i] + counts[i]], axis=1)
      np.testing.assert_array_equal(ours, theirs)
      taken[i] += counts[i]


def cells_of(index, grid, cells):
  return boxes.token_cells(grid, cells)[np.asarray(index)]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_region_is_taken_at_every_scale_up_to_one_cell(seed):
  score = np.random.default_rng(seed).random((1, 4, 4)).astype(np.float32)
  grids = [(8, 8), (16, 16)]
  for tokens in (50, 77):
    counts = selection_cells.counts((2, 4), tokens)
    _, order = ranked(score, grids, counts)
    per_scale = [np.bincount(cells_of(at[0], g, (4, 4)), minlength=16) / z**2
                 for at, g, z in zip(order, grids, (2, 4))]
    whole = [x == 1 for x in per_scale]
    assert np.sum(per_scale[0] != per_scale[1]) <= 1
    assert np.sum(whole[0] & whole[1]) == tokens // 20
    # Coarse first: no scale has more of a cell than a coarser one.
    assert np.all(per_scale[0] >= per_scale[1])
    best = np.argsort(-score.ravel(), kind="stable")[: tokens // 20]
    assert set(np.flatnonzero(whole[1])) == set(best)


def test_a_region_larger_than_the_budget_loses_its_rim():
  # All 4 x 4 cells are hit, the middle ones whole and those around them in part.
  box = np.float32([[10, 10, 53, 53]])
  forced = jax.jit(MODEL.forced_maps, static_argnums=1)(box, (64, 64))
  score = np.random.default_rng(0).random((1, 4, 4)).astype(np.float32)
  _, order = ranked(score, [(8, 8), (16, 16)], selection_cells.counts((2, 4), 80), forced)
  share = np.mean([ps3_reference.pool(np.float64(f), (4, 4), np.mean) for f in forced], 0).ravel()
  taken = np.unique(cells_of(order[1][0], (16, 16), (4, 4)))
  assert len(taken) == 4
  assert min(share[taken]) >= max(np.delete(share, taken))


def test_what_was_seen_keeps_its_place_and_a_begun_cell_is_finished_first():
  rng = np.random.default_rng(0)
  grids, counts = [(8, 8), (16, 16)], selection_cells.counts((2, 4), 33)
  _, before = ranked(rng.random((1, 4, 4)).astype(np.float32), grids, counts)
  seen = [np.isin(np.arange(h * w), at[0]).reshape(1, h, w) for (h, w), at in zip(grids, before)]
  more = selection_cells.counts((2, 4), 66)
  _, after = ranked(rng.random((1, 4, 4)).astype(np.float32), grids, more, seen=seen)
  for scale in range(2):
    assert set(np.asarray(after[scale][0, : counts[scale]])) == set(np.asarray(before[scale][0]))
    assert len(set(np.asarray(after[scale][0]))) == more[scale]
  begun = cells_of(before[1][0, -1:], (16, 16), (4, 4))
  next_up = cells_of(after[1][0, counts[1] : counts[1] + 7], (16, 16), (4, 4))
  assert set(next_up[:7]) == set(begun)


@pytest.mark.parametrize("plan, parts", [
  ([], []),
  ([(1,)] * 4, [(0, 1, 4)]),
  ([(1,), (2,)], [(0, 1, 1), (1, 1, 1)]),
  ([(3,), (1,), (2,), (1,), (2,), (5,)], [(0, 1, 1), (1, 2, 2), (5, 1, 1)]),
])  # fmt: skip
def test_repeating_looks_are_found(plan, parts):
  assert selection.cycles(plan) == parts


def test_a_4k_plan_of_all_looks_is_a_few_programs():
  plan = selection_cells.plan_looks(sides(SCALES_4K, 14), ZOOMS_4K, 2560, num_looks="all")
  assert sum(period for _, period, _ in selection.cycles(plan)) <= 6


@pytest.mark.parametrize("kw, said", [
  (dict(num_looks=1, num_tokens=3), "either"), (dict(num_looks=-1), "negative"),
  (dict(num_looks=1, only_first_n_scales=3), "between 1 and 2"),
])  # fmt: skip
def test_impossible_plans_are_explained(kw, said):
  with pytest.raises(ValueError, match=said):
    selection_cells.plan_looks([(8, 8), (16, 16)], (2, 4), 25, **kw)
