"""Which squares of a picture are rated at its own resolution, and what are their pixels?

Where the crops lie depends on the picture's id and size alone: a score does not change with the
batch, the order or the number of processes it was computed in.
"""

import hashlib
import math

import numpy as np
from jaxtyping import Int, UInt8

from input_pipeline import images

KINDS = ("ten_random", "five_crop", "grid", "center")
_RANDOM = 10


def boxes(
  kind: str, name: str, width: int, height: int, size: int
) -> Int[np.ndarray, "n 4"]:
  """Returns the crops of a picture.

  Args:
    kind: "ten_random"; "five_crop", the centre and the corners; "grid", as few as cover the
      picture, evenly placed, in reading order; "center".
    name: the picture's id, of which random places are made.
    width, height: of the picture, in pixels.
    size: side of a crop in pixels. A picture with a smaller side is to be enlarged till that side
      fits, so its crops are squares of that side, in its own pixels.

  Returns:
    x, y, width, height of each, in pixels of the picture.

  Raises:
    ValueError: no such kind.
  """
  side = min(size, width, height)
  right, bottom = width - side, height - side
  if kind == "ten_random":
    corners = [_draw(name, k, right, bottom) for k in range(_RANDOM)]
  elif kind == "five_crop":
    corners = [(right // 2, bottom // 2), (0, 0), (right, 0), (0, bottom), (right, bottom)]
  elif kind == "grid":
    columns, rows = (_evenly(spare, math.ceil(n / side)) for spare, n in
                     ((right, width), (bottom, height)))
    corners = [(x, y) for y in rows for x in columns]
  elif kind == "center":
    corners = [(right // 2, bottom // 2)]
  else:
    raise ValueError(f"crops are {kind!r}; expected one of {', '.join(KINDS)}")
  return np.array([(x, y, side, side) for x, y in corners], np.int64)


def cut(
  pixels: UInt8[np.ndarray, "y x 3"],
  box: Int[np.ndarray, "4"],
  size: int,
  out: UInt8[np.ndarray, "s s 3"] | None = None,
) -> UInt8[np.ndarray, "s s 3"]:
  """Returns the pixels of a crop of `boxes`: untouched, or enlarged from a smaller square.

  Args:
    pixels: the whole picture at its full size.
    box: one of its crops.
    size: side of the result.
    out: where to put it, if there is a place.
  """
  x, y, w, h = (int(v) for v in box)
  return images.resize_region(pixels, (x, y, x + w, y + h), size, "bicubic", out)


def _draw(name: str, number: int, right: int, bottom: int) -> tuple[int, int]:
  """A place in [0, right] x [0, bottom], of a hash: NumPy's draws may change with its version."""
  digest = hashlib.sha256(f"{name}\0{number}".encode("utf-8", "surrogateescape")).digest()
  words = (int.from_bytes(digest[k : k + 8], "big") for k in (0, 8))
  x, y = (word * (spare + 1) >> 64 for word, spare in zip(words, (right, bottom)))
  return x, y


def _evenly(spare: int, count: int) -> list[int]:
  """So many whole numbers from 0 to `spare`."""
  return [spare * k // max(count - 1, 1) for k in range(count)]
