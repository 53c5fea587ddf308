"""What in a plan should make its owner think again?

Large parameters that every chip holds whole, heads narrower than a matrix unit, activations that
were not cut with the batch, and loops that could not be counted.
"""

import math
from collections.abc import Iterator

import jax.numpy as jnp

from big_vision_ext.core import trees
from big_vision_ext.planning import hlo, memory
from big_vision_ext.planning.program import Step

# What is smaller does not matter on any chip.
_LARGE_BYTES = 2**25


def replicated(step: Step) -> Iterator[str]:
  """Large arrays of the state that stay whole although the mesh has axes to cut them with."""
  if step.mesh.size == 1:
    return
  shapes = trees.flatten(step.shapes["params"])
  places = trees.flatten(step.shardings["params"])
  for name, shape in shapes.items():
    held = math.prod(places[name].shard_shape(shape.shape)) * jnp.dtype(shape.dtype).itemsize
    if held >= _LARGE_BYTES and places[name].is_fully_replicated:
      yield (f"{name} {shape.shape}: {held / 2**30:.2f} GiB whole on every chip, and as much for "
             "its gradient and each moment. Choose mesh sizes that divide one of its axes "
             f"({', '.join(f'{k}={v}' for k, v in step.mesh.shape.items())})")


def narrow_heads(step: Step) -> Iterator[str]:
  """Towers whose head width fills a matrix unit in part only."""
  unit = step.topology.chip.mxu
  for name, tower in sorted(vars(step.task).items()):
    width, heads = getattr(tower, "width", None), getattr(tower, "num_heads", None)
    if width and heads:
      head = width // heads
      padded = -(-head // unit) * unit
      if padded != head:
        yield (f"{name}: heads of {head} fill {head / padded:.0%} of a {unit}-wide matrix unit; "
               "scores and values of attention cost as much as heads of "
               f"{padded} would")


def unsharded(step: Step, module: hlo.Module) -> Iterator[str]:
  """Large activations with as many rows as the global batch has, on one chip."""
  rows = step.config.batch_size // step.config.optim.accum_steps
  local = rows // (step.mesh.shape["data"] * step.mesh.shape["fsdp"])
  if local == rows:
    return
  for b in memory.largest(module, count=200, at_least=_LARGE_BYTES):
    dims = [int(n) for n in b.shape[b.shape.index("[") + 1:-1].split(",") if n]
    # Similarities have the whole batch on one side, by their nature, and the chip's on the other.
    if rows in dims and local not in dims and dims.count(rows) < 2:
      yield (f"{b.what or 'an array'} {b.shape}: {b.gib:.2f} GiB with all {rows} rows of the batch "
             f"on one chip, where {local} would be its share")


def uncounted(module: hlo.Module) -> Iterator[str]:
  """Loops whose number of turns is unknown."""
  if module.unknown_loops:
    yield (f"{len(module.unknown_loops)} loop(s) whose turns the compiled program does not tell "
           "are counted as one turn: times are too low")


def all_of(step: Step, module: hlo.Module) -> list[str]:
  """Every warning about a compiled step."""
  return [*replicated(step), *narrow_heads(step), *unsharded(step, module), *uncounted(module)]
