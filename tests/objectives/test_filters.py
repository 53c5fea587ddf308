"""Kernels of each picture's own: what SciPy does with each of them."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from big_vision_ext.objectives import filters


@pytest.mark.parametrize("size, k", [((20, 27), 7), ((9, 12), 31), ((1, 16), 5)])
def test_pictures_are_convolved_with_their_kernels_mirrored_at_the_border(size, k):
  rng = np.random.default_rng(0)
  x, kernel = rng.random((2, *size), np.float32), rng.random((2, k, k), np.float32)
  got = jax.jit(filters.convolve)(x, kernel)
  for i in range(2):
    want = ndimage.convolve(x[i].astype(np.float64), kernel[i].astype(np.float64), mode="mirror")
    # Sums of k^2 products of up to 1, in float32 and by way of a spectrum.
    np.testing.assert_allclose(got[i], want, atol=3e-6 * k * k)


def test_an_even_kernel_has_no_middle_and_is_refused():
  with pytest.raises(ValueError, match="odd side"):
    filters.convolve(np.zeros((1, 8, 8)), np.zeros((1, 4, 4)))
