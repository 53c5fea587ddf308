"""Which rated pictures are learned from, which select, which test?

A part is named `SPLIT/SIDE`, `SPLIT/SIDE/LABELS` or `SPLIT/SIDE/LABELS@SEED`:

- `reference_3/train`: the third draw of 80 % of the groups, `reference_3/test` the other 20 %;
  `reference_3/val` is a tenth of the groups of train, to select by, `reference_3/fit` the rest;
- `image_3/train`: the same where each picture is a group of its own;
- `official/test`: a split that came with the data, by the name its records have it under;
- `reference_3/train/50@7`: 50 labelled pictures of it, the eighth draw (seed 0 where none is said).

Draws sort names by their SHA-256, so they are the same under every version of Python and NumPy, and
whatever the order of the records. The few of one seed are nested: 50 are among the 100.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from input_pipeline import records
from input_pipeline.ratings import SIDES, Rating

TEST_SHARE, VAL_SHARE = 0.2, 0.1
_PART = re.compile(r"(?P<split>[\w.\-]+)/(?P<side>\w+)(/(?P<labels>[1-9]\d*)(@(?P<seed>\d+))?)?")
_COMPUTED = re.compile(r"(reference|image)_[1-9]\d*")
_SIDES = {"train": ("fit", "val"), "fit": ("fit",), "val": ("val",), "test": ("test",)}


class PartError(ValueError):
  """The name of a part that says nothing."""


class Rated(Protocol):
  """What a split has to know of a picture: `records.Sample` and `contents.Entry` say it."""

  id: str
  rating: Rating | None


@dataclasses.dataclass(frozen=True)
class Part:
  """A part by what its name says; `labels` is None where it has all of them."""

  split: str
  side: str
  labels: int | None = None
  seed: int = 0

  @property
  def computed(self) -> bool:
    return bool(_COMPUTED.fullmatch(self.split))


def parse(part: str) -> Part:
  """Reads the name of a part; raises PartError."""
  match = _PART.fullmatch(part) if isinstance(part, str) else None
  if match is None:
    raise PartError(
      f"input.part is {part!r}, expected SPLIT/SIDE or SPLIT/SIDE/LABELS, as in "
      "'reference_1/train', 'image_3/test', 'official/test' or 'reference_1/train/50'."
    )
  labels = match["labels"]
  found = Part(match["split"], match["side"], labels and int(labels), int(match["seed"] or 0))
  sides = tuple(_SIDES) if found.computed else SIDES
  if found.side not in sides:
    raise PartError(
      f"input.part is {part!r}: {found.split} has no side {found.side!r}, expected one of "
      f"{', '.join(sides)}."
    )
  return found


def rows(pictures: Sequence[Rated], part: str) -> Int[np.ndarray, "n"]:
  """The numbers of the pictures of a part, ascending. Pictures without a rating are in none.

  Raises:
    PartError: the name says nothing, or the pictures cannot be divided so, or there are too few.
  """
  asked = parse(part)
  sides = assign(pictures, asked.split)
  wanted = _SIDES[asked.side] if asked.computed else (asked.side,)
  found = [i for i, side in enumerate(sides) if side in wanted]
  if not found:
    raise PartError(f"{part}: no picture is in it, of {_counts(sides)}.")
  if asked.labels is not None:
    if asked.labels > len(found):
      raise PartError(f"{part}: there are {len(found)} pictures, expected {asked.labels} or more.")
    draw = f"{asked.seed}/{asked.split}/"
    found = sorted(sorted(found, key=lambda i: _order(draw + pictures[i].id))[: asked.labels])
  return np.array(found, np.int64)


def assign(pictures: Sequence[Rated], split: str) -> list[str | None]:
  """The side of each picture: "fit", "val", "test" of a drawn split, or what the data's own says.

  Args:
    pictures: all that are rated together; the draw is of their groups.
    split: `reference_K`, `image_K`, or a name in their `rating.splits`.

  Returns:
    a side each; None where it has no rating, or the split leaves it out.

  Raises:
    PartError: no picture knows the split, or a single group cannot be divided.
  """
  if not _COMPUTED.fullmatch(split):
    sides = [p.rating.splits.get(split) if p.rating else None for p in pictures]
    if not any(sides):
      known = sorted({name for p in pictures if p.rating for name in p.rating.splits})
      raise PartError(
        f"no picture has a split {split!r}; known are reference_1, image_1, ..."
        + (f" and {', '.join(known)}." if known else ".")
      )
    return sides
  by_image = split.startswith("image")
  groups = [p.rating and (p.id if by_image else p.rating.group) for p in pictures]
  side_of = draw(sorted({g for g in groups if g is not None}), split)
  return [None if g is None else side_of[g] for g in groups]


def draw(groups: Sequence[str], split: str) -> dict[str, str]:
  """Divides different groups by a draw's name: 20 % "test", a tenth of the rest "val", else "fit".

  Both shares are rounded to whole groups, at least one; a single group to train on is "fit".

  Raises:
    PartError: fewer than two groups.
  """
  if len(groups) < 2:
    raise PartError(
      f"{split}: the rated pictures are of {len(groups)} group(s), which cannot be divided; "
      "expected two or more references, or image_1 to divide by picture."
    )
  ordered = sorted(groups, key=lambda g: (_order(f"{split}/{g}"), g))
  test = max(1, _rounded(TEST_SHARE * len(ordered)))
  rest = len(ordered) - test
  val = max(1, _rounded(VAL_SHARE * rest)) if rest > 1 else 0
  sides = ["test"] * test + ["val"] * val + ["fit"] * (rest - val)
  return dict(zip(ordered, sides))


class PartSource:
  """The records of a part, as `records.RecordSource` has those of a split."""

  def __init__(self, whole: records.RecordSource, part: str, chosen: Int[np.ndarray, "n"]):
    self._whole, self._chosen = whole, chosen
    self.directory, self.split, self.part = whole.directory, whole.split, part
    self.name = f"{whole.directory} [{whole.split}, {part}]"
    self.info = whole.info

  def __len__(self) -> int:
    return len(self._chosen)

  def where(self, index: int) -> str:
    """Returns the name of a record: its shard and number."""
    return self._whole.where(self._chosen[index])

  def __getitem__(self, index: int) -> records.Sample:
    if not 0 <= index < len(self):
      raise IndexError(f"{self.name} has records 0 to {len(self) - 1}, not {index}.")
    return self._whole[self._chosen[index]]


class FirstSource:
  """The first records of a split or part: subsets of it that are nested."""

  def __init__(self, whole: "records.RecordSource | PartSource", count: int):
    self._whole, self._count = whole, count
    self.directory, self.split, self.part = whole.directory, whole.split, whole.part
    self.name = f"{whole.name}, the first {count}"
    self.info = whole.info

  def __len__(self) -> int:
    return self._count

  def where(self, index: int) -> str:
    """Returns the name of a record: its shard and number."""
    return self._whole.where(index)

  def __getitem__(self, index: int) -> records.Sample:
    if not 0 <= index < len(self):
      raise IndexError(f"{self.name} has records 0 to {len(self) - 1}, not {index}.")
    return self._whole[index]


def first(source: records.RecordSource | PartSource, count: int) -> FirstSource:
  """The first `count` records of a split or part; raises PartError if there are fewer."""
  if count > len(source):
    raise PartError(f"input.first is {count}, but {source.name} has {len(source)} records.")
  return FirstSource(source, count)


def select(source: records.RecordSource, part: str, threads: int = 2) -> PartSource:
  """The records of a part of a split. The split is read through once for it, and remembered.

  A record that cannot be read is in every part (but not among few labels): who reads it counts it.

  Raises:
    PartError: as of `rows`.
  """
  stamp = os.stat(os.path.join(source.directory, records.MANIFEST)).st_mtime_ns
  pictures = _pictures(source.directory, source.split, stamp, threads)
  readable = [i for i, p in enumerate(pictures) if p is not None]
  try:
    chosen = np.array(readable, np.int64)[rows([pictures[i] for i in readable], part)]
  except PartError as error:
    raise PartError(f"{source.name}: {error}") from error
  if parse(part).labels is None:
    lost = [i for i, p in enumerate(pictures) if p is None]
    chosen = np.sort(np.concatenate([chosen, np.array(lost, np.int64)]))
  return PartSource(source, part, chosen)


@dataclasses.dataclass(frozen=True, slots=True)
class _Picture:
  id: str
  rating: Rating | None


@functools.lru_cache(maxsize=16)
def _pictures(directory: str, split: str, stamp: int, threads: int) -> tuple[_Picture | None, ...]:
  # `stamp` makes a rebuilt data set be read again.
  del stamp
  source = records.open_dataset(directory, split)

  def look(index: int) -> _Picture | None:
    try:
      sample = source[index]
    except records.RecordError:
      return None
    return _Picture(sample.id, sample.rating)

  with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
    return tuple(pool.map(look, range(len(source))))


def _counts(sides: Sequence[Any]) -> str:
  counts = collections.Counter(side or "no side" for side in sides)
  return ", ".join(f"{count} in {side}" for side, count in sorted(counts.items())) or "none"


def _rounded(value: float) -> int:
  return int(value + 0.5)


def _order(name: str) -> bytes:
  return hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
