"""What would a closer look show, going by the low-resolution view? A prediction, to be wrong.

An image is cut into the cells of PS3's low-resolution grid. The *detail* of a cell is what the
image at a higher resolution has there beyond the low-resolution view enlarged: one level of a
Laplacian pyramid. Views are made with antialiasing: nothing of the detail leaks into the low one.
b batch, y x cells, q and p numbers of a cell: its pixels with their channels together.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from big_vision_ext.models import activations, blocks, resample

_CHANNELS = 3


def views(
  image: Num[Array, "b h w c"], cells: int, low: int, side: int
) -> tuple[Float[Array, "b y x q"], Float[Array, "b y x p"]]:
  """The low-resolution view and the detail of each cell, with pixels in -1..1.

  Args:
    image: uint8, or float in 0..255; squashed to a square.
    cells: along each side of the image.
    low: side of the low-resolution view in pixels, a multiple of `cells`.
    side: of a cell in pixels, at the resolution of the detail.
  """
  small = resample.resize_antialias(image, (low, low)) / 127.5 - 1.0
  large = resample.resized_patches(image, cells * side, side, antialias=True) / 127.5 - 1.0
  enlarged = resample.resized_patches(small, cells * side, side)
  return resample.resized_patches(small, low, low // cells), large - enlarged


class DetailPredictor(nn.Module):
  """Two layers from the view of a cell and the eight around it to the detail of the cell.

  Views count from the mean colour of the cell. As it begins it foretells that there is no detail.

  Attributes:
    hidden: width between the layers.
    detail: numbers to foretell of a cell.
  """

  hidden: int
  detail: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, view: Float[Array, "b y x q"]) -> Float[Array, "b y x p"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    pixels = view.reshape(*view.shape[:3], -1, _CHANNELS)
    base = jnp.tile(pixels.mean(axis=3), pixels.shape[3])
    # Beyond the border everything has the cell's own colour.
    there = neighbours(jnp.ones_like(view[..., :1]))
    x = (neighbours(view) - base[:, :, :, None]) * there
    x = x.reshape(*x.shape[:3], -1)
    x = blocks.Projection((self.hidden,), ("embed", "mlp"), **types, name="fc1")(x)
    x = blocks.Projection(
      (self.detail,), ("mlp", "embed"), kernel_init=lambda **_: nn.initializers.zeros_init(),
      **types, name="fc2")(activations.gelu(x))
    return x.astype(jnp.float32)


def neighbours(x: Float[Array, "b y x d"]) -> Float[Array, "b y x 9 d"]:
  """Each cell among the eight around it, row by row; zeros beyond the border."""
  rows, columns = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  shifts = [padded[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
  return jnp.stack(shifts, axis=3)
