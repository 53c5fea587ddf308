"""What the input benchmark reads when it is given no data: photographs with boxes, as records."""

import functools
import os

import numpy as np
import simplejpeg
from PIL import Image

from input_pipeline import records
from input_pipeline.build import layouts, sample_photos, writer

# As cameras and web sites store photographs: halved colour planes.
_QUALITY = 90
# A photograph is shown about this high at most, several in a mosaic if the image is larger: detail
# enlarged would be nothing for a decoder to do.
_SHOWN = 700
_WORDS = "A red bicycle leans on the wall of a house. Its basket holds three loaves. It is morning."


def photograph(rng: np.random.Generator, width: int, height: int) -> bytes:
  """A JPEG of photographs side by side, each at about its own resolution."""
  photos = [sample_photos.load_photo(p) for p in sample_photos.PHOTOS if not p.grey]
  canvas = Image.new("RGB", (width, height))
  rows = max(1, round(height / _SHOWN))
  for row in range(rows):
    top, bottom = height * row // rows, height * (row + 1) // rows
    x = 0
    while x < width:
      photo = photos[rng.integers(len(photos))]
      shown = max(1, round(photo.width * (bottom - top) / photo.height))
      canvas.paste(photo.resize((shown, bottom - top), Image.Resampling.BICUBIC), (x, top))
      x += shown
  # A sensor's noise: without it, what is enlarged a little is smoother than any photograph.
  pixels = np.asarray(canvas, np.int16) + rng.normal(0, 1.5, (height, width, 1)).astype(np.int16)
  return simplejpeg.encode_jpeg(
      pixels.clip(0, 255).astype(np.uint8), quality=_QUALITY, colorsubsampling="420")


def write(out: str | os.PathLike, size: tuple[int, int], count: int, layout: str) -> None:
  """Writes a data set of `count` photographs of a size (width, height) in one of the layouts.

  Each has four regions of 5 to 20 percent of the sides, and a caption of the whole.
  """
  load = layouts.LAYOUTS[layout].load(functools.partial(_sample, size))
  report = writer.write_split(out, "train", range(count), load, threads=1, progress=False,
                              settings={"size": size, "layout": layout})
  writer.finish(out, {"train": report}, {}, version=layouts.LAYOUTS[layout].version)


def _sample(size: tuple[int, int], index: int) -> records.Sample:
  rng = np.random.default_rng([index, *size])
  sides = rng.uniform(0.05, 0.2, (4, 2)) * size
  corners = rng.uniform(0, 1, (4, 2)) * (size - sides)
  return records.Sample(
      id=f"photo-{index}", image=photograph(rng, *size), width=size[0], height=size[1],
      boxes=np.concatenate([corners, corners + sides], 1).astype(np.float32),
      texts=[_WORDS] * 4, global_text=_WORDS, source="photographs of scikit-image")
