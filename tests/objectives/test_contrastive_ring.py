"""The ring against the formulas, on eight simulated devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_ext.core import config, sharding
from big_vision_ext.objectives.contrastive import Contrast, contrastive_loss


def batch(n, d, seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  z = rng.standard_normal((2, n, d))
  z[1] += z[0]  # Partners resemble each other.
  z = (z / np.linalg.norm(z, axis=-1, keepdims=True)).astype(dtype)
  return *z, np.float32(8.0), np.float32(-3.0)


def value_and_grad(how):
  loss = functools.partial(contrastive_loss, how=how)
  return jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)


def reference(form, zimg, ztxt, t, b):
  """What `value_and_grad` gives, by hand in float64."""
  zimg, ztxt, t, b = (np.asarray(x, np.float64) for x in (zimg, ztxt, t, b))
  n, one = len(zimg), np.eye(len(zimg))
  similar = zimg @ ztxt.T
  logits = similar * t + b
  right = np.diag(logits)
  if form == "sigmoid":
    sign = 2 * one - 1
    loss = np.logaddexp(0, -sign * logits).sum() / n
    g = -sign / (1 + np.exp(sign * logits)) / n
  else:
    p = np.exp(logits - logits.max())
    lse = [np.log(p.sum(axis=axis)) + logits.max() for axis in (1, 0)]
    loss = (lse[0] - right + lse[1] - right).mean() / 2
    g = (p / p.sum(1, keepdims=True) + p / p.sum(0) - 2 * one) / (2 * n)
  metrics = {
    "pos_logit": right.mean(),
    "neg_logit": logits[one == 0].mean(),
    "acc_i2t": (logits.argmax(1) == np.arange(n)).mean(),
    "acc_t2i": (logits.argmax(0) == np.arange(n)).mean(),
  }
  return (loss, metrics), (g @ ztxt * t, g.T @ zimg * t, (g * similar).sum(), g.sum())


def on_mesh(fn, mesh, args):
  """Runs on the mesh, with the rows cut over its batch axes."""
  rows, one = NamedSharding(mesh, P(sharding.BATCH_AXES)), NamedSharding(mesh, P())
  places = (rows, rows, one, one)
  with sharding.use(mesh, ()):
    return jax.jit(fn, in_shardings=places)(*jax.device_put(args, places))


def make_mesh(*sizes):
  return sharding.make_mesh(config.Mesh(*sizes), devices=jax.devices()[:np.prod(sizes)])


def assert_same(got, want):
  ((loss, metrics), grads), ((want_loss, want_metrics), want_grads) = got, want
  # Losses of size 1 to 10 in float32, of logits of size 10.
  np.testing.assert_allclose(loss, want_loss, rtol=2e-6)
  for got, want in zip(grads, want_grads):
    np.testing.assert_allclose(got, want, atol=1e-6 * max(np.abs(want).max(), 1))
  assert metrics.keys() == want_metrics.keys()
  for name in metrics:
    np.testing.assert_allclose(metrics[name], want_metrics[name], atol=5e-6, err_msg=name)


FORMS = ["sigmoid", "softmax"]


@pytest.mark.parametrize("form, sizes, n, d, chunk", [
  ("sigmoid", (1, 8, 1), 40, 5, 2),  # chunks of 2, 2 and 1
  ("softmax", (8, 1, 1), 24, 16, 2),
  ("sigmoid", (2, 2, 2), 24, 16, 2),  # the tensor axis takes part,
  ("softmax", (2, 2, 2), 12, 16, 1024),  # or cannot
  ("softmax", (3, 2, 1), 18, 7, 1),  # axes of odd lengths
  ("sigmoid", (1, 1, 7), 6, 8, 4),  # rows that are cut over nothing
])  # fmt: skip
def test_the_ring_gives_value_gradients_and_metrics_of_the_formula(form, sizes, n, d, chunk):
  args = batch(n, d, seed=n)
  got = on_mesh(value_and_grad(Contrast(form, "ring", chunk)), make_mesh(*sizes), args)
  assert_same(got, reference(form, *args))


@pytest.mark.parametrize("form, slices", [("sigmoid", 2), ("softmax", 4), ("sigmoid", 8)])
def test_slices_exchange_texts_once_and_the_ring_stays_within_them(form, slices, monkeypatch):
  args, mesh, fn = batch(32, 6), make_mesh(8, 1, 1), value_and_grad(Contrast(form, "ring", 3))
  monkeypatch.setattr(sharding, "count_slices", lambda devices: slices)
  assert_same(on_mesh(fn, mesh, args), reference(form, *args))
  with sharding.use(mesh, ()):
    text = jax.jit(fn).lower(*args).as_text()
  assert "all_gather" in text and "all_to_all" in text
  assert ("collective_permute" in text) == (slices < 8)


@pytest.mark.parametrize("form", FORMS)
def test_on_one_device_the_chunks_alone_give_the_loss(form):
  args = batch(13, 6)
  got = jax.jit(value_and_grad(Contrast(form, "ring", 4)))(*args)
  assert_same(got, reference(form, *args))


def test_the_value_alone_is_that_with_gradients():
  args, mesh = batch(16, 6), make_mesh(4, 1, 1)
  alone = on_mesh(contrastive_loss, mesh, args)
  both = on_mesh(value_and_grad(Contrast()), mesh, args)[0]
  for got, want in zip(jax.tree.leaves(alone), jax.tree.leaves(both)):
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_gradients_are_multiplied_by_what_comes_after_and_metrics_have_none():
  args = batch(16, 6)

  def loss(*args, how):
    value, metrics = contrastive_loss(*args, how=how)
    return jnp.sin(value) + 3 * metrics["neg_logit"]

  want, got = (
    jax.grad(functools.partial(loss, how=Contrast(implementation=i)), (0, 1, 2, 3))(*args)
    for i in ("dense", "ring")
  )
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=1e-6 * max(1, np.abs(b).max()))


def test_bfloat16_vectors_get_bfloat16_gradients_of_float32_sums():
  args = batch(16, 64, dtype=jnp.bfloat16)
  (want, _), want_grads = reference("sigmoid", *args)
  (got, _), grads = on_mesh(value_and_grad(Contrast()), make_mesh(4, 1, 1), args)
  np.testing.assert_allclose(got, want, rtol=2e-6)
  for a, b in zip(grads[:2], want_grads):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(a), b, atol=2**-8 * np.abs(b).max())


def test_a_batch_that_is_cut_uses_the_ring_and_another_does_not():
  def used(how, mesh):
    fn = functools.partial(contrastive_loss, how=how)
    with sharding.use(mesh, ()):
      return "shard_map" in str(jax.make_jaxpr(fn)(*batch(16, 4)))

  assert used(Contrast(), make_mesh(4, 1, 1)) and used(Contrast(), make_mesh(1, 4, 2))
  assert not used(Contrast(), make_mesh(1, 1, 1))
  assert not used(Contrast(implementation="dense"), make_mesh(4, 1, 1))


def test_at_4096_pairs_it_is_the_dense_loss_in_a_third_of_the_memory():
  """Eight devices; compiled temporary memory of the dense sigmoid loss there is 28.0 MiB."""
  mesh, args = make_mesh(1, 8, 1), batch(4096, 256)
  rows, one = NamedSharding(mesh, P(sharding.BATCH_AXES)), NamedSharding(mesh, P())
  places = rows, rows, one, one

  def run(how):
    with sharding.use(mesh, ()):
      fn = jax.jit(value_and_grad(how), in_shardings=places, out_shardings=(one, places))
      compiled = fn.lower(*args).compile()
      return compiled.memory_analysis().temp_size_in_bytes / 2**20, compiled(
        *jax.device_put(args, places))

  (ring, got), (dense, want) = (run(Contrast(implementation=i)) for i in ("ring", "dense"))
  assert ring <= 28 / 3 and ring <= dense / 3, (ring, dense)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max())


def test_what_cannot_be_is_an_error():
  with pytest.raises(ValueError, match="contrast.chunk=0: expected at least 1"):
    Contrast(chunk=0)
  with pytest.raises(sharding.ShardingError, match="9 rows cannot be cut evenly over data: 8"):
    with sharding.use(make_mesh(8, 1, 1), ()):
      contrastive_loss(*batch(9, 4))
