"""What one training example is made of: which caption, which crop, and where its boxes land.

PS3's sample construction (Shi et al. 2025, as its released training code has it): a quarter global
captions, otherwise one random region; a contiguous run of the caption's sentences; a random
resized crop of image and boxes together. All randomness comes from the generator that is passed in.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from input_pipeline import records

MIN_VISIBLE = 0.25  # A region must keep this share of its area in the crop,
CROP_TRIES = 5  # or the crop is drawn again, and after this many tries is the whole image.

_LEAD_INS = ("The second image is a close-up of", "The image is a close-up of")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")

Crop = tuple[int, int, int, int]  # x, y, width, height in pixels


class CaptionError(ValueError):
  """A record that gives no caption to train on; `reason` is the word it is counted under."""

  reason = "no-caption"


def choose_region(
  sample: records.Sample, rng: np.random.Generator, *, global_share: float
) -> int | None:
  """Returns the number of the region to train on, or None for the whole image.

  Raises:
    CaptionError: the record has neither regions nor a global caption.
  """
  wants_global = rng.random() < global_share
  if sample.global_text is not None and (wants_global or not sample.texts):
    return None
  if not sample.texts:
    raise CaptionError(f"record {sample.id!r} has neither regions nor a global caption.")
  return int(rng.integers(len(sample.texts)))


def clean_caption(text: str) -> str:
  """Drops what captioning models say about their own input rather than about the region.

  That is the lead-in "The (second) image is a close-up of", and a last sentence that says whether
  text is visible. A caption of that sentence alone is kept: it is all there is.
  """
  for phrase in _LEAD_INS:
    text = text.replace(phrase, "")
  sentences = split_sentences(text)
  last = sentences[-1].lower() if sentences else ""
  if len(sentences) > 1 and "text" in last and "visible" in last:
    sentences = sentences[:-1]
  return " ".join(sentences)


def split_sentences(text: str) -> list[str]:
  """Returns the sentences of a text: cut at white space after ".", "!" or "?"."""
  return [s for s in _SENTENCE_END.split(text.strip()) if s]


def sample_sentences(text: str, rng: np.random.Generator) -> str:
  """Returns a contiguous run of sentences that starts at one of the first three."""
  sentences = split_sentences(text)
  n = len(sentences)
  if n < 2:
    return text.strip()
  start = int(rng.integers(min(n - 1, 2) + 1))
  length = int(rng.integers(1, n - start + 1))
  return " ".join(sentences[start : start + length])


def middle_square(
  width: int, height: int, side: int, share: float
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
  """The square in the middle that published models see: resized, then cut out of whole pixels.

  The shorter side is resized to floor(side / share) pixels, the longer one in proportion, cut off
  to a whole number, and the square begins at a whole pixel of the result: torchvision's `Resize`
  and `CenterCrop`, with which CLIP (share 1) and timm's models see images.

  Returns:
    x0, y0, x1, y1 in pixels of the image, which become side x side; width and height to which that
    resizes the whole.
  """
  short = math.floor(side / share + 1e-9)  # 224 / 0.875 is 256, whatever floats make of it.
  least = min(width, height)
  whole = tuple(short if s == least else int(short * s / least) for s in (width, height))
  x, y = (int(round((s - side) / 2)) for s in whole)
  across, down = width / whole[0], height / whole[1]
  return (x * across, y * down, (x + side) * across, (y + side) * down), whole


def random_crop(
  rng: np.random.Generator,
  width: int,
  height: int,
  *,
  scale: Sequence[float],
  ratio: Sequence[float],
  clamp: bool = False,
) -> Crop:
  """Draws the crop of a random resized crop, by torchvision's rule.

  Ten tries of an area share uniform in `scale` and an aspect ratio log-uniform in `ratio`; then
  the largest centred crop whose aspect ratio is within `ratio`. With `clamp`, one try, whose sides
  are cut down to those of the image.

  Args:
    rng: source of randomness.
    width, height: size of the image in pixels.
    scale: least and greatest share of the area.
    ratio: least and greatest width / height.
  """
  log_ratio = np.log(ratio)
  for _ in range(10):
    area = width * height * rng.uniform(*scale)
    aspect = float(np.exp(rng.uniform(*log_ratio)))
    w, h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    if clamp:
      w, h = max(1, min(w, width)), max(1, min(h, height))
    if 0 < w <= width and 0 < h <= height:
      y = int(rng.integers(height - h + 1))
      x = int(rng.integers(width - w + 1))
      return x, y, w, h
  return _centre_crop(width, height, ratio)


def _centre_crop(width: int, height: int, ratio: Sequence[float]) -> Crop:
  aspect = width / height
  # At least one pixel: a line of pixels has no crop of a moderate aspect ratio.
  if aspect < ratio[0]:
    width, height_kept = width, max(1, round(width / ratio[0]))
    return 0, (height - height_kept) // 2, width, height_kept
  if aspect > ratio[1]:
    width_kept = max(1, round(height * ratio[1]))
    return (width - width_kept) // 2, 0, width_kept, height
  return 0, 0, width, height


def plain_crop(rng: np.random.Generator, width: int, height: int, size: int) -> Crop:
  """Draws a square of `size` pixels, or of the image's shorter side if that is less."""
  side = min(size, width, height)
  x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
  return x, y, side, side


