"""Systems that can be trained: each file turns a batch into a loss and named outputs.

A task is a frozen object with

- `init(rng, batch) -> params` (leaves may be boxed with their logical axes),
- `loss(params, batch, rng, train) -> (scalar, {name: scalar})`; an entry named `params/NAME` is no
  metric but the next value of the parameter NAME, which the optimiser must freeze: running
  statistics are kept so (over micro-batches it is their mean),
- `outputs: {name: fn(params, batch, ...)}` for evaluators, `encode` and export; `text` reads only
  the batch's "text", `image` only its "image",
- `batch_spec(batch_size) -> {name: jax.ShapeDtypeStruct}`, shapes without data,
- optionally `begin(params) -> params`, applied once to the parameters a new run begins with, after
  weights were loaded into them: for parameters that follow from others,
- optionally `after_update(params, step) -> params`, applied after each optimiser step, of which
  there were `step` before: for limits on parameters, and for teachers that follow,
- optionally `follows`, fields of its model `vision` that no config gives: others decide them,
- optionally `members`, how many networks its parameters are of along their leading axis, which no
  optimiser may mix,
- optionally `flops_per_example`, model FLOPs of one training example, and `forward_flops(selected)`
  of one image and text with looks of so many tokens each.

Everything is pure and may be jitted.
"""

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any


def make(name: str, model_config: Mapping[str, Any]) -> Any:
  """Builds the task `name` ("ps3", or a dotted module path) from its `config.model`.

  Raises:
    ValueError: no such task, or a key or value of `model_config` does not fit it.
  """
  known = sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
  if "." not in name and name not in known:
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"config.task={name!r} is no task; there are {', '.join(known)}.{hint}")
  module = importlib.import_module(name if "." in name else f"{__name__}.{name}")
  return module.make(model_config)
