"""Trains and measures the cells of a study, and prints a table: mean and deviation over seeds.

  python -m launch.study focusmim [--steps N] [--seeds "0 1 2"] [--arms random,none] [--jobs 2]

A cell is an arm of a study (`launch/studies.py`) with a seed: one training run with its evaluation,
in `runs/studies/NAME-STEPS/ARM-SEED`, its output in `ARM-SEED.log` beside it. Cells run side by
side, each on cores of its own where `taskset` is there: small models gain little from a second one.
Interrupted anywhere, or started again with other arms or seeds, it goes on from what is there.
`results.jsonl` has a line for each finished cell, `table.md` the table.
"""

import argparse
import dataclasses
import json
import math
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

from big_vision_ext import comparison
from big_vision_ext.core import exit_codes
from launch import studies
from launch.studies import Arm, Study

_POLL_SECONDS = 0.2


class StudyError(ValueError):
  """A study that cannot be run, or a cell that failed; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run: an arm with a seed. `workdir` is its folder, `steps` the length of the training."""

  arm: Arm
  seed: int
  steps: int
  workdir: pathlib.Path

  @property
  def name(self) -> str:
    return f"{self.arm.name}, seed {self.seed}"

  @property
  def log(self) -> pathlib.Path:
    return self.workdir.with_name(f"{self.workdir.name}.log")

  def results(self) -> dict[str, float] | None:
    """What was measured at the end of its run; None if it is not finished."""
    path = self.workdir / "evaluation.json"
    if not path.is_file():
      return None
    found = json.loads(path.read_text())
    return found if found.get("step") == self.steps else None

  def command(self, study: Study, data: str) -> list[str]:
    """What trains and measures it, and goes on where it was."""
    config = f"configs/{self.arm.config.format(data=data)}"
    own = (*study.overrides, *self.arm.overrides, f"seed={self.seed}", f"total_steps={self.steps}")
    return [sys.executable, "-m", "big_vision_ext.train", "--config", config, "--workdir",
            str(self.workdir), *(f"--config.{o}" for o in own)]

  def measure(self) -> list[str]:
    """What measures a run whose training ended and was interrupted just there."""
    return [sys.executable, "-m", "big_vision_ext.evaluate", "--workdir", str(self.workdir)]


def cells(study: Study, folder: pathlib.Path, arms: Sequence[str], seeds: Sequence[int],
          steps: int) -> list[Cell]:
  """The cells, seed after seed: with the first seed one has a first table.

  Raises:
    StudyError: an arm that the study does not have.
  """
  known = {arm.name: arm for arm in study.arms}
  if unknown := [name for name in arms if name not in known]:
    raise StudyError(f"--arms has {unknown[0]!r}; this study has {', '.join(known)}")
  chosen = [known[name] for name in arms] if arms else list(study.arms)
  out = []
  for i, seed in enumerate(seeds):
    for arm in chosen:
      if arm.once and i:
        continue
      length = 1 if arm.untrained else steps
      out.append(Cell(arm, seed + arm.shift, length, folder / f"{arm.name}-{seed + arm.shift}"))
  return out


