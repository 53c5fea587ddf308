"""A sum over rows in parts: the value and gradients of the whole, added up in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.objectives import parts


def error(params, fixed, x, rows):
  pred = jnp.tanh(x["a"] @ params["w"]) * fixed + x["b"]
  return jnp.sum(((pred - rows["y"]) ** 2).astype(jnp.float32) * (rows["kind"] == 1)[:, None])


def inputs(dtype=jnp.float32):
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), dtype)
  rows = {"y": draw(12, 3), "kind": rng.integers(0, 2, 12)}
  return {"w": draw(5, 3)}, draw(3), {"a": draw(12, 5), "b": draw(12, 3)}, rows


@pytest.mark.parametrize("n", [2, 3, 12])
def test_value_and_gradients_are_those_of_the_whole(n):
  params, fixed, x, rows = inputs()
  loss = lambda params, x: jnp.sin(0.01 * parts.summed(error, n, params, fixed, x, rows))
  whole = lambda params, x: jnp.sin(0.01 * error(params, fixed, x, rows))
  got, grads = jax.value_and_grad(loss, (0, 1))(params, x)
  want, wanted = jax.value_and_grad(whole, (0, 1))(params, x)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(loss(params, x), want, rtol=1e-6)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # float32, in another order


def test_gradients_of_bfloat16_are_added_up_in_float32():
  """A thousand parts whose gradients are one: in bfloat16 their sum would stay at 256."""
  fn = lambda w, fixed, x, rows: jnp.sum((w * x).astype(jnp.float32))
  x = jnp.ones(1000, jnp.bfloat16)
  grad = jax.grad(lambda w: parts.summed(fn, 1000, w, None, x, None))(jnp.bfloat16(1.0))
  assert grad.dtype == jnp.bfloat16 and grad == jnp.bfloat16(1000)


def test_results_of_one_part_are_kept_at_a_time():
  """A chain of layers over 4,096 rows: what is kept of them shrinks with the parts."""
  rng = np.random.default_rng(0)
  params = jnp.asarray(rng.standard_normal((8, 64, 64)) / 8, jnp.float32)
  x = jnp.asarray(rng.standard_normal((4096, 64)), jnp.float32)

  def chain(params, fixed, x, rows):
    for w in params:
      x = jnp.tanh(x @ w)
    return jnp.sum(x**2)

  def temporary(loss):
    program = jax.jit(jax.grad(loss, (0, 1))).lower(params, x).compile()
    return program.memory_analysis().temp_size_in_bytes

  whole = temporary(lambda params, x: chain(params, None, x, None))
  cut = temporary(lambda params, x: parts.summed(chain, 8, params, None, x, None))
  assert whole > 8 * x.nbytes and cut < whole / 2
