"""How far is a long build, and how long will it still take? One line on standard error."""

import sys
import time
from typing import TextIO


class Progress:
  """Counts records and says so: a live line on a terminal, a line now and then in a log.

  Args:
    name: what is being counted, the first word of the line.
    total: how many records there are in all.
    done: how many of them an earlier run finished (they do not count for the rate).
    enabled: False keeps it silent.
    unit: what is counted, in the plural.
    stream: where to write; standard error by default.
  """

  def __init__(
    self, name: str, total: int, *, done: int = 0, enabled: bool = True,
    unit: str = "records", stream: TextIO | None = None,
  ):
    self._name, self._unit = name, unit
    self._total = total
    self._start = self._done = done
    self._skipped = 0
    self._stream = stream if stream is not None else sys.stderr
    self._enabled = enabled
    self._live = enabled and self._stream.isatty()
    self._interval = 0.2 if self._live else 30.0
    self._began = self._shown = time.monotonic()

  def advance(self, *, skipped: bool = False):
    """One more record has been dealt with."""
    self._done += 1
    self._skipped += skipped
    now = time.monotonic()
    if self._enabled and now - self._shown >= self._interval:
      self._shown = now
      self._write(self._line(now), end="" if self._live else "\n")

  def close(self):
    """Writes the final line."""
    if self._enabled:
      self._write(self._line(time.monotonic()), end="\n")

  def _line(self, now: float) -> str:
    seconds = max(now - self._began, 1e-6)
    fresh = self._done - self._start
    rate = fresh / seconds
    text = f"{self._name}: {self._done:,}/{self._total:,} {self._unit}"
    if self._start:
      text += f" ({self._start:,} from an earlier run)"
    if self._skipped:
      text += f", {self._skipped:,} skipped"
    if fresh:
      text += f", {rate:.1f}/s"
    left = self._total - self._done
    if left and fresh:
      text += f", {duration(left / rate)} left"
    elif not left:
      text += f", {duration(seconds)}"
    return text

  def _write(self, line: str, end: str):
    # A live line is drawn over the one before; the blanks wipe what was longer.
    self._stream.write(f"\r{line:<78}{end}" if self._live else f"{line}{end}")
    self._stream.flush()


def duration(seconds: float) -> str:
  """Seconds as a person says them: "8 s", "3 min 20 s", "2 h 05 min"."""
  seconds = round(seconds)
  if seconds < 60:
    return f"{seconds} s"
  if seconds < 3600:
    return f"{seconds // 60} min {seconds % 60:02d} s"
  return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
