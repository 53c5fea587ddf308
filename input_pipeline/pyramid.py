"""How a large image is stored so that a part or a small version of it costs only its own pixels.

Level k of a pyramid is the displayed image reduced by 2^k, cut into square tiles, each a JPEG of
its own: a window of a level is read by decoding the tiles it touches. Pixel (x, y) of the image is
at (x / 2^k, y / 2^k) of level k, whose last row and column may stand for less than 2^k pixels: the
rule of `images.reduction`, so that a level can stand in for a JPEG decoded at a reduced size.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from input_pipeline.images import ImageError

# Side of a tile in pixels. Smaller ones fit a window closer, larger ones have fewer headers and
# fewer seams in the colour planes; a multiple of 16 keeps seams off the blocks of the JPEG.
TILE = 256
# On photographs less than a grey level off the file on average; README.md has the measurement.
QUALITY = 95
# Up to this many pixels on the longer side, tiles save nothing.
WORTH_IT = 1024


class PyramidError(ValueError):
  """Fields of a record that describe no pyramid of the image."""


@dataclasses.dataclass(frozen=True)
class Pyramid:
  """Levels of tiles.

  Attributes:
    width, height: of the image in pixels, which is the size of level 0.
    tile: side of a tile in pixels; those of the last row and column may be smaller.
    levels: per level the encoded tiles, row by row.
  """

  width: int
  height: int
  tile: int
  levels: Sequence[Sequence[bytes]]

  def size(self, level: int) -> tuple[int, int]:
    """Width and height of a level in pixels."""
    return -(-self.width // 2**level), -(-self.height // 2**level)

  def level_for(self, shrink: float) -> int:
    """The smallest level with at least 1 / `shrink` of the image's pixels along an axis."""
    level = 0
    while level + 1 < len(self.levels) and 2 ** (level + 1) <= shrink:
      level += 1
    return level


def make(pixels: UInt8[np.ndarray, "y x 3"], *, full_colour: bool, tile: int = TILE) -> Pyramid:
  """Returns the pyramid of an image.

  Args:
    pixels: the image as it is displayed.
    full_colour: keep colours at full resolution, as for a drawing or a screenshot; a photograph
      that was a JPEG with halved colour planes has nothing to keep.
    tile: side of a tile in pixels.
  """
  height, width = pixels.shape[:2]
  levels = []
  while True:
    small = _reduced(pixels, 2 ** len(levels))
    levels.append([
      simplejpeg.encode_jpeg(
        np.ascontiguousarray(small[y : y + tile, x : x + tile]),
        quality=QUALITY,
        colorsubsampling="444" if full_colour else "420",
      )
      for y in range(0, small.shape[0], tile)
      for x in range(0, small.shape[1], tile)
    ])
    if max(small.shape[:2]) <= tile:
      return Pyramid(width, height, tile, levels)


def read(
  pyramid: Pyramid,
  level: int,
  window: tuple[int, int, int, int],
  where: str,
  cached: Callable[[Any, Callable[[], np.ndarray]], np.ndarray] = lambda key, decode: decode(),
) -> UInt8[np.ndarray, "y x 3"]:
  """Returns a window of a level.

  Args:
    pyramid: the image.
    level: the level to read.
    window: x0, y0, x1, y1 in whole pixels of that level, within it and not empty.
    where: name of the record, for error messages.
    cached: called with (level, tile number) and what decodes the tile.

  Raises:
    ImageError: a tile is damaged or has another size than its place asks for.
  """
  x0, y0, x1, y1 = window
  width, height = pyramid.size(level)
  side, across = pyramid.tile, -(-width // pyramid.tile)
  out = np.empty((y1 - y0, x1 - x0, 3), np.uint8)
  for row in range(y0 // side, -(-y1 // side)):
    for column in range(x0 // side, -(-x1 // side)):
      number, left, top = row * across + column, column * side, row * side
      want = (min(side, height - top), min(side, width - left), 3)
      name = f"{where}: tile {number} of level {level}"
      data = pyramid.levels[level][number]
      pixels = cached((level, number), lambda d=data, w=want, n=name: _decode(d, w, n))
      a, b = max(left, x0), min(left + side, x1)
      c, d = max(top, y0), min(top + side, y1)
      out[c - y0 : d - y0, a - x0 : b - x0] = pixels[c - top : d - top, a - left : b - left]
  return out


def to_fields(pyramid: Pyramid) -> dict[str, Any]:
  """The pyramid as a record holds it; the image's size is the record's own."""
  return {"tile": pyramid.tile, "levels": [list(tiles) for tiles in pyramid.levels]}


def from_fields(fields: Mapping[str, Any], width: int, height: int) -> Pyramid:
  """The pyramid of an image of a known size.

  Raises:
    PyramidError: a field is missing, or there are more or fewer tiles than the size asks for.
  """
  tile, levels = fields.get("tile"), fields.get("levels")
  if not isinstance(tile, int) or isinstance(tile, bool) or tile < 1:
    raise PyramidError(f"its tiles have a side of {tile!r}, expected a number of pixels")
  if not isinstance(levels, list) or not levels:
    raise PyramidError(f"its levels are {type(levels).__name__}, expected a list of at least one")
  pyramid = Pyramid(width, height, tile, levels)
  for k, tiles in enumerate(levels):
    if not isinstance(tiles, list) or not all(isinstance(t, bytes) and t for t in tiles):
      raise PyramidError(f"level {k} is no list of encoded tiles")
    w, h = pyramid.size(k)
    if len(tiles) != (want := -(-w // tile) * -(-h // tile)):
      raise PyramidError(
        f"level {k} has {len(tiles)} tiles, expected {want} of {tile} pixels for {w} x {h} pixels"
      )
  return pyramid


def _reduced(pixels: np.ndarray, factor: int) -> np.ndarray:
  """Means of factor x factor pixels; at the border the last row or column counts for the rest."""
  if factor == 1:
    return pixels
  down, right = -pixels.shape[0] % factor, -pixels.shape[1] % factor
  if down or right:
    pixels = cv2.copyMakeBorder(pixels, 0, down, 0, right, cv2.BORDER_REPLICATE)
  size = (pixels.shape[1] // factor, pixels.shape[0] // factor)
  return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)


def _decode(data: bytes, shape: tuple[int, int, int], name: str) -> np.ndarray:
  try:
    pixels = simplejpeg.decode_jpeg(data, "RGB")
  except ValueError as e:
    raise ImageError(f"{name} is damaged or truncated ({e}).") from e
  if pixels.shape != shape:
    raise ImageError(
      f"{name} has {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {shape[1]} x {shape[0]}.",
      "image-size",
    )
  return pixels
