"""What size is an image given to the encoder at?

The model takes the longer side of an image as the scale and keeps the aspect ratio of the rest, in
whole cells of the lowest scale. Every such size is a program of its own to compile, so images go
into few sizes: nearby aspect ratios share one.
"""

import math
from collections.abc import Sequence
from typing import Literal

from big_vision_ext.models import selection

Size = tuple[int, int]
Aspect = Literal["squash", "keep"]
ASPECTS = ("squash", "keep")


def sizes(scales: Sequence[int], patch: int, aspect: Aspect = "keep",
          distortion: float = 0.1) -> list[Size]:
  """The sizes images may have, in pixels (height, width), the square first.

  The longer side is the largest scale, so that patches of that scale are cut from the pixels as
  they are. At every scale the grid has whole patches and the same aspect ratio.

  Args:
    scales: sizes of the model in pixels, the lowest first.
    patch: side of a patch in pixels.
    aspect: "squash" knows the square only; "keep" also flat and tall sizes.
    distortion: how much an aspect ratio may be changed: 0.1 lets width / height become 10 % larger
      or smaller. Ratios that the cells are too coarse for are changed more: those near one cell.

  Raises:
    ValueError: an unknown aspect, or a distortion below 0.
  """
  if aspect not in ASPECTS:
    raise ValueError(f"aspect={aspect!r}: expected one of {', '.join(ASPECTS)}")
  if not 0 <= distortion < math.inf:
    raise ValueError(f"distortion={distortion}: expected a share of at least 0, such as 0.1")
  longest, cells = scales[-1], scales[0] // patch
  found = [(longest, longest)]
  short = cells
  while aspect == "keep" and short > 1:
    # Neighbours are two distortions apart: whatever lies between is within one of the nearer.
    short = min(short - 1, math.ceil(short / (1 + distortion) ** 2))
    side = longest // cells * short
    # The model's own rounding can lose a pixel, and a whole cell with it: no such sizes.
    if selection.scale_sizes(scales, patch, (longest, side))[-1] == (longest, side):
      found += [(side, longest), (longest, side)]
  return found


def nearest(shape: Size, among: Sequence[Size]) -> Size:
  """The one of `among` whose aspect ratio is nearest to that of an image of `shape` (h, w)."""
  def ratio(size: Size) -> float:
    return math.log(size[1] / size[0])
  return min(among, key=lambda size: abs(ratio(size) - ratio(shape)))
