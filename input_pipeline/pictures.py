"""How a record's image becomes the pixels that are asked for, whichever way it is stored.

A picture is decoded no more than it is asked to be: a file once, at a reduced size where that is
enough for every region; a pyramid by the tiles of the level that a region needs.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from input_pipeline import images, pyramid, records

Region = tuple[float, float, float, float]  # x0, y0, x1, y1 in (fractions of) pixels of the image
Cached = Callable[[Any, Callable[[], np.ndarray]], np.ndarray]


class Picture(Protocol):
  """Pixels of an image as it is displayed."""

  def region(
    self,
    region: Region,
    size: tuple[int, int],
    method: str,
    out: UInt8[np.ndarray, "h w 3"] | None = None,
  ) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a region resized to `size` (height, width), as `images.resize_region` does.

    Raises:
      ImageError: the image cannot be decoded, or not as its record says.
    """
    ...


def of(
  sample: records.Sample,
  where: str,
  least: tuple[int, int] | None = None,
  cached: Cached = lambda key, decode: decode(),
) -> Picture:
  """The picture of a record.

  Args:
    sample: the record.
    where: its name, for error messages.
    least: (width, height) at which the whole has to be decoded at least, for all regions that will
      be asked for to be resized down; None for its full size. Pyramids choose for each region.
    cached: called with a key that is unique within the record, and what decodes it.
  """
  if sample.pyramid is not None:
    return _Tiled(sample.pyramid, where, cached)
  return _File(sample, where, least, cached)


def whole(
  sample: records.Sample, where: str
) -> UInt8[np.ndarray, "y x 3"]:
  """All pixels of a record's image, at its full size; raises ImageError as `Picture.region`."""
  if sample.pyramid is not None:
    return pyramid.read(sample.pyramid, 0, (0, 0, sample.width, sample.height), where)
  return images.decode_image(sample.image, where, expect_size=(sample.width, sample.height))


class _File:
  """An encoded file, decoded whole when pixels are first asked for."""

  def __init__(self, sample, where, least, cached):
    self._sample, self._where, self._least, self._cached = sample, where, least, cached
    self._pixels: np.ndarray | None = None

  def region(self, region, size, method, out=None):
    width, height = self._sample.width, self._sample.height
    if self._pixels is None:
      self._pixels = self._cached("file", lambda: images.decode_image(
        self._sample.image, self._where, self._least, expect_size=(width, height)
      ))
    f = images.reduction(self._pixels, width, height)
    box = tuple(v / f for v in region)
    return images.resize_region(self._pixels, box, size, method, out)


class _Tiled:
  """A pyramid, of which a region's own tiles are decoded."""

  def __init__(self, stored, where, cached):
    self._stored, self._where, self._cached = stored, where, cached

  def region(self, region, size, method, out=None):
    x0, y0, x1, y1 = region
    zoom_y, zoom_x = (y1 - y0) / size[0], (x1 - x0) / size[1]
    level = self._stored.level_for(min(zoom_x, zoom_y))
    f = 2**level
    width, height = self._stored.size(level)
    # As far as a bicubic kernel reaches, so that a cut-out has the pixels it has in the whole.
    reach_x, reach_y = (2 * max(zoom / f, 1) + 1 for zoom in (zoom_x, zoom_y))
    left, top = max(math.floor(x0 / f - reach_x), 0), max(math.floor(y0 / f - reach_y), 0)
    right, bottom = math.ceil(x1 / f + reach_x), math.ceil(y1 / f + reach_y)
    window = left, top, min(right, width), min(bottom, height)
    pixels = pyramid.read(self._stored, level, window, self._where, self._cached)
    box = x0 / f - left, y0 / f - top, x1 / f - left, y1 / f - top
    return images.resize_region(pixels, box, size, method, out)
