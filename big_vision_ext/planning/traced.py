"""Which arrays of a traced program are largest? For a program that the compiler refused.

The compiler says by how much a program is too large, and often nothing else. What was traced names
every array; how the compiler would have cut it is not known, so it is taken to be cut as the batch
is where it has the batch's rows, and whole where not. Arrays that would have been fused away are
among them.
"""

from collections.abc import Iterator
from typing import Any

import jax.extend
import jax.numpy as jnp
import numpy as np

from big_vision_ext.planning import memory


def largest(jaxpr: Any, rows: int, pieces: int, count: int = 12) -> list[memory.Buffer]:
  """The largest arrays, each shape once, of one device.

  Args:
    jaxpr: as from `jax.jit(f).trace(...).jaxpr`.
    rows: of a batch that is worked on at once.
    pieces: how many devices share them.
    count: how many to name.
  """
  found = {}
  for eqn in _equations(getattr(jaxpr, "jaxpr", jaxpr)):
    for var in eqn.outvars:
      shape = getattr(var.aval, "shape", ())
      key = (str(var.aval.dtype) if hasattr(var.aval, "dtype") else "?", tuple(shape))
      if key in found or key[0] == "?" or key[0].startswith("key"):
        continue
      size = float(np.prod(shape)) * jnp.dtype(key[0]).itemsize
      found[key] = memory.Buffer(
        size / (pieces if rows in shape else 1) / 2**30, _cut(*key, rows, pieces),
        f"{memory.origin(str(eqn.source_info.name_stack))}/{eqn.primitive.name}".lstrip("/"))
  return sorted(found.values(), key=lambda b: -b.gib)[:count]


def _cut(dtype: str, shape: tuple[int, ...], rows: int, pieces: int) -> str:
  dims, left = list(shape), rows in shape
  if left:
    dims[dims.index(rows)] = rows // pieces
  short = dtype.replace("float", "f").replace("uint", "u").replace("int", "s").replace("bf", "bf")
  return f"{short}[{','.join(map(str, dims))}]"


def _equations(jaxpr) -> Iterator[Any]:
  for eqn in jaxpr.eqns:
    inner = list(_within(eqn.params)) if eqn.primitive.name != "pallas_call" else []
    # A loop's own results are arrays of it; other wrappers only repeat what is inside.
    if not inner or eqn.primitive.name in ("scan", "while"):
      yield eqn
    if eqn.primitive.name == "shard_map":
      # Inside, arrays have the shapes of one device: the batch's rows are not to be looked for.
      continue
    for other in inner:
      yield from _equations(other)


def _within(params) -> Iterator[Any]:
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)):
        yield getattr(item, "jaxpr", item)
