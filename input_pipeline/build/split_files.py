"""Which rows of an annotation file are for training, by a split file that others publish?

IQA-PyTorch and UniQA pickle {1: {"train": [row, ...], "val": [...], "test": [...]}, 2: ...}:
numbers of rows, from 0, of the annotation file without its header. A pickle can run any program, so
nothing is loaded from it but dicts, lists, tuples, numbers and texts.
"""

import os
import pickle
from typing import Any

from input_pipeline import ratings
from input_pipeline.build.durable import BuildError


class _OnlyData(pickle.Unpickler):
  """Refuses every name a pickle asks for: plain containers need none."""

  def find_class(self, module: str, name: str) -> Any:
    raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no plain data")

  def persistent_load(self, pid: Any) -> Any:
    raise pickle.UnpicklingError(f"it refers to {pid!r}, which is no plain data")


def read(path: str | os.PathLike, count: int) -> list[dict[str, str]]:
  """The splits of each row.

  Args:
    path: the pickle.
    count: how many rows there are.

  Returns:
    for each row {"pkl_1": "train", "pkl_2": "test", ...}, without those that leave it out.

  Raises:
    BuildError: no such pickle, one of other things than such lists, or of other rows.
  """
  try:
    with open(path, "rb") as file:
      splits = _OnlyData(file).load()
  except OSError as error:
    raise BuildError(f"{path}: cannot be read ({error.strerror})") from error
  except Exception as error:  # Foreign bytes make a pickle raise a dozen types.
    raise BuildError(
      f"{path}: is not loaded as a pickle of splits ({error}); expected a dict of dicts of lists "
      "of row numbers, without arrays or other objects"
    ) from error
  found: list[dict[str, str]] = [{} for _ in range(count)]
  if not isinstance(splits, dict) or not splits:
    raise BuildError(f"{path}: holds {type(splits).__name__}, expected {{1: {{'train': [...]}}}}")
  for number, sides in splits.items():
    if not isinstance(sides, dict) or not set(sides) <= set(ratings.SIDES):
      raise BuildError(f"{path}: split {number!r} holds {_short(sides)}, expected lists by "
                       f"{', '.join(ratings.SIDES)}")
    for side, rows in sides.items():
      _mark(found, f"pkl_{number}", side, rows, path)
  return found


def _mark(found: list[dict[str, str]], name: str, side: str, rows: Any, path: Any) -> None:
  if not isinstance(rows, (list, tuple)):
    raise BuildError(f"{path}: {name}, {side}: is {_short(rows)}, expected a list of row numbers")
  for row in rows:
    if not isinstance(row, int) or isinstance(row, bool) or not 0 <= row < len(found):
      raise BuildError(
        f"{path}: {name}, {side}: row {row!r}; expected whole numbers of 0 to {len(found) - 1}, "
        "the rows of the annotation file. The splits may be those of another file"
      )
    other = found[row].setdefault(name, side)
    if {other, side} == {"val", "test"}:
      found[row][name] = "test"  # Some list what they test on as what they select by.
    elif other != side:
      raise BuildError(f"{path}: {name}: row {row} is in {other!r} and in {side!r}")


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f"{text[:57]}..."
