"""What does a joint-embedding predictor see, and which blocks does it predict?

I-JEPA (Assran et al. 2023, sec. 3): several target blocks, predicted one by one, and one large
context block without what the targets cover. There the size of blocks is drawn for each step and
index lists are cut to the shortest of the batch. Here all lengths are constants: a target block is
the M tokens deepest inside of a rectangle of area M, whose aspect and place are drawn (the block's
rim is ragged by a few tokens where no rectangle has M), and the context is K tokens drawn from what
the context block and the targets leave. A rectangle touches each border of the grid as often as one
on whole places would. (The released code leaves out the last place of each axis, so that its blocks
never reach the last row and column.)

Tokens are numbered in raster order. Every sample's blocks depend on its key alone.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Grid = tuple[int, int]
_ASPECT = (0.75, 1.5)
# Side of the context block over the grid's: 85 to 100 % of its area.
_CONTEXT = (0.85, 1.0)


class Blocks(NamedTuple):
  """What is seen, and the blocks that are predicted.

  Attributes:
    context: indices of the tokens that are seen, ascending; none of a target.
    target: indices of each block's tokens, ascending; blocks may overlap.
  """

  context: Int[Array, "b k"]
  target: Int[Array, "b g m"]


def check(grid: Grid, num_context: int, num_blocks: int, block_size: int) -> None:
  """Raises ValueError where targets could take what the context needs, or blocks do not fit in."""
  total, low, high = math.prod(grid), *_ASPECT
  sides = math.sqrt(block_size * high), math.sqrt(block_size / low)
  if not (num_context > 0 and num_blocks > 0 and block_size > 0
          and num_context + num_blocks * block_size <= total
          and sides[0] <= grid[0] and sides[1] <= grid[1]):
    raise ValueError(
        f"num_context={num_context}, num_blocks={num_blocks}, block_size={block_size}: of the "
        f"{total} tokens of a grid of {grid}, the context needs those that are left when no target "
        "block overlaps another, and a block of any aspect from 0.75 to 1.5 must fit in.")


def make(keys: Key[Array, "b"], grid: Grid, num_context: int, num_blocks: int,
         block_size: int) -> Blocks:
  """The blocks of each sample.

  Args:
    keys: one for each sample.
    grid: rows and columns of the tokens.
    num_context: K, tokens that are seen.
    num_blocks: target blocks.
    block_size: M, tokens of a target block.

  Raises:
    ValueError: numbers that do not fit each other.
  """
  check(grid, num_context, num_blocks, block_size)

  def one(key):
    of_targets, of_context, of_rest = jax.random.split(key, 3)
    depth = jax.vmap(lambda k: _depth(k, grid, block_size, _ASPECT))(
        jax.random.split(of_targets, num_blocks))
    target = jnp.sort(jax.lax.top_k(depth, block_size)[1], axis=-1)
    covered = jnp.zeros(math.prod(grid), bool).at[target.reshape(-1)].set(True)
    k_scale, k_place = jax.random.split(of_context)
    scale = jax.random.uniform(k_scale, minval=_CONTEXT[0], maxval=_CONTEXT[1])
    inside = _depth(k_place, grid, scale * math.prod(grid), (grid[0] / grid[1],) * 2) > 0
    # First what is inside, in random order, then what is not; what a target covers never.
    order = jax.random.uniform(of_rest, covered.shape) + jnp.where(inside, 1.0, 0.0)
    order = jnp.where(covered, -jnp.inf, order)
    return jnp.sort(jax.lax.top_k(order, num_context)[1]), target

  return Blocks(*jax.vmap(one)(keys))


def _depth(key, grid, area, aspect) -> Float[Array, "n"]:
  """How deep each token's centre lies inside of a random rectangle, negative outside of it.

  Of several equally deep tokens one is deeper by chance.
  """
  k_aspect, k_y, k_x, k_tie = jax.random.split(key, 4)
  # Rows over columns.
  ratio = jax.random.uniform(k_aspect, minval=aspect[0], maxval=aspect[1])
  height = jnp.minimum(jnp.sqrt(area * ratio), grid[0])
  width = jnp.minimum(area / height, grid[1])
  top, left = (_place(k, n - side) for k, n, side in
               ((k_y, grid[0], height), (k_x, grid[1], width)))
  y, x = (jnp.arange(n) + 0.5 for n in grid)
  rows = jnp.minimum(y - top, top + height - y)[:, None]
  cols = jnp.minimum(x - left, left + width - x)[None, :]
  depth = jnp.minimum(rows, cols).reshape(-1)
  return depth + 1e-4 * jax.random.uniform(k_tie, depth.shape)


def _place(key, room):
  """Where in 0..room a rectangle begins: at either end with the chance of a whole place."""
  return jnp.clip(jax.random.uniform(key) * (room + 1) - 0.5, 0, room)
