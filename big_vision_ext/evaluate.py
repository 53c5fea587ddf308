"""python -m big_vision_ext.evaluate --workdir D: measures a trained model.

Runs the evaluators of the run's own config on its latest checkpoint, prints a table and writes
`D/evaluation.json`, as `train` does at its end. `--weights W` measures a file of weights instead,
`--evals` and `--config` say what to measure, and `--sweep` tells what resolution and looks buy, as
`sweep.{json,md,png}`.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

from big_vision_ext import comparison
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import console, typed
from big_vision_ext.core import workdir as workdir_lib


@dataclasses.dataclass(frozen=True)
class Subject:
  """What is measured, and on what.

  Attributes:
    task: the task with its model.
    params: its parameters, nested dicts of arrays.
    input: settings of the input, as far as they are known.
    evals: the evaluators that its config names.
    step: training step of the parameters, if it is known.
    source: where they come from, for messages.
  """

  task: Any
  params: Any
  input: dict[str, Any]
  evals: dict[str, config_lib.Evaluation]
  step: int | None
  source: str


def load(source: str, step: int | None = None, config: str | None = None,
         overrides: Sequence[str] = ()) -> Subject:
  """Reads what is to be measured.

  Args:
    source: a run's folder, or a file or folder of weights in any format of `convert`.
    step: the run's checkpoint; default: the latest.
    config: a config file, whose evaluators and input are taken instead of the run's.
    overrides: KEY=VALUE settings of that file.

  Raises:
    ValueError: nothing readable is there.
  """
  from big_vision_ext import tasks, weights
  from input_pipeline import loader

  loaded = weights.load(source, step)
  # Files tell more of their preprocessing than the input has settings for.
  names = {field.name for field in dataclasses.fields(loader.InputConfig)}
  given = {k: v for k, v in loaded.input.items() if k in names and v is not None}
  evals = loaded.evals
  if config:
    other = config_lib.resolve(config_lib.load(config, overrides))
    # Sizes and words are the model's: what it was trained with goes before what the file says.
    own = {k: given[k] for k in ("image_size", "text_len", "canonicalize") if k in given}
    given, evals = given | other.input | own, other.evals
  task = tasks.make(loaded.task_name, loaded.model)
  if "data" not in loaded.input and not hasattr(task, "text"):
    given.setdefault("captions", False)  # It has no words for them.
  return Subject(task, loaded.params, given, evals, loaded.step, source)


def run(subject: Subject, *, evals: Sequence[str] = (), changes: dict[str, Any] | None = None,
        log=print) -> dict[str, float]:
  """Runs evaluators; {evaluator/metric: value}.

  Args:
    subject: what to measure.
    evals: types of evaluators to run with their defaults, on the split "val", instead of those
      that the subject's config names.
    changes: settings of the input that replace all others, e.g. {"split": "test"}.
    log: told what is being done.

  Raises:
    ValueError: no evaluators, or unreadable data.
  """
  from big_vision_ext import evaluators

  specs = {name: config_lib.Evaluation(type=name, input={"split": "val"}) for name in evals}
  specs = specs or subject.evals
  if not specs:
    raise ValueError(f"no config of {subject.source} names evaluators: nothing to measure. Name "
                     "some with --evals region_retrieval,... or --config FILE")
  place = _place(subject)
  log(f"Evaluating {_name(subject)}")
  results = {} if subject.step is None else {"step": float(subject.step)}
  for name, spec in specs.items():
    input_config = _input_config(subject, spec.input | (changes or {}))
    evaluator = evaluators.make(
        name, {"type": spec.type} | spec.args, task=subject.task, input_config=input_config,
        mesh=place["mesh"], batch_sharding=place["batch_sharding"])
    log(f"  {name} ({spec.type}) on {input_config.split} ...")
    start = time.monotonic()
    results |= {f"{name}/{k}": v for k, v in evaluator.run(place["params"]).items()}
    log(f"  {name} took {time.monotonic() - start:.1f} s")
  return results


def sweep(subject: Subject, out: pathlib.Path, *, looks: Sequence[int],
          scales: Sequence[int] | None, changes: dict[str, Any] | None = None, selection: str,
          batch_size: int, repeats: int, log=print) -> str:
  """Measures quality and cost by resolution and looks; see `sweep.py`.

  Args:
    subject: what to measure.
    out: folder for `sweep.json`, `sweep.md` and `sweep.png`.
    looks, scales: the combinations, see `sweep.points`.
    changes: settings of the input that replace all others.
    selection: how patches are selected.
    batch_size: regions at a time.
    repeats: timed runs of each combination.
    log: told what is being done.

  Returns:
    The table, in Markdown.

  Raises:
    ValueError: numbers that the model does not have, or unreadable data.
  """
  from big_vision_ext import sweep as sweep_lib

  todo = sweep_lib.points(subject.task, looks, scales)
  input_config = _input_config(subject, {"split": "val"} | (changes or {}))
  place = _place(subject)
  log(f"Sweeping {_name(subject)}: {len(todo)} combinations, regions of {input_config.data} "
      f"[{input_config.split}]")
  rows = sweep_lib.run(subject.task, todo=todo, input_config=input_config, selection=selection,
                       batch_size=batch_size, repeats=repeats, log=log, **place)
  text = sweep_lib.table(rows)
  out.mkdir(parents=True, exist_ok=True)
  (out / "sweep.json").write_text(json.dumps(rows, indent=1) + "\n")
  (out / "sweep.md").write_text(text + "\n")
  title = f"{pathlib.Path(subject.source).name}, {selection} selection, "
  sweep_lib.plot(rows, out / "sweep.png", f"{title}{rows[0]['regions']} regions")
  return text


def _place(subject: Subject) -> dict[str, Any]:
  """Parameters whole on every device, batches cut over all."""
  import jax

  from big_vision_ext.core import sharding
  mesh = sharding.make_mesh(config_lib.Mesh())
  return {"mesh": mesh, "batch_sharding": sharding.batch_sharding(mesh),
          "params": jax.device_put(subject.params, sharding.replicated(mesh))}


def _name(subject: Subject) -> str:
  import jax

  step = "" if subject.step is None else f"step {subject.step} of "
  return f"{step}{subject.source} on {jax.device_count()} {jax.default_backend()} device(s)"


def _input_config(subject: Subject, changes: dict[str, Any]):
  from input_pipeline import loader

  settings = subject.input | changes
  if not settings.get("data"):
    raise ValueError(f"{subject.source} does not say which data to measure on; give --data DIR")
  return typed.build(loader.InputConfig, settings, "config.input")


def table(results: dict[str, float]) -> str:
  """The results as aligned lines."""
  width = max(len(k) for k in results)
  return "\n".join(f"{k:<{width}}  {v:.4f}".rstrip("0").rstrip(".") for k, v in results.items())


def _compared(workdirs: Sequence[str], options: argparse.Namespace) -> str:
  columns = comparison.stored(workdirs)
  if options.effects:
    return comparison.effects(columns, comparison.settings(workdirs))
  tell = comparison.mean if options.mean else comparison.side_by_side
  return (comparison.summary if options.summary else tell)(columns)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line; `overrides` has the --config.KEY=VALUE arguments as "KEY=VALUE".

  Raises:
    ValueError: arguments that do not go together, or unknown ones.
  """
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.evaluate", description=__doc__.split("\n\n")[0],
      epilog="--config.KEY=VALUE overrides a setting of --config's file.", allow_abbrev=False)
  add = parser.add_argument
  add("--workdir", help="folder of the run to evaluate")
  add("--weights", help="file or folder of weights to evaluate instead, in any known format")
  add("--step", type=int, help="checkpoint to take; default: the latest")
  add("--evals", default="", help="types of evaluators to run with their defaults, comma-separated")
  add("--config", help="config file whose evaluators and input are taken instead of the run's")
  add("--split", help="split to measure on instead of the config's")
  add("--part", help="part of a split of rated pictures, e.g. reference_1/test, likewise")
  add("--data", help="data set to measure on instead of the config's")
  add("--tokenizer", help="tokeniser of the captions instead of the config's")
  add("--out", help="file to write, with --sweep a folder; default: in the workdir")
  add("--sweep", action="store_true", help="measure quality and cost by resolution and looks")
  add("--looks", default="1,2,4", help="with --sweep: numbers of looks; default: 1,2,4")
  add("--scales", help="with --sweep: how many scales to use, e.g. 1,2,3; default: each number")
  add("--selection", default="topdown", help="with --sweep: topdown, bottomup, random or gt")
  add("--batch", type=int, default=32, help="with --sweep: regions at a time; default: 32")
  add("--repeats", type=int, default=5, help="with --sweep: timed runs; default: 5")
  add("--compare", nargs="+", metavar="WORKDIR", default=[],
      help="measure nothing, print the stored results of these runs beside it")
  tell = parser.add_mutually_exclusive_group()
  tell.add_argument("--mean", action="store_true",
                    help="with --compare: mean and standard deviation over the runs")
  tell.add_argument("--summary", action="store_true", help="with --compare: mean, median and "
                    "interquartile range over the runs, e.g. ten splits")
  tell.add_argument("--effects", action="store_true", help="with --compare: what each setting "
                    "that the runs differ in adds, by least squares, with its standard error")
  add("--debug", action="store_true", help="show the traceback of an error")
  options, rest = parser.parse_known_args(argv)
  for arg in rest:
    if not arg.startswith("--config.") or "=" not in arg:
      raise ValueError(f"unknown argument {arg!r}; --help lists all, and --config.KEY=VALUE "
                       "overrides a setting of --config's file")
  options.overrides = [arg.removeprefix("--config.") for arg in rest]
  if bool(options.workdir) == bool(options.weights):
    raise ValueError("expected either --workdir DIR or --weights FILE")
  if rest and not options.config:
    raise ValueError(f"{rest[0]} overrides a setting of a config file; give --config FILE")
  if options.compare and not options.workdir:
    raise ValueError("--compare compares workdirs; expected --workdir DIR, not --weights")
  if (options.mean or options.summary or options.effects) and not options.compare:
    raise ValueError("--mean, --summary and --effects are of several runs; expected --compare "
                     "WORKDIR ...")
  return options


