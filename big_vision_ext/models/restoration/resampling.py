"""How do channels become pixels and back, and how is the picture itself enlarged?

Channels of a shuffled pixel are in PyTorch's order, (c, row, column), so that its weights fit.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from big_vision_ext.core import bicubic
from big_vision_ext.models.restoration.layers import Conv

SCALES = (1, 2, 3, 4, 8, 16)


def check_scale(scale: int, allowed=SCALES, who: str = "a network") -> None:
  """Raises ValueError unless `scale` is one of `allowed`."""
  if scale not in allowed:
    raise ValueError(f"scale={scale!r}: {who} enlarges {', '.join(map(str, allowed))} times.")


def pixel_shuffle(x: Float[Array, "b y x k"], r: int) -> Float[Array, "b h w c"]:
  """Every r * r channels become r x r pixels: (b, y, x, c * r * r) -> (b, y * r, x * r, c)."""
  b, y, w, k = x.shape
  x = x.reshape(b, y, w, k // (r * r), r, r).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(b, y * r, w * r, k // (r * r))


def pixel_unshuffle(x: Float[Array, "b h w c"], r: int) -> Float[Array, "b y x k"]:
  """The inverse of `pixel_shuffle`."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // r, r, w // r, r, c).transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(b, h // r, w // r, c * r * r)


def enlarge(
  x: Float[Array, "b y x c"], scale: int, method: str = "bicubic"
) -> Float[Array, "b h w c"]:
  """The picture `scale` times as large, float32, without a network.

  Args:
    method: "bicubic" (MATLAB's, see `core.bicubic`) or "bilinear" (PyTorch's `interpolate`).
  """
  x = x.astype(jnp.float32)
  if scale == 1:
    return x
  matrix = bicubic.matrix if method == "bicubic" else _bilinear
  rows, columns = (matrix(n, n * scale) for n in x.shape[1:3])
  exact = jax.lax.Precision.HIGHEST
  return jnp.einsum("hy,wx,byxc->bhwc", rows, columns, x, precision=exact, optimize="optimal")


def _bilinear(n_in: int, n_out: int) -> np.ndarray:
  """Weights (n_out, n_in), float32; centres at half numbers, clamped at the borders."""
  at = np.clip((np.arange(n_out) + 0.5) * n_in / n_out - 0.5, 0, n_in - 1)
  weight = np.maximum(1 - np.abs(at[:, None] - np.arange(n_in)), 0)
  return weight.astype(np.float32)


class Upsampler(nn.Module):
  """log2(scale) times a convolution to four times the channels and a shuffle; or one of 9 for 3.

  Attributes:
    activation: after each shuffle.
    at_one: keep one convolution that enlarges nothing at scale 1 (the deraining authors' ResNet).
  """

  scale: int
  activation: Callable | None = None
  at_one: bool = False
  gain: float | None = None
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w c"]:
    width = x.shape[-1]
    for i, r in enumerate(factors(self.scale, self.at_one)):
      x = Conv(width * r * r, gain=self.gain, dtype=self.dtype, param_dtype=self.param_dtype,
               name=f"conv_{i}")(x)
      x = pixel_shuffle(x, r) if r > 1 else x
      x = self.activation(x) if self.activation else x
    return x


def factors(scale: int, at_one: bool = False) -> tuple[int, ...]:
  """By how much each step of an `Upsampler` enlarges."""
  if scale == 1:
    return (1,) if at_one else ()
  return (3,) if scale == 3 else (2,) * (scale.bit_length() - 1)
