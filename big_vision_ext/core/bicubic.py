"""With which weights does MATLAB's `imresize` resize by a cubic kernel? Dense matrices, NumPy only.

Published super-resolution numbers are of pictures reduced so (specs: Keys' kernel with A = -0.5,
stretched where an axis is reduced, borders mirrored). Pillow's rule, which renormalises at the
borders instead, is `models.resample.antialias_matrix`.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=64)
def matrix(n_in: int, n_out: int) -> np.ndarray:
  """Weights (n_out, n_in), float32, of resizing one axis; rows add up to one.

  Pixel centres lie at half numbers. What the kernel reads beyond a border is the picture mirrored
  there, the outermost pixel included, as often as it takes.

  Raises:
    ValueError: a size below 1.
  """
  if n_in < 1 or n_out < 1:
    raise ValueError(f"an axis of {n_in} pixels cannot be resized to {n_out}: expected at least 1")
  stretch = max(n_in / n_out, 1.0)
  centre = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
  span = int(np.ceil(4 * stretch)) + 2
  taps = np.floor(centre - 2 * stretch).astype(np.int64)[:, None] + np.arange(span)
  weight = cubic((centre[:, None] - taps) / stretch)
  weight /= weight.sum(axis=1, keepdims=True)
  folded = taps % (2 * n_in)
  folded = np.where(folded < n_in, folded, 2 * n_in - 1 - folded)
  out = np.zeros((n_out, n_in))
  # add.at, not assignment: mirrored taps share an index with others.
  np.add.at(out, (np.arange(n_out)[:, None], folded), weight)
  out = out.astype(np.float32)
  out.setflags(write=False)
  return out


def cubic(distance: np.ndarray, a: float = -0.5) -> np.ndarray:
  """Keys' piecewise cubic kernel (Keys 1981) with free parameter `a`."""
  d = np.abs(distance)
  near = ((a + 2) * d - (a + 3)) * d * d + 1
  far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
  return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
