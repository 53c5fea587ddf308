"""Which clean crops does the deraining study train on: n fixed ones, drawn once by a seed?

`--from backgrounds --category C` makes them: procedural ones (`painters`), for "natural" in turn
with crops of photographs that scikit-image and scikit-learn ship, or, with `--image-dir`, crops of
the user's own pictures at their own resolution. Crop i is a function of the seed and of i alone, so
that the first 8 are among the first 16, whatever was built; training takes so many of them by
`input.first`. No two crops of a folder are at the same place.

Validation shares neither seeds nor photographs with training. Of the paper's data sets (CelebA,
DIV2K, Manga109, Urban100, as recalled) none is here; that n counts fixed crops is our reading.
"""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import images
from input_pipeline.build import digits, painters, plan, sample_photos, writer
from input_pipeline.build.durable import BuildError
from input_pipeline.build.skips import SkipRecord
from input_pipeline.records import Sample

# Raise one whenever its pictures change, so that no directory mixes two kinds.
VERSIONS = {"drawn": 1, "cut": 2}
CATEGORIES = tuple(painters.PAINTERS)
COUNT, VAL_COUNT, SIDE = 1024, 32, 128
_VAL_SHARE = 0.2
_SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class Crop:
  """A crop of a file: its name below the folder, and the corner in pixels of what it shows."""

  file: str
  x: int
  y: int


def build(
  out: str | os.PathLike,
  *,
  category: str,
  count: int = COUNT,
  val_count: int = VAL_COUNT,
  seed: int = 0,
  side: int = SIDE,
  detail: float = 1.0,
  image_dir: str | os.PathLike | None = None,
  long_side: int = 0,
  threads: int = 2,
  progress: bool = True,
) -> dict[str, writer.SplitReport]:
  """Builds the data set with the splits "train" and "val"; resumes an unfinished build.

  Args:
    out: directory to make.
    category: one of `CATEGORIES`; with `image_dir` any name, it is what the pictures are called.
    count, val_count: how many crops of each.
    seed: decides every crop; a crop does not depend on how many others there are.
    side: of a crop in pixels.
    detail: how much there is in a drawn picture, 1 as a rule, from 0.1 to 10.
    image_dir: a folder of pictures to crop instead.
    long_side: reduces pictures of the folder to this longer side first; 0 for none. A co-author's
      code takes 1,024.
    threads: how many crops are made at once.
    progress: whether to report on standard error.

  Returns:
    the report of each split.

  Raises:
    BuildError: impossible arguments, or a folder with too little in it.
    ValueError: a package that the photographs come from is missing.
  """
  for name, value, least in (("seed", seed, 0), ("count", count, 1), ("val count", val_count, 1),
                             ("side", side, 16), ("long side", long_side, 0)):
    if value < least:
      raise BuildError(f"{name} is {value} for backgrounds; expected {least} or more")
  if not 0.1 <= detail <= 10:
    raise BuildError(f"detail is {detail} for backgrounds; expected 0.1 to 10")
  settings: dict[str, Any] = {
    "backgrounds": VERSIONS["drawn" if image_dir is None else "cut"], "category": category,
    "seed": seed, "side": side}
  counts = dict(zip(_SPLITS, (count, val_count)))
  if image_dir is not None:
    settings |= {"image_dir": os.path.abspath(image_dir), "long_side": long_side}
    items = crops_of(image_dir, counts, seed=seed, side=side, long_side=long_side)
    loads = dict.fromkeys(_SPLITS, functools.partial(_from_file, image_dir, category, side,
                                                     long_side))
    sources = [{"folder": os.path.abspath(image_dir)}]
  else:
    if category not in CATEGORIES:
      raise BuildError(f"category {category!r} is none of {', '.join(CATEGORIES)}; with "
                       "--image-dir it may have any name")
    settings["detail"] = float(detail)
    items = {split: range(n) for split, n in counts.items()}
    photos = _photos(seed, side) if category == "natural" else dict.fromkeys(_SPLITS, ())
    loads = {s: functools.partial(_drawn, category, seed, s, side, detail, photos[s])
             for s in _SPLITS}
    sources = sample_photos.provenance() if category == "natural" else []
  reports = {
    split: writer.write_split(out, split, items[split], loads[split], shard_size=1024,
                              threads=threads, progress=progress, settings=settings)
    for split in _SPLITS
  }
  writer.finish(out, reports, {
    "name": f"backgrounds of {category}", "settings": settings, "sources": sources,
    "about": "Clean crops for the study of deraining, made by input_pipeline.build.backgrounds."})
  return reports


