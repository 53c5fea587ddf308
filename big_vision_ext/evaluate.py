"""python -m big_vision_ext.evaluate --workdir D: measures a trained model.

Runs the evaluators of the run's own config on its latest checkpoint, prints a table and writes
`D/evaluation.json`.
"""

import json
import pathlib
import sys
import time

from absl import app, flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run to evaluate.", required=True)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint to take; default: the latest.")
_SPLIT = flags.DEFINE_string("split", None, "Split to measure instead of the config's.")
_DATA = flags.DEFINE_string("data", None, "Data set to measure on instead of the config's.")
_OUT = flags.DEFINE_string("out", None, "JSON file to write; default: WORKDIR/evaluation.json.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of an error.")


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

  config, params, step = checkpoint.load_workdir(workdir, step)
  if not config.evals:
    raise ValueError(f"the config of {workdir} names no evaluators: nothing to measure. Add "
                     "config.evals.<name>.type=... and start the run again to record it")
  mesh = sharding.make_mesh(config.mesh)
  batch_sharding = sharding.batch_sharding(mesh)
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


def main(_):
  try:
    results = run(_WORKDIR.value, step=_STEP.value, split=_SPLIT.value, data=_DATA.value)
  except (ValueError, OSError) as error:
    if _DEBUG.value:
      raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  print(table(results))
  out = pathlib.Path(_OUT.value or pathlib.Path(_WORKDIR.value) / "evaluation.json")
  out.write_text(json.dumps(results, indent=1) + "\n")
  print(f"Wrote {out}")


if __name__ == "__main__":
  app.run(main)