def numbers(text: str, flag: str) -> list[int]:
  """Comma-separated whole numbers.

  Raises:
    ValueError: something else.
  """
  try:
    return [int(part) for part in text.split(",")]
  except ValueError as error:
    raise ValueError(f"{flag}={text}: expected whole numbers, comma-separated") from error


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv

  def command() -> None:
    options = parse_args(argv)
    if options.compare:
      print(_compared([options.workdir, *options.compare], options))
      return
    console.set_up_logging(options.debug)
    changes = {k: getattr(options, k) for k in ("split", "part", "data", "tokenizer")}
    changes = {k: v for k, v in changes.items() if v}
    grid = {"looks": numbers(options.looks, "--looks"),
            "scales": options.scales and numbers(options.scales, "--scales")}
    subject = load(options.workdir or options.weights, options.step, options.config,
                   options.overrides)
    # Weights may lie where nothing should be written: their results are written when asked for.
    out = options.out or options.workdir
    if options.sweep:
      folder = pathlib.Path(out or ".")
      print(sweep(subject, folder, changes=changes, selection=options.selection,
                  batch_size=options.batch, repeats=options.repeats, **grid))
      print(f"Wrote {folder / 'sweep.json'}, sweep.md and sweep.png")
      return
    evals = [name for name in options.evals.split(",") if name]
    results = run(subject, evals=evals, changes=changes)
    print(table(results))
    if out:
      path = pathlib.Path(
          options.out or pathlib.Path(options.workdir) / workdir_lib.EVALUATION_FILE)
      workdir_lib.write_json(path, results)
      print(f"Wrote {path}")

  return console.exit_code(command, "--debug" in argv)


if __name__ == "__main__":
  sys.exit(main())
