"""Where would a closer look tell most that is not known, and how is a score taught to find it?

Ours; PS3 has boxes for it. The surprise of a cell is how badly its detail was foretold from the
low-resolution view, in units of how badly that of the cells around it was: among leaves another
leaf is no news, though no pixel of it was foretold. The most surprising cells of each image are
what its score should find. Nothing but the image is read, nothing is random, and no image depends
on another. b batch, y x cells, p numbers of a cell.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.objectives import regions, selection

# Added to mean squared errors of pixels in -1..1: four levels of 256, as compression leaves them,
# are no event anywhere.
_FLAT = 1e-3


def surprise(
  detail: Float[Array, "b y x p"], foretold: Float[Array, "b y x p"]
) -> Float[Array, "b y x"]:
  """Logarithm of the error of each cell over the mean error around it; no gradient passes.

  Args:
    detail: of cells, see `models.surprise`; pixels in -1..1.
    foretold: the same, as it was foretold.
  """
  error = jax.lax.stop_gradient(jnp.mean((detail - foretold) ** 2, axis=-1))
  own = error + _FLAT
  return jnp.log(own) - jnp.log(_around(error) + _FLAT)


def _around(x: Float[Array, "b y x"]) -> Float[Array, "b y x"]:
  """The mean over the eight cells around each, or as many of them as there are."""
  total, count = (_of_three_by_three(v) - v for v in (x, jnp.ones_like(x)))
  return total / jnp.maximum(count, 1.0)


def _of_three_by_three(x):
  return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3), (1, 1, 1), "SAME")


def most(value: Float[Array, "b y x"], count: int) -> Float[Array, "b y x"]:
  """1 for the `count` cells of each image with the largest values, 0 for the others.

  Exactly so many, whatever the values: of equal ones the first are taken.
  """
  flat = value.reshape(value.shape[0], -1)
  index = jax.lax.top_k(flat, count)[1]
  found = jax.vmap(lambda row, at: row.at[at].set(1.0))(jnp.zeros_like(flat), index)
  return found.reshape(value.shape)


def teach(
  score: selection.Score,
  value: Float[Array, "b y x"],
  count: int,
  grids: Sequence[regions.Grid],
  form: str = "bce",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Loss of a score that is to find the most surprising cells of its image.

  Args:
    score: log-odds per cell, for all scales or for each.
    value: surprise of each cell.
    count: how many cells are to be found.
    grids: token grid of each high-resolution scale.
    form: as of `selection.selection_loss`.

  Returns:
    The loss; and its terms, and `surprise_found`, the share of those cells among as many that the
    score puts first.
  """
  wanted = jax.lax.stop_gradient(most(value, count))
  targets = regions.cell_targets(wanted, grids)
  terms = {"selection_bottomup_bce": jnp.mean(selection.bce(score, targets))}
  if form == "bce_dice":
    terms["selection_bottomup_dice"] = jnp.mean(selection.dice(score, targets))
  first = most(score if score.ndim == 3 else score.mean(axis=1), count)
  return sum(terms.values()), terms | {"surprise_found": jnp.sum(first * wanted) / wanted.sum()}
