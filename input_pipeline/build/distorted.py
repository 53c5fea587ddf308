"""How does a machine without any data set get rated pictures to learn from?

`--from distorted` cuts squares out of photographs that scikit-image and scikit-learn ship and
distorts each in five ways at five strengths: 96 x 96 pixels, with a score that falls by a fifth of
the scale from each strength to the next, plus a little noise as opinions have. One caption says the
level of the score and what can be measured, another the level alone, as people do
(`captions.template`). The group is the photograph, so
that no split of groups has squares of one photograph on two sides. Nothing is downloaded, and
everything is drawn from a seed.
"""

import functools
import io
import os
from typing import Any

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from input_pipeline.build import sample_photos, writer
from input_pipeline.build.captions import prompts, template
from input_pipeline.ratings import Rating
from input_pipeline.records import Sample

# Raise this whenever the pictures change, so that no directory mixes two kinds.
VERSION = 2
SIDE, CROPS = 96, 12
MOS_RANGE = (1.0, 5.0)
KINDS = ("blur", "noise", "jpeg", "exposure", "fade")
STRENGTHS = 5
SPLIT = "all"
# Standard deviation of the opinions' noise, as a share of the scale.
_OPINION = 0.02
# Of the 96 x 96 picture: pixels, grey levels, quality, gain (darker, brighter), share of contrast
# and colour that is left. The weakest of each can hardly be seen.
_BLUR = (0.35, 0.8, 1.4, 2.2, 3.4)
_NOISE = (1.5, 7, 15, 28, 48)
_JPEG = (95, 40, 20, 10, 4)
_EXPOSURE = ((0.96, 0.7, 0.48, 0.3, 0.16), (1.04, 1.4, 1.9, 2.7, 4.2))
_FADE = (0.96, 0.7, 0.46, 0.28, 0.12)
# One of the photographs is blurred already, by motion.
PHOTOS = tuple(p for p in sample_photos.PHOTOS if p.file != "clock_motion.png")
_CROP = (96, 320)
_LEAST_CONTRAST, _TRIES = 22.0, 30


def build(
  out: str | os.PathLike,
  *,
  seed: int = 0,
  crops: int = CROPS,
  side: int = SIDE,
  threads: int = 2,
  progress: bool = True,
) -> dict[str, writer.SplitReport]:
  """Builds the data set with the split "all"; resumes an unfinished build.

  Args:
    out: directory to make.
    seed: decides every picture; a picture does not depend on how many others there are.
    crops: squares of each photograph.
    side: of a picture in pixels.
    threads: how many pictures are made at once.
    progress: whether to report on standard error.

  Returns:
    the report of the split.

  Raises:
    ValueError: impossible arguments, or a package that the photographs come from is missing.
  """
  for name, value, least in (("seed", seed, 0), ("crops", crops, 1), ("side", side, 32)):
    if value < least:
      raise ValueError(f"{name} is {value} for distorted pictures; expected {least} or more.")
  # Missing packages show now, not in the middle of a shard.
  for photo in PHOTOS:
    sample_photos.load_photo(photo)
  settings = {"distorted": VERSION, "seed": seed, "side": side}
  items = [
    (photo, crop, kind, strength)
    for crop in range(crops) for photo in range(len(PHOTOS))
    for kind in range(len(KINDS)) for strength in range(STRENGTHS)
  ]
  load = functools.partial(_sample, seed, side)
  report = writer.write_split(
    out, SPLIT, items, load, shard_size=1024, threads=threads, progress=progress, settings=settings)
  writer.finish(out, {SPLIT: report}, {**_info(settings), SPLIT: {"rated": {
    "dataset": "distorted", "mos_range": list(MOS_RANGE), "lower_better": False}}})
  return {SPLIT: report}


def true_score(strength: int) -> float:
  """The score of a strength, 0 the weakest: the middle of a fifth of the scale, from the top."""
  return 0.9 - 0.2 * strength


def distort(
  pixels: UInt8[np.ndarray, "y x 3"], kind: str, strength: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "y x 3"]:
  """A distorted picture.

  Args:
    pixels: the picture.
    kind: one of `KINDS`.
    strength: 0, hardly to be seen, to 4.
    rng: draws the noise, and whether a wrong exposure is too dark or too bright.
  """
  values = pixels.astype(np.float32)
  if kind == "blur":
    values = cv2.GaussianBlur(values, (0, 0), _BLUR[strength])
  elif kind == "noise":
    values = values + _NOISE[strength] * rng.standard_normal(values.shape, np.float32)
  elif kind == "jpeg":
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=_JPEG[strength])
    values = np.asarray(Image.open(data), np.float32)
  elif kind == "exposure":
    values = values * _EXPOSURE[int(rng.integers(2))][strength]
  else:
    grey = values.mean()
    luma = values @ np.float32([0.299, 0.587, 0.114])
    # Colours go towards grey, and grey towards the mean.
    values = luma[..., None] + _FADE[strength] * (values - luma[..., None])
    values = grey + _FADE[strength] * (values - grey)
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=128)
def _crop(seed: int, side: int, photo: int, crop: int) -> UInt8[np.ndarray, "y x 3"]:
  """A square of a photograph in which there is something to see."""
  rng = np.random.default_rng([seed, 0, photo, crop])
  source = sample_photos.load_photo(PHOTOS[photo])
  best, most = None, -1.0
  for _ in range(_TRIES):
    edge = rng.uniform(max(_CROP[0], side), max(side, min(_CROP[1], *source.size)))
    x, y = (rng.uniform(0, n - edge) for n in source.size)
    found = np.asarray(
      source.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + edge, y + edge)))
    contrast = float(found.mean(-1).std())
    if contrast > most:
      best, most = found, contrast
    if most >= _LEAST_CONTRAST:
      break
  return best


def _sample(seed: int, side: int, item: tuple[int, int, int, int]) -> Sample:
  photo, crop, kind, strength = item
  rng = np.random.default_rng([seed, 1, *item])
  pixels = distort(_crop(seed, side, photo, crop), KINDS[kind], strength, rng)
  score = float(np.clip(true_score(strength) + rng.normal(0, _OPINION), 0, 1))
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, "PNG")
  level = prompts.levels([score])[0]
  caption = template.TemplateCaptioner().describe([data.getvalue()], [f"iqa {level}"])[0]
  short = template.text("iqa", level, None, int(rng.integers(3)))
  name = PHOTOS[photo].file.split(".")[0]
  return Sample(
    id=f"distorted-{seed}-{name}-{crop}-{KINDS[kind]}-{strength}",
    image=data.getvalue(),
    width=side,
    height=side,
    boxes=np.zeros((0, 4), np.float32),
    texts=[],
    global_text=caption,
    captions=[caption, short],
    caption_sources=["iqa", "iqa"],
    source=f"{name}/{crop}/{KINDS[kind]}-{strength}.png",
    rating=Rating(
      score=score, mos=MOS_RANGE[0] + score * (MOS_RANGE[1] - MOS_RANGE[0]), group=name),
  )


def _info(settings: dict[str, Any]) -> dict[str, Any]:
  shown = {photo.file for photo in PHOTOS}
  return {
    "name": "distorted",
    "settings": settings,
    "about": (
      "Squares of photographs, distorted at graded strengths; made by "
      "input_pipeline.build.distorted from files that Python packages ship."
    ),
    "sources": [p for p in sample_photos.provenance() if p["photo"].rsplit("/", 1)[-1] in shown],
  }
