"""How does the end of a network take a batch in parts, and compute nothing twice?

Differentiation keeps what every layer gave, of the whole batch, until the last gradient is made.
Where a loss is a sum over examples and nothing follows it, its gradients can be made part by part
while it is computed, as fused losses of language models make theirs: of what lies between `x` and
the loss, only one part's results exist at any time. Parts of the whole network
(`optim.accum_steps`) save more and make every product small; this leaves what comes before `x`
whole.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.core import sharding


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed(
  fn: Callable[..., Array], parts: int, params: Any, fixed: Any, x: Any, rows: Any
) -> Float[Array, ""]:
  """`fn(params, fixed, x, rows)` of `parts` parts of the rows, added up.

  Differentiable once, in `params` and `x`, and in reverse only.

  Args:
    fn: gives a sum over rows, of any rows.
    parts: divides the rows, on each device. Part i has the rows i, i + parts, ...
    params: what `fn` learns, floating point.
    fixed: what else it needs of the parameters; without gradients.
    x: tree of (b, ...), floating point.
    rows: tree of (b, ...), of any type; without gradients.
  """
  cut = functools.partial(jax.tree.map, lambda a: sharding.cut_batch(a, parts))
  body = lambda total, part: (total + fn(params, fixed, *part), None)
  return jax.lax.scan(body, jnp.zeros((), jnp.float32), cut((x, rows)))[0]


def _forward(fn, parts, params, fixed, x, rows):
  value_and_grad = jax.value_and_grad(fn, argnums=(0, 2))
  cut = functools.partial(jax.tree.map, lambda a: sharding.cut_batch(a, parts))
  # Gradients of half the precision are added up in float32.
  wide = lambda a: jnp.zeros(a.shape, jnp.promote_types(a.dtype, jnp.float32))

  def body(total, part):
    value, (to_params, to_x) = value_and_grad(params, fixed, *part)
    return jax.tree.map(lambda t, a: t + a.astype(t.dtype), total, (value, to_params)), to_x

  start = (jnp.zeros((), jnp.float32), jax.tree.map(wide, params))
  (value, to_params), to_x = jax.lax.scan(body, start, cut((x, rows)))
  to_params = jax.tree.map(lambda g, p: g.astype(p.dtype), to_params, params)
  return value, (to_params, jax.tree.map(sharding.join_batch, to_x))


def _backward(fn, parts, grads, slope):
  del fn, parts
  to_params, to_x = jax.tree.map(lambda g: (g * slope).astype(g.dtype), grads)
  return to_params, None, to_x, None


summed.defvjp(_forward, _backward)
