"""How much arithmetic does a traced function do? For models that no formula of `flops` describes.

Counted is what `flops` counts, multiplications and additions of matrix products and convolutions;
a loop's body as often as it runs, and of alternatives the dearest.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def forward(fn: Callable, *args: Any) -> int:
  """FLOPs of `fn(*args)`, whose arguments may be `jax.ShapeDtypeStruct`s; nothing is computed."""
  return _of(jax.make_jaxpr(fn)(*args).jaxpr)


def _of(jaxpr) -> int:
  return sum(_equation(eqn) for eqn in jaxpr.eqns)


def _equation(eqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    inner = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
    return 2 * inner * math.prod(eqn.outvars[0].aval.shape)
  if name == "conv_general_dilated":
    kernel = eqn.invars[1].aval.shape
    taps = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
    # Of a transposed convolution, the zeros between the pixels are no arithmetic.
    return (2 * taps * math.prod(eqn.outvars[0].aval.shape) // params["batch_group_count"]
            // math.prod(params["lhs_dilation"]))
  inner = [_of(j) for j in _within(params)]
  if not inner:
    return 0
  if name == "scan":
    return params["length"] * sum(inner)
  return max(inner) if name == "cond" else sum(inner)


def _within(params):
  for value in params.values():
    for item in value if isinstance(value, (list, tuple)) else (value,):
      inner = getattr(item, "jaxpr", item)
      if hasattr(inner, "eqns"):
        yield inner
