"""How encoded bytes become pixels: any image file to uint8 RGB, and a region of it to a square.

Choices that everything else relies on:
- Pixels are those of the displayed image: the EXIF orientation is applied.
- Alpha is composited on white, 16-bit grey keeps its high byte, CMYK goes through Pillow.
- A JPEG may be decoded at 1/2, 1/4, ... of its size, never below the size that was asked for.
"""

import functools
import io
import math
import warnings

import cv2
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow's own hard limit; sides of 30,000 px pass while the product stays below it.
MAX_PIXELS = 178_956_970

_ORIENTATION = 0x0112  # EXIF tag; 1 is upright, 5 to 8 swap width and height.
# Scales at which a JPEG can be decoded from its low frequencies alone.
_JPEG_FACTORS = (8, 4, 2)
RESIZE_METHODS = ("bicubic", "fast")
# Bytes; what XLA asks of an array on a CPU that it is to use in place.
_ALIGNMENT = 64


class ImageError(ValueError):
  """Bytes that cannot be used as an image; `reason` is the word they are counted under."""

  def __init__(self, message: str, reason: str = "image-undecodable"):
    super().__init__(message)
    self.reason = reason

  def __reduce__(self):
    return type(self), (self.args[0], self.reason)


def image_size(data: bytes, where: str = "") -> tuple[int, int]:
  """Returns (width, height) of the displayed image from the header alone.

  Raises:
    ImageError: no known image format, or more than MAX_PIXELS pixels.
  """
  with _open(data, where or "the image") as image:
    width, height = image.size
    return (height, width) if _orientation(image) > 4 else (width, height)


def decode_image(
  data: bytes,
  where: str = "",
  min_size: tuple[int, int] | None = None,
  expect_size: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "y x 3"]:
  """Decodes an encoded image into RGB as it is displayed.

  Args:
    data: the bytes of a JPEG, PNG, WebP or any other file that Pillow reads (its first frame).
    where: name of the file or record, for error messages.
    min_size: (width, height) that is enough for the caller. A JPEG at least twice as large in both
      axes is decoded at the smallest of 1/2, 1/4, 1/8 of its size that is still no smaller; see
      `reduction`. The result depends on nothing else, so it can be cached.
    expect_size: (width, height) the displayed image must have, as its record says.

  Raises:
    ImageError: truncated or foreign bytes, too many pixels, pixels without a defined range, or
      another size than expected.
  """
  where = where or "the image"
  with _open(data, where) as image:
    width, height = image.size
    orientation = _orientation(image)
    shown = (height, width) if orientation > 4 else (width, height)
    if expect_size is not None and shown != tuple(expect_size):
      raise ImageError(
        f"{where}: the image is {shown[0]} x {shown[1]} pixels as displayed (after EXIF rotation), "
        f"its record says {expect_size[0]} x {expect_size[1]}, so its boxes cannot be trusted.",
        "image-size",
      )
    factor = 1
    if min_size is not None:
      want_w, want_h = min_size[::-1] if orientation > 4 else min_size
      # Integer division: the decoder's own size counts a last pixel of which only a part is image.
      # Turned, that part would come first and shift the picture, so there must be none.
      fits = [
        f
        for f in _JPEG_FACTORS
        if width // f >= max(want_w, 1)
        and height // f >= max(want_h, 1)
        and (orientation == 1 or width % f == height % f == 0)
      ]
      factor = fits[0] if fits else 1
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
      pixels = _decode_jpeg(data, width, height, factor)
      if pixels is not None:
        return np.ascontiguousarray(upright(pixels, orientation))
    try:
      # Also the second opinion on a JPEG with harmless stray bytes, which simplejpeg refuses.
      image.load()
      return np.array(_to_rgb(ImageOps.exif_transpose(image), where))
    except ImageError:
      raise
    except Exception as e:  # Decoders of damaged files raise OSError, SyntaxError, struct.error...
      raise ImageError(
        f"{where}: the {image.format} image of {width} x {height} pixels is damaged or truncated "
        f"({e})."
      ) from e


