"""The stack of blocks: layouts, rematerialisation, cached keys and values, dropout."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from big_vision_ext.models import activations, blocks, layouts, vit
from tests.models import vit_reference as ref
from tests.models.tiny_vit import TINY, apply, assert_close, float64, make


@functools.cache
def plain_value_and_grad(scan):
  return value_and_grad(*make(scan=scan))


def value_and_grad(model, params, x):
  weight = np.random.default_rng(5).standard_normal((len(x), model.width)).astype(np.float32)

  def loss(params):
    pooled, out = model.apply({"params": params}, x)
    return jnp.sum(pooled * weight) + jnp.sum(jnp.stack(out["blocks"])[1] ** 2)

  return jax.jit(jax.value_and_grad(loss))(params)


def test_scan_equals_loop_in_values_and_gradients():
  scan_value, scan_grads = plain_value_and_grad(True)
  assert_close((scan_value, layouts.scan_to_loop(scan_grads)), plain_value_and_grad(False))

  loop, params, x = make()
  scan, stacked, _ = make(scan=True)
  y, out = apply(loop, params, x)
  z, scan_out = apply(scan, stacked, x)
  assert_close(z, y)
  for key in ("encoded", "last", "head_input"):
    assert_close(scan_out[key], out[key])
  assert_close(scan_out["blocks"], np.stack(out["blocks"]))
  for got, want in zip(scan_out["kv"], zip(*out["kv"])):
    assert_close(got, np.stack(want))


@pytest.mark.parametrize("dtype, rounding", [(np.float32, 2e-7), (jnp.bfloat16, 2**-8)])
def test_exact_gelu_is_x_times_the_normal_distribution(dtype, rounding):
  x = np.asarray(np.linspace(-9, 9, 5001), dtype)
  at = np.float64(x)
  value, slope = jax.vmap(jax.value_and_grad(activations.gelu))(jnp.asarray(x))
  assert value.dtype == slope.dtype == dtype
  want = at * scipy.stats.norm.cdf(at)
  # One rounding of what is given back, and one of 1 + erf, which the factor x makes larger.
  np.testing.assert_allclose(np.float64(value), want, rtol=rounding, atol=2e-7 * 9)
  want = scipy.stats.norm.cdf(at) + at * scipy.stats.norm.pdf(at)
  np.testing.assert_allclose(np.float64(slope), want, rtol=rounding, atol=1e-6)


@pytest.mark.parametrize("layers", [(0, 2), (1,), ()])
@pytest.mark.parametrize("policy", ["none", "nothing_saveable"])
def test_outputs_of_chosen_blocks_are_those_of_all(layers, policy):
  weights = np.random.default_rng(6).standard_normal((3, 2, 6, 24)).astype(np.float32)
  tokens = np.random.default_rng(7).standard_normal((2, 6, 24)).astype(np.float32)

  def run(scan, asked):
    model, params, _ = make(scan=scan, depth=3, remat_policy=policy if scan else "none")

    def loss(params):
      _, out = model.apply({"params": params}, tokens, layers=asked, method="encode")
      blocks = [out["blocks"][i] for i in layers] if asked is None else out["blocks"]
      chosen = sum(jnp.sum(x * weights[i]) for x, i in zip(blocks, layers))
      return chosen + jnp.sum(out["last"] ** 2), list(blocks)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  ((value, blocks), grads) = run(False, None)
  ((scan_value, scan_blocks), scan_grads) = run(True, layers)
  assert len(scan_blocks) == len(layers)
  assert_close((scan_value, scan_blocks), (value, blocks))
  assert_close(layouts.scan_to_loop(scan_grads), grads)
  assert len(run(False, layers)[0][1]) == len(layers)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("policy", ["nothing_saveable", "dots_saveable"])
def test_rematerialisation_changes_no_number(scan, policy):
  assert_close(value_and_grad(*make(scan=scan, remat_policy=policy)), plain_value_and_grad(scan))


@pytest.mark.parametrize("scan", [False, True])
def test_full_rematerialisation_keeps_only_the_input_and_parameters_of_a_block(scan):
  """Asked of the traced program: what a compiler frees is its affair, and differs by version."""
  images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)

  def kept(depth, policy):
    model = vit.ViT(**TINY | dict(depth=depth), scan=scan, remat_policy=policy)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images)["params"])

    def backward(params, images):
      return jax.vjp(lambda p: jnp.sum(model.apply({"params": p}, images)[0]), params)[1]

    residuals = jax.tree.leaves(jax.eval_shape(backward, params, images))
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
    return sum(math.prod(x.shape) for x in residuals), count

  (two, size_two), (four, size_four) = kept(2, "nothing_saveable"), kept(4, "nothing_saveable")
  block_input = 8 * 256 * TINY["width"]
  assert four - two <= 2 * block_input + (size_four - size_two)
  assert kept(4, "none")[0] > 10 * four


@pytest.mark.parametrize("scan", [False, True])
def test_queries_of_some_tokens_over_cached_ones_equal_full_attention_of_those_rows(scan):
  """In one block: attending to [old, own] with queries of own is the lower part of a full block."""
  model, params, _ = make(depth=1, scan=scan)
  rng = np.random.default_rng(2)
  old, own = (rng.standard_normal((2, n, 24)).astype(np.float32) for n in (5, 4))

  def run(x, kv=None):
    return apply(model, params, x, kv, method="encode")

  cache = run(old)[1]["kv"]
  both, _ = run(np.concatenate([old, own], 1))
  part, out = run(own, cache)
  np.testing.assert_allclose(part, both[:, 5:], atol=1e-5)
  assert out["kv"] is None  # Only of the first tokens: looks do not pile up.


@pytest.mark.parametrize("scan", [False, True])
def test_keys_made_again_from_block_inputs_are_those_that_were_kept(scan):
  model, params, _ = make(scan=scan)
  rng = np.random.default_rng(8)
  low, high = (rng.standard_normal((2, n, 24)).astype(np.float32) for n in (5, 4))

  def run(keep_inputs, policy):
    chosen = model.clone(remat_policy=policy)

    def loss(params, low):
      encode = lambda *x, **kw: chosen.apply({"params": params}, *x, method="encode", **kw)
      _, first = encode(low, keep_inputs=keep_inputs)
      y, out = encode(high, first["kv"])
      assert out["kv"] is None
      return jnp.sum(y**2), first["kv"]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, low)

  (value, kv), grads = run(False, "none")
  for policy in ("none", "nothing_saveable"):
    (again, inputs), again_grads = run(True, policy)
    assert sum(x.size for x in jax.tree.leaves(inputs)) * 2 == sum(
      x.size for x in jax.tree.leaves(kv)
    )
    assert_close((again, again_grads), (value, grads))


@pytest.mark.parametrize("scan", [False, True])
def test_each_layer_takes_the_cache_of_its_own_layer_low_first(scan):
  model, params, _ = make(scan=scan)
  rng = np.random.default_rng(3)
  low, high = (rng.standard_normal((2, n, 24)).astype(np.float32) for n in (5, 4))

  def run(x, kv=None):
    return apply(model, params, x, kv, method="encode")

  _, out = run(high, run(low)[1]["kv"])
  loop = float64(layouts.scan_to_loop(params))["Transformer"]
  low, high = np.float64(low), np.float64(high)
  for i in range(2):
    p = loop[f"encoderblock_{i}"]
    y = ref.layer_norm(p["LayerNorm_0"], low)
    mha = p["MultiHeadDotProductAttention_0"]
    kv = (ref.project(mha["key"], y), ref.project(mha["value"], y))
    low, high = ref.block(p, low), ref.block(p, high, kv=kv)
    np.testing.assert_allclose(np.asarray(out["blocks"][i]), high, atol=1e-5)


def test_dropout_acts_in_training_only():
  model, params, x = make(scan=True, dropout=0.5)

  @functools.partial(jax.jit, static_argnums=1)
  def run(seed, deterministic):
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply({"params": params}, x, deterministic, rngs=rngs)[0]

  np.testing.assert_array_equal(run(0, True), run(1, True))
  assert not np.allclose(run(0, False), run(1, False))
  np.testing.assert_array_equal(run(0, False), run(0, False))


def test_a_branch_that_is_left_out_has_its_own_value_as_expectation():
  y = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 5)), jnp.float32)
  rate = 0.3
  runs = np.stack([blocks.drop_path(y, rate, jax.random.key(i)) for i in range(400)])
  left_out = np.all(runs == 0, axis=(2, 3))
  # For a sample all or nothing: y / (1 - rate), or zero.
  want = np.where(left_out[..., None, None], 0, y / (1 - rate))
  np.testing.assert_allclose(runs, want, rtol=1e-6)
  # 1,600 draws: deviation 0.0115.
  assert abs(left_out.mean() - rate) < 0.05
  assert 0.2 < np.mean(left_out[:, 0] != left_out[:, 1]) < 0.65  # Each sample for itself: 0.42.
  assert blocks.drop_path(y.astype(jnp.bfloat16), rate, jax.random.key(0)).dtype == jnp.bfloat16


def test_a_share_of_left_out_branches_that_cannot_be_is_refused():
  encoder = blocks.Encoder(1, 8, 1, drop_path=1.0)
  with pytest.raises(ValueError, match="drop_path=1.0: expected a share"):
    encoder.init(jax.random.key(0), jnp.zeros((1, 2, 8)))
