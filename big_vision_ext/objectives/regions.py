"""Which high-resolution tokens belong to a region, as a target for the selection score?

A token is positive if its patch holds at least one pixel of the box (ps3: area-pooled mask above
zero, directly at each scale). The score, however, is one number per low-resolution cell, which
stands for all tokens of the cell. So all a loss needs are, per cell and scale, how many tokens
are positive and how many there are: exact, and without a map of 72,900 tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from big_vision_ext.core import boxes as geometry

Grid = tuple[int, int]


class CellCounts(NamedTuple):
  """Tokens of one scale, counted per low-resolution cell.

  Attributes:
    positive: tokens inside the region, float32.
    total: all tokens that count, the same for every sample (y, x) or not (b, y, x).
  """

  positive: Float[Array, "b y x"]
  total: Float[Array, "*b y x"]


def _membership(n_tokens: int, n_cells: int) -> np.ndarray:
  """(tokens, cells) of one axis: 1 where a token takes its score from that cell."""
  cell = geometry.nearest_index(n_cells, n_tokens)
  return (cell[:, None] == np.arange(n_cells)).astype(np.float32)


def _totals(grid: Grid, cells: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  rows, cols = _membership(grid[0], cells[0]), _membership(grid[1], cells[1])
  return rows, cols, np.outer(rows.sum(axis=0), cols.sum(axis=0))


def box_targets(
  box: Float[Array, "b 4"], image_hw: Grid, grids: Sequence[Grid], cells: Grid
) -> list[CellCounts]:
  """Counts for one box per sample, one entry per scale.

  Args:
    box: [x0, y0, x1, y1] in pixels of the image.
    image_hw: height and width of that image, in pixels.
    grids: token grid of each high-resolution scale.
    cells: grid of the score.
  """
  counts = []
  for grid in grids:
    rows, cols, total = _totals(grid, cells)
    hit_rows, hit_cols = geometry.axis_hits(box, image_hw, grid)
    # A box is a product of rows and columns, so its count per cell is one, too.
    per_row, per_col = hit_rows.astype(jnp.float32) @ rows, hit_cols.astype(jnp.float32) @ cols
    counts.append(CellCounts(per_row[..., :, None] * per_col[..., None, :], total))
  return counts


def union_targets(
  boxes: Float[Array, "b n 4"],
  num_boxes: Int[Array, "b"],
  image_hw: Grid,
  grids: Sequence[Grid],
  cells: Grid,
) -> list[CellCounts]:
  """Counts for the union of the first `num_boxes` boxes of each sample, one entry per scale."""
  counts = []
  for grid in grids:
    rows, cols, total = _totals(grid, cells)
    hit = geometry.union_hit_map(boxes, num_boxes, image_hw, grid).astype(jnp.float32)
    counts.append(CellCounts(jnp.einsum("byx,yr,xc->brc", hit, rows, cols), total))
  return counts


def cell_targets(chosen: Float[Array, "b y x"], grids: Sequence[Grid]) -> list[CellCounts]:
  """Counts for whole cells that are 1 in a map, one entry per scale."""
  totals = [_totals(grid, chosen.shape[1:])[2] for grid in grids]
  return [CellCounts(chosen * total, total) for total in totals]


def unseen(
  targets: Sequence[CellCounts],
  index: Sequence[Int[Array, "b t"]],
  hits: Sequence[Bool[Array, "b t"]],
  grids: Sequence[Grid],
) -> list[CellCounts]:
  """Counts without the tokens that were looked at: what is left to find, and to search in.

  Args:
    targets: from `box_targets` or `union_targets`.
    index: raster indices of the tokens looked at, per scale; none twice.
    hits: which of them are positive.
    grids: token grid of each scale.
  """
  left = []
  for (positive, total), at, hit, grid in zip(targets, index, hits, grids):
    cells = positive.shape[1:]
    found = geometry.sum_by_cell(hit.astype(jnp.float32), at, grid, cells)
    looked = geometry.sum_by_cell(jnp.ones(at.shape, jnp.float32), at, grid, cells)
    left.append(CellCounts(positive - found, total - looked))
  return left


def union_hits_at(
  boxes: Float[Array, "b n 4"],
  num_boxes: Int[Array, "b"],
  image_hw: Grid,
  grid: Grid,
  index: Int[Array, "b t"],
) -> Bool[Array, "b t"]:
  """Whether tokens at raster indices of `grid` are on any of the first `num_boxes` boxes."""
  hit = geometry.union_hit_map(boxes, num_boxes, image_hw, grid)
  return jnp.take_along_axis(hit.reshape(hit.shape[0], -1), index, axis=-1)


def token_targets(
  box: Float[Array, "b 4"], image_hw: Grid, grids: Sequence[Grid]
) -> list[Bool[Array, "b y x"]]:
  """The targets as one map per scale, for measuring and drawing; losses use the counts."""
  return [geometry.hit_map(box, image_hw, grid) for grid in grids]
