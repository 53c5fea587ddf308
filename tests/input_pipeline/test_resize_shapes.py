"""Regions are resized to any height and width, not to squares only."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline import images


@pytest.mark.parametrize("size", [(20, 50), (64, 9), (120, 130)])
def test_bicubic_to_any_shape_is_pillows(size):
  pixels = np.random.default_rng(0).integers(0, 256, (61, 43, 3), np.uint8)
  got = images.resize_region(pixels, (3.5, 0, 43, 50.25), size)
  want = Image.fromarray(pixels).resize(
    size[::-1], Image.Resampling.BICUBIC, box=(3.5, 0, 43, 50.25))
  np.testing.assert_array_equal(got, np.asarray(want))


@pytest.mark.parametrize("size", [(20, 50), (200, 90), (7, 30)])
def test_fast_to_any_shape_is_near_bicubic_on_smooth_images(size):
  y, x = np.mgrid[:160, :120]
  smooth = np.stack([y, x * 1.5, 128 + 60 * np.sin(x / 20 + y / 30)], -1).astype(np.uint8)
  fast = images.resize_region(smooth, (0, 0, 120, 160), size, "fast").astype(int)
  exact = images.resize_region(smooth, (0, 0, 120, 160), size).astype(int)
  assert fast.shape == (*size, 3)
  # Borders are extrapolated differently; a swapped axis would be off by tens.
  assert np.abs(fast - exact)[2:-2, 2:-2].max() <= 4
