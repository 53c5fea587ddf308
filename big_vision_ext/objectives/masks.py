"""Which tokens does a masked model see, and which does it predict?

A mask is two lists of token indices of static length, so that nothing has a dynamic shape and a
hidden token is never computed: K visible ones and M targets with a weight each. Every family takes
one key per sample: a sample's mask depends on its key alone, not on the batch, the mesh or the
other samples.

Tokens are numbered in raster order over a grid of (rows, columns). b batch, k visible, m targets.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Grid = tuple[int, int]

FAMILIES = ("random", "shared", "cell", "block", "grid", "disc")


class Mask(NamedTuple):
  """What is seen and what is predicted.

  Attributes:
    visible: indices of the tokens that are seen, ascending.
    target: indices of the tokens that are predicted, ascending.
    weight: how much each target counts; 0 leaves it out.
  """

  visible: Int[Array, "b k"]
  target: Int[Array, "b m"]
  weight: Float[Array, "b m"]


def make(
  family: str,
  keys: Key[Array, "b"],
  grid: Grid,
  num_visible: int,
  *,
  cell: int = 1,
  centre: Float[Array, "b 2"] | None = None,
) -> Mask:
  """The mask of each sample; the targets are all tokens that are not visible.

  Args:
    family: "random" tokens of each sample (He et al. 2022); "shared", the same random tokens for
      the whole batch; "cell", random squares of `cell` x `cell` tokens (Pixio); "block", the
      hidden tokens form rectangles (BEiT, I-JEPA); "grid", a lattice, evenly spread; "disc", the
      tokens nearest to a point of gaze (the periphery is hidden).
    keys: one for each sample.
    grid: rows and columns of the tokens.
    num_visible: K, the number of visible tokens of every sample, a whole number and not a ratio:
      196 * (1 - 0.8) rounds down to 39 in one order of operations and to 38 in another.
    cell: side of a cell in tokens; it must divide both sides of the grid, and its square K.
    centre: of "disc", (y, x) in 0..1 of the image; drawn uniformly if None.

  Raises:
    ValueError: an unknown family, or numbers that do not fit each other.
  """
  total = grid[0] * grid[1]
  if family not in FAMILIES:
    raise ValueError(f"mask family {family!r} is unknown; it is one of {FAMILIES}.")
  if not 0 < num_visible < total:
    raise ValueError(
      f"num_visible={num_visible} must lie between 1 and {total - 1}: the grid {grid} has {total} "
      "tokens, of which some must be seen and some hidden."
    )
  if family == "cell":
    _check_cell(grid, cell, num_visible)
  rank = jax.vmap(lambda key, at: _rank(family, key, grid, num_visible, cell, at))
  if family == "shared":
    keys = jnp.broadcast_to(keys[:1], keys.shape)
  if centre is None:
    centre = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (2,)))(keys)
  return from_rank(rank(keys, centre), num_visible)


def from_rank(rank: Float[Array, "b n"], num_visible: int) -> Mask:
  """The `num_visible` tokens of lowest rank are seen, the others predicted.

  Equal ranks are taken in raster order.
  """
  order = jnp.argsort(rank, axis=-1, stable=True).astype(jnp.int32)
  visible = jnp.sort(order[:, :num_visible], axis=-1)
  target = jnp.sort(order[:, num_visible:], axis=-1)
  return Mask(visible, target, jnp.ones(target.shape, jnp.float32))


def subset(mask: Mask, keys: Key[Array, "b"], num_target: int) -> Mask:
  """The mask with `num_target` of its targets, drawn at random for each sample."""

  def pick(key, target, weight):
    noise = jax.random.uniform(jax.random.fold_in(key, 2), target.shape)
    chosen = jnp.sort(jnp.argsort(noise)[:num_target])
    return target[chosen], weight[chosen]

  return Mask(mask.visible, *jax.vmap(pick)(keys, mask.target, mask.weight))


def explicit(hidden: np.ndarray) -> Mask:
  """A mask given by hand, (b, rows, columns) bool, true where hidden.

  Raises:
    ValueError: samples with different numbers of hidden tokens, or none hidden or none visible.
  """
  flat = np.asarray(hidden, bool).reshape(len(hidden), -1)
  counts = np.unique(flat.sum(axis=1))
  if len(counts) != 1 or counts[0] in (0, flat.shape[1]):
    raise ValueError(
      f"an explicit mask hides {counts.tolist()} of {flat.shape[1]} tokens; expected one number "
      "for all samples, above 0 and below all of them: shapes are static."
    )
  return from_rank(jnp.asarray(flat, jnp.float32), int(flat.shape[1] - counts[0]))


def hidden_map(mask: Mask, grid: Grid) -> Float[Array, "b y x"]:
  """The weight of every token, 0 where it is no target, as a map for measures and pictures."""
  b = mask.target.shape[0]
  flat = jnp.zeros((b, grid[0] * grid[1]), jnp.float32)
  at = jnp.arange(b)[:, None]
  return flat.at[at, mask.target].set(mask.weight).reshape(b, *grid)


def sample_keys(key: Key[Array, ""], batch_size: int) -> Key[Array, "b"]:
  """One key for each row of a global batch, whatever devices the rows are on."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(batch_size))


