"""How do folders of clean and degraded pictures become records of pairs, or layers of rain?

A pair has the same name in both folders, apart from the ending; where no name is in both, the last
number in it decides (`norain-7.png` with `rain-7.png`, as in Rain100L). `--from pairs` makes
records with both; `--from streaks` keeps the rain alone as `layers.npz` for `degrade: {kind:
"layers"}`: R = clip(O - B, 0, 1), which is ours; that the rain of Rain100L is put on other
backgrounds is a co-author's code's.
"""

import dataclasses
import os
import pathlib
import re
import shutil
from collections.abc import Sequence

import numpy as np

from input_pipeline import images
from input_pipeline.build import durable, plan, writer
from input_pipeline.build.durable import BuildError
from input_pipeline.build.skips import SkipRecord
from input_pipeline.records import Sample

LAYERS = "layers.npz"
_NUMBER = re.compile(r"\d+")


@dataclasses.dataclass(frozen=True)
class Pair:
  """Two files below their folders and their size in pixels."""

  id: str
  clean: str
  rainy: str
  size: tuple[int, int]


def pairs(clean: str | os.PathLike, rainy: str | os.PathLike) -> list[Pair]:
  """The pairs of two folders, by name.

  Raises:
    BuildError: a folder is not there or empty, pictures without a counterpart, names that fit
      several, files that are no pictures, or two sizes; all before anything is written.
  """
  found = [plan.image_files(folder) for folder in (clean, rainy)]
  for folder, names in zip((clean, rainy), found):
    if not names:
      raise BuildError(f"{folder}: no pictures in this folder")
  stems = [_by(names, folder, _stem) for names, folder in zip(found, (clean, rainy))]
  if not set(stems[0]) & set(stems[1]):
    stems = [_by(names, folder, _number) for names, folder in zip(found, (clean, rainy))]
  for mine, other, folder in ((stems[0], stems[1], rainy), (stems[1], stems[0], clean)):
    if lonely := sorted(mine[key] for key in set(mine) - set(other)):
      raise BuildError(f"{folder}: {len(lonely)} pictures have no counterpart there, the first is "
                       f"{lonely[0]}; expected the same names in both folders")
  out = []
  for key in sorted(stems[0], key=lambda k: stems[0][k]):
    names = stems[0][key], stems[1][key]
    sizes = [_size(pathlib.Path(folder) / name) for folder, name in zip((clean, rainy), names)]
    if sizes[0] != sizes[1]:
      raise BuildError(
          f"{names[0]} has {sizes[0][0]} x {sizes[0][1]} pixels and {names[1]} "
          f"{sizes[1][0]} x {sizes[1][1]}; a pair has one size")
    out.append(Pair(plan.readable(names[0]), *names, sizes[0]))
  return out


def build(
  out: str | os.PathLike,
  clean: str | os.PathLike,
  rainy: str | os.PathLike,
  *,
  split: str | None = None,
  val_share: float = 0.1,
  threads: int = 2,
  progress: bool = True,
) -> dict[str, writer.SplitReport]:
  """Builds a data set of pairs; resumes an unfinished build.

  Args:
    out: directory to make.
    clean, rainy: folders of pictures.
    split: put all pairs into this one; None to divide them by name into "train" and "val".
    val_share: of the pairs, at least one of either.
    threads: how many pairs are checked at once.
    progress: whether to report on standard error.

  Raises:
    BuildError: as of `pairs`, or a pair too few to divide.
  """
  found = pairs(clean, rainy)
  if split is not None:
    parts = {split: found}
  else:
    parts = dict(zip(("train", "val"), plan.split_by_hash(found, val_share)))
    if not all(parts.values()):
      raise BuildError(f"{clean}: {len(found)} pair(s) with --val-share {val_share} leave a split "
                       "empty; give --split NAME to put them all into one")
  settings = {"pairs": 1, "clean": os.path.abspath(clean), "rainy": os.path.abspath(rainy)}

  def load(pair: Pair) -> Sample:
    data = [(pathlib.Path(folder) / name).read_bytes()
            for folder, name in ((clean, pair.clean), (rainy, pair.rainy))]
    try:
      for one, name in zip(data, (pair.clean, pair.rainy)):
        images.decode_image(one, name, expect_size=pair.size)
    except images.ImageError as error:
      raise SkipRecord(error.reason, str(error)) from error
    return Sample(
      id=pair.id, image=data[0], degraded=data[1], width=pair.size[0], height=pair.size[1],
      boxes=np.zeros((0, 4), np.float32), texts=[], source=pair.id)

  reports = {name: writer.write_split(out, name, part, load, threads=threads, progress=progress,
                                      settings=settings) for name, part in parts.items()}
  writer.finish(out, reports, {"name": "pairs", "settings": settings})
  return reports


def build_streaks(
  out: str | os.PathLike, clean: str | os.PathLike, rainy: str | os.PathLike
) -> pathlib.Path:
  """Writes `out/layers.npz`: `layers` uint8 (n, y, x), the rain of each pair, and their `names`.

  Rain is the mean over the channels of clip(O - B, 0, 1). Layers of several sizes are cut to what
  all of them have, in the middle.

  Raises:
    BuildError: as of `pairs`, a picture that cannot be decoded, or no space.
  """
  found = pairs(clean, rainy)
  width, height = (min(pair.size[i] for pair in found) for i in range(2))
  layers = np.stack([_layer(clean, rainy, pair, height, width) for pair in found])
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  with durable.space_explained(out):
    part = out / f"{LAYERS}.tmp"
    with part.open("wb") as file:
      np.savez_compressed(file, layers=layers, names=[pair.id for pair in found])
    shutil.move(part, out / LAYERS)
  return out / LAYERS


def _layer(clean, rainy, pair: Pair, height: int, width: int) -> np.ndarray:
  pixels = []
  for folder, name in ((clean, pair.clean), (rainy, pair.rainy)):
    path = pathlib.Path(folder) / name
    try:
      pixels.append(images.decode_image(path.read_bytes(), str(path)).astype(np.float32))
    except images.ImageError as error:
      raise BuildError(str(error)) from error
  rain = np.clip(pixels[1] - pixels[0], 0, 255).mean(axis=-1)
  y, x = (rain.shape[0] - height) // 2, (rain.shape[1] - width) // 2
  return np.rint(rain[y:y + height, x:x + width]).astype(np.uint8)


def _by(names: Sequence[str], folder, key) -> dict[str, str]:
  out: dict[str, str] = {}
  for name in names:
    if (k := key(name)) in out:
      raise BuildError(f"{folder}: {out[k]} and {name} are both {k!r}; expected one picture of a "
                       "name")
    out[k] = name
  return out


def _stem(name: str) -> str:
  return os.path.splitext(name)[0]


def _number(name: str) -> str:
  """The last number in a name, without leading zeros; the name itself where there is none."""
  numbers = _NUMBER.findall(_stem(name))
  return str(int(numbers[-1])) if numbers else _stem(name)


def _size(path: pathlib.Path) -> tuple[int, int]:
  try:
    return images.image_size(path.read_bytes(), str(path))
  except images.ImageError as error:
    raise BuildError(str(error)) from error