def empty(shape: tuple[int, ...]) -> UInt8[np.ndarray, "*shape"]:
  """Pixels to be filled in, where jax takes them on a CPU as they lie; else it copies a batch."""
  size = math.prod(shape)
  memory = np.empty(size + _ALIGNMENT - 1, np.uint8)
  start = -memory.ctypes.data % _ALIGNMENT
  return memory[start : start + size].reshape(shape)


def reduction(pixels: UInt8[np.ndarray, "y x 3"], width: int, height: int) -> int:
  """Returns the f in (1, 2, 4, 8) by which decode_image has reduced an image of a known size.

  Point (x, y) of the image is at (x / f, y / f) of `pixels`. That is not the same as stretching one
  over the other: the last row and column of `pixels` may stand for less than f pixels.
  """
  for factor in (1, *_JPEG_FACTORS[::-1]):
    if pixels.shape[:2] == (-(-height // factor), -(-width // factor)):
      return factor
  raise ImageError(
    f"pixels of shape {pixels.shape} are no reduction of an image of {width} x {height} pixels.",
    "image-size",
  )


def resize_region(
  pixels: UInt8[np.ndarray, "y x 3"],
  box: tuple[float, float, float, float],
  size: int | tuple[int, int],
  method: str = "bicubic",
  out: UInt8[np.ndarray, "h w 3"] | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
  """Cuts a region out and resizes it.

  Pixels around the region are looked at as well, so a part of a region, resized by the same
  factor, has the pixels it has in the whole. Only "fast" lets a region of whole pixels end where it
  ends, which shows in the outermost pixels of the result.

  Args:
    pixels: the image.
    box: x0, y0, x1, y1 in (fractions of) pixels of `pixels`.
    size: height and width of the result in pixels, or one number for a square.
    method: one of `RESIZE_METHODS`. "bicubic" is Pillow's, antialiased, A = -0.5: what published
      models were trained with. "fast" is OpenCV's: halved as often as it can be, then bilinear,
      which can alias a little; 5 to 15 times faster.
    out: contiguous array for the result, which saves a copy.
  """
  height, width = pixels.shape[:2]
  out_h, out_w = size if isinstance(size, tuple) else (size, size)
  # A box at the border may be out by the last bit of its floats, which Pillow refuses.
  x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
  x1, y1 = min(box[2], float(width)), min(box[3], float(height))
  if out is None:
    out = np.empty((out_h, out_w, 3), np.uint8)
  if (x1 - x0, y1 - y0) == (out_w, out_h) and x0 == int(x0) and y0 == int(y0):
    out[:] = pixels[int(y0) : int(y1), int(x0) : int(x1)]  # What every method would give.
    return out
  if method == "bicubic":
    image = Image.fromarray(pixels)
    shape, kernel = (out_w, out_h), Image.Resampling.BICUBIC
    out[:] = np.asarray(image.resize(shape, kernel, box=(x0, y0, x1, y1)))
    return out
  zoom_x, zoom_y = (x1 - x0) / out_w, (y1 - y0) / out_h
  if max(zoom_x, zoom_y) >= 2:
    halvings = max(int(math.log2(min(zoom_x, zoom_y))), 0)
    columns, rows = _whole(x0, x1, width, 2**halvings), _whole(y0, y1, height, 2**halvings)
    part = pixels[rows, columns]
    for _ in range(halvings):
      # An eighth of the time of one reduction by any other factor.
      half = part.shape[1] // 2, part.shape[0] // 2
      part = cv2.resize(part, half, interpolation=cv2.INTER_AREA)
    shrinks = max(part.shape[0] / out_h, part.shape[1] / out_w)
    kernel = cv2.INTER_AREA if shrinks >= 2 else cv2.INTER_LINEAR
    return cv2.resize(part, (out_w, out_h), dst=out, interpolation=kernel)
  if all(float(v).is_integer() for v in (x0, y0, x1, y1)):
    # The same but for the border, and four times as fast.
    part = pixels[int(y0) : int(y1), int(x0) : int(x1)]
    return cv2.resize(part, (out_w, out_h), dst=out, interpolation=cv2.INTER_LINEAR)
  # Centres of pixels lie at halves: output pixel i is at x0 + (i + 0.5) * zoom - 0.5.
  mapping = np.array(
    [[zoom_x, 0, x0 + zoom_x / 2 - 0.5], [0, zoom_y, y0 + zoom_y / 2 - 0.5]], np.float64
  )
  flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
  shape = (out_w, out_h)
  return cv2.warpAffine(
    pixels, mapping, shape, dst=out, flags=flags, borderMode=cv2.BORDER_REPLICATE
  )


def _whole(start: float, end: float, limit: int, unit: int) -> slice:
  """Whole pixels for `start` to `end` of `limit`, a multiple of `unit` in number if there are any.

  Each end is off by a quarter of a unit at most, away from the borders.
  """
  count = max(unit * round((end - start) / unit), min(unit, limit))
  count = min(count, limit // unit * unit or limit)
  first = min(max(round((start + end - count) / 2), 0), limit - count)
  return slice(first, first + count)


@functools.cache
def _own_limit() -> None:
  # Pillow warns from half of MAX_PIXELS on. Sizes below the limit are fine here, and a filter set
  # around each call would not be safe between threads.
  warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def _open(data: bytes, where: str) -> Image.Image:
  _own_limit()
  if not data:
    raise ImageError(f"{where}: the image is empty (0 bytes).")
  try:
    image = Image.open(io.BytesIO(data))
  except Image.DecompressionBombError as e:
    raise ImageError(
      f"{where}: the image has more than {MAX_PIXELS} pixels. Cut it into tiles or scale it down.",
      "image-too-large",
    ) from e
  except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as e:
    raise ImageError(
      f"{where}: {len(data)} bytes that are no image in a known format (they start with "
      f"{data[:8]!r})."
    ) from e
  if image.width * image.height > MAX_PIXELS:
    raise ImageError(
      f"{where}: the image has {image.width} x {image.height} pixels, more than the limit of "
      f"{MAX_PIXELS}. Cut it into tiles or scale it down.",
      "image-too-large",
    )
  return image


def _orientation(image: Image.Image) -> int:
  try:
    value = image.getexif().get(_ORIENTATION, 1)
  except Exception:  # A damaged EXIF block says nothing about the pixels.
    return 1
  return value if value in range(1, 9) else 1


def _decode_jpeg(data: bytes, width: int, height: int, factor: int) -> np.ndarray | None:
  """Returns the stored (not yet upright) pixels, or None if Pillow should judge the bytes."""
  try:
    return simplejpeg.decode_jpeg(
      data,
      "RGB",
      min_width=width // factor if factor > 1 else 0,
      min_height=height // factor if factor > 1 else 0,
      min_factor=factor,
    )
  except ValueError:
    return None


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
  """Applies an EXIF orientation to stored pixels."""
  if orientation > 4:
    pixels = pixels.transpose(1, 0, 2)
  if orientation in (2, 3, 6, 7):
    pixels = pixels[:, ::-1]
  if orientation in (3, 4, 7, 8):
    pixels = pixels[::-1]
  return pixels


def _to_rgb(image: Image.Image, where: str) -> Image.Image:
  if image.mode == "F":
    raise ImageError(
      f"{where}: the image has floating point pixels, whose range is not defined. Store it as "
      "8-bit.",
      "image-mode",
    )
  if image.mode.startswith("I"):
    # 16-bit grey; "I" is how Pillow opens some of them, in 32 bits. The high byte is the 8-bit one.
    grey = (np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")
  return image.convert("RGB")