def crops_of(image_dir: str | os.PathLike, counts: dict[str, int], *, seed: int, side: int,
             long_side: int = 0) -> dict[str, list[Crop]]:
  """The crops of a folder's pictures: of each picture one in turn, at places that do not repeat.

  A fifth of the pictures, by their names, are for validation.

  Raises:
    BuildError: no such folder, fewer than two pictures that are large enough, or fewer places than
      crops.
  """
  sizes, small = {}, collections.Counter()
  for name in plan.image_files(image_dir):
    data = (pathlib.Path(image_dir) / name).read_bytes()
    try:
      size = _reduced(*images.image_size(data, name), long_side)
    except images.ImageError as error:
      small[error.reason] += 1
      continue
    if min(size) < side:
      small["too small"] += 1
    else:
      sizes[name] = size
  left_out = ", ".join(f"{n} {reason}" for reason, n in small.items()) or "nothing else"
  if len(sizes) < 2:
    raise BuildError(f"{image_dir}: {len(sizes)} pictures of at least {side} x {side} pixels "
                     f"({left_out}); expected two or more, one to validate on")
  train, val = plan.split_by_hash(sorted(sizes), _VAL_SHARE, key=str)
  return {split: _places(names, sizes, counts[split], seed, side, split)
          for split, names in zip(_SPLITS, (train, val))}


def _places(names, sizes, count, seed, side, split) -> list[Crop]:
  order = np.random.default_rng([seed, _SPLITS.index(split)]).permutation(len(names))
  room = {i: (sizes[names[i]][0] - side + 1) * (sizes[names[i]][1] - side + 1) for i in order}
  if (there := sum(room.values())) < count:
    raise BuildError(f"{split}: the {len(names)} pictures have {there} places for crops of {side} "
                     f"pixels, expected {count} or more")
  out, turn = [], 0
  places: dict[int, Iterator[int]] = {}
  while len(out) < count:
    for i in order:
      if turn >= room[i] or len(out) == count:
        continue
      if i not in places:
        rng = np.random.default_rng([seed, _SPLITS.index(split), 1, int(i)])
        places[i] = _shuffled(rng, room[i])
      y, x = divmod(next(places[i]), sizes[names[i]][0] - side + 1)
      out.append(Crop(names[i], x, y))
    turn += 1
  return out


def _shuffled(rng: np.random.Generator, count: int) -> Iterator[int]:
  """0, ..., count - 1 in random order, one by one: a shuffle that keeps only what it has moved.

  A large picture has millions of places, of which a few are taken.
  """
  moved: dict[int, int] = {}
  for i in range(count):
    first, j = moved.pop(i, i), int(rng.integers(i, count))
    if i == j:
      yield first
    else:
      yield moved.get(j, j)
      moved[j] = first


def _reduced(width: int, height: int, long_side: int) -> tuple[int, int]:
  """The size after the reduction of the longer side."""
  if not long_side or max(width, height) <= long_side:
    return width, height
  scale = long_side / max(width, height)
  return round(width * scale), round(height * scale)


def _from_file(image_dir, category: str, side: int, long_side: int, crop: Crop) -> Sample:
  path = pathlib.Path(image_dir) / crop.file
  try:
    pixels = images.decode_image(path.read_bytes(), str(path))
  except images.ImageError as error:
    raise SkipRecord(error.reason, str(error)) from error
  height, width = pixels.shape[:2]
  if (size := _reduced(width, height, long_side)) != (width, height):
    pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
  pixels = pixels[crop.y:crop.y + side, crop.x:crop.x + side]
  name = f"{category}-{plan.readable(crop.file)}-{crop.x}-{crop.y}"
  return _sample(name, pixels, plan.readable(crop.file))


def _drawn(category: str, seed: int, split: str, side: int, detail: float, photos, index: int
           ) -> Sample:
  rng = np.random.default_rng([seed, _SPLITS.index(split), CATEGORIES.index(category), index])
  name = f"{category}-{seed}-{split}-{index:06d}"
  # One in two is a photograph, from the first on.
  if photos and index % 2 == 0:
    photo = photos[index // 2 % len(photos)]
    return _sample(name, _photographed(rng, photo, side), photo.file)
  return _sample(name, painters.PAINTERS[category](rng, side, detail), "drawn")


def _photographed(rng: np.random.Generator, photo: sample_photos.Photo, side: int) -> np.ndarray:
  """A square of a photograph, as it is or reduced by up to two and a half."""
  source = sample_photos.load_photo(photo)
  edge = rng.uniform(side, min(2.5 * side, *source.size))
  x, y = (rng.uniform(0, n - edge) for n in source.size)
  box = (x, y, x + edge, y + edge)
  return np.asarray(source.resize((side, side), Image.Resampling.BICUBIC, box=box))


def _photos(seed: int, side: int) -> dict[str, tuple[sample_photos.Photo, ...]]:
  """The photographs of each split that are large enough; the split itself is that of `digits`."""
  found = {}
  for split, photos in digits.split_photos(seed).items():
    found[split] = tuple(p for p in photos if min(sample_photos.load_photo(p).size) >= side)
    if not found[split]:
      raise BuildError(f"no photograph of {split} has {side} pixels on its shorter side")
  return found


def _sample(name: str, pixels: np.ndarray, source: str) -> Sample:
  return Sample(
    id=name, image=painters.png(np.ascontiguousarray(pixels)), width=pixels.shape[1],
    height=pixels.shape[0], boxes=np.zeros((0, 4), np.float32), texts=[], source=source)