def middle_crop(width: int, height: int, size: int) -> Crop:
  """The square of `size` pixels in the middle, or of the image's shorter side if that is less."""
  side = min(size, width, height)
  return (width - side) // 2, (height - side) // 2, side, side


def crop_for_region(
  rng: np.random.Generator,
  width: int,
  height: int,
  box: Float32[np.ndarray, "4"],
  *,
  scale: Sequence[float],
  ratio: Sequence[float],
) -> Crop:
  """Draws crops until one shows enough of the region; the whole image if none does."""
  for _ in range(CROP_TRIES):
    crop = random_crop(rng, width, height, scale=scale, ratio=ratio)
    if visible_share(box[None], crop)[0] >= MIN_VISIBLE:
      return crop
  return 0, 0, width, height


def visible_share(boxes: Float32[np.ndarray, "n 4"], crop: Crop) -> Float32[np.ndarray, "n"]:
  """Returns the share of each box's area that lies inside of the crop."""
  x, y, w, h = crop
  low = np.maximum(boxes[:, :2], [x, y])
  high = np.minimum(boxes[:, 2:], [x + w, y + h])
  inside = np.prod(np.maximum(high - low, 0), axis=1)
  return (inside / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).astype(np.float32)


def crop_boxes(
  boxes: Float32[np.ndarray, "n 4"], crop: Crop, size: int
) -> Float32[np.ndarray, "n 4"]:
  """Returns boxes in pixels of the crop resized to size x size, clipped to it."""
  x, y, w, h = crop
  moved = (boxes.astype(np.float64) - [x, y, x, y]) * (np.array([size, size] * 2) / [w, h, w, h])
  return np.clip(moved, 0, size).astype(np.float32)


def least_decoded_size(
  width: int, height: int, size: int, *, scale: Sequence[float], ratio: Sequence[float]
) -> tuple[int, int]:
  """Returns the (width, height) at which no crop of the image has fewer than `size` pixels a side.

  It depends on the image's size and on the configuration but not on a crop, so that pixels decoded
  at a reduced size can be shared by all crops.
  """
  area = scale[0] * width * height
  _, _, centre_w, centre_h = _centre_crop(width, height, ratio)
  # Half a pixel: crop sides are rounded.
  least_w = max(1.0, min(centre_w, (area * ratio[0]) ** 0.5 - 0.5))
  least_h = max(1.0, min(centre_h, (area / ratio[1]) ** 0.5 - 0.5))
  return int(np.ceil(size * width / least_w)), int(np.ceil(size * height / least_h))
