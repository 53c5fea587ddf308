"""Whose directory is this, and may this command go on with what is in it?"""

import fcntl
import json
import os
import pathlib
from collections.abc import Mapping

from big_vision_ext.core import config as config_lib
from big_vision_ext.core.config import Config

CONFIG_FILE = "config.json"
EVALUATION_FILE = "evaluation.json"
_LOCK_FILE = ".lock"


class WorkdirError(ValueError):
  """A directory that this run cannot have."""


def write_json(path: pathlib.Path, content: Mapping) -> None:
  """Writes a JSON file that, if it is there, is whole."""
  other = path.with_name(f"{path.name}.tmp")
  other.write_text(json.dumps(content, indent=1) + "\n")
  os.replace(other, path)


class Workdir:
  """A run's directory, held by one trainer at a time, with the config it belongs to."""

  def __init__(self, path: str | os.PathLike, config: Config, *, writes: bool,
               accept_changes: bool = False):
    """Checks that the directory is new or belongs to the same config, and takes hold of it.

    Args:
      path: the directory; made if it does not exist.
      config: what is to be run there.
      writes: whether this is the process that writes (the others only check).
      accept_changes: go on even though the config differs from the one that began here.

    Raises:
      WorkdirError: it belongs to another config, to another running process, or is no directory.
    """
    self.path = pathlib.Path(path).absolute()
    self._lock = None
    if "://" in str(path):
      raise WorkdirError(f"--workdir={path}: expected a directory of a mounted file system (a "
                         "bucket can be mounted, e.g. by gcsfuse)")
    if self.path.exists() and not self.path.is_dir():
      raise WorkdirError(f"--workdir={path}: is a file, expected a directory")
    if writes:
      self.path.mkdir(parents=True, exist_ok=True)
      self._take_lock()
    self._config = config_lib.to_dict(config)
    self._writes = writes
    old = self._read_config()
    self.changes = [] if old is None else config_lib.differences(old, self._config)
    if self.changes and not accept_changes:
      raise WorkdirError(
          f"--workdir={path} belongs to a run with another config. It differs in\n  "
          + "\n  ".join(self.changes)
          + "\nUse another --workdir, or --resume_with_changes to go on here all the same")

  def claim(self) -> None:
    """Writes the config down, once it has proved to work: a failed start claims nothing."""
    if self._writes:
      write_json(self.path / CONFIG_FILE, self._config)

  def keep_results(self, results: Mapping[str, float]) -> None:
    """Writes down what evaluators measured, for `evaluate --compare` and the cards of exports."""
    if self._writes:
      write_json(self.path / EVALUATION_FILE, results)

  def close(self) -> None:
    """Lets go of the directory."""
    if self._lock is not None:
      self._lock.close()

  def _read_config(self):
    file = self.path / CONFIG_FILE
    if not file.exists():
      return None
    try:
      return json.loads(file.read_text())
    except ValueError as error:
      raise WorkdirError(f"{file}: is not JSON ({error}); expected the config of the run that "
                         "began here") from error

  def _take_lock(self):
    # The system lets go of the lock when the process ends, however it ends.
    self._lock = open(self.path / _LOCK_FILE, "a+")
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      self._lock.seek(0)
      holder = self._lock.read().strip() or "unknown"
      self._lock.close()
      raise WorkdirError(f"--workdir={self.path}: another process (id {holder}) is training here; "
                         "wait for it, stop it, or use another --workdir") from error
    except OSError:
      # A file system without locks: two trainers at once are then the user's own care.
      return
    self._lock.truncate(0)
    self._lock.write(f"{os.getpid()}\n")
    self._lock.flush()


