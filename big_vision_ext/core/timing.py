"""How fast is a run, and what share of its time went into training?"""

import contextlib
import time
from collections.abc import Iterator

import jax

from big_vision_ext.core import flops


class Clock:
  """Adds up the time of the steps of a run, over all the processes that worked on it.

  Steps are dispatched ahead of the device, so that a single one cannot be timed: times are means
  over the steps between two reports.

  Attributes:
    waited: seconds that this process has waited for input since its start.
  """

  def __init__(self, *, step: int, batch_size: int, total_steps: int,
               flops_per_example: float | None = None, first_start: float | None = None,
               trained_seconds: float = 0.0):
    """Stands still until `pause` is left for the first time, or `start` is called.

    Args:
      step: number of steps taken before.
      batch_size: examples a step.
      total_steps: length of the run.
      flops_per_example: model FLOPs of one example, forward and backward; None: no MFU.
      first_start: when the run was first started, in seconds since the epoch; None: now.
      trained_seconds: time that earlier processes spent on the steps taken before.
    """
    self._batch_size, self._total_steps = batch_size, total_steps
    self._flops = flops_per_example
    self._first_start = time.time() if first_start is None else first_start
    self._trained, self._resumed = trained_seconds, None
    self.waited = 0.0
    self._reported = (step, trained_seconds, 0.0)
    self._step_seconds = None

  def start(self) -> None:
    """Steps begin now."""
    self._resumed = time.perf_counter()

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Something else than training: an evaluation, a checkpoint."""
    self._trained, self._resumed = self._trained_seconds(), None
    yield
    self.start()

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """The next batch is not there yet."""
    began = time.perf_counter()
    yield
    self.waited += time.perf_counter() - began

  def report(self, step: int, waited: float | None = None) -> dict[str, float]:
    """The timing metrics since the last report, by their names in `core.metrics`.

    Args:
      step: the step that is reported.
      waited: seconds that the process which waited longest for its input had waited by then, since
        its start; None: this one.
    """
    waited = self.waited if waited is None else waited
    trained = self._trained_seconds()
    steps = max(1, step - self._reported[0])
    self._step_seconds = (trained - self._reported[1]) / steps
    rate = self._batch_size / max(self._step_seconds, 1e-9)
    out = {
        "time/step": self._step_seconds,
        "time/data_wait": (waited - self._reported[2]) / steps,
        "time/examples_per_second_per_chip": rate / jax.device_count(),
        "time/goodput": trained / max(time.time() - self._first_start, 1e-9),
    }
    kind = jax.devices()[0].device_kind
    if self._flops and (mfu := flops.mfu(self._flops, rate, jax.device_count(), kind)) is not None:
      out["time/mfu"] = mfu
    self._reported = (step, trained, waited)
    return out

  def pace(self, step: int) -> tuple[float, float] | None:
    """(examples a second, seconds left), or None while nothing is known."""
    done = step - self._reported[0]
    seconds = self._step_seconds
    if seconds is None and done > 0:
      seconds = (self._trained_seconds() - self._reported[1]) / done
    if not seconds:
      return None
    return self._batch_size / seconds, seconds * (self._total_steps - step)

  def state(self) -> dict[str, float]:
    """What the next process needs to go on counting."""
    return {"first_start": self._first_start, "trained_seconds": self._trained_seconds()}

  def _trained_seconds(self):
    running = 0.0 if self._resumed is None else time.perf_counter() - self._resumed
    return self._trained + running
