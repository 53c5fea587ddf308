"""Where should the next look go, given what the earlier ones saw?

The published model ranks all places once and later looks take what comes next. Here a small network
reads, cell by cell, what was seen there and how much of the cell, compares it with the prompt, and
changes the score of the next look: a find in one cell speaks for its neighbours, a
disappointment for other places. Its last layer is zero at first, so that it begins as the plain
ranking. What was seen cannot be chosen again in any case.

It costs a few 3 x 3 convolutions on the low-resolution grid per look, next to nothing. It is
trained on the model's own first looks (see `ps3.PS3Vision`), and nothing else is trained by it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from big_vision_ext.core import boxes
from big_vision_ext.models import activations, blocks, selection_head

Grid = tuple[int, int]


class Saw(NamedTuple):
  """What earlier looks saw, per low-resolution cell.

  Attributes:
    tokens: sum of the features of the high-resolution tokens seen.
    count: how many they are.
    total: how many there are, of all scales.
  """

  tokens: Float[Array, "b y x d"]
  count: Float[Array, "b y x"]
  total: Float[Array, "y x"]


def nothing(batch: int, width: int, grids: Sequence[Grid], cells: Grid) -> Saw:
  """What was seen before the first look."""
  size = cells[0] * cells[1]
  total = sum(np.bincount(boxes.token_cells(grid, cells), minlength=size) for grid in grids)
  total = total.reshape(cells).astype(np.float32)
  zeros = jnp.zeros((batch, *cells, width), jnp.float32)
  return Saw(zeros, zeros[..., 0], total)


def add(
  saw: Saw, tokens: Float[Array, "b t d"], index: Sequence[Int[Array, "b n"]],
  grids: Sequence[Grid],
) -> Saw:
  """With one more look: its tokens, scale by scale, at raster positions `index[scale]`."""
  cells, start = saw.count.shape[1:], 0
  for grid, at in zip(grids, index):
    part = tokens[:, start : start + at.shape[1]].astype(jnp.float32)
    start += at.shape[1]
    saw = saw._replace(
      tokens=saw.tokens + boxes.sum_by_cell(part, at, grid, cells),
      count=saw.count + boxes.sum_by_cell(jnp.ones(at.shape), at, grid, cells),
    )
  return saw


class LookPolicy(nn.Module):
  """Scores, what was seen, and a prompt -> changes of the scores."""

  hidden: int = 32
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, score: Float[Array, "b s y x"], saw: Saw, prompt: Float[Array, "b d"]
  ) -> Float[Array, "b s y x"]:
    """Scores come and changes go in log-odds, scores as cosines (divided by their scale)."""
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    mean = saw.tokens / jnp.maximum(saw.count, 1.0)[..., None]
    seen = (saw.count > 0)[..., None].astype(self.dtype)
    found = selection_head.Linear(self.hidden, ("embed", "out"), **types, name="read")(
      blocks.layer_norm("read_norm", 1e-6, **types)(mean)
    )
    asked = selection_head.Linear(self.hidden, ("embed", "out"), **types, name="ask")(
      blocks.layer_norm("ask_norm", 1e-6, **types)(prompt)
    )
    # Products, not sums: the question is whether what was found is what was asked for.
    match = found * asked[:, None, None] * seen
    overall = match.sum(axis=(1, 2)) / jnp.maximum(seen.sum(axis=(1, 2)), 1)
    share = (saw.count / saw.total)[..., None]
    x = jnp.concatenate([jnp.moveaxis(score, 1, -1), share, match], axis=-1)
    x = self._conv("near", x.astype(self.dtype))
    x = x + selection_head.Linear(self.hidden, ("out", "mlp"), **types, name="whole")(
      overall
    )[:, None, None]
    x = self._conv("far", activations.gelu(x))
    zeros = nn.initializers.zeros_init()
    kernel = self.param("out", zeros, (self.hidden, score.shape[1]), self.param_dtype)
    x = activations.gelu(x).astype(jnp.float32) @ kernel.astype(jnp.float32)
    return jnp.moveaxis(x, -1, 1)

  def _conv(self, name: str, x: jax.Array) -> jax.Array:
    init = nn.initializers.lecun_normal()
    init = nn.with_logical_partitioning(init, (None, None, None, "conv"))
    return nn.Conv(self.hidden, (3, 3), padding="SAME", kernel_init=init, dtype=self.dtype,
                   param_dtype=self.param_dtype, name=name)(x)
