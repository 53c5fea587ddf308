"""Which numbers does a run report, under which names, and where do they go?

Names, beside the task's own loss terms and the evaluators' `EVALUATOR/...`:

- `loss`: what is minimised; `lr`: learning rate, the schedule included
- `grad_norm`, `update_norm`, `param_norm`: global L2 norms (of the gradient of what is trained,
  before clipping; of the change made; of all parameters)
- `skipped_updates`: updates left out so far as they were not finite; `skipped_in_row`: of those,
  the ones since the last good update
- `roll_backs`, `passed_over_batches`: with nan_policy "roll_back", how often the run went back, and
  how many batches of the stream it left out by that; see `core.nonfinite`
- `examples_seen`: step * batch_size
- `skipped_records`, `skipped_records/SOURCE`: records that could not be used, of all processes, in
  all and of each data set of the mixture (that of a single one is called `data`)

and, not the same in any two runs (`is_timing`):

- `time/step`: mean seconds of a step since the last report; `time/data_wait`: seconds of that spent
  waiting for input, by the process that waited longest; `time/examples_per_second_per_chip`
- `time/goodput`: `seconds spent on steps that count / seconds since the run was first started`.
  Interruptions, set-up, evaluations and saves are in the second only, as are steps that had to be
  taken again (those after the last checkpoint of a killed process, or of a roll-back)
- `time/mfu`: model FLOPs utilisation, `flops_per_example * examples/s/chip / peak FLOP/s of a
  chip`. The FLOPs are those of the formulas in `core.flops`, the peak is of dense bfloat16; not
  reported where it is not known, as of CPUs
"""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from big_vision_ext.core.clu_writers import MetricWriter, MultiWriter

FILE = "metrics.jsonl"
FOLDER = "tensorboard"


class Reporter(Protocol):
  """Whatever shows a run's numbers to a person, e.g. `core.console.Console`."""

  def report(self, step: int, scalars: Mapping[str, float]) -> None: ...


def make_writer(workdir: str | os.PathLike, start_step: int, console: Reporter) -> MetricWriter:
  """A writer to the console, `WORKDIR/metrics.jsonl` and `WORKDIR/tensorboard`.

  Args:
    workdir: the run's directory.
    start_step: the step that the run goes on from, 0 for a new one; what an interrupted process
      wrote of later steps is taken back.
    console: shows each report.
  """
  workdir = pathlib.Path(workdir)
  return MultiWriter([JsonLines(workdir / FILE, start_step),
                      TensorBoard(workdir / FOLDER, start_step), ConsoleWriter(console)])


def is_timing(name: str) -> bool:
  """Whether a metric measures the machine, not the model: it differs from run to run."""
  return name.startswith("time/")


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of `WORKDIR/metrics.jsonl`; a torn last line, left by a kill, is left out."""
  path = pathlib.Path(workdir) / FILE
  lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
  out = []
  for number, line in enumerate(lines, 1):
    if not line.endswith(b"\n"):
      break
    try:
      values = json.loads(line)
    except ValueError:
      values = None
    if not isinstance(values, dict) or not isinstance(values.get("step"), int):
      raise ValueError(f"{path}, line {number}: expected a JSON object with a step, as the trainer "
                       f"writes them, got {line[:80]!r}")
    out.append(values)
  return out


def last_values(workdir: str | os.PathLike) -> dict[str, Any]:
  """The last value of every metric of a run but those of the machine; None: not finite."""
  last = {}
  for line in read(workdir):
    last |= {k: v for k, v in line.items() if not is_timing(k) and k != "step"}
  return last


class ScalarWriter(MetricWriter):
  """A clu writer of scalars; a run's report has no other kind of summary."""

  def _scalars_only(self, *args, **kwargs):
    raise NotImplementedError(f"{type(self).__name__} writes scalars only")

  write_summaries = write_images = write_videos = write_audios = _scalars_only
  write_texts = write_histograms = write_pointcloud = write_hparams = _scalars_only

  def flush(self):
    """What was written can be read by others, whatever happens to this process."""

  def close(self):
    self.flush()


class JsonLines(ScalarWriter):
  """One object a line, {"step": ..., name: value, ...}; a number that is not finite is null."""

  def __init__(self, path: str | os.PathLike, start_step: int = 0):
    self._path = pathlib.Path(path)
    self._take_back(start_step)
    self._file = open(self._path, "a", encoding="utf-8")

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    values = {name: _number(value) for name, value in scalars.items()}
    self._file.write(json.dumps({"step": step, **values}) + "\n")
    self._file.flush()

  def flush(self):
    self._file.flush()
    os.fsync(self._file.fileno())

  def close(self):
    self.flush()
    self._file.close()

  def _take_back(self, start_step):
    if not self._path.exists():
      return
    kept = [line for line in read(self._path.parent) if line["step"] <= start_step]
    # By way of a second file: a kill right now must not lose what is kept.
    other = self._path.with_suffix(".tmp")
    with open(other, "w", encoding="utf-8") as file:
      file.writelines(json.dumps(line) + "\n" for line in kept)
      file.flush()
      os.fsync(file.fileno())
    os.replace(other, self._path)


class TensorBoard(ScalarWriter):
  """Event files that a stock tensorboard reads, by tensorboard's own writer."""

  def __init__(self, folder: str | os.PathLike, start_step: int = 0):
    self._events = EventFileWriter(str(folder))
    # Makes readers drop what an interrupted process wrote of later steps.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._events.add_event(event_pb2.Event(
        step=start_step + 1, wall_time=time.time(), session_log=start))

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    kind = scalar_metadata.create_summary_metadata(display_name="", description="")
    values = [
        summary_pb2.Summary.Value(
            tag=name, metadata=kind, tensor=make_tensor_proto(np.float32(value)))
        for name, value in scalars.items()]
    self._events.add_event(event_pb2.Event(
        step=step, wall_time=time.time(), summary=summary_pb2.Summary(value=values)))

  def flush(self):
    self._events.flush()

  def close(self):
    self._events.close()


class ConsoleWriter(ScalarWriter):
  """Hands the scalars to whatever shows them to a person."""

  def __init__(self, console: Reporter):
    self._console = console

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    self._console.report(step, {name: float(value) for name, value in scalars.items()})


def _number(value: Any) -> int | float | None:
  value = np.asarray(value).item()
  return value if isinstance(value, int) or math.isfinite(value) else None
