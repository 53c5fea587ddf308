"""Is this image with these boxes and captions fit for training, and what has to be left out?

The image is decoded whole, by the code that will decode it in training, and stored untouched. A
region with an unusable box or caption is dropped, a box that sticks out is clipped, and a record
with neither a region nor a global caption left is skipped. All of it is counted by reason.
"""

import io
import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import images as images_lib
from input_pipeline.build.plan import Item, Region, readable, words_of
from input_pipeline.build.skips import SkipRecord
from input_pipeline.build.writer import BuiltSample
from input_pipeline.ratings import Rating

# Longer than any caption: a text of this size is a parsing accident.
MAX_CAPTION = 10_000
# Formats the loader is meant for, by Pillow's name. MPO is a JPEG with more pictures behind it.
_STORED_AS_IS = frozenset({"JPEG", "MPO", "PNG", "WEBP"})
# A box may be short of a pixel by what 32-bit arithmetic loses on a large image.
_ONE_PIXEL = 1 - 1e-2

_Notes = list[tuple[str, str]]


def loader_of(images: str | os.PathLike) -> Callable[[Item], BuiltSample]:
  """Returns the function that reads an item's image from a directory and checks it all."""

  def load(item: Item) -> BuiltSample:
    if item.problem is not None:
      raise SkipRecord(*item.problem)
    return sample_from(
      item.id, read_file(images, item.files), item.regions, item.global_text, label=item.label,
      captions=item.captions, size=item.size, source=item.image,
    )

  return load


def sample_from(
  name: str,
  data: bytes,
  regions: Sequence[Region],
  global_text: Any,
  *,
  label: Any = None,
  captions: Sequence[Any] = (),
  caption_sources: Sequence[str] = (),
  rating: Rating | None = None,
  least_side: int = 1,
  size: tuple[int, int] | None = None,
  source: str = "",
  relative: bool = False,
) -> BuiltSample:
  """Makes a sample of what survives the checks.

  Args:
    name: the sample's id.
    data: the image file.
    regions: boxes in pixels of the displayed image, with captions.
    global_text: caption of the whole image, or None; an image with a label and no caption at all
      takes its words.
    label: name of its class, or None.
    captions: captions of the whole image one by one; a single one is the global caption already,
      unless it is said whom it is of.
    caption_sources: whom each of `captions` is of (`ratings.CAPTION_SOURCES`), or none.
    rating: of the image, which is enough to be of use.
    least_side: pixels that the shorter side has to have.
    size: (width, height) the boxes were made for, if known.
    source: where the image came from.
    relative: boxes are shares of width and height instead of pixels.

  Raises:
    SkipRecord: no usable image, an image of another size, or nothing left to say about it.
  """
  try:
    pixels = images_lib.decode_image(data, source)
  except images_lib.ImageError as error:
    raise SkipRecord(error.reason, str(error)) from error
  height, width = pixels.shape[:2]
  if min(width, height) < least_side:
    raise SkipRecord("image-too-small", f"{width} x {height}, expected {least_side} pixels a side")
  if size is not None and tuple(size) != (width, height):
    turned = "; its EXIF header turns it, the annotations do not" if size[::-1] == (
      width, height) else ""
    raise SkipRecord(
      "image-size-differs",
      f"the annotations are for {size[0]} x {size[1]} pixels, the image is shown with {width} x "
      f"{height}{turned}",
    )
  dropped: _Notes = []
  mended: _Notes = []
  data = _storable(data, pixels, mended)
  boxes, texts = _good_regions(regions, width, height, relative, dropped, mended)
  if global_text is not None:
    global_text, problem = _clean_caption(global_text)
    if problem:
      dropped.append((problem, "global caption"))
  label = _clean_label(label, dropped)
  if label is not None and global_text is None and not texts:
    global_text = words_of(label) or label
  several, sources = [], []
  for k, caption in enumerate(captions if len(captions) > 1 or caption_sources else ()):
    caption, problem = _clean_caption(caption)
    if problem:
      dropped.append((problem, "one of several global captions"))
    else:
      several.append(caption)
      sources += caption_sources[k : k + 1]
  if sources and global_text is None:
    global_text = several[0]
  if not texts and global_text is None and rating is None:
    raise SkipRecord("nothing-to-learn", _why_nothing(dropped))
  return BuiltSample(
    id=readable(name),
    image=data,
    width=width,
    height=height,
    boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
    texts=texts,
    global_text=global_text,
    source=readable(source),
    label=label,
    captions=several if (len(several) > 1 or sources) and global_text is not None else [],
    caption_sources=sources,
    rating=rating,
    dropped=dropped,
    mended=mended,
  )


