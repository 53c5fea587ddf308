"""With which weights does a cubic kernel resize an axis, exactly as published benchmarks do it?

Keys' kernel with a = -0.5, stretched by the factor of a reduction so that it does not alias,
pixels with their centres at half-integers. Two conventions, which are equal in the interior and
differ along the borders:

  matlab   `imresize`: the picture is continued by its mirror image. Published numbers use it.
  pillow   `Image.BICUBIC`, and `jax.image.resize`: taps outside are left out, the others scaled up.

NumPy float64, while tracing; `objectives/bicubic.py` resizes pictures by them.
"""

import functools
from typing import Literal

import numpy as np

Convention = Literal["matlab", "pillow"]

_A = -0.5


@functools.lru_cache(maxsize=64)
def matrix(n_in: int, n_out: int, convention: Convention = "matlab") -> np.ndarray:
  """Weights (n_out, n_in) of resizing along an axis, float32; every row sums to 1."""
  stretch = max(n_in / n_out, 1.0)
  centre = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
  reach = int(np.ceil(2 * stretch)) + 1
  # Whole taps around each centre, as far as the kernel reaches, also beyond the borders.
  taps = np.round(centre).astype(int)[:, None] + np.arange(-reach, reach + 1)
  weight = _keys((taps - centre[:, None]) / stretch)
  inside = (taps >= 0) & (taps < n_in)
  if convention == "pillow":
    weight = np.where(inside, weight, 0.0)
  weight /= weight.sum(axis=1, keepdims=True)
  out = np.zeros((n_out, n_in))
  np.add.at(out, (np.arange(n_out)[:, None], _mirrored(taps, n_in)), weight)
  return out.astype(np.float32)


def _mirrored(index: np.ndarray, n: int) -> np.ndarray:
  """Places in 0..n-1 of any whole number, where the axis goes on as its mirror image, edge doubled:
  -1 is 0, n is n - 1."""
  index = index % (2 * n)
  return np.where(index < n, index, 2 * n - 1 - index)


def _keys(distance: np.ndarray) -> np.ndarray:
  """Keys' piecewise cubic (1981), 1 at 0 and 0 from distance 2 on."""
  d = np.abs(distance)
  near = ((_A + 2) * d - (_A + 3)) * d * d + 1
  far = _A * (((d - 5) * d + 8) * d - 4)
  return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
