"""Losses of codes against NumPy, and what reviving and judging promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.objectives import vq


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_code_losses_are_the_papers_and_each_moves_its_own_side():
  z, e = draw(2, 3, 4, 5), draw(2, 3, 4, 5, seed=1)
  total = lambda z, e, beta: (lambda a, b: a + beta * b)(*vq.code_losses(z, e))
  value, (to_z, to_e) = jax.value_and_grad(total, (0, 1))(z, e, 0.25)
  error = z.astype(np.float64) - e
  np.testing.assert_allclose(value, 1.25 * np.mean(error**2), rtol=1e-6)
  np.testing.assert_allclose(to_e, -2 * error / error.size, rtol=1e-5)
  np.testing.assert_allclose(to_z, 0.25 * 2 * error / error.size, rtol=1e-5)


def test_cross_entropy_is_that_of_the_definition():
  logits, index = draw(2, 3, 3, 7) * 4, np.random.default_rng(2).integers(0, 7, (2, 3, 3))
  p = np.exp(logits.astype(np.float64))
  p /= p.sum(-1, keepdims=True)
  want = -np.log(np.take_along_axis(p, index[..., None], -1)).mean()
  np.testing.assert_allclose(vq.cross_entropy(logits, index), want, rtol=1e-6)


def test_perplexity_of_evenly_used_codes_is_their_number_and_of_one_code_is_one():
  even = np.tile(np.arange(12), 6).reshape(2, 6, 6)
  shares = vq.frequencies(even, 12)
  np.testing.assert_allclose(shares, 1 / 12, rtol=1e-6)
  np.testing.assert_allclose(vq.perplexity(shares), 12, rtol=1e-5)
  np.testing.assert_allclose(vq.perplexity(vq.frequencies(np.full((1, 3, 3), 5), 12)), 1, rtol=1e-6)
  # Two codes, 3 to 1, half of the weight of a running mean still to come.
  entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
  found = vq.perplexity(jnp.asarray([0.375, 0.0, 0.125]))
  np.testing.assert_allclose(found, np.exp(entropy), rtol=1e-6)


def test_dead_codes_become_vectors_of_the_batch_when_it_is_time_and_others_stay():
  book, latent = draw(4, 3), draw(2, 2, 2, 3, seed=1)
  spare = vq.spare_vectors(jax.random.key(3), latent, 4)
  rows = {tuple(r) for r in latent.reshape(-1, 3).tolist()}
  assert {tuple(r) for r in np.asarray(spare).tolist()} <= rows
  assert len(np.unique(spare, axis=0)) == 4
  np.testing.assert_array_equal(spare, vq.spare_vectors(jax.random.key(3), latent, 4))
  usage = jnp.asarray([0.5, 0.0, 0.49, 0.01])
  new, after = vq.revive(book, usage, spare, True, threshold=0.1)
  np.testing.assert_array_equal(new[jnp.array([0, 2])], book[[0, 2]])
  np.testing.assert_array_equal(new[jnp.array([1, 3])], spare[jnp.array([1, 3])])
  np.testing.assert_allclose(after, [0.5, 0.25, 0.49, 0.25])
  same, still = vq.revive(book, usage, spare, False, threshold=0.1)
  np.testing.assert_array_equal(same, book)
  np.testing.assert_array_equal(still, usage)


def test_more_codes_than_vectors_share_them():
  latent = draw(1, 1, 2, 3)
  spare = np.asarray(vq.spare_vectors(jax.random.key(0), latent, 5))
  assert spare.shape == (5, 3) and len(np.unique(spare, axis=0)) == 2


def test_the_critics_loss_is_the_hinge_and_satisfied_scores_cost_nothing():
  real, drawn = draw(2, 3, 3), draw(2, 3, 3, seed=1)
  want = 0.5 * (np.maximum(1 - real, 0).mean() + np.maximum(1 + drawn, 0).mean())
  np.testing.assert_allclose(vq.critic_loss(real, drawn), want, rtol=1e-6)
  assert float(vq.critic_loss(jnp.full((1, 2, 2), 1.5), jnp.full((1, 2, 2), -1.0))) == 0


@pytest.mark.parametrize("largest", [1e4, 0.5])
def test_the_balance_makes_both_losses_pull_equally_at_the_last_layer(largest):
  seen, layer = draw(2, 4, 4, 3), {"kernel": draw(3, 2, seed=1), "bias": draw(2, seed=2)}
  paint = lambda p: seen @ p["kernel"] + p["bias"]
  pixels, judged = (lambda x: jnp.mean(x**2)), (lambda x: -0.1 * jnp.mean(jnp.sin(x)))
  weight = float(vq.balance(paint, layer, pixels, judged, largest))

  def norm(loss):
    grads = jax.grad(lambda p: loss(paint(p)))(layer)
    return np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in jax.tree.leaves(grads)))

  want = norm(pixels) / (norm(judged) + 1e-4)
  assert want > 1
  np.testing.assert_allclose(weight, min(want, largest), rtol=1e-5)
