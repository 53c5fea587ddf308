"""Which parts of a large square image does a batch carry at full size, if it cannot carry it whole?

PS3 encodes a few patches of its largest scale, those of the caption's region first. So instead of S
x S pixels a row may hold a small view of the whole and a block of tiles around the region at full
size: the square is divided into tiles of a fixed size, and the block is a rectangle of them.
"""

import numpy as np
from jaxtyping import Float32, Int32

# First and last row, first and last column of tiles, the last ones excluded.
Block = tuple[int, int, int, int]


def block_around(
  box: Float32[np.ndarray, "4"], grid: int, tile: int, count: int, rng: np.random.Generator
) -> Block:
  """Chooses a rectangle of at most `count` tiles.

  It covers the box where that is possible, and is then extended on all sides, evenly as far as the
  image allows. Of a box that touches more tiles, a random part of about its shape is taken.

  Args:
    box: x0, y0, x1, y1 in pixels of the square.
    grid: tiles along a side.
    tile: pixels along a side of a tile.
    count: most tiles; at least one.
    rng: source of randomness.
  """
  # PS3 counts the pixel at ceil(x1) as part of the box (the model's `core.boxes`).
  first = np.clip(np.floor(box[:2] / tile).astype(int), 0, grid - 1)
  last = np.clip(np.ceil(box[2:]).astype(int) // tile, first, grid - 1)
  (x, y), (w, h) = first, last - first + 1
  if w * h > count:
    part_h = max(1, min(h, count, int(h * (count / (w * h)) ** 0.5)))
    part_w = min(w, count // part_h)
    part_h = min(h, count // part_w)
    y, x = y + int(rng.integers(h - part_h + 1)), x + int(rng.integers(w - part_w + 1))
    return int(y), int(y) + part_h, int(x), int(x) + part_w
  more_h, more_w = int(h), int(w)
  while True:
    # The shorter side first, so that the block becomes a square if there is room.
    for along_rows in sorted((True, False), key=lambda rows: more_h if rows else more_w):
      new_h, new_w = more_h + along_rows, more_w + (not along_rows)
      if max(new_h, new_w) <= grid and new_h * new_w <= count:
        more_h, more_w = new_h, new_w
        break
    else:
      break
  top = int(np.clip(y - (more_h - h) // 2, 0, grid - more_h))
  left = int(np.clip(x - (more_w - w) // 2, 0, grid - more_w))
  return top, top + more_h, left, left + more_w


def places(block: Block, grid: int, count: int) -> Int32[np.ndarray, "count"]:
  """Raster positions of a block's tiles among `grid` x `grid`, filled up with -1."""
  top, bottom, left, right = block
  rows, columns = np.mgrid[top:bottom, left:right]
  at = np.full(count, -1, np.int32)
  at[: rows.size] = (rows * grid + columns).reshape(-1)
  return at


def cut(pixels: np.ndarray, tile: int, out: np.ndarray) -> None:
  """Writes the tiles of a block's pixels (rows * tile, columns * tile, 3) to `out`, then zeros."""
  rows, columns = pixels.shape[0] // tile, pixels.shape[1] // tile
  cut_up = pixels.reshape(rows, tile, columns, tile, 3).swapaxes(1, 2)
  out[: rows * columns] = cut_up.reshape(-1, tile, tile, 3)
  out[rows * columns :] = 0
