"""Where is a token? Sines and cosines of real coordinates, one code for all scales and crops.

The code of a place has three parts side by side: column, row, and, where tokens come in several
sizes, the logarithm of their side. Frequencies are those of MAE's fixed table, 10000^(-k / n): a
grid of one scale, with its tokens counted in whole numbers, gets that table to the bit.

Two frames. In the *scene* frame a place is a point of the image, in units of the finest scale's
tokens: tables of one row per grid row and column, looked up. In the *retinal* frame it is the
distance from a point of gaze in units of the token's own side, so that what is seen from two
gazes with the same surroundings has the same code.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Grid = tuple[int, int]

POSITIONS = ("real", "grid")
_TEMPERATURE = 10_000.0


def parts(width: int, sides: bool) -> tuple[int, int, int]:
  """Numbers of a code that stand for column, row and side; even, and `width` in all.

  Raises:
    ValueError: the width is no multiple of four, or below eight.
  """
  if width % 4 or width < 8:
    raise ValueError(f"positions need a width of 8, 12, 16, ...; got {width}.")
  axis = 2 * (width // 6) if sides else width // 2
  return axis, axis, width - 2 * axis


def waves(values: Float[np.ndarray, "..."], width: int) -> Float[np.ndarray, "... w"]:
  """[sine | cosine] of values at `width` / 2 frequencies, computed in float64, as float32."""
  angles = np.asarray(values, np.float64)[..., None] * _frequencies(width)
  return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)


def scene(
  index: Int[Array, "b k"], scale: int, grids: tuple[Grid, ...], width: int, positions: str
) -> Float[Array, "b k w"]:
  """Codes of tokens in the frame of the image, float32.

  Args:
    index: raster positions in the grid of `scale`.
    scale: which of the grids.
    grids: rows and columns of all scales, coarse first.
    width: of the code.
    positions: "real", the token's centre in units of the finest scale's tokens, its first token's
      centre being zero, and the logarithm of its side; "grid", whole numbers in the token's own
      grid and no side: MAE's table.
  """
  rows, columns = grids[scale]
  fine = grids[-1] if positions == "real" else grids[scale]
  x, y, side = parts(width, positions == "real" and len(grids) > 1)
  place = lambda n, of: (np.arange(n) + 0.5) * (of / n) - 0.5
  code = [
    jnp.asarray(waves(place(columns, fine[1]), x))[index % columns],
    jnp.asarray(waves(place(rows, fine[0]), y))[index // columns],
  ]
  return _with_side(code, side, grids, scale)


def retinal(
  index: Int[Array, "b k"], scale: int, grids: tuple[Grid, ...], width: int,
  gaze: Float[Array, "b #k 2"],
) -> Float[Array, "b k w"]:
  """Codes of tokens in the frame of a gaze, (centre - gaze) / side and the side, float32.

  Args:
    index, scale, grids, width: as of `scene`.
    gaze: (y, x) in 0..1 of the image, of all tokens or of each.
  """
  rows, columns = grids[scale]
  x, y, side = parts(width, len(grids) > 1)
  away_y = index // columns + 0.5 - gaze[..., 0] * rows
  away_x = index % columns + 0.5 - gaze[..., 1] * columns
  return _with_side([_waves(away_x, x), _waves(away_y, y)], side, grids, scale)


def movement(
  step: Float[Array, "*b 2"], grids: tuple[Grid, ...], width: int
) -> Float[Array, "*b w"]:
  """The code of a movement of the gaze (y, x), in units of the finest scale's tokens, float32."""
  x, y, _ = parts(width, False)
  rows, columns = grids[-1]
  return jnp.concatenate([_waves(step[..., 1] * columns, x), _waves(step[..., 0] * rows, y)], -1)


def _with_side(code, width, grids, scale):
  if width:
    octaves = np.log2(grids[-1][0] / grids[scale][0])
    side = jnp.asarray(waves(octaves, width))
    code.append(jnp.broadcast_to(side, (*code[0].shape[:-1], width)))
  return jnp.concatenate(code, axis=-1)


def _waves(values, width):
  angles = values.astype(jnp.float32)[..., None] * jnp.asarray(_frequencies(width), jnp.float32)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _frequencies(width):
  return _TEMPERATURE ** -(np.arange(width // 2) / (width / 2))
