"""How are descriptions kept? A line of JSON each, added at the end and never changed.

  {"id": "1.jpg", "task": "iqa", "text": "A sharp picture.", "level": "good",
   "image": SHA-256 of the file, "prompt": "...", "by": "served M max_tokens=200 temperature=0.2"}

Only "id", "task" and "text" are asked of a file that others wrote. The last line of an id and task
counts; of "iaa_human" all do, since people say more than one thing.
"""

import fcntl
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from input_pipeline.build.durable import BuildError
from input_pipeline.ratings import CAPTION_SOURCES

_REQUIRED = ("id", "task", "text")


def read_lines(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
  """The lines of a file of descriptions; one that was cut off at the end is not among them.

  Raises:
    BuildError: no such file, or a line that is no description.
  """
  for where, entry in json_lines(path):
    if not all(isinstance(entry.get(k), str) and entry[k].strip() for k in _REQUIRED):
      raise BuildError(f"{where}: expected an object with the texts 'id', 'task' and 'text'")
    if entry["task"] not in CAPTION_SOURCES:
      raise BuildError(f"{where}: task is {entry['task']!r}, expected one of "
                       f"{', '.join(CAPTION_SOURCES)}")
    yield entry


def json_lines(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
  """(where, object) of each whole line of a file; raises BuildError for a line that is none."""
  try:
    with open(path, encoding="utf-8") as file:
      for number, line in enumerate(file, 1):
        where = f"{path}, line {number}"
        try:
          entry = json.loads(line)
        except ValueError as error:
          if not line.endswith("\n"):
            break  # A crash has left it unfinished.
          raise BuildError(f"{where}: is no JSON ({error})") from error
        if not isinstance(entry, dict):
          raise BuildError(f"{where}: is {type(entry).__name__}, expected an object")
        yield where, entry
  except (OSError, UnicodeDecodeError) as error:
    raise BuildError(f"{path}: cannot be read ({error})") from error


def read(paths: Sequence[str | os.PathLike]) -> dict[str, list[tuple[str, str]]]:
  """The captions of each id as (task, text), over several files, each text of a task once."""
  latest: dict[tuple[str, str], str] = {}
  human: dict[str, dict[str, None]] = {}
  for path in paths:
    for entry in read_lines(path):
      name, task, text = (entry[k] for k in _REQUIRED)
      if task == "iaa_human":
        human.setdefault(name, {})[text] = None
      else:
        latest[name, task] = text
  found: dict[str, list[tuple[str, str]]] = {}
  for (name, task), text in latest.items():
    found.setdefault(name, []).append((task, text))
  for name, texts in human.items():
    found.setdefault(name, []).extend(("iaa_human", text) for text in texts)
  return {name: sorted(some, key=lambda c: CAPTION_SOURCES.index(c[0]))
          for name, some in found.items()}


class CaptionLog:
  """A file that one process adds lines to. Use it as a context manager.

  Raises:
    BuildError: another process is adding to it, or its lines are none.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = pathlib.Path(path)

  def __enter__(self) -> "CaptionLog":
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._file = open(self.path, "ab")
    try:
      try:
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise BuildError(f"{self.path}: another process is adding to it; give each its own --out "
                         "and --shard") from error
      _mend_end(self.path)
      self.lines = list(read_lines(self.path))
    except BaseException:
      self._file.close()
      raise
    return self

  def __exit__(self, *exc) -> None:
    os.fsync(self._file.fileno())
    self._file.close()

  def add(self, entries: Iterable[dict[str, Any]]) -> None:
    """Adds lines; they have left this process when it returns."""
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    self._file.write(text.encode("utf-8", "backslashreplace"))
    self._file.flush()


def _mend_end(path: pathlib.Path) -> None:
  """Ends the last line, to which the next would be glued, or cuts off what a crash has broken."""
  with open(path, "r+b") as file:
    data = file.read()
    if not data or data.endswith(b"\n"):
      return
    start = data.rfind(b"\n") + 1
    try:
      json.loads(data[start:])
    except ValueError:
      file.truncate(start)
    else:
      file.write(b"\n")
