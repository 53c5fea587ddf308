"""How does a machine without any data set get small real images with classes?

`--from digits` writes scikit-learn's handwritten digits, large and near the middle, over crops of
photographs that scikit-image and scikit-learn ship: 96 x 96 pixels, the class is the digit. It is
for trying out methods that need things on a background as STL-10 has them: of STL-10's size, with
the gaze on the thing, not legible by their raw colours. Ridge regression on a half-size picture's
pixels reads a quarter, on histograms of gradients four fifths. Nothing is downloaded, and
everything is drawn from a seed.

Training and validation share neither digit instances nor photographs.
"""

import functools
import io
import os
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.build import sample_glyphs, sample_items, sample_photos, writer
from input_pipeline.records import Sample

# Raise this whenever the pictures change, so that no directory mixes two kinds.
VERSION = 2
SIDE = 96
TRAIN, VAL = 6000, 1500
VAL_PHOTOS = 4
# Height of a digit in pixels, how far from the middle it may be along each axis, and the side of
# the part of a photograph behind it.
HEIGHT, SHIFT = (56, 84), 8
_CROP = (96, 384)
_SPLITS = ("train", "val")
_SHARD_SIZE = 1024


def build(
  out: str | os.PathLike,
  *,
  seed: int = 0,
  train: int = TRAIN,
  val: int = VAL,
  threads: int = 2,
  progress: bool = True,
) -> dict[str, writer.SplitReport]:
  """Builds the data set with the splits "train" and "val"; resumes an unfinished build.

  Args:
    out: directory to make.
    seed: decides every picture; a picture does not depend on how many others there are.
    train, val: how many pictures of each. Digit instances are gone through in turn, so that above
      some 1,440 and 360 pictures each is shown as often as any other, within one.
    threads: how many pictures are drawn at once.
    progress: whether to report on standard error.

  Returns:
    the report of each split.

  Raises:
    ValueError: impossible arguments, or a package that the pictures come from is missing.
  """
  for name, value, least in (("seed", seed, 0), ("train", train, 1), ("val", val, 1)):
    if value < least:
      raise ValueError(f"{name} is {value} for the digits; expected {least} or more.")
  # Missing packages show now, not in the middle of a shard.
  for photo in sample_photos.PHOTOS:
    sample_photos.load_photo(photo)
  pools, photos = sample_glyphs.split_pools(seed), split_photos(seed)
  settings = {"digits": VERSION, "seed": seed}
  reports = {}
  for split, count in zip(_SPLITS, (train, val)):
    load = functools.partial(_sample, seed, split, pools[split].digits, photos[split])
    reports[split] = writer.write_split(
      out, split, range(count), load, shard_size=_SHARD_SIZE, threads=threads, progress=progress,
      settings=settings,
    )
  writer.finish(out, reports, _info(settings))
  return reports


def split_photos(seed: int) -> dict[str, tuple[sample_photos.Photo, ...]]:
  """The photographs of each split."""
  order = np.random.default_rng([seed, 0]).permutation(len(sample_photos.PHOTOS))
  photos = [sample_photos.PHOTOS[i] for i in order]
  return {"train": tuple(photos[VAL_PHOTOS:]), "val": tuple(photos[:VAL_PHOTOS])}


def draw(
  rng: np.random.Generator, digit: int, photos: tuple[sample_photos.Photo, ...]
) -> tuple[Image.Image, tuple[int, int, int, int]]:
  """A picture of a digit instance and the box that the digit is in: x0, y0, x1, y1."""
  image = _crop(rng, sample_photos.load_photo(photos[rng.integers(len(photos))]))
  height = int(rng.integers(HEIGHT[0], HEIGHT[1] + 1))
  mask = sample_glyphs.digit_mask(digit, height, rng.uniform(0.4, 0.6), rng.uniform(0.8, 1.25))
  if mask.width > SIDE:
    mask = mask.resize((SIDE, mask.height), Image.Resampling.BICUBIC)
  x, y = (int(np.clip((SIDE - n) // 2 + rng.integers(-SHIFT, SHIFT + 1), 0, SIDE - n))
          for n in mask.size)
  box = (x, y, x + mask.width, y + mask.height)
  image.paste(_ink(rng, image.crop(box)), box, mask)
  return image, box


def _crop(rng: np.random.Generator, photo: Image.Image) -> Image.Image:
  """A square part of a photograph, perhaps mirrored and a little darker or brighter."""
  side = rng.uniform(_CROP[0], min(_CROP[1], *photo.size))
  x, y = (rng.uniform(0, n - side) for n in photo.size)
  image = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(x, y, x + side, y + side))
  if rng.random() < 0.5:
    image = ImageOps.mirror(image)
  light = rng.uniform(0.75, 1.25)
  return image.point(lambda v: min(255, round(v * light)))


def _ink(rng: np.random.Generator, behind: Image.Image) -> tuple[int, int, int]:
  """A colour that can be read on what is behind it."""
  mean = tuple(np.asarray(behind).reshape(-1, 3).mean(0))
  inks = sample_items.INK_COLOURS
  by_contrast = sorted(inks, key=lambda name: -sample_items.ratio(mean, inks[name]))
  readable = [name for name in by_contrast
              if sample_items.ratio(mean, inks[name]) >= sample_items.MIN_CONTRAST]
  # A middle grey may leave none: the best there is, then.
  names = readable or by_contrast[:1]
  colour = inks[names[rng.integers(len(names))]]
  return tuple(int(v) for v in np.clip(np.add(colour, rng.uniform(-15, 15, 3)), 0, 255))


def _sample(seed: int, split: str, pool: tuple[int, ...], photos: Any, index: int) -> Sample:
  rng = np.random.default_rng([seed, 1 + _SPLITS.index(split), index])
  digit = pool[index % len(pool)]
  image, box = draw(rng, digit, photos)
  name = sample_glyphs.DIGIT_NAMES[sample_glyphs.digits()[1][digit]]
  data = io.BytesIO()
  image.save(data, "PNG")
  return Sample(
    id=f"digits-{seed}-{split}-{index:06d}",
    image=data.getvalue(),
    width=SIDE,
    height=SIDE,
    boxes=np.float32([box]),
    texts=[f"a handwritten {name}"],
    global_text=f"a handwritten {name}",
    source=f"load_digits {digit}",
    label=name,
  )


def _info(settings: dict[str, Any]) -> dict[str, Any]:
  return {
    "name": "digits",
    "settings": settings,
    "about": (
      "Handwritten digits over crops of photographs; composed by input_pipeline.build.digits from "
      "files that Python packages ship."
    ),
    "sources": sample_photos.provenance() + sample_glyphs.provenance()[:1],
  }
