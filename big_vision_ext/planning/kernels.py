"""How much do hand-written kernels compute?

A compiled program holds them as opaque calls, so they are counted in what was traced: the products
inside a kernel, times its grid, times the loops around it. A kernel runs on each device on what
that device holds, so counts are per device.
"""

import math
from typing import Any

import jax.extend


def flops(jaxpr: Any) -> int:
  """FLOPs of all products in the Pallas kernels of a traced program, on each device.

  Of a conditional the larger branch counts, as in a kernel the other one is the way out where a
  mask leaves nothing to do. A loop whose turns depend on data counts as one turn.

  Args:
    jaxpr: as from `jax.jit(f).trace(...).jaxpr`.
  """
  return _count(_open(jaxpr), inside=False)


def _count(jaxpr, inside: bool) -> int:
  total = 0
  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    if name == "pallas_call":
      grid = math.prod(n for n in eqn.params["grid_mapping"].grid if isinstance(n, int))
      total += grid * _count(_open(eqn.params["jaxpr"]), inside=True)
    elif name == "dot_general" and inside:
      over, _ = eqn.params["dimension_numbers"]
      contracted = math.prod(eqn.invars[0].aval.shape[i] for i in over[0])
      total += 2 * contracted * math.prod(eqn.outvars[0].aval.shape)
    elif name == "cond":
      total += max(_count(_open(branch), inside) for branch in eqn.params["branches"])
    else:
      turns = eqn.params["length"] if name == "scan" else 1
      total += turns * sum(_count(j, inside) for j in _within(eqn.params))
  return total


def _within(params):
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)):
        yield _open(item)


def _open(jaxpr):
  return getattr(jaxpr, "jaxpr", jaxpr)
