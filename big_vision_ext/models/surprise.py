"""What would a part of an image show, going by what is around it? A prediction that never sees it.

An image is cut into cells. Each is foretold from the eight around it alone, all at once and without
a mask to draw: there is no way from a cell's own pixels to its prediction.
b batch, y x cells, p numbers of a cell: pixels with their channels together.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from big_vision_ext.models import blocks, resample

_CHANNELS = 3


def cells_of(
  image: Num[Array, "b y x c"], cells: tuple[int, int], side: int
) -> Float[Array, "b y x p"]:
  """A square of cells, each of `side` x `side` pixels in -1..1.

  The image is squashed with antialiasing, so that every pixel of it counts.
  """
  if cells[0] != cells[1]:
    raise ValueError(f"cells={cells}: expected as many rows as columns.")
  return resample.resized_patches(image, cells[0] * side, side, antialias=True) / 127.5 - 1.0


def around(x: Float[Array, "b y x d"]) -> Float[Array, "b y x 8 d"]:
  """The eight neighbours of each cell, row by row; zeros beyond the border."""
  rows, columns = x.shape[1:3]
  padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  shifts = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
  return jnp.stack([padded[:, i : i + rows, j : j + columns] for i, j in shifts], axis=3)


def surround(cells: Float[Array, "b y x p"]) -> tuple[Float[Array, "b y x c"], ...]:
  """Mean and variance of the colours of all pixels around each cell."""
  pixels = cells.reshape(*cells.shape[:3], -1, _CHANNELS)
  there = around(jnp.ones_like(cells[..., :1]))
  count = there.sum(axis=3)
  mean = around(pixels.mean(axis=3)).sum(axis=3) / count
  # Around the mean of each place: a difference of squares would lose what is small.
  spread = (around(pixels.mean(axis=3)) - mean[:, :, :, None]) ** 2
  own = jnp.mean((pixels - pixels.mean(axis=3, keepdims=True)) ** 2, axis=3)
  return mean, ((spread + around(own)) * there).sum(axis=3) / count


class CellPredictor(nn.Module):
  """Two layers from the cells around a cell, less their mean colour, to the cell, less the same.

  As it begins it says that mean colour.

  Attributes:
    hidden: width between the layers.
  """

  hidden: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, cells: Float[Array, "b y x p"]) -> Float[Array, "b y x p"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    base = jnp.tile(surround(cells)[0], cells.shape[-1] // _CHANNELS)
    # With a mark of being there, which what is beyond the border has not.
    there = around(jnp.ones_like(cells[..., :1]))
    x = (around(cells) - base[:, :, :, None]) * there
    x = jnp.concatenate([x, there], axis=-1)
    x = x.reshape(*x.shape[:3], -1)
    x = blocks.Projection((self.hidden,), ("embed", "mlp"), **types, name="fc1")(x)
    x = blocks.Projection(
      (cells.shape[-1],), ("mlp", "embed"), kernel_init=lambda **_: nn.initializers.zeros_init(),
      **types, name="fc2")(blocks.gelu(x))
    return base + x.astype(jnp.float32)
