"""How is a file or directory changed so that a crash, a full disk or a rival leaves it sound?"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
from typing import Any

# Whatever carries this ending was never finished.
TEMPORARY = ".partial"


class BuildError(ValueError):
  """The build cannot go on; the message says why and what to do."""


@contextlib.contextmanager
def only_writer_of(out_dir: pathlib.Path):
  """Holds the directory against a second build; the system frees it when the process ends."""
  handle = os.open(out_dir, os.O_RDONLY)
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise BuildError(f"{out_dir}: another build is writing here; wait for it to end") from error
    yield
  finally:
    os.close(handle)


@contextlib.contextmanager
def space_explained(out_dir: pathlib.Path):
  """Turns a full or failing disk into a BuildError that says what to do."""
  try:
    yield
  except OSError as error:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
      raise
    raise BuildError(
      f"{out_dir}: writing failed ({error.strerror}); finished shards are kept. Make room and "
      "run the same command again: it goes on from there."
    ) from error


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
  """The object in a file, or None if there is no such file."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise BuildError(f"{path}: not readable as JSON ({error}); delete it to rebuild") from error


def write_json(path: pathlib.Path, value: dict[str, Any]):
  """Replaces a file by an object as JSON, in one step."""
  write_text(path, json.dumps(value, indent=1, ensure_ascii=True) + "\n")


def write_text(path: pathlib.Path, text: str):
  """Replaces a file in one step, so that a reader sees the old one or the new one."""
  temporary = path.with_name(f"{path.name}{TEMPORARY}")
  try:
    with open(temporary, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  sync_directory(path.parent)


def sync_directory(path: pathlib.Path):
  """Makes the renames in a directory outlive a power cut."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
