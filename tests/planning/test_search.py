"""The search finds the largest batch that fits, with few compilations."""

import math

import pytest

from big_vision_ext.planning import search


def _machine(gib, hbm=16.0, tells=True):
  """What compiles: memory as a function of rows; too much may not be told exactly."""
  calls = []

  def try_rows(rows):
    calls.append(rows)
    fits = gib(rows) <= hbm
    return search.Trial(rows, gib(rows) if fits or tells else math.nan, fits)

  return try_rows, calls


@pytest.mark.parametrize("start", [1, 4, 40, 400])
@pytest.mark.parametrize("tells", [True, False])
def test_affine_memory_is_found_in_a_few_compilations(start, tells):
  try_rows, calls = _machine(lambda rows: 1.0 + 0.25 * rows, tells=tells)
  found, trials = search.largest(try_rows, try_rows(start), 0.8, 16.0, max_trials=12)
  assert 57 <= found <= 60 and len(calls) == len(trials) <= (6 if tells else 12)
  assert all(t.fits == (1.0 + 0.25 * t.rows <= 16.0) for t in trials)


def test_memory_that_jumps_is_bisected():
  try_rows, _ = _machine(lambda rows: 1.0 + 0.25 * rows + (6.0 if rows > 20 else 0.0))
  found, _ = search.largest(try_rows, try_rows(8), 0.8, 16.0, max_trials=12)
  assert 34 <= found <= 36


def test_nothing_that_fits_is_zero():
  try_rows, _ = _machine(lambda rows: 20.0 + rows)
  assert search.largest(try_rows, try_rows(8), 0.8, 16.0)[0] == 0


def test_one_row_that_fits_where_two_do_not_ends_the_search():
  try_rows, calls = _machine(lambda rows: 9.0 * rows)
  assert search.largest(try_rows, try_rows(1), 0.0, 16.0)[0] == 1
  assert len(calls) <= 2


def test_the_estimate_leaves_room_for_what_rows_do_not_change():
  assert search.estimate(rows=10, gib=6.0, fixed_gib=1.0, hbm_gib=16.0) == 30
  assert search.estimate(rows=10, gib=40.0, fixed_gib=20.0, hbm_gib=16.0) == 0
