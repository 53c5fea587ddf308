"""How do the binary files of STL-10 become records? (Coates, Ng and Lee 2011)

`stl10_binary` holds `unlabeled_X.bin` (100,000 images), `train_X.bin` with `train_y.bin` (5,000),
`test_X.bin` with `test_y.bin` (8,000), and `class_names.txt`. An image is 3 x 96 x 96 bytes,
channel after channel and each of them column after column; labels are 1 to 10. The splits become
"unlabeled", "train" and, from the test files, "val", the name by which everything here evaluates.

Images are stored as PNG: the bytes of the release, to the last.
"""

import functools
import io
import os
import pathlib
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from input_pipeline.build import writer
from input_pipeline.build.durable import BuildError
from input_pipeline.build.plan import words_of
from input_pipeline.records import Sample

SIDE = 96
_BYTES = 3 * SIDE * SIDE
# Split -> the stem of its files, and whether it has classes.
SPLITS = {"unlabeled": ("unlabeled", False), "train": ("train", True), "val": ("test", True)}
_CLASS_NAMES = "class_names.txt"


def build(
  out: str | os.PathLike,
  images: str | os.PathLike,
  *,
  limit: int | None = None,
  shard_size: int = 2048,
  threads: int = 2,
  progress: bool = True,
  licence: str | None = None,
) -> dict[str, writer.SplitReport]:
  """Builds the splits whose files are there; resumes an unfinished build.

  Args:
    out: directory to make.
    images: holds the `.bin` files.
    limit: only the first so many images of each split.
    shard_size: images of a file of records.
    threads: how many images are encoded at once.
    progress: whether to report on standard error.
    licence: noted with the data set.

  Returns:
    the report of each split.

  Raises:
    BuildError: no such files, or of another size or content than STL-10's.
  """
  root = pathlib.Path(images)
  if not root.is_dir():
    raise BuildError(f"{root}: no such directory of STL-10's binary files")
  there = {split: part for split, part in SPLITS.items() if (root / f"{part[0]}_X.bin").exists()}
  if not there:
    wanted = ", ".join(f"{stem}_X.bin" for stem, _ in SPLITS.values())
    raise BuildError(f"{root}: has none of STL-10's files {wanted}; expected the directory "
                     "stl10_binary as released")
  # Everything is checked before anything is written.
  found = {split: _open(root, *part) for split, part in there.items()}
  reports = {}
  for split, (pixels, labels) in found.items():
    reports[split] = writer.write_split(
      out, split, range(len(pixels))[:limit], functools.partial(_sample, split, pixels, labels),
      shard_size=shard_size, threads=threads, progress=progress,
      settings={"from": "stl10", "images": len(pixels), "limit": limit},
    )
  info = {"from": "stl10", "input": str(root), **({"licence": licence} if licence else {})}
  files = {split: f"{SPLITS[split][0]}_X.bin" for split in reports}
  writer.finish(out, reports, {split: {**info, "file": files[split]} for split in reports})
  return reports


def image_of(data: UInt8[np.ndarray, "n"]) -> UInt8[np.ndarray, "y x 3"]:
  """The picture of an image's bytes: channels, columns, rows."""
  return data.reshape(3, SIDE, SIDE).transpose(2, 1, 0)


def _open(root: pathlib.Path, stem: str, labelled: bool) -> tuple[np.ndarray, list[str] | None]:
  path = root / f"{stem}_X.bin"
  size = path.stat().st_size
  if not size or size % _BYTES:
    raise BuildError(f"{path}: has {size:,} bytes, expected a multiple of {_BYTES:,}, those of an "
                     f"image of {SIDE} x {SIDE} pixels; it may have been cut short")
  pixels = np.memmap(path, np.uint8, "r").reshape(-1, _BYTES)
  if not labelled:
    return pixels, None
  names, path = _class_names(root), root / f"{stem}_y.bin"
  if not path.exists():
    raise BuildError(f"{path}: there is no such file, expected the labels of {stem}_X.bin")
  labels = np.fromfile(path, np.uint8)
  if len(labels) != len(pixels):
    raise BuildError(f"{path}: has {len(labels):,} labels, expected {len(pixels):,}, one for each "
                     f"image of {stem}_X.bin")
  if labels.min() < 1 or labels.max() > len(names):
    bad = int(np.flatnonzero((labels < 1) | (labels > len(names)))[0])
    raise BuildError(f"{path}: label {bad} is {labels[bad]}, expected 1 to {len(names)}, the "
                     f"number of lines of {_CLASS_NAMES}")
  return pixels, [names[i - 1] for i in labels.tolist()]


def _class_names(root: pathlib.Path) -> list[str]:
  path = root / _CLASS_NAMES
  try:
    names = path.read_text(encoding="utf-8").split()
  except OSError as error:
    raise BuildError(f"{path}: cannot be read ({error.strerror}); it names the classes, one a "
                     "line") from error
  if not names or len(set(names)) < len(names):
    raise BuildError(f"{path}: expected the names of different classes, one a line, found {names}")
  return names


def _sample(split: str, pixels: Any, labels: list[str] | None, index: int) -> Sample:
  data = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image_of(np.asarray(pixels[index])))).save(data, "PNG")
  label = labels[index] if labels else None
  return Sample(
    id=f"stl10-{SPLITS[split][0]}-{index:06d}",
    image=data.getvalue(),
    width=SIDE,
    height=SIDE,
    boxes=np.zeros((0, 4), np.float32),
    texts=[],
    global_text=words_of(label) if label else None,
    source=f"{SPLITS[split][0]}_X.bin",
    label=label,
  )
