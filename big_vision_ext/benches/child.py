"""What our measured processes share: parameters, one compiled program, and what it is timed by."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext import convert
from big_vision_ext.benches.peers import timing
from big_vision_ext.convert import npz
from big_vision_ext.core import programs, trees
from big_vision_ext.models import layouts
from big_vision_ext.planning import hlo, traffic

_SIDE = 3072


def load(weights: convert.Weights, dtype: str, scan: bool, under: str = "") -> dict[str, Any]:
  """Parameters on the device, one array after the other.

  Args:
    weights: of a model.
    dtype: what they are turned into.
    scan: stack the blocks of encoders.
    under: only what has this prefix, without it.
  """
  source = weights.params.map(lambda x: x.astype(convert.DTYPES[dtype]))
  if scan:
    source = npz.scan_layout(source)
  return trees.nest({name.removeprefix(under): jax.device_put(source[name])
                     for name in source if name.startswith(under)})


def measure(program: Callable, operands: tuple, repeats: int,
            dtype: str) -> tuple[Any, dict[str, Any]]:
  """Compiles a program, runs it once and then `repeats` times.

  Each run writes its results where those of the last one were, as a step of training does with its
  state: gradients in new arrays would be new memory, which Linux clears, at every run.

  Returns:
    A last run's result; `compile_seconds`, `seconds`, `cpu_seconds`, `peak_gib`; `flops`, those
    of the compiled program's products and convolutions, as often as its loops turn; and
    `product_flops`, those that a large product of `dtype` does in a second here and now.
  """
  zeros = lambda s: jnp.zeros(s.shape, s.dtype)
  result = jax.tree.map(zeros, jax.eval_shape(program, *operands))
  again = jax.jit(lambda last, *operands: program(*operands), donate_argnums=0, keep_unused=True)
  start = time.monotonic()
  compiled = programs.compiled(again, result, *operands)
  out: dict[str, Any] = {"compile_seconds": time.monotonic() - start}

  def run():
    nonlocal result
    result = jax.block_until_ready(compiled(result, *operands))

  run()
  out |= timing.measure(run, repeats)
  out["peak_gib"] = timing.peak_gib()
  out["flops"] = traffic.count(hlo.parse(compiled.as_text())).flops
  out["product_flops"] = _product_flops(dtype, repeats)
  return result, out


def _product_flops(dtype: str, repeats: int) -> float:
  """FLOPs per second of a product of square matrices, too large for a cache."""
  x = jnp.ones((_SIDE, _SIDE), dtype)
  product = programs.compiled(jax.jit(jnp.matmul), x, x)
  jax.block_until_ready(product(x, x))
  seconds = timing.measure(lambda: jax.block_until_ready(product(x, x)), repeats)["seconds"]
  return 2 * _SIDE**3 / float(np.median(seconds))


def norms(grads: Any) -> dict[str, np.ndarray]:
  """The norm of each array of gradients as `norm/NAME`, blocks of encoders one by one.

  In float64: a million squares added in float32, as PyTorch does, are right to 1e-4.
  """
  one_by_one = trees.flatten(layouts.scan_to_loop(grads))
  return {f"norm/{name}": np.linalg.norm(np.asarray(x, np.float64).ravel())
          for name, x in one_by_one.items()}


def arrays(found: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Results in float32, on the host."""
  return {name: np.asarray(x, np.float32) for name, x in jax.device_get(dict(found)).items()}
