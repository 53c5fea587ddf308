"""What if a run does not get on?

A collective whose partner is lost, a file system that does not answer, a deadlock: nothing fails,
nothing happens, and the machines are paid for. A thread watches how long ago the loop last gave a
sign of life, and when that is too long writes down where every thread is, and ends the process.
"""

import contextlib
import faulthandler
import os
import pathlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax

from big_vision_ext.core import exit_codes

# Evaluations and saves may take so many times the seconds of a step.
PATIENCE = 10
# To write the file of stacks, which a file system that hangs does not allow.
_WRITE_SECONDS = 10.0


class Watchdog:
  """Ends the process, with code 75, when `beat` has not been called for too long.

  The stacks of all threads go to stderr and to `WORKDIR/stacks_PROCESS.txt`.
  """

  def __init__(self, seconds: float | None, workdir: str | os.PathLike,
               leave: Callable[[int], None] = os._exit):
    """Watches from `with` on.

    Args:
      seconds: how long a step may take, with the wait for its batch; None: do not watch.
      workdir: gets the file of stacks.
      leave: ends the process with an exit code, without waiting for anything.
    """
    self._seconds, self._leave = seconds, leave
    self._process = jax.process_index()
    self._path = pathlib.Path(workdir) / f"stacks_{self._process}.txt"
    self._limit, self._silent, self._doing = seconds, 0.0, "starting"
    self._over = threading.Event()

  def __enter__(self):
    if self._seconds is not None:
      self.beat("starting")
      threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
    return self

  def __exit__(self, kind, error, trace):
    # After an error, what is to be closed on the way out is watched too, until `stop`: it may wait
    # for peers.
    if error is None:
      self.stop()
    else:
      self.beat(f"closing after {kind.__name__}: {error}")

  def stop(self) -> None:
    """The run is over and closed; what the process does now is nothing to watch."""
    self._over.set()

  def beat(self, doing: str) -> None:
    """The run gets on: it is `doing` something now."""
    self._silent, self._doing = 0.0, doing

  @contextlib.contextmanager
  def patient(self, doing: str) -> Iterator[None]:
    """Something that may take `PATIENCE` times as long as a step."""
    if self._seconds is not None:
      self._limit = PATIENCE * self._seconds
    self.beat(doing)
    try:
      yield
    finally:
      self._limit = self._seconds
      self.beat(f"going on after {doing}")

  def _watch(self):
    # Time is counted in ticks of this thread: none pass while the process is suspended.
    tick = min(1.0, self._seconds / 4)
    while not self._over.wait(tick):
      self._silent += tick
      if self._silent > self._limit:
        self._give_up()
        return

  def _give_up(self):
    text = (f"error: STALLED: process {self._process} has been {self._doing} for "
            f"{self._silent:g} s; config.stall_seconds={self._seconds:g} allows {self._limit:g}. "
            "Where its threads are:\n")
    bound = threading.Timer(_WRITE_SECONDS, self._leave, [exit_codes.RESTART])
    bound.daemon = True
    bound.start()
    with contextlib.suppress(OSError, ValueError):
      sys.stderr.write(text)
      sys.stderr.flush()
      faulthandler.dump_traceback(sys.__stderr__)
    with contextlib.suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
      file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")
      file.flush()
      faulthandler.dump_traceback(file)
    bound.cancel()
    self._leave(exit_codes.RESTART)
