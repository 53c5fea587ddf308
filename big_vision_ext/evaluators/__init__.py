"""Measurements over a finite, deterministic data set, made of a task's named outputs.

An evaluator has `run(params) -> {name: float}`. It sees every example exactly once: the last batch
is padded and masked, whatever the batch size and the number of processes.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any


def make(name: str, spec: Mapping[str, Any], *, task, input_config, mesh, batch_sharding) -> Any:
  """Builds the evaluator that `config.evals.<name>` describes.

  Args:
    name: the key in `config.evals`; used in messages.
    spec: `type` (a module of this folder) and that evaluator's own arguments.
    task: the task whose outputs are measured.
    input_config: an `input_pipeline.loader.InputConfig` that says what to read.
    mesh: the device mesh; `batch_sharding`: how a batch is laid out on it.

  Raises:
    ValueError: unknown type or argument, or one is missing.
  """
  known = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
  kind = spec.get("type")
  if kind not in known:
    near = difflib.get_close_matches(str(kind), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"config.evals.{name}.type={kind!r} is no evaluator; there are {', '.join(known)}.{hint}")
  evaluator = importlib.import_module(f"{__name__}.{kind}").Evaluator
  kwargs = {k: v for k, v in spec.items() if k != "type"}
  given = ("task", "input_config", "mesh", "batch_sharding")
  accepted = {k: p for k, p in inspect.signature(evaluator).parameters.items() if k not in given}
  for key in kwargs:
    if key not in accepted:
      near = difflib.get_close_matches(key, accepted, n=1)
      hint = f" Did you mean {near[0]!r}?" if near else ""
      raise ValueError(f"config.evals.{name}.{key}: {kind} takes {', '.join(accepted)}.{hint}")
  missing = [k for k, p in accepted.items() if p.default is p.empty and k not in kwargs]
  if missing:
    raise ValueError(f"config.evals.{name}: {kind} needs {', '.join(missing)}, without "
                     "a default; expected in a config file or beside one, as --config FILE "
                     f"--config.evals.{name}.{missing[0]}=...")
  return evaluator(task=task, input_config=input_config, mesh=mesh,
                   batch_sharding=batch_sharding, **kwargs)
