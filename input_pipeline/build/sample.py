"""How does a machine without any data set get real high-resolution regions with captions?

`--from sample` lays small handwritten digits and printed words, on coloured tags, over photographs
that installed packages ship. Everything is drawn from a seed; nothing is downloaded. The tags can
be seen at a low resolution, what is written on them cannot: that is what a high-resolution encoder
has to look for.
"""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import simplejpeg

from input_pipeline.build import sample_glyphs, sample_photos, sample_scene, writer
from input_pipeline.records import Sample

# Raise this whenever the pictures change, so that no directory mixes two kinds.
VERSION = 2
TRAIN, VAL = 320, 48
# Small shards: an interrupted build repeats little.
_SHARD_SIZE = 32
_JPEG_QUALITY = 90
_SPLITS = ("train", "val")


def build(
  out: str | os.PathLike,
  *,
  seed: int = 0,
  train: int = TRAIN,
  val: int = VAL,
  threads: int = 2,
  progress: bool = True,
  max_side: int = sample_scene.MAX_SIDE,
) -> dict[str, writer.SplitReport]:
  """Builds the sample data set with the splits "train" and "val"; resumes an unfinished build.

  Train and val share neither digit instances nor words, but the same photographs (other crops).

  Args:
    out: directory to make.
    seed: decides every picture; a canvas does not depend on how many others there are.
    train, val: how many canvases of each.
    threads: how many canvases are rendered at once.
    progress: whether to report on standard error.
    max_side: longest side of a canvas in pixels, 2,048 to 4,096.

  Returns:
    the report of each split.

  Raises:
    ValueError: impossible arguments, or a package that the pictures come from is missing.
  """
  for name, value, least in (("seed", seed, 0), ("train", train, 1), ("val", val, 1)):
    if value < least:
      raise ValueError(f"{name} is {value} for the sample data; expected {least} or more.")
  if not 2048 <= max_side <= sample_scene.MAX_SIDE:
    raise ValueError(f"max_side is {max_side}; expected 2048 to {sample_scene.MAX_SIDE} pixels.")
  # Missing packages show now, not in the middle of a shard.
  for photo in sample_photos.PHOTOS:
    sample_photos.load_photo(photo)
  pools = sample_glyphs.split_pools(seed)
  settings = {"sample": VERSION, "seed": seed, "max_side": max_side}
  reports = {}
  for split, count in zip(_SPLITS, (train, val)):
    reports[split] = writer.write_split(
      out,
      split,
      range(count),
      _loader(seed, split, pools[split], max_side),
      shard_size=_SHARD_SIZE,
      threads=threads,
      progress=progress,
      settings=settings,
    )
  writer.finish(out, reports, _info(settings))
  return reports


def _loader(
  seed: int, split: str, pool: sample_glyphs.Pool, max_side: int
) -> Callable[[int], Sample]:
  """Item -> sample: a canvas is a function of the seed, the split and its number."""

  def load(index: int) -> Sample:
    rng = np.random.default_rng([seed, 1 + _SPLITS.index(split), index])
    scene = sample_scene.render(rng, pool, max_side)
    # Full chroma: with the usual half of it, thin coloured ink would fade into its tag.
    image = simplejpeg.encode_jpeg(
      np.asarray(scene.image), quality=_JPEG_QUALITY, colorsubsampling="444"
    )
    return Sample(
      id=f"sample-{seed}-{split}-{index:05d}",
      image=image,
      width=scene.image.width,
      height=scene.image.height,
      boxes=scene.boxes,
      texts=scene.texts,
      global_text=scene.global_text,
      source="sample",
    )

  return load


def _info(settings: dict[str, Any]) -> dict[str, Any]:
  return {
    "name": "sample",
    "settings": settings,
    "about": (
      "Handwritten digits and printed words on coloured tags over photographs; composed by "
      "input_pipeline.build.sample from files that Python packages ship."
    ),
    "sources": sample_photos.provenance() + sample_glyphs.provenance(),
  }