class Runner:
  """Runs commands of cells, some at a time, and ends them when it is told to."""

  def __init__(self, study: Study, data: str, jobs: int, cache: pathlib.Path):
    self._study, self._data = study, data
    self._groups = _cores(jobs, cache)
    self._running: dict[int, tuple[subprocess.Popen, Cell, float]] = {}
    self._measured: set[Cell] = set()
    self._asked: list[int] = []

  def __call__(self, todo: Sequence[Cell]) -> int:
    """Runs all cells that are not finished; returns an exit code.

    Raises:
      StudyError: a cell failed.
    """
    before = {n: signal.signal(n, lambda number, frame: self._asked.append(number))
              for n in (signal.SIGTERM, signal.SIGINT)}
    waiting, told = [cell for cell in todo if cell.results() is None], 0
    try:
      while waiting and not self._asked or self._running:
        for slot in range(len(self._groups)):
          if waiting and slot not in self._running and not self._asked:
            self._start(slot, waiting.pop(0))
        if len(self._asked) > told:
          # Children save and end; asked again, they are killed.
          self._signal(signal.SIGKILL if told else signal.SIGTERM)
          told += 1
        time.sleep(_POLL_SECONDS)
        for slot in [s for s, (process, *_) in self._running.items() if process.poll() is not None]:
          waiting[:0] = self._finish(slot)
    finally:
      self._signal(signal.SIGTERM)
      for process, *_ in self._running.values():
        process.wait()
      for number, handler in before.items():
        signal.signal(number, handler)
    if self._asked:
      print("Stopped. The same command goes on from here.", file=sys.stderr)
      interrupted = self._asked[0] == signal.SIGINT
      return exit_codes.INTERRUPTED if interrupted else exit_codes.TERMINATED
    return exit_codes.COMPLETE

  def _start(self, slot: int, cell: Cell) -> None:
    cell.workdir.parent.mkdir(parents=True, exist_ok=True)
    prefix, env = self._groups[slot]
    # The last thing a training writes are its results: without them its end was cut off.
    complete = (cell.workdir / "checkpoints" / str(cell.steps)).is_dir()
    if complete:
      self._measured.add(cell)
    command = cell.measure() if complete else cell.command(self._study, self._data)
    with cell.log.open("ab") as log:
      # A session of its own: what the terminal sends, it gets from here, once.
      process = subprocess.Popen([*prefix, *command], stdout=log, stderr=subprocess.STDOUT,
                                 stdin=subprocess.DEVNULL, env=env, start_new_session=True)
    self._running[slot] = process, cell, time.monotonic()
    print(f"{cell.name} ...", flush=True)

  def _finish(self, slot: int) -> list[Cell]:
    """Takes note of a process that has ended; returns its cell if that is to be started again."""
    process, cell, began = self._running.pop(slot)
    code = exit_codes.from_returncode(process.returncode)
    if code == 0 and cell.results() is None and cell not in self._measured:
      return [cell]
    if not self._asked and (code or cell.results() is None):
      tail = "\n".join(cell.log.read_text(errors="replace").splitlines()[-12:])
      raise StudyError(f"{cell.name} ended with {code}; {cell.log} ends with\n{tail}")
    if code == 0:
      print(f"{cell.name}: done, {time.monotonic() - began:.0f} s", flush=True)
    return []

  def _signal(self, number: int) -> None:
    for process, *_ in self._running.values():
      if process.poll() is None:
        process.send_signal(number)


def _cores(jobs: int, cache: pathlib.Path) -> list[tuple[list[str], dict[str, str]]]:
  """For each cell that runs at a time the prefix of its command and its environment."""
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  # What cells have in common is compiled once: the initial values, the measures.
  env = {"JAX_COMPILATION_CACHE_DIR": str(cache.absolute()), **os.environ}
  if jobs > 1:
    # Processes side by side would fight for an accelerator.
    env.setdefault("JAX_PLATFORMS", "cpu")
  if jobs == 1 or len(cores) < jobs or not shutil.which("taskset"):
    return [([], env)] * jobs
  groups = [cores[i::jobs] for i in range(jobs)]
  # Libraries that count cores for themselves.
  threads = lambda group: dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
                                        str(len(group)))
  return [(["taskset", "-c", ",".join(map(str, group))], env | threads(group)) for group in groups]


def table(study: Study, done: Sequence[Cell]) -> str:
  """Mean and sample deviation of each measure over the seeds of each arm, in Markdown."""
  lines = ["| | " + " | ".join((*study.columns, "seeds")) + " |",
           "|---" * (len(study.columns) + 2) + "|"]
  for arm in study.arms:
    found = [cell.results() for cell in done if cell.arm.name == arm.name]
    if found:
      values = [_summary([f[key] for f in found if key in f], factor)
                for key, factor in study.columns.values()]
      lines.append(f"| {arm.title or arm.name} | " + " | ".join(values) + f" | {len(found)} |")
  return "\n".join(lines)


