"""Contrastive losses against float64 NumPy, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.objectives import contrastive


def batch(n=6, d=8, seed=0):
  rng = np.random.default_rng(seed)
  z = rng.standard_normal((2, n, d))
  z[1] += z[0]  # Partners resemble each other.
  return (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(np.float32)


def sigmoid_reference(zimg, ztxt, t, b):
  total = 0.0
  for i, x in enumerate(zimg):
    for j, y in enumerate(ztxt):
      logit = np.dot(x, y) * t + b
      total -= np.log(1 / (1 + np.exp(-logit if i == j else logit)))
  return total / len(zimg)


def softmax_reference(zimg, ztxt, t, b):
  logits = zimg @ ztxt.T * t + b
  total = 0.0
  for rows in (logits, logits.T):
    for i, row in enumerate(rows):
      total -= np.log(np.exp(row[i]) / np.exp(row).sum())
  return total / (2 * len(zimg))


LOSSES = [
  (contrastive.sigmoid_loss, sigmoid_reference),
  (contrastive.softmax_loss, softmax_reference),
]


@pytest.mark.parametrize("loss, reference", LOSSES)
@pytest.mark.parametrize("t, b", [(10.0, -10.0), (1.0, 0.5), (30.0, -2.71)])
def test_value_is_that_of_the_formula(loss, reference, t, b):
  zimg, ztxt = batch()
  got, _ = loss(zimg, ztxt, t, b)
  assert got.dtype == jnp.float32
  want = reference(np.float64(zimg), np.float64(ztxt), t, b)
  # Logits of size 30 in float32 are good to 2e-6.
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss, reference", LOSSES)
def test_gradients_are_those_of_finite_differences(loss, reference):
  zimg, ztxt = batch()
  args = [zimg, ztxt, np.float32(7.0), np.float32(-3.0)]
  grads = jax.grad(lambda *a: loss(*a)[0], argnums=(0, 1, 2, 3))(*args)
  for i in range(4):
    direction = np.random.default_rng(i).standard_normal(np.shape(args[i]))
    ends = []
    for eps in (1e-5, -1e-5):
      moved = [np.float64(a) for a in args]
      moved[i] = moved[i] + eps * direction
      ends.append(reference(*moved))
    want = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(np.sum(grads[i] * direction), want, rtol=1e-4, atol=1e-5)


def test_sigmoid_loss_sums_over_pairs_and_divides_by_the_batch_once():
  """With all logits zero every one of n * n questions costs log 2: n log 2, not log 2."""
  z = jnp.zeros((5, 3))
  loss, _ = contrastive.sigmoid_loss(z, z, 1.0, 0.0)
  np.testing.assert_allclose(loss, 5 * np.log(2), rtol=1e-6)


def test_confident_logits_neither_overflow_nor_lose_their_gradient():
  zimg, ztxt = batch()
  loss = jax.value_and_grad(lambda z: contrastive.sigmoid_loss(z, ztxt, 1e4, -10.0)[0])
  value, grads = loss(zimg)
  assert np.isfinite(value) and np.isfinite(grads).all()


def test_bfloat16_vectors_give_float32_logits():
  zimg, ztxt = (jnp.asarray(z, jnp.bfloat16) for z in batch(d=512))
  got = contrastive.similarities(zimg, ztxt)
  assert got.dtype == jnp.float32
  want = np.float64(zimg) @ np.float64(ztxt).T
  # Products of 8-bit mantissas are exact in float32; only their sum is rounded.
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_metrics_are_mean_logits_and_accuracies():
  zimg, ztxt = batch()
  _, metrics = contrastive.sigmoid_loss(zimg, ztxt, 10.0, -3.0)
  logits = np.float64(zimg) @ np.float64(ztxt).T * 10 - 3
  off = logits[~np.eye(6, dtype=bool)]
  np.testing.assert_allclose(metrics["pos_logit"], np.diag(logits).mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["neg_logit"], off.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["acc_i2t"], np.mean(logits.argmax(1) == np.arange(6)))
  np.testing.assert_allclose(metrics["acc_t2i"], np.mean(logits.argmax(0) == np.arange(6)))


def test_one_pair_alone_has_finite_metrics():
  zimg, ztxt = batch(n=1)
  for loss, _ in LOSSES:
    value, metrics = loss(zimg, ztxt, 10.0, -10.0)
    assert np.isfinite([value, *metrics.values()]).all()


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4, 3), (4, 2)), ((4,), (4,))])
def test_vectors_that_are_no_pairs_are_refused(shapes):
  zimg, ztxt = (jnp.zeros(s) for s in shapes)
  with pytest.raises(ValueError, match="as many text as image vectors"):
    contrastive.sigmoid_loss(zimg, ztxt, 1.0, 0.0)


def test_batches_of_more_pairs_than_an_int32_counts_are_no_error():
  z = jax.ShapeDtypeStruct((65_536, 4), jnp.float32)
  loss, _ = jax.eval_shape(lambda a, b: contrastive.sigmoid_loss(a, b, 10.0, -10.0), z, z)
  assert loss.shape == ()
