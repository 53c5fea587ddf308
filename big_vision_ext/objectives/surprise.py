"""Which places of an image are unlike what is around them, and how is a score taught to find them?

Ours; PS3 has boxes for it. The surprise of a cell is how far it is from what was foretold of it, in
units of how much its surroundings vary: among leaves another leaf is no news, though no pixel of it
was foretold, and noise is none among noise. The most surprising cells of each image are what its
score should find. Nothing but the image is read, nothing is random, and no image depends on another.
b batch, y x cells, p numbers of a cell, s scales.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.objectives import regions, selection

# Added to variances, of pixels in -1..1: in a plain surrounding a faint cloud is no event.
_FLAT = 0.01


def surprise(
  cells: Float[Array, "b y x p"],
  foretold: Float[Array, "b y x p"],
  variance: Float[Array, "b y x c"],
) -> Float[Array, "b y x"]:
  """Logarithm of a cell's mean squared error over the variance around it; no gradient passes.

  Args:
    cells: pixels in -1..1.
    foretold: the same, as foretold from what is around each.
    variance: of the colours around each.
  """
  error = jnp.mean((cells - foretold) ** 2, axis=-1)
  ratio = (error + 1e-4) / (variance.mean(axis=-1) + _FLAT)
  return jax.lax.stop_gradient(jnp.log(ratio))


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
