"""Products in hand-written kernels are counted over their grid and the loops around them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from big_vision_ext.planning import kernels


def _product(a_ref, b_ref, out_ref):
  out_ref[...] = jnp.dot(a_ref[...], b_ref[...])


def _blocked(a, b, rows=8):
  """(n, k) times (k, m), a kernel for every 8 rows."""
  return pl.pallas_call(
    _product, grid=(a.shape[0] // rows,), interpret=True,
    in_specs=[pl.BlockSpec((rows, a.shape[1]), lambda i: (i, 0)),
              pl.BlockSpec(b.shape, lambda i: (0, 0))],
    out_specs=pl.BlockSpec((rows, b.shape[1]), lambda i: (i, 0)),
    out_shape=jax.ShapeDtypeStruct((a.shape[0], b.shape[1]), jnp.float32))(a, b)


def _flops(f, *shapes):
  return kernels.flops(jax.jit(f).trace(*(jnp.zeros(s) for s in shapes)).jaxpr)


def test_a_kernel_counts_once_for_each_step_of_its_grid():
  assert _flops(_blocked, (32, 16), (16, 24)) == 2 * 32 * 16 * 24


def test_products_outside_of_kernels_do_not_count():
  assert _flops(lambda a, b: a @ b, (32, 16), (16, 24)) == 0


@pytest.mark.parametrize("wrap", [jax.jit, jax.checkpoint, jax.vmap])
def test_kernels_are_found_inside_loops_and_wrappers(wrap):
  def program(a, b):
    step = wrap(functools.partial(_blocked, b=b))
    return jax.lax.scan(lambda _, a: (0, step(a)), 0, a)[1]

  extra = (3,) if wrap is jax.vmap else ()
  expected = 5 * 2 * 32 * 16 * 16 * (3 if extra else 1)
  assert _flops(program, (5, *extra, 32, 16), (16, 16)) == expected
