"""How does a picture file keep its depth and its transparency? Read and written, 8 or 16 bits.

Colours are RGB as displayed: EXIF orientation is applied, grey is three times the same. A file of
16 bits a channel (PNG, TIFF) stays so. Alpha is no colour: it is kept apart, is no part of what is
restored, and goes back into the result, enlarged as that is. What a result was made with stands in
the PNG itself, as text.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import struct
import zlib
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from big_vision_ext import features
from big_vision_ext.core import bicubic
from input_pipeline import images
from input_pipeline.images import ImageError

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF = (b"II*\0", b"MM\0*")
_KEY = b"big_vision_ext.restored"
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Picture:
  """What is in a file.

  Attributes:
    colour: (h, w, 3) uint8 or uint16, RGB.
    alpha: (h, w) of the same type, or None.
  """

  colour: np.ndarray
  alpha: np.ndarray | None = None


def read(path: str | os.PathLike) -> Picture:
  """Decodes a file.

  Raises:
    ImageError: no picture, a damaged one, or numbers without a defined range; OSError: no file.
  """
  path = pathlib.Path(path)
  data, where = path.read_bytes(), str(path)
  deep = data[:8] == _PNG and data[24:25] == b"\x10"
  if deep or data[:4] in _TIFF:
    found = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None and deep:
      raise ImageError(f"{where}: the 16-bit PNG is damaged or truncated.")
    if found is not None and found.dtype != np.uint8:
      return _of_opencv(found, data, where)
  colour = images.decode_image(data, where)
  with Image.open(io.BytesIO(data)) as image:
    if not image.has_transparency_data:
      return Picture(colour)
    both = np.array(ImageOps.exif_transpose(image).convert("RGBA"))
  return Picture(both[..., :3], both[..., 3])


def shape(path: str | os.PathLike) -> tuple[int, int] | None:
  """Height and width, from the header; None where they take more than that."""
  try:
    width, height = images.image_size(pathlib.Path(path).read_bytes(), str(path))
  except (ImageError, OSError):
    return None  # Reading it in earnest says what is wrong, or gives pixels after all.
  return height, width


def write(path: pathlib.Path, picture: Picture, about: dict[str, Any]) -> None:
  """Writes a PNG, which appears when it is complete.

  Args:
    path: its name.
    picture: what.
    about: what it was made with, as JSON can say it; see `made_with`.
  """
  found = picture.colour[..., ::-1]
  if picture.alpha is not None:
    found = np.concatenate([found, picture.alpha[..., None]], axis=-1)
  good, data = cv2.imencode(".png", np.ascontiguousarray(found))
  if not good:
    raise OSError(f"{path}: a picture of {found.shape} cannot be encoded as PNG")
  text = json.dumps(about, sort_keys=True).encode("ascii")
  with features.replacing(path) as file:
    data = data.tobytes()
    # The header's chunk is the first and 25 bytes long.
    head = len(_PNG) + 25
    file.write(data[:head] + _chunk(b"tEXt", _KEY + b"\0" + text) + data[head:])


def made_with(path: pathlib.Path) -> dict[str, Any] | None:
  """What a result was made with; {} if the file is none of ours, None if there is no file."""
  if not path.is_file():
    return None
  with open(path, "rb") as file:
    head = file.read(len(_PNG) + 25 + 8)
    if head[:8] != _PNG or head[-4:] != b"tEXt":
      return {}
    (length,) = struct.unpack(">I", head[-8:-4])
    key, _, text = file.read(length).partition(b"\0")
  try:
    return json.loads(text) if key == _KEY else {}
  except ValueError:
    return {}


def to_depth(unit: np.ndarray, dtype: Any) -> np.ndarray:
  """Numbers in 0..1 as uint8 or uint16, rounded half to even."""
  return np.rint(unit * np.float32(np.iinfo(dtype).max)).astype(dtype)


def enlarged(plane: np.ndarray, scale: int) -> np.ndarray:
  """A plane (h, w) of uint8 or uint16, `scale` times as large, bicubically."""
  if scale == 1:
    return plane
  rows, columns = (bicubic.matrix(n, n * scale) for n in plane.shape)
  found = rows @ plane.astype(np.float32) @ columns.T
  return np.rint(np.clip(found, 0, np.iinfo(plane.dtype).max)).astype(plane.dtype)


def _of_opencv(found: np.ndarray, data: bytes, where: str) -> Picture:
  """OpenCV has (h, w), BGR or BGRA, not yet upright."""
  if found.dtype != np.uint16 or found.ndim == 3 and found.shape[2] not in (3, 4):
    raise ImageError(f"{where}: has pixels of {found.dtype} {found.shape[2:]}, whose range is not "
                     "defined; store it with 8 or 16 bits a channel, as grey, RGB or RGBA.",
                     "image-mode")
  if found.shape[0] * found.shape[1] > images.MAX_PIXELS:
    raise ImageError(f"{where}: the image has {found.shape[1]} x {found.shape[0]} pixels, more "
                     f"than the limit of {images.MAX_PIXELS}. Cut it up.", "image-too-large")
  found = found[..., None].repeat(3, axis=-1) if found.ndim == 2 else found
  orientation = 1
  # Pillow opens no colours of 16 bits in a TIFF; such a file is taken as it lies.
  with contextlib.suppress(OSError), Image.open(io.BytesIO(data)) as image:
    orientation = image.getexif().get(_ORIENTATION, 1)
  found = images.upright(found, orientation)
  colour = np.ascontiguousarray(found[..., 2::-1])
  return Picture(colour, found[..., 3] if found.shape[2] == 4 else None)


def _chunk(kind: bytes, data: bytes) -> bytes:
  crc = zlib.crc32(kind + data)
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)
