"""The TPU's fused attention, interpreted on a CPU, against float64; and lowered for a TPU."""

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import config, sharding, trees
from big_vision_ext.models import attention, attention_tpu, blocks


def qkv(seed=0, b=2, tq=130, tk=140, h=2, k=72):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal((b, t, h, k)).astype(np.float32) for t in (tq, tk, tk)]


def reference(q, k, v, mask, weight):
  """Result, and gradients of its product with `weight`, by hand in float64."""
  q, k, v, weight = (np.float64(x).transpose(0, 2, 1, 3) for x in (q, k, v, weight))
  scale = q.shape[-1] ** -0.5
  scores = q @ k.swapaxes(2, 3) * scale
  if mask is not None:
    scores = np.where(mask[:, None, None], scores, -np.inf)
  p = np.exp(scores - scores.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  dp = weight @ v.swapaxes(2, 3)
  ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True))
  out = p @ v, ds @ k * scale, ds.swapaxes(2, 3) @ q * scale, p.swapaxes(2, 3) @ weight
  return [x.transpose(0, 2, 1, 3) for x in out]


def result_and_gradients(q, k, v, mask, weight):
  def loss(q, k, v):
    out = attention.attend(q, k, v, mask=mask, implementation="splash")
    return jnp.sum(out * weight), out

  grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(q, k, v)
  return out, *grads


def assert_same(got, want):
  for name, a, b in zip(("result", "dq", "dk", "dv"), got, want):
    # Float32 sums of a few hundred terms; values are of size one, gradients of keys up to 5.
    np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("tq, tk, width, masked", [
  (130, 140, 72, True),  # nothing is a whole block, and keys are masked per example
  pytest.param(130, 140, 96, False, marks=pytest.mark.slow),
  pytest.param(128, 256, 64, False, marks=pytest.mark.slow),  # all tokens are whole blocks
  pytest.param(128, 256, 128, True, marks=pytest.mark.slow),
])  # fmt: skip
def test_result_and_gradients_are_those_of_the_formula(tq, tk, width, masked):
  q, k, v = qkv(tq=tq, tk=tk, k=width, b=3)
  weight = qkv(seed=1, tq=tq, k=width, b=3)[0]
  mask = np.random.default_rng(2).random((3, tk)) < 0.5
  mask[1], mask[2] = False, True  # no key at all counts as every key
  mask = mask if masked else None
  got = jax.jit(result_and_gradients)(q, k, v, mask, weight)
  real = None if mask is None else mask | ~mask.any(axis=1, keepdims=True)
  assert_same(got, reference(q, k, v, real, weight))


@pytest.mark.parametrize("sizes", [(2, 2, 2), pytest.param((1, 2, 4), marks=pytest.mark.slow)])
def test_on_a_mesh_every_device_computes_its_part(sizes):
  """Batch over data and fsdp, heads over tensor; the second mesh has more tensor than heads."""
  q, k, v = qkv(b=4)
  weight, mask = qkv(seed=1, b=4)[0], np.random.default_rng(2).random((4, 140)) < 0.5
  mesh = sharding.make_mesh(config.Mesh(*sizes))
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    got = jax.jit(result_and_gradients)(q, k, v, mask, weight)
    text = jax.jit(result_and_gradients).lower(q, k, v, mask, weight).as_text()
  assert "sdy.manual_computation" in text
  assert_same(got, reference(q, k, v, mask, weight))


@pytest.mark.slow
def test_scanned_and_rematerialised_blocks_train_with_it(monkeypatch):
  """The kernel in its real place, against the same blocks with XLA's attention."""
  x = np.random.default_rng(0).standard_normal((2, 130, 16)).astype(np.float32)
  encoder = blocks.Encoder(2, 16, 2, scan=True, remat_policy="nothing_saveable")
  params = encoder.init(jax.random.key(0), x)

  def grads(implementation):
    monkeypatch.setattr(attention, "_choose", lambda *_: implementation)
    loss = lambda p: jnp.sum(encoder.apply(p, x)[0] ** 3)
    return jax.jit(jax.grad(loss))(params)

  got, want = grads("splash"), grads("xla")
  got, want = trees.flatten(got), trees.flatten(want)
  largest = max(np.abs(b).max() for b in want.values())
  for name, b in want.items():
    # A key's bias moves all scores of a query alike: its gradient is rounding, judged by others'.
    scale = largest if "/key/bias" in name else np.abs(b).max()
    np.testing.assert_allclose(got[name], b, atol=1e-5 * scale, err_msg=name)


def test_it_is_chosen_on_a_tpu_for_many_tokens_only(monkeypatch):
  monkeypatch.setattr(attention, "platform", lambda: "tpu")
  for tq, tk, want in [(2560, 3289, "splash"), (729, 729, "splash"), (576, 576, "splash"),
                       (1, 2560, "xla"), (64, 64, "xla"), (196, 196, "xla")]:
    q, k = (jax.ShapeDtypeStruct((2, t, 16, 72), jnp.bfloat16) for t in (tq, tk))
    assert attention._choose(q, k, None) == want, (tq, tk)


@pytest.mark.parametrize("tq, tk", [(2560, 3289), (729, 729)])
def test_real_shapes_lower_for_a_tpu_forward_and_backward(tq, tk):
  shapes = [jax.ShapeDtypeStruct((1, t, 2, 72), jnp.bfloat16) for t in (tq, tk, tk)]
  mask = jax.ShapeDtypeStruct((1, tk), jnp.bool_)

  def loss(q, k, v, mask):
    return jnp.sum(attention_tpu.attend(q, k, v, mask).astype(jnp.float32))

  text = jax.export.export(jax.jit(jax.grad(loss, (0, 1, 2))), platforms=["tpu"])(
    *shapes, mask).mlir_module()
  assert text.count("tpu_custom_call") == 3  # forward, gradient of queries, of keys and values


@pytest.mark.parametrize("length", [1, 64, 128, 196, 577, 729, 2560, 3289])
def test_padding_is_whole_blocks_and_little(length):
  block = attention_tpu._block(length)
  padded = attention_tpu._padded(length, block)
  assert block % 128 == 0 and padded % block == 0 and length <= padded
  assert padded <= max(128, 1.35 * length)


def test_without_rules_the_batch_stays_whole():
  q, k, v = qkv(b=2)
  mesh = sharding.make_mesh(config.Mesh(2, 2, 2))
  with sharding.use(mesh, ()), nn.logical_axis_rules(()):
    got = jax.jit(lambda *a: attention.attend(*a, implementation="splash"))(q, k, v)
  np.testing.assert_allclose(got, reference(q, k, v, None, q)[0], atol=1e-5)
