"""How much does each pixel belong to something? Weights for losses that are about the foreground.

From a record's mask (grey, white is foreground), or from its boxes: 1 inside of a box, 0 outside,
with a linear slope across its edges. Weights are those of the crop that the image shows.
"""

import numpy as np
from jaxtyping import Float32

from input_pipeline import images, records
from input_pipeline.transforms import Crop

KINDS = ("boxes", "mask")
# A mask is of use if so many of so many pixels are this certain (FocusMIM's rule).
_LEAST, _OF, _CERTAIN = 100, 9216, 0.8


class ForegroundError(ValueError):
  """A record that says nothing about its foreground; `reason` is what it is counted under."""

  reason = "no-foreground"


def of_boxes(
  boxes: Float32[np.ndarray, "n 4"], crop: Crop, size: int, soft: float
) -> Float32[np.ndarray, "s s"]:
  """Weights of the pixels of a crop, resized to size x size, by boxes; the largest of any box.

  Args:
    boxes: in pixels of the image.
    crop: which part of it.
    size: side of the result.
    soft: width of the slope over an edge, as a share of the box's side; at least one pixel.
  """
  x, y, w, h = crop
  out = np.zeros((size, size), np.float64)
  at = np.arange(size) + 0.5
  for x0, y0, x1, y1 in boxes.astype(np.float64):
    columns = _slope(at, (x0 - x) * size / w, (x1 - x) * size / w, soft)
    rows = _slope(at, (y0 - y) * size / h, (y1 - y) * size / h, soft)
    np.maximum(out, rows[:, None] * columns[None, :], out=out)
  return out.astype(np.float32)


def _slope(at, low, high, soft):
  """1 within low..high, 0 outside, a half on both; linear over soft * (high - low) around them."""
  width = max(soft * (high - low), 1.0)
  return np.clip(0.5 + np.minimum(at - low, high - at) / width, 0, 1)


def of_mask(
  mask: np.ndarray, crop: Crop, size: int, method: str
) -> Float32[np.ndarray, "s s"]:
  """Weights of the pixels of a crop by a mask of the whole image.

  Args:
    mask: uint8 (y, x, 3) of the image's size, all channels alike.
    crop: which part of it.
    size: side of the result.
    method: how it is resized, as the image is; see `images.resize_region`.
  """
  x, y, w, h = crop
  resized = images.resize_region(mask, (x, y, x + w, y + h), size, method)
  return resized[..., 0].astype(np.float32) / np.float32(255.0)


class Foreground:
  """The weights of a record.

  Args:
    kind: one of `KINDS`.
    missing: what a record gets that has no box or mask, or one of too little: "ones" everywhere, or
      it cannot be used ("skip").
    soft: see `of_boxes`.
    method: see `of_mask`.
  """

  def __init__(self, kind: str, missing: str, soft: float, method: str):
    self._kind, self._missing, self._soft, self._method = kind, missing, soft, method

  def weights(
    self, sample: records.Sample, crop: Crop, size: int, where: str
  ) -> Float32[np.ndarray, "s s"]:
    """Weights of a crop that becomes size x size pixels.

    Raises:
      ForegroundError: there is no foreground, and `missing` is "skip".
      ImageError: the mask cannot be decoded, or has another size than the image.
    """
    mask = None
    if self._kind == "mask" and sample.mask:
      mask = images.decode_image(
        sample.mask, f"{where} (mask)", expect_size=(sample.width, sample.height))
    if not self._enough(sample, mask):
      if self._missing == "skip":
        raise ForegroundError(f"{where}: the record has no {self._kind} of enough foreground.")
      return np.ones((size, size), np.float32)
    if mask is not None:
      return of_mask(mask, crop, size, self._method)
    return of_boxes(sample.boxes, crop, size, self._soft)

  def _enough(self, sample: records.Sample, mask: np.ndarray | None) -> bool:
    if self._kind == "boxes":
      whole = (0, 0, sample.width, sample.height)
      side = round(_OF**0.5)
      certain = of_boxes(sample.boxes, whole, side, self._soft) >= _CERTAIN
    elif mask is None:
      return False
    else:
      certain = mask[..., 0] >= round(255 * _CERTAIN)
    return float(np.mean(certain)) >= _LEAST / _OF
