"""Descent inside of a loss: the derivatives are those of the steps written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import trees
from big_vision_ext.objectives import meta

RATE, STEPS = 0.1, 3
# Support 1/2 sum a (x - c)^2, query 1/2 sum b (x - d)^2: all of it is known in closed form.
A, C, B, D = (np.random.default_rng(i).uniform(0.5, 2, 4) for i in range(4))
X = np.random.default_rng(9).normal(size=4)
W = np.array([0.2, 0.3, 0.5])


def _support(phi):
  return 0.5 * jnp.sum(A * (phi["x"] - C) ** 2)


def _query(phi):
  return 0.5 * jnp.sum(B * (phi["x"] - D) ** 2)


@pytest.mark.parametrize("order", [1, 2])
def test_gradients_are_those_of_the_closed_form(order):
  def value(phi):
    return jnp.sum(W * meta.episode(_support, _query, phi, steps=STEPS, rate=RATE, order=order)[1])

  shrink = 1 - RATE * A
  at = [C + shrink**k * (X - C) for k in range(STEPS + 1)]
  losses = [0.5 * np.sum(B * (x - D) ** 2) for x in at[1:]]
  slope = [np.ones(4) if order == 1 else shrink**k for k in range(1, STEPS + 1)]
  want = sum(w * s * B * (x - D) for w, s, x in zip(W, slope, at[1:]))
  found, grad = jax.jit(jax.value_and_grad(value))({"x": jnp.float32(X)})
  np.testing.assert_allclose(found, np.sum(W * losses), rtol=1e-5)
  np.testing.assert_allclose(grad["x"], want, rtol=1e-5, atol=1e-6)
  support = meta.episode(_support, _query, {"x": jnp.float32(X)}, steps=STEPS, rate=RATE)[0]
  np.testing.assert_allclose(support, [0.5 * np.sum(A * (x - C) ** 2) for x in at[:-1]], rtol=1e-5)


def test_second_order_agrees_with_finite_differences_of_a_loss_that_bends():
  rng = np.random.default_rng(0)
  w, x, y = rng.normal(size=3), rng.normal(size=(5, 3)), rng.normal(size=5)

  def numpy_value(w):
    for _ in range(2):
      t = np.tanh(x @ w)
      w = w - 0.3 * (2 / 5) * ((t - y) * (1 - t**2)) @ x
    return np.mean((np.tanh(x[::-1] @ w) - 0.5 * y) ** 2)

  step = 1e-6
  want = [(numpy_value(w + step * e) - numpy_value(w - step * e)) / (2 * step) for e in np.eye(3)]
  support = lambda w: jnp.mean((jnp.tanh(x @ w) - y) ** 2)
  query = lambda w: jnp.mean((jnp.tanh(x[::-1] @ w) - 0.5 * y) ** 2)
  value = lambda w, order: meta.episode(
      support, query, w, steps=2, rate=0.3, order=order)[1][-1]
  second = jax.grad(value)(jnp.float32(w), 2)
  # float32 against float64 differences.
  np.testing.assert_allclose(second, want, rtol=1e-4, atol=1e-5)
  assert np.abs(jax.grad(value)(jnp.float32(w), 1) - np.array(want)).max() > 1e-2


def test_steps_of_descent_are_exact():
  phi = {"x": jnp.float32(X), "fixed": None}
  step = jax.jit(lambda phi: meta.step(_support, phi, RATE)[0])
  for _ in range(4):
    phi = step(phi)
  shrink = 1 - RATE * A
  np.testing.assert_allclose(phi["x"], C + shrink**4 * (X - C), rtol=1e-5)


@pytest.mark.parametrize("order", [1, 2])
def test_an_episode_that_is_written_out_is_the_same(order):
  def value(phi, unroll):
    before, after = meta.episode(
        _support, lambda phi: jnp.sum(jnp.sin(phi["x"])), phi, steps=3, rate=RATE, order=order,
        unroll=unroll)
    return before.sum() + after[-1]

  phi = {"x": jnp.float32(X), "fixed": None}
  run = jax.jit(jax.value_and_grad(value), static_argnums=1)
  (want, want_grad), (got, grad) = run(phi, False), run(phi, True)
  # Sums in another order.
  np.testing.assert_allclose(got, want, rtol=1e-6)
  np.testing.assert_allclose(grad["x"], want_grad["x"], rtol=1e-5)


def test_weights_of_queries_move_from_all_to_the_last():
  np.testing.assert_allclose(meta.query_weights(0, 5, 3333), np.full(5, 0.2), rtol=1e-6)
  half = np.asarray(meta.query_weights(1000, 5, 2000))
  np.testing.assert_allclose(half, [0.1, 0.1, 0.1, 0.1, 0.6], rtol=1e-6)
  for weights in (meta.query_weights(10**6, 5, 3333), meta.query_weights(0, 5, 0)):
    np.testing.assert_allclose(weights, [0.006] * 4 + [1 - 0.024], rtol=1e-5)
  np.testing.assert_allclose(meta.query_weights(7, 1, 10), [1.0])


def test_what_adapts_is_named_and_put_back():
  params = {"a": {"x": 1, "y": 2}, "b": 3}
  adapted, rest = meta.split(params, ("a/x",), "here")
  assert (adapted, rest) == ({"a": {"x": 1, "y": None}, "b": None},
                             {"a": {"x": None, "y": 2}, "b": 3})
  assert meta.merge(adapted, rest) == params
  with pytest.raises(trees.PatternError, match="here: the pattern 'c' matches no parameter"):
    meta.split(params, ("c",), "here")
