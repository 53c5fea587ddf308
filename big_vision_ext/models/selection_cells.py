"""Which tokens are looked at when a budget buys whole cells? The budget rule "cells".

The published rule (`selection`) splits a budget over the scales and cuts each scale's ranking
where its share ends: at about, but not exactly, the same place, and each scale's last cell in its
own way. Here all scales share one sequence of tokens: low-resolution cells by rank, within a cell
the scales from coarse to fine, within a scale raster order. Looks are consecutive pieces of that
sequence. A budget so buys whole cells at all scales; what is left over begins the next cell, with
its coarse scales first, and the next look starts by finishing that cell. Every look has exactly
its number of tokens, but for the last one, where the image ends.

A cell is a cell of the image's own aspect ratio: every high-resolution grid is a whole multiple of
the grid of cells, so that all cells hold the same number of tokens and shapes are static.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from big_vision_ext.models import selection

Grid = tuple[int, int]
Counts = tuple[int, ...]


def cell_grid(grids: Sequence[Grid], zooms: Sequence[int]) -> Grid:
  """Rows and columns of cells of an image with these high-resolution grids."""
  return grids[0][0] // zooms[0], grids[0][1] // zooms[0]


def counts(zooms: Sequence[int], tokens: int, first_n: int | None = None) -> Counts:
  """How many of the first `tokens` tokens of the sequence are of each scale.

  Args:
    zooms: each high-resolution scale's size over the lowest one's: it has zoom ** 2 tokens a cell.
    tokens: length of the piece.
    first_n: only so many scales are in the sequence.
  """
  per_cell = [z * z if i < (first_n or len(zooms)) else 0 for i, z in enumerate(zooms)]
  whole, rest = divmod(tokens, sum(per_cell))
  out = []
  for size in per_cell:
    begun = min(rest, size)
    rest -= begun
    out.append(whole * size + begun)
  return tuple(out)


def plan_looks(
  grids: Sequence[Grid],
  zooms: Sequence[int],
  per_look: int,
  *,
  num_looks: int | Literal["all"] | None = None,
  num_tokens: int | None = None,
  only_first_n_scales: int | None = None,
) -> list[Counts]:
  """Tokens taken per look and scale; the counterpart of `selection.plan_looks`.

  Args:
    grids: token grid of each high-resolution scale.
    zooms: see `counts`.
    per_look: tokens of a look.
    num_looks: number of looks (more than the image holds are not made), or "all": every token.
    num_tokens: number of tokens over all looks instead; exactly one of the two is given.
    only_first_n_scales: look at the first so many scales, and at no other.

  Returns:
    One tuple of counts per look; each adds up to `per_look`, the last one to what is left.
  """
  selection.check_request(len(grids), num_looks, num_tokens, only_first_n_scales)
  if per_look < 1:
    raise ValueError(f"max_select_num={per_look}: a look needs at least one token.")
  available = sum(h * w for h, w in grids[: only_first_n_scales or len(grids)])
  if num_tokens is None:
    num_tokens = available if num_looks == "all" else num_looks * per_look
  num_tokens = min(num_tokens, available)
  ends = [min(j * per_look, num_tokens) for j in range(math.ceil(num_tokens / per_look) + 1)]
  upto = [counts(zooms, end, only_first_n_scales) for end in ends]
  return [tuple(b - a for a, b in zip(*pair)) for pair in zip(upto, upto[1:])]


def cell_means(maps: Sequence[Array], cells: Grid) -> Float[Array, "b y x"]:
  """Mean of maps over the tokens of each cell, then over the scales."""
  rows, cols = cells
  means = []
  for x in maps:
    b, height, width = x.shape
    parts = x.astype(jnp.float32).reshape(b, rows, height // rows, cols, width // cols)
    means.append(parts.mean(axis=(2, 4)))
  return jnp.mean(jnp.stack(means), axis=0)


def rankings(
  scores: Sequence[Float[Array, "b y x"]],
  counts: Counts,
  *,
  zooms: Sequence[int],
  forced: Sequence[Bool[Array, "b y x"]] | None = None,
  seen: Sequence[Bool[Array, "b y x"]] | None = None,
) -> list[Int[Array, "b t"]]:
  """The first `counts[scale]` tokens of every scale in the sequence; no gradient flows through.

  Cells are ranked by the share of them that was seen, so that a cell that was begun is next; then
  by the share that is forced, so that a region larger than the budget loses its rim; then by the
  mean of their scores over tokens and scales; then by their raster position.

  Args:
    scores: one map per high-resolution scale, larger is looked at earlier.
    counts: tokens per scale, sums over the looks of a plan of `plan_looks`.
    zooms: see `counts`.
    forced: maps of tokens whose cells are taken before any other.
    seen: maps of tokens that earlier looks took.
  """
  grids = [x.shape[1:] for x in scores]
  cells = cell_grid(grids, zooms)
  keys = [-cell_means(maps, cells).reshape(scores[0].shape[0], -1)
          for maps in (seen, forced, jax.lax.stop_gradient(list(scores))) if maps is not None]
  raster = jnp.broadcast_to(jnp.arange(cells[0] * cells[1], dtype=jnp.int32), keys[0].shape)
  ranked = jax.lax.sort([*keys, raster], dimension=1, is_stable=True, num_keys=len(keys))[-1]
  return [_tokens(ranked, cells[1], zoom, count) for zoom, count in zip(zooms, counts)]


def _tokens(ranked: jax.Array, columns: int, zoom: int, count: int) -> jax.Array:
  """Raster indices of the first `count` tokens of one scale, cell after cell."""
  place, inside = np.divmod(np.arange(count, dtype=np.int32), zoom * zoom)
  cell = ranked[:, place]
  row = cell // columns * zoom + inside // zoom
  return row * (columns * zoom) + cell % columns * zoom + inside % zoom
