"""What does a person who watches a run see?

On a terminal one line that is rewritten at every step, and plain lines for what should stay;
elsewhere (a file, a pipe) plain lines only. Only the first process speaks.
"""

import contextlib
import logging
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TextIO

import jax

# Left out of the console's lines, which show the loss and its terms.
_HIDDEN = ("lr", "grad_norm", "update_norm", "param_norm", "skipped_in_row", "examples_seen")
# Shown when there are any.
_ONLY_IF_ANY = ("skipped_updates", "skipped_records", "roll_backs", "passed_over_batches")


class Console:
  """Prints a run's set-up, progress and reports."""

  def __init__(self, stream: TextIO | None = None, quiet: bool = False):
    """Writes to `stream` (default: standard output), or nothing at all if `quiet`."""
    self._stream = stream or sys.stdout
    self._quiet = quiet
    self._live = not quiet and self._stream.isatty()
    self._has_line = False
    self._total = 0
    self._terms = self._pace = ""

  def say(self, text: str) -> None:
    """Prints a line that stays."""
    if not self._quiet:
      self._clear()
      print(text, file=self._stream, flush=True)

  @contextlib.contextmanager
  def doing(self, what: str) -> Iterator[None]:
    """Announces something that may take long, and says how long it took."""
    began = time.perf_counter()
    if not self._quiet:
      self._clear()
      print(f"{what} ...", end="" if self._live else "\n", file=self._stream, flush=True)
    yield
    if self._live:
      print(f" {seconds(time.perf_counter() - began)}", file=self._stream, flush=True)
    elif not self._quiet and time.perf_counter() - began > 5:
      print(f"{what}: took {seconds(time.perf_counter() - began)}", file=self._stream, flush=True)

  def start(self, total_steps: int) -> None:
    """Tells how long the run is, for the shares and times that are shown."""
    self._total = total_steps

  def progress(self, step: int, pace: tuple[float, float] | None) -> None:
    """Rewrites the live line, if there is one.

    Args:
      step: steps taken.
      pace: (examples a second, seconds left), or None while it is not known.
    """
    self._pace = "" if pace is None else f"  {pace[0]:.3g} ex/s, {seconds(pace[1])} left"
    if not self._live:
      return
    line = f"step {step}/{self._total} {100 * step // max(1, self._total)}%  {self._terms}"
    width = shutil.get_terminal_size().columns - 1
    print("\r" + (line + self._pace)[:width].ljust(width), end="", file=self._stream, flush=True)
    self._has_line = True

  def report(self, step: int, scalars: Mapping[str, float]) -> None:
    """Shows metrics as a line; those of training in the live line, where there is one."""
    if "loss" not in scalars:
      self.say(f"step {step}: " + ", ".join(f"{k} {short(v)}" for k, v in scalars.items()))
      return
    terms = {"loss": scalars["loss"]} | {
        k: v for k, v in scalars.items() if k not in _HIDDEN and not k.startswith("time/")}
    for name in [n for n, v in terms.items() if n.startswith(_ONLY_IF_ANY) and not v]:
      del terms[name]
    self._terms = "  ".join(f"{k} {short(v)}" for k, v in terms.items())
    if not self._live:
      self.say(f"step {step}/{self._total}  {self._terms}  lr {short(scalars['lr'])}{self._pace}")

  def values(self, scalars: Mapping[str, float | None]) -> None:
    """Prints metrics one a line; None stands for one that is not finite."""
    for name, value in scalars.items():
      self.say(f"  {name:<40} {'not finite' if value is None else short(value)}")

  def _clear(self):
    if self._has_line:
      print(file=self._stream)
      self._has_line = False


def seconds(value: float) -> str:
  """A duration for people: 8s, 3m20s, 2h05m, 3d04h."""
  value = max(0, round(value))
  for unit, size, small, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
    if value >= size:
      return f"{value // size}{unit}{value % size // part:02d}{small}"
  return f"{value}s"


def set_up_logging(debug: bool = False) -> None:
  """Shows warnings as plain lines, of the first process only.

  Args:
    debug: also show what libraries log through absl. Orbax tells every failure there, several times
      and with tracebacks, that it also raises.
  """
  level = logging.WARNING if jax.process_index() == 0 else logging.ERROR
  logging.basicConfig(format="%(levelname)s: %(message)s", level=level, force=True)
  logging.getLogger("absl").setLevel(level if debug else logging.CRITICAL)


def exit_code(command: Callable[[], int | None], debug: bool = False) -> int:
  """Runs a command; an error that says what is wrong becomes one line on stderr and exit code 2.

  Args:
    command: returns an exit code, or None for 0.
    debug: show the traceback as well.
  """
  try:
    return command() or 0
  except (ValueError, OSError) as error:
    if debug:
      traceback.print_exc()
    print(f"error: {error}", file=sys.stderr)
    return 2


def short(value: float) -> str:
  """A number for people, four digits."""
  return f"{value:.4g}"
