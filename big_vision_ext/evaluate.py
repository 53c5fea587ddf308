"""python -m big_vision_ext.evaluate --workdir D: measures a trained model.

Runs the evaluators of the run's own config on its latest checkpoint, prints a table and writes
`D/evaluation.json`.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence

from big_vision_ext.core import console


def run(workdir: str, *, step: int | None = None, split: str | None = None,
        data: str | None = None, log=print) -> dict[str, float]:
  """Evaluates a checkpoint of `workdir`; {evaluator/metric: value}.

  Raises:
    ValueError: no such run or checkpoint, a config without evaluators, or unreadable data.
  """
  import jax

  from big_vision_ext import evaluators, tasks
  from big_vision_ext.core import checkpoint, sharding, typed
  from input_pipeline import loader

  console.set_up_logging()
  config, params, step = checkpoint.load_workdir(workdir, step)
  if not config.evals:
    raise ValueError(f"the config of {workdir} names no evaluators: nothing to measure. Add "
                     "config.evals.<name>.type=... and start the run again to record it")
  mesh = sharding.make_mesh(config.mesh)
  batch_sharding = sharding.batch_sharding(mesh)
  params = jax.device_put(params, sharding.replicated(mesh))
  task = tasks.make(config.task, config.model)
  log(f"Evaluating step {step} of {workdir} on {jax.device_count()} {jax.default_backend()} "
      "device(s)")
  results = {"step": float(step)}
  for name, spec in config.evals.items():
    changes = spec.input | {k: v for k, v in (("split", split), ("data", data)) if v}
    input_config = typed.build(loader.InputConfig, config.input | changes, "config.input")
    evaluator = evaluators.make(
        name, {"type": spec.type} | spec.args, task=task, input_config=input_config, mesh=mesh,
        batch_sharding=batch_sharding)
    log(f"  {name} ({spec.type}) on {input_config.split} ...")
    start = time.monotonic()
    results |= {f"{name}/{k}": v for k, v in evaluator.run(params).items()}
    log(f"  {name} took {time.monotonic() - start:.1f} s")
  return results


def table(results: dict[str, float]) -> str:
  """The results as aligned lines."""
  width = max(len(k) for k in results)
  return "\n".join(f"{k:<{width}}  {v:.4f}".rstrip("0").rstrip(".") for k, v in results.items())


def stored(workdirs: Sequence[str]) -> dict[str, dict[str, float]]:
  """{workdir: its stored results}.

  Raises:
    ValueError: a workdir that has no `evaluation.json` yet.
  """
  columns = {}
  for workdir in workdirs:
    path = pathlib.Path(workdir) / "evaluation.json"
    if not path.is_file():
      raise ValueError(f"{path} does not exist; first run "
                       f"python -m big_vision_ext.evaluate --workdir {workdir}")
    columns[workdir] = json.loads(path.read_text())
  return columns


def compare(columns: dict[str, dict[str, float]]) -> str:
  """A table of results, a run in each column."""
  names = list(dict.fromkeys(name for column in columns.values() for name in column))
  width = max(len(name) for name in names)
  wide = [max(len(c), 10) for c in columns]
  lines = [" " * width + "".join(f"  {c:>{w}}" for c, w in zip(columns, wide))]
  for name in names:
    cells = [f"{c[name]:.4g}" if name in c else "-" for c in columns.values()]
    lines.append(f"{name:<{width}}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, wide)))
  return "\n".join(lines)


def mean(columns: dict[str, dict[str, float]]) -> str:
  """Mean and sample standard deviation of each result over the runs that have it."""
  names = list(dict.fromkeys(name for column in columns.values() for name in column))
  width = max(len(name) for name in names)
  lines = []
  for name in names:
    values = [c[name] for c in columns.values() if name in c]
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    lines.append(f"{name:<{width}}  {statistics.mean(values):.4f} +- {spread:.4f}  "
                 f"({len(values)} runs)")
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.evaluate", description=__doc__.split("\n\n")[0],
      allow_abbrev=False)
  parser.add_argument("--workdir", required=True, help="folder of the run to evaluate")
  parser.add_argument("--step", type=int, help="checkpoint to take; default: the latest")
  parser.add_argument("--split", help="split to measure on instead of the config's")
  parser.add_argument("--data", help="data set to measure on instead of the config's")
  parser.add_argument("--out", help="file to write; default: WORKDIR/evaluation.json")
  parser.add_argument("--compare", nargs="+", metavar="WORKDIR", default=[],
                      help="measure nothing, print the stored results of these runs beside it")
  parser.add_argument("--mean", action="store_true",
                      help="with --compare: mean and standard deviation over the runs")
  parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
  options = parser.parse_args(argv)

  def command() -> None:
    if options.compare:
      print((mean if options.mean else compare)(stored([options.workdir, *options.compare])))
      return
    results = run(options.workdir, step=options.step, split=options.split, data=options.data)
    print(table(results))
    out = pathlib.Path(options.out or pathlib.Path(options.workdir) / "evaluation.json")
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"Wrote {out}")

  return console.exit_code(command, options.debug)


if __name__ == "__main__":
  sys.exit(main())
