"""What is seen from a point of gaze, what is left to predict, and what does an error count?

An image is a pyramid of token grids, coarse first. A look is, for each scale, a list of raster
positions of static length: windows of n x n tokens around the gaze, or any other choice, as that of
PS3's selection. What the next look will show and none before has shown is the target; what was
shown before, at the same or a finer scale, has weight zero there, so that shapes stay static.
b batch, k tokens of a look at one scale, m targets of a step, t looks, s scales.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from big_vision_ext.core import boxes
from big_vision_ext.objectives import masks

Grid = tuple[int, int]
# Raster positions at each scale.
Look = tuple[Int[Array, "b k"], ...]
# Whether each token of each scale was seen.
Seen = tuple[Bool[Array, "b y x"], ...]

SHAPES = ("square", "disc")


def window(gaze: Float[Array, "2"], grid: Grid, side: int) -> Int[Array, "k"]:
  """The `side` x `side` tokens nearest to a gaze, shifted to stay inside, in raster order.

  Along an axis that has fewer tokens, all of them.

  Args:
    gaze: (y, x) in 0..1 of the image.
    grid: rows and columns.
    side: tokens along each axis; 0 for none.
  """
  along = []
  for at, count in zip((gaze[0], gaze[1]), grid):
    n = min(side, count)
    first = jnp.floor(at * count - n / 2 + 0.5).astype(jnp.int32)
    along.append(jnp.clip(first, 0, count - n) + jnp.arange(n, dtype=jnp.int32))
  return (along[0][:, None] * grid[1] + along[1][None, :]).reshape(-1)


def retina(
  gaze: Float[Array, "b 2"],
  grids: Sequence[Grid],
  windows: Sequence[int],
  shape: str = "square",
  keys=None,
) -> Look:
  """What is seen from a gaze at every scale.

  Args:
    gaze: (y, x) in 0..1.
    grids: of the scales.
    windows: side of the window at each scale; 0: nothing is seen of it.
    shape: "square", or "disc": as many tokens as the square has, those nearest to the gaze
      (`masks.make`, family "disc").
    keys: of the samples, for the ties of discs.
  """
  if shape not in SHAPES:
    raise ValueError(f"shape={shape!r} is unknown; it is one of {SHAPES}.")
  look = []
  for grid, side in zip(grids, windows, strict=True):
    count = min(side, grid[0]) * min(side, grid[1])
    if shape == "disc" and 0 < count < grid[0] * grid[1]:
      look.append(masks.make("disc", keys, grid, count, centre=gaze).visible)
    else:
      look.append(jax.vmap(lambda at, grid=grid, side=side: window(at, grid, side))(gaze))
  return tuple(look)


def nothing(grids: Sequence[Grid], batch: int) -> Seen:
  """Before the first look."""
  return tuple(jnp.zeros((batch, *grid), bool) for grid in grids)


def see(seen: Seen, look: Look) -> Seen:
  """What has been seen after one look more."""
  return tuple(_mark(old, index) for old, index in zip(seen, look, strict=True))


def covered(seen: Seen) -> Seen:
  """Which tokens' boxes were seen at their own or a finer scale.

  From fine to coarse: a token is covered if it was seen, or if all tokens of the next finer scale
  that its box touches are covered. So one half of a box may be seen at one scale and the other at
  another. Where grids do not nest, a fine token that reaches beyond the box is asked for as well.
  """
  out = [seen[-1]]
  for own in reversed(seen[:-1]):
    out.append(own | every(out[-1], own.shape[1:]))
  return tuple(reversed(out))


def every(fine: Bool[Array, "b y x"], grid: Grid) -> Bool[Array, "b h w"]:
  """Which cells of a coarser grid have only true tokens among those that they touch."""
  for axis, count in ((1, grid[0]), (2, grid[1])):
    start, end = boxes.windows(fine.shape[axis], count)
    # Shorter windows repeat their last token.
    at = np.minimum(start[:, None] + np.arange((end - start).max()), end[:, None] - 1)
    fine = jnp.take(fine, at, axis=axis).all(axis=axis + 1)
  return fine


def at(maps: Sequence[Array], look: Look) -> list[Array]:
  """Entries of maps (b, y, x), one a scale, at the tokens of a look."""
  flat = (x.reshape(x.shape[0], -1) for x in maps)
  return [jnp.take_along_axis(x, index, axis=1) for x, index in zip(flat, look, strict=True)]


def next_targets(
  looks: Sequence[Look], grids: Sequence[Grid]
) -> tuple[list[Look], list[Float[Array, "b m"]], list[Seen]]:
  """What each look but the first shows anew.

  Returns:
    For each step t = 1 .. T - 1 the tokens of look t + 1; their weights, 0 where the box was seen
    by one of the looks 1 .. t at the same or a finer scale, scale by scale; and what had been seen.
  """
  seen, targets, weights, before = nothing(grids, looks[0][0].shape[0]), [], [], []
  for look, following in zip(looks, looks[1:]):
    seen = see(seen, look)
    old = jnp.concatenate(at(covered(seen), following), axis=1)
    targets.append(tuple(following))
    weights.append(1.0 - old.astype(jnp.float32))
    before.append(seen)
  return targets, weights, before


def rest_targets(
  looks: Sequence[Look], grids: Sequence[Grid]
) -> tuple[Look, Float[Array, "b m"], Seen]:
  """All tokens of the finest scale that no look showed, in raster order, and their weights.

  The list is as long as what one look leaves, since looks may show the same: it is filled up with
  tokens of weight zero. After a single look every weight is one.
  """
  b, (rows, columns) = looks[0][0].shape[0], grids[-1]
  seen = nothing(grids, b)
  for look in looks:
    seen = see(seen, look)
  old = seen[-1].reshape(b, rows * columns)
  room = rows * columns - max(look[-1].shape[1] for look in looks)
  order = jnp.argsort(old, axis=1, stable=True)[:, :room].astype(jnp.int32)
  weight = 1.0 - jnp.take_along_axis(old, order, axis=1).astype(jnp.float32)
  empty = jnp.zeros((b, 0), jnp.int32)
  return (*[empty] * (len(grids) - 1), order), weight, seen


def residual(
  patches: Float[Array, "b m p"],
  coarser: Sequence[Float[Array, "b m p"]],
  seen: Sequence[Bool[Array, "b m"]],
) -> tuple[Float[Array, "b m p"], Float[Array, "b m p"]]:
  """What of patches a coarser view that was seen does not tell: a level of a Laplacian pyramid.

  Args:
    patches: of one scale.
    coarser: the same patches of the coarser scales, coarse first, each enlarged to this one's size.
    seen: whether each coarser view was seen.

  Returns:
    The difference to the finest of the coarser views that was seen, zeros standing for none, and
    what was subtracted.
  """
  base = jnp.zeros_like(patches)
  for view, known in zip(coarser, seen, strict=True):
    base = jnp.where(known[..., None], view, base)
  return patches - base, base


def inverse_variance(
  target: Float[Array, "b m p"],
  weight: Float[Array, "b m"],
  scale: Int[np.ndarray, "m"],
  count: int,
) -> Float[Array, "s"]:
  """beta of each scale: one over the variance of what is to be predicted there, in the whole batch.

  1 where nothing of a scale is to be predicted. No gradient passes.
  """
  out = []
  for s in range(count):
    of = weight * jnp.asarray(scale == s, jnp.float32)
    n = jnp.maximum(of.sum(), 1e-9) * target.shape[-1]
    mean = jnp.sum(of[..., None] * target) / n
    var = jnp.sum(of[..., None] * (target - mean) ** 2) / n
    out.append(jnp.where((of.sum() > 0) & (var > 0), 1.0 / jnp.maximum(var, 1e-9), 1.0))
  return jax.lax.stop_gradient(jnp.stack(out))


def weighted_mean(
  error: Float[Array, "b m"], weight: Float[Array, "b m"], factor: Float[Array, "#m"] | float = 1.0
) -> Float[Array, ""]:
  """sum w * factor * error / sum w over the whole batch; zero without targets."""
  # where, not a product: what does not count may not leak an infinity or a NaN.
  total = jnp.sum(jnp.where(weight > 0, error * weight * factor, 0.0))
  return total / jnp.maximum(jnp.sum(weight), 1e-9)


def log_error(error: Float[Array, "b m"]) -> Float[Array, "b m"]:
  """What surprise is regressed on: the logarithm of an error, which no gradient passes."""
  return jnp.log(jax.lax.stop_gradient(error) + 1e-3)


def cell_of(look: Look, grids: Sequence[Grid]) -> Int[Array, "b m"]:
  """The cell of the coarsest grid that the centre of each token lies in, scale by scale."""
  rows, columns = grids[0]
  out = []
  for index, (height, width) in zip(look, grids, strict=True):
    y = (2 * (index // width) + 1) * rows // (2 * height)
    x = (2 * (index % width) + 1) * columns // (2 * width)
    out.append(y * columns + x)
  return jnp.concatenate(out, axis=1)


def _mark(old, index):
  flat = old.reshape(old.shape[0], -1)
  flat = jax.vmap(lambda row, at: row.at[at].set(True))(flat, index)
  return flat.reshape(old.shape)
