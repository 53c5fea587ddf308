"""Which cells of a token grid does a box touch? Closed forms, so no pixel mask is ever built.

A box is float32 `[x0, y0, x1, y1]` in pixels of the image the model receives. The pixels it
marks are rows `floor(y0) .. ceil(y1)` and columns `floor(x0) .. ceil(x1)`, both ends included
and clipped to the image (the released PS3 data loader paints exactly these). Everything here
equals what one gets by painting that mask and pooling or resampling it, but is computed from
the four numbers: rows and columns are independent, and a grid map is their outer product.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Grid = tuple[int, int]


def windows(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
  """Start and end (exclusive) of each adaptive-pooling window of `n_in` samples onto `n_out`.

  Windows overlap when the ratio is no integer: floor(i * n_in / n_out) to
  ceil((i + 1) * n_in / n_out), in exact integer arithmetic.
  """
  i = np.arange(n_out)
  return i * n_in // n_out, -(-(i + 1) * n_in // n_out)


def nearest_index(n_in: int, n_out: int) -> np.ndarray:
  """Source sample of each of `n_out` nearest-neighbour samples: floor(i * n_in / n_out).

  The product is formed in float32, as PyTorch does: where i * n_in / n_out is an exact integer,
  rounding may fall on either side, and published weights were trained with that choice.
  """
  scale = np.float32(n_in) / np.float32(n_out)
  index = np.floor(np.arange(n_out, dtype=np.float32) * scale).astype(np.int32)
  return np.minimum(index, n_in - 1)


def _axis_hits(low: jax.Array, high: jax.Array, n_pixels: int, n_cells: int) -> jax.Array:
  """(...,) pixel coordinates of a box along one axis -> bool (..., n_cells)."""
  first = jnp.clip(jnp.floor(low), 0, n_pixels)[..., None]
  last = jnp.clip(jnp.ceil(high) + 1, 0, n_pixels)[..., None]
  start, end = windows(n_pixels, n_cells)
  # An inverted box (first >= last) marks nothing, though its ends may lie in one window.
  return (first < end) & (last > start) & (first < last)


def axis_hits(
  box: Float[Array, "*b 4"], image_hw: Grid, grid: Grid
) -> tuple[Bool[Array, "*b y"], Bool[Array, "*b x"]]:
  """Grid rows and grid columns that hold at least one pixel of the box."""
  rows = _axis_hits(box[..., 1], box[..., 3], image_hw[0], grid[0])
  cols = _axis_hits(box[..., 0], box[..., 2], image_hw[1], grid[1])
  return rows, cols


def hit_map(box: Float[Array, "*b 4"], image_hw: Grid, grid: Grid) -> Bool[Array, "*b y x"]:
  """Cells of `grid` that hold at least one pixel of the box.

  Equals area-pooling the painted mask to `grid` and asking for values above zero.

  Args:
    box: pixels of an image of size `image_hw`; an inverted or NaN box hits nothing.
    image_hw: height and width of the image, in pixels.
    grid: rows and columns of the token grid laid over the whole image.
  """
  rows, cols = axis_hits(box, image_hw, grid)
  return rows[..., :, None] & cols[..., None, :]


def dilated_hit_maps(
  box: Float[Array, "*b 4"], image_hw: Grid, grids: Sequence[Grid]
) -> list[Bool[Array, "*b y x"]]:
  """Like `hit_map` per grid, but every grid repeats the cells hit in the first (coarsest) one.

  This is the map PS3 forces selection with in training (ps3 `get_selection_probs`): the same
  region at every scale, dilated to whole cells of the first high-resolution grid.
  """
  rows, cols = axis_hits(box, image_hw, grids[0])
  maps = []
  for grid in grids:
    r = rows[..., nearest_index(grids[0][0], grid[0])]
    c = cols[..., nearest_index(grids[0][1], grid[1])]
    maps.append(r[..., :, None] & c[..., None, :])
  return maps


def union_hit_map(
  boxes: Float[Array, "*b n 4"], num_boxes: Int[Array, "*b"], image_hw: Grid, grid: Grid
) -> Bool[Array, "*b y x"]:
  """Cells hit by any of the first `num_boxes` boxes of each sample."""
  rows, cols = axis_hits(boxes, image_hw, grid)
  real = jnp.arange(boxes.shape[-2]) < num_boxes[..., None]
  rows = (rows & real[..., None]).astype(jnp.float32)
  # A matmul over the boxes counts them per cell, without a (boxes, y, x) temporary.
  return jnp.einsum("...ny,...nx->...yx", rows, cols.astype(jnp.float32)) > 0


def hits_at(
  box: Float[Array, "b 4"], image_hw: Grid, grid: Grid, index: Int[Array, "b t"]
) -> Bool[Array, "b t"]:
  """`hit_map` looked up at raster indices of `grid`, without the map."""
  rows, cols = axis_hits(box, image_hw, grid)
  row = jnp.take_along_axis(rows, index // grid[1], axis=-1)
  col = jnp.take_along_axis(cols, index % grid[1], axis=-1)
  return row & col


def token_cells(grid: Grid, cells: Grid) -> np.ndarray:
  """For each token of `grid`, in raster order, the cell of `cells` whose score it has."""
  row, col = nearest_index(cells[0], grid[0]), nearest_index(cells[1], grid[1])
  return (row[:, None] * cells[1] + col[None, :]).reshape(-1)


def sum_by_cell(
  values: Float[Array, "b t *d"], index: Int[Array, "b t"], grid: Grid, cells: Grid
) -> Float[Array, "b y x *d"]:
  """Sums of what tokens at raster indices of `grid` have, in each cell of `cells`."""
  of = jnp.asarray(token_cells(grid, cells))[index]
  zeros = jnp.zeros((cells[0] * cells[1], *values.shape[2:]), values.dtype)
  out = jax.vmap(lambda v, at: zeros.at[at].add(v))(values, of)
  return out.reshape(values.shape[0], *cells, *values.shape[2:])
