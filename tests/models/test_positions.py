"""Codes of places: MAE's table on one grid, the same place the same code on all, and two frames."""

import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import positions, vit

GRIDS = ((2, 3), (4, 6), (8, 12))


def every(grid):
  return jnp.arange(grid[0] * grid[1])[None]


def by_formula(y, x, octave, width, sides=True):
  """float64, one number at a time."""
  x_part = 2 * (width // 6) if sides else width // 2
  out = []
  for value, n in ((x, x_part), (y, x_part), (octave, width - 2 * x_part)):
    angles = [value / 10_000 ** (k / (n / 2)) for k in range(n // 2)]
    out += [np.sin(a) for a in angles] + [np.cos(a) for a in angles]
  return np.array(out)


def test_whole_numbers_of_a_grid_give_the_table_of_masked_autoencoders_to_the_bit():
  for grids in (((3, 5),), GRIDS):
    got = positions.scene(every(grids[-1]), len(grids) - 1, grids, 24, "grid")
    np.testing.assert_array_equal(got[0], vit.sincos2d_mae(*grids[-1], 24))
  one = positions.scene(every((3, 5)), 0, ((3, 5),), 24, "real")
  np.testing.assert_array_equal(one[0], vit.sincos2d_mae(3, 5, 24))


@pytest.mark.parametrize("width", [8, 24, 32])
def test_codes_of_all_scales_are_those_of_the_formula(width):
  for s, (rows, columns) in enumerate(GRIDS):
    got = np.asarray(positions.scene(every((rows, columns)), s, GRIDS, width, "real"))[0]
    assert got.shape == (rows * columns, width)
    for i in (0, columns + 1, rows * columns - 1):
      y, x = i // columns, i % columns
      # Centres in units of the finest tokens, the first of which lies at zero.
      at = ((y + 0.5) / rows * 8 - 0.5, (x + 0.5) / columns * 12 - 0.5, 2 - s)
      np.testing.assert_allclose(got[i], by_formula(*at, width), atol=1e-6)


def test_retinal_codes_are_distances_from_the_gaze_in_the_tokens_own_size():
  gaze = np.array([[[0.3, 0.6]], [[0.9, 0.1]]], np.float32)
  for s, (rows, columns) in enumerate(GRIDS):
    index = jnp.tile(every((rows, columns)), (2, 1))
    got = np.asarray(positions.retinal(index, s, GRIDS, 24, gaze))
    for b in (0, 1):
      for i in (0, columns + 1):
        y = i // columns + 0.5 - float(gaze[b, 0, 0]) * rows
        x = i % columns + 0.5 - float(gaze[b, 0, 1]) * columns
        # Float32 differences of numbers up to 12.
        np.testing.assert_allclose(got[b, i], by_formula(y, x, 2 - s, 24), atol=4e-6)


def test_a_shifted_gaze_gives_shifted_tokens_the_same_retinal_code():
  gaze = jnp.array([[[0.25, 0.5]]])
  here = positions.retinal(jnp.array([[13, 14]]), 1, GRIDS, 24, gaze)
  there = gaze + jnp.array([1 / 4, 1 / 6])
  moved = positions.retinal(jnp.array([[13 + 7, 14 + 7]]), 1, GRIDS, 24, there)
  np.testing.assert_allclose(moved, here, atol=4e-6)


def test_a_movement_has_a_code_of_its_own_and_none_is_the_code_of_zero():
  got = positions.movement(jnp.array([[0.25, -0.5], [0.0, 0.0]]), GRIDS, 24)
  np.testing.assert_allclose(got[0], by_formula(2.0, -6.0, 0, 24, sides=False), atol=1e-6)
  np.testing.assert_allclose(got[1], by_formula(0.0, 0.0, 0, 24, sides=False), atol=1e-7)


@pytest.mark.parametrize("width", [6, 10, 4])
def test_widths_that_do_not_divide_are_refused(width):
  with pytest.raises(ValueError, match=f"got {width}"):
    positions.scene(every((2, 3)), 0, GRIDS, width, "real")