def _rank(family, key, grid, num_visible, cell, centre):
  """(n,) numbers whose `num_visible` lowest are to be seen."""
  if family in ("random", "shared"):
    return jax.random.uniform(key, (grid[0] * grid[1],))
  if family == "cell":
    rows, cols = grid[0] // cell, grid[1] // cell
    noise = jax.random.uniform(key, (rows, cols))
    return jnp.repeat(jnp.repeat(noise, cell, axis=0), cell, axis=1).reshape(-1)
  if family == "grid":
    return _grid_rank(key, grid)
  if family == "disc":
    return _disc_rank(key, grid, centre)
  return _block_rank(key, grid, num_visible)


def _disc_rank(key, grid, centre):
  """Distance of each token's centre from the gaze; equals are told apart at random.

  Taking the K nearest tokens keeps K the same wherever the gaze lies, also near a border.
  """
  y, x = (jnp.arange(n) + 0.5 for n in grid)
  gaze = centre * jnp.asarray(grid, jnp.float32)
  squared = (y[:, None] - gaze[0]) ** 2 + (x[None, :] - gaze[1]) ** 2
  # Below any difference of squared distances that is no tie.
  return squared.reshape(-1) + 1e-4 * jax.random.uniform(key, (grid[0] * grid[1],))


def _grid_rank(key, grid):
  """Lattices, coarse before fine: every fourth token, then every second, then all; shifted.

  The place in that order is the position's binary digits, those of rows and columns in turn, read
  backwards.
  """
  bits = max(grid).bit_length()
  ky, kx = jax.random.split(key)
  y = (jnp.arange(grid[0]) + jax.random.randint(ky, (), 0, grid[0])) % grid[0]
  x = (jnp.arange(grid[1]) + jax.random.randint(kx, (), 0, grid[1])) % grid[1]
  rank = 0
  for i in range(bits):
    by, bx = (y >> i & 1)[:, None], (x >> i & 1)[None, :]
    # The opposite corner of a square comes second, which spreads odd numbers of tokens better.
    rank = rank * 4 + 2 * (by ^ bx) + by
  return rank.reshape(-1).astype(jnp.float32)


def _block_rank(key, grid, num_visible, blocks: int = 4):
  """Rectangles of aspect 0.75 to 1.5 are hidden, together about the share that is to be hidden.

  The count is made exact by hiding, or showing, the tokens nearest to the edge of the union.
  """
  hidden = grid[0] * grid[1] - num_visible
  k_aspect, k_y, k_x, k_tie = jax.random.split(key, 4)
  area = hidden / blocks
  aspect = jnp.exp(jax.random.uniform(k_aspect, (blocks,), minval=math.log(0.75),
                                      maxval=math.log(1.5)))
  height = jnp.clip(jnp.sqrt(area * aspect), 1.0, grid[0])
  width = jnp.clip(area / height, 1.0, grid[1])
  top = jax.random.uniform(k_y, (blocks,)) * (grid[0] - height)
  left = jax.random.uniform(k_x, (blocks,)) * (grid[1] - width)
  y = (jnp.arange(grid[0]) + 0.5)[:, None, None]
  x = (jnp.arange(grid[1]) + 0.5)[None, :, None]
  # Depth inside each rectangle, negative outside: its level sets are rectangles.
  inside = jnp.minimum(jnp.minimum(y - top, top + height - y),
                       jnp.minimum(x - left, left + width - x))
  depth = inside.max(axis=-1).reshape(-1)
  return depth + 1e-4 * jax.random.uniform(k_tie, depth.shape)


def _check_cell(grid, cell, num_visible):
  if cell < 1 or grid[0] % cell or grid[1] % cell or num_visible % cell**2:
    raise ValueError(
      f"cell={cell} must divide the grid {grid}, and its square num_visible={num_visible}."
    )
