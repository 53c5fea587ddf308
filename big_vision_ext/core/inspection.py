"""What is there to see of a step beside its metrics: its memory, its trace, its mistakes."""

import contextlib
import pathlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from big_vision_ext.core.nonfinite import TrainingError

PROFILE_FOLDER = "profile"


def memory(compiled: Any) -> dict[str, int]:
  """Bytes that a compiled program takes on each device, as the compiler plans it.

  Returns:
    `arguments` (what goes in: state and batch), `outputs`, `reused` (of the outputs, what takes the
    place of arguments), `temporaries`, and `peak`; what the platform does not tell is left out.
  """
  analysis = compiled.memory_analysis()
  fields = {"arguments": "argument_size_in_bytes", "outputs": "output_size_in_bytes",
            "reused": "alias_size_in_bytes", "temporaries": "temp_size_in_bytes",
            "peak": "peak_memory_in_bytes"}
  found = {name: getattr(analysis, field, None) for name, field in fields.items()}
  return {name: int(value) for name, value in found.items() if value is not None}


def describe(compiled: Any, seconds: float, params: Any) -> str:
  """Lines for a person about a step that took `seconds` to compile."""
  parameters = sum(x.size for x in jax.tree.leaves(params))
  sizes = ", ".join(f"{name} {_bytes(size)}" for name, size in memory(compiled).items())
  return (f"The step took {seconds:.1f} s to compile; the model has {parameters:,} parameters\n"
          f"Memory of a step on each device: {sizes or 'this platform does not tell'}")


class Profile:
  """Records the trace of some steps, of the first process, into `WORKDIR/profile`, for xprof."""

  def __init__(self, steps: tuple[int, int] | None, workdir: pathlib.Path):
    """`steps` is (first step, how many), or None for no profile."""
    first, count = steps or (0, 0)
    self._steps = range(first, first + count) if jax.process_index() == 0 else range(0)
    self._folder = pathlib.Path(workdir) / PROFILE_FOLDER
    self._on = False

  @contextlib.contextmanager
  def step(self, step: int) -> Iterator[None]:
    """What is done in a step, with its number in the trace."""
    if step in self._steps and not self._on:
      jax.profiler.start_trace(self._folder)
      self._on = True
    elif self._on and step not in self._steps:
      self.close()
    with jax.profiler.StepTraceAnnotation("train", step_num=step):
      yield

  def close(self) -> None:
    """Ends the recording, if it is on."""
    if self._on:
      self._on = False
      jax.profiler.stop_trace()


def checked(step: Callable[[Any, Any], tuple[Any, dict]]) -> Callable[[Any, Any], tuple[Any, dict]]:
  """config.debug.checks: a step that ends the run where a NaN or an unasked transfer arises.

  Args:
    step: jitted, from (state, batch) to (state, metrics), without donation: one that gives NaN is
      taken again, operation by operation.

  Returns:
    The step, which raises TrainingError.
  """
  def run(state, batch):
    try:
      with jax.transfer_guard("disallow"):
        out = step(state, batch)
    except RuntimeError as error:
      if "Disallowed" not in str(error):
        raise
      raise TrainingError(f"config.debug.checks: {error}") from error
    seen = jax.device_get([out[1][name] for name in ("loss", "grad_norm", "update_norm")])
    if np.isnan(seen).any():
      try:
        with jax.debug_nans(True):
          step(state, batch)
      except FloatingPointError as error:
        raise TrainingError(f"config.debug.checks: {error}{_where(error)}") from error
    return out
  return run


def _where(error: BaseException) -> str:
  own = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
  return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def _bytes(size: int) -> str:
  for unit in ("B", "KiB", "MiB"):
    if size < 1024:
      return f"{size:.4g} {unit}"
    size /= 1024
  return f"{size:.4g} GiB"
