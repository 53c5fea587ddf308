"""Which pictures belong together? Folders of high- and low-resolution ones with equal names.

`DIR/hr/NAME.EXT` and `DIR/lr/NAME.EXT`, whose sides are those of `hr` divided by the scale. Without
a folder `lr` there are high-resolution pictures alone.
"""

import dataclasses
import os
import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_PNG = b"\x89PNG\r\n\x1a\n"
_OPAQUE = 255


class PairError(ValueError):
  """Pictures that make no pairs; the message names the file."""


@dataclasses.dataclass(frozen=True)
class Pair:
  """A picture at both resolutions; `low` is None where it is still to be made of `high`."""

  name: str
  high: UInt8[np.ndarray, "h w 3"]
  low: UInt8[np.ndarray, "y x 3"] | None


def read(folder: str | os.PathLike, scale: int) -> list[Pair]:
  """All pairs of a folder, in the order of their names.

  Args:
    folder: has `hr/` and maybe `lr/`.
    scale: how many times larger `hr` is.

  Raises:
    PairError: there are none, one of a pair is missing, sizes do not fit each other or the scale,
      or a picture is not one of 8 bits without transparency.
  """
  folder = pathlib.Path(folder)
  high = _files(folder / "hr")
  low = _files(folder / "lr") if (folder / "lr").exists() else None
  if low is not None and high.keys() != low.keys():
    alone = sorted(high.keys() ^ low.keys())
    side = "hr" if alone[0] in high else "lr"
    raise PairError(f"{folder}: {len(alone)} pictures are in one of hr/ and lr/ alone, e.g. "
                    f"{side}/{(high | low)[alone[0]].name}; expected equal names in both")
  pairs = []
  for name, path in high.items():
    large = open_picture(path)
    h, w = large.shape[:2]
    if low is None:
      if h % scale or w % scale:
        raise PairError(f"{path}: has {w} x {h} pixels, which a scale of {scale} does not divide; "
                        f"cut it to {w - w % scale} x {h - h % scale}")
      pairs.append(Pair(name, large, None))
      continue
    small = open_picture(low[name])
    y, x = small.shape[:2]
    if (y * scale, x * scale) != (h, w):
      raise PairError(f"{path} has {w} x {h} pixels and {low[name]} {x} x {y}; expected "
                      f"{x * scale} x {y * scale}, {scale} times as many on each side")
    pairs.append(Pair(name, large, small))
  return pairs


def open_picture(path: pathlib.Path) -> UInt8[np.ndarray, "h w 3"]:
  """RGB pixels of a file of 8 bits, upright; grey ones three times, without alpha if it is opaque.

  Raises:
    PairError: it is none, has 16 bits or more, or shows something behind it.
  """
  try:
    with open(path, "rb") as file:
      head = file.read(25)
    with Image.open(path) as image:
      # Pillow quietly halves the bits of colour PNGs: their header tells how many there are.
      deep = head.startswith(_PNG) and head[24] > 8 or image.mode[:1] in ("I", "F")
      if deep:
        raise PairError(f"{path}: has more than 8 bits a channel, which would be cut off; convert "
                        "it to 8 bits first, as measures are of 8 bits")
      image = ImageOps.exif_transpose(image)
      if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < _OPAQUE:
          raise PairError(f"{path}: is partly transparent, and what is behind it is not known; put "
                          "it on a background first")
      return np.array(image.convert("RGB"))
  except PairError:
    raise
  except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
    raise PairError(f"{path}: is no picture that can be read ({error})") from error


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """{name without its ending: file}, by name."""
  if not folder.is_dir():
    raise PairError(f"{folder}: there is no such folder; expected DIR/hr, and DIR/lr if there are "
                    "low-resolution pictures")
  files: dict[str, pathlib.Path] = {}
  for path in sorted(folder.iterdir()):
    if path.suffix.lower() not in _SUFFIXES or path.name.startswith("."):
      continue
    if path.stem in files:
      raise PairError(f"{folder}: {files[path.stem].name} and {path.name} have the same name; "
                      "expected one of them")
    files[path.stem] = path
  if not files:
    raise PairError(f"{folder}: has no pictures ({', '.join(_SUFFIXES)})")
  return files