def _summary(values: Sequence[float], factor: float) -> str:
  values = [factor * v for v in values if math.isfinite(v)]
  if not values:
    return "-"
  digits = 1 if factor == 100 else 3
  mean = f"{statistics.mean(values):.{digits}f}"
  return mean if len(values) == 1 else f"{mean} +- {statistics.stdev(values):.{digits}f}"


def write(study: Study, name: str, folder: pathlib.Path, done: Sequence[Cell]) -> str:
  """Writes `results.jsonl` and `table.md`; returns the table."""
  rows = [{"study": name, "arm": cell.arm.name, "seed": cell.seed, "steps": cell.steps,
           "metrics": cell.results()} for cell in done]
  _replace(folder / "results.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  text = table(study, done)
  if study.effects and len(done) > 1:
    text += f"\n\n{_effects(study, done)}"
  _replace(folder / "table.md", text + "\n")
  return text


def _effects(study: Study, done: Sequence[Cell]) -> str:
  results = {str(c.workdir): {title: factor * c.results()[key]
                              for title, (key, factor) in study.columns.items()} for c in done}
  try:
    return comparison.effects(results, comparison.settings(list(results)))
  except ValueError as error:
    return f"No effects yet: {error}"


def _replace(path: pathlib.Path, text: str) -> None:
  part = path.with_suffix(".tmp")
  part.write_text(text)
  os.replace(part, path)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line."""
  about = "\n".join(f"  {name:<10} {study.about}" for name, study in studies.STUDIES.items())
  parser = argparse.ArgumentParser(
      prog="python -m launch.study", description=__doc__.split("\n\n")[0],
      epilog=f"studies:\n{about}", formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False)
  add = parser.add_argument
  add("name", choices=tuple(studies.STUDIES), help="which study; see below")
  add("--steps", type=int, help="of each training; default: the study's own")
  add("--seeds", default="0 1 2", help='default: "0 1 2"')
  add("--arms", default="", help="comma-separated; default: all")
  add("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="cells at a time; default: 2")
  add("--data", help="data set; default: the study's own, built if it is not there")
  add("--out", default="runs/studies", help="default: runs/studies")
  options = parser.parse_args(argv)
  try:
    options.seeds = [int(seed) for seed in options.seeds.replace(",", " ").split()]
  except ValueError:
    parser.error(f"--seeds {options.seeds!r}: expected whole numbers")
  if not options.seeds or options.jobs < 1 or options.steps is not None and options.steps < 2:
    parser.error("expected at least one of --seeds and --jobs, and two of --steps")
  return options


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  options = parse_args(argv)
  study = studies.STUDIES[options.name]
  steps = options.steps or study.steps
  folder = pathlib.Path(options.out) / f"{options.name}-{steps}"
  arms = [name for name in options.arms.split(",") if name]
  try:
    todo = cells(study, folder, arms, options.seeds, steps)
    data = options.data or f"data/{study.data}"
    if not options.data:
      built = subprocess.run([sys.executable, "-m", "input_pipeline.build", "--from", study.data,
                              "--out", data])
      if built.returncode:
        return exit_codes.from_returncode(built.returncode)
    left = sum(cell.results() is None for cell in todo)
    print(f"{options.name}: {len(todo)} cells of {steps} steps, {left} to do, {options.jobs} at a "
          f"time, in {folder}", flush=True)
    code = Runner(study, data, options.jobs, folder.with_name("compiled"))(todo)
  except StudyError as error:
    print(f"error: {error}", file=sys.stderr)
    return exit_codes.ERROR
  if done := [cell for cell in todo if cell.results() is not None]:
    print(write(study, options.name, folder, done))
  return code


if __name__ == "__main__":
  sys.exit(main())