def read_file(images: str | os.PathLike, files: Sequence[str]) -> bytes:
  """The bytes of the first of `files` there is under a directory.

  Raises:
    SkipRecord: there is none, or it cannot be read.
  """
  for name in files:
    try:
      with open(os.path.join(images, name), "rb") as file:
        return file.read()
    except (FileNotFoundError, NotADirectoryError):
      continue
    except (OSError, ValueError) as error:
      raise SkipRecord("image-unreadable", f"{name}: {error}") from error
  raise SkipRecord("image-missing", f"not in {os.fspath(images)}: {' nor '.join(files)}")


def _storable(data: bytes, pixels: np.ndarray, mended: _Notes) -> bytes:
  """The file itself if it is JPEG, PNG or WebP, else its (first) picture as PNG."""
  with Image.open(io.BytesIO(data)) as image:
    kind = image.format
  if kind in _STORED_AS_IS:
    return data
  mended.append(("image-stored-as-png", f"was {kind}"))
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "PNG")
  return out.getvalue()


def _good_regions(
  regions: Iterable[Region], width: int, height: int, relative: bool, dropped: _Notes,
  mended: _Notes,
) -> tuple[list[tuple[float, ...]], list[str]]:
  boxes, texts = [], []
  for number, region in enumerate(regions):
    about = f"region {number}: box {_short(region.box)}, caption {_short(region.text)}"
    problem, box, clipped = region.problem, (), False
    if not problem:
      box, problem, clipped = _clean_box(region.box, width, height, relative)
    if not problem:
      text, problem = _clean_caption(region.text)
    if problem:
      dropped.append((problem, about))
      continue
    if clipped:
      mended.append(("box-clipped", f"{about}, image {width} x {height}"))
    boxes.append(box)
    texts.append(text)
  return boxes, texts


def _clean_box(
  box: Any, width: int, height: int, relative: bool
) -> tuple[tuple[float, ...], str, bool]:
  """Returns (box inside the image, reason to drop it or "", whether it was clipped)."""
  numbers = isinstance(box, (list, tuple, np.ndarray)) and len(box) == 4
  if not numbers or not all(_is_number(value) for value in box):
    return (), "box-malformed", False
  try:
    values = [float(value) for value in box]
  except OverflowError:  # JSON's integers have no limit.
    values = [math.inf]
  if not all(math.isfinite(value) for value in values):
    return (), "box-not-finite", False
  if relative:
    values = [value * side for value, side in zip(values, (width, height, width, height))]
  x0, y0, x1, y1 = values
  if x1 < x0 or y1 < y0:
    return (), "box-inverted", False
  if x1 - x0 < _ONE_PIXEL or y1 - y0 < _ONE_PIXEL:
    return (), "box-below-one-pixel", False
  inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
  if inside[2] - inside[0] < _ONE_PIXEL or inside[3] - inside[1] < _ONE_PIXEL:
    return (), "box-outside", False
  # Less than a thousandth of a pixel is rounding, not a finding.
  clipped = max(abs(a - b) for a, b in zip(inside, values)) > 1e-3
  return inside, "", clipped


def _clean_caption(text: Any) -> tuple[str | None, str]:
  """Returns (caption without outer blanks, "") or (None, reason to drop it)."""
  if isinstance(text, bytes):
    text = text.decode("utf-8", "surrogateescape")
  if not isinstance(text, str):
    return None, "caption-not-text"
  text = text.strip()
  if not text:
    return None, "caption-empty"
  if len(text) > MAX_CAPTION:
    return None, "caption-too-long"
  try:
    text.encode("utf-8")
  except UnicodeEncodeError:
    return None, "caption-not-utf8"
  return text, ""


def _clean_label(label: Any, dropped: _Notes) -> str | None:
  if label is None:
    return None
  label, problem = _clean_caption(label)
  if problem:
    dropped.append((problem.replace("caption", "label"), "label"))
  return label


def _is_number(value: Any) -> bool:
  return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _short(value: Any) -> str:
  text = value.tolist() if isinstance(value, np.ndarray) else value
  text = repr(text)
  return text if len(text) <= 80 else f"{text[:77]}..."


def _why_nothing(dropped: _Notes) -> str:
  if not dropped:
    return "it has neither regions nor a global caption"
  return "no usable caption is left: " + ", ".join(f"{why} ({what})" for why, what in dropped[:5])
