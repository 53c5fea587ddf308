"""Attention against NumPy, in every implementation that runs on a CPU."""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from big_vision_ext.models import attention, attention_cpu
from tests.models import vit_reference as ref

ON_CPU = ("einsum", "heads", "xla", "portable")
# Batches of keys and values, and rows: some keys, all keys, and none, which means all.
MASK = np.array([[1, 0, 1, 1, 0, 0, 1], [1] * 7, [0] * 7], bool)


def qkv(seed=0, b=3, tq=5, tk=7, h=2, k=6):
  rng = np.random.default_rng(seed)
  return [rng.standard_normal((b, t, h, k)).astype(np.float32) for t in (tq, tk, tk)]


@pytest.mark.parametrize("implementation", [None, *ON_CPU])
@pytest.mark.parametrize("mask", [None, MASK])
def test_result_is_that_of_the_formula(implementation, mask):
  q, k, v = qkv()
  got = attention.attend(q, k, v, mask=mask, implementation=implementation)
  # Float32 sums of seven terms of size one.
  np.testing.assert_allclose(got, ref.attend(q, k, v, mask), atol=2e-6)


@pytest.mark.parametrize("implementation", ON_CPU)
def test_a_row_without_any_allowed_key_attends_to_all(implementation):
  q, k, v = qkv()
  masked = attention.attend(q, k, v, mask=MASK, implementation=implementation)
  free = attention.attend(q, k, v, implementation=implementation)
  np.testing.assert_allclose(masked[1:], free[1:], atol=1e-6)
  assert not np.allclose(masked[0], free[0], atol=1e-2)


@pytest.mark.parametrize("implementation", ON_CPU)
def test_gradients_are_those_of_finite_differences(implementation):
  args = qkv(b=3, tq=2, tk=7, h=1, k=3)
  weight = np.random.default_rng(1).standard_normal(args[0].shape)
  directions = [np.random.default_rng(2 + i).standard_normal(x.shape) for i, x in enumerate(args)]

  def loss(q, k, v):
    out = attention.attend(q, k, v, mask=MASK, implementation=implementation)
    return jnp.sum(out * weight.astype(np.float32))

  grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*args)
  for i, direction in enumerate(directions):
    ends = []
    for eps in (1e-5, -1e-5):
      moved = [np.float64(x) for x in args]
      moved[i] = moved[i] + eps * direction
      ends.append(np.sum(ref.attend(*moved, MASK) * weight))
    numeric = (ends[0] - ends[1]) / 2e-5
    # Differences in float64 are good to 1e-8; what remains is the float32 of the gradient.
    np.testing.assert_allclose(np.sum(grads[i] * direction), numeric, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [None, MASK])
def test_tiles_of_queries_change_neither_results_nor_gradients(mask, monkeypatch):
  args = qkv()
  # Five queries in three tiles, the last of which is half empty.
  monkeypatch.setattr(attention_cpu, "_TILE_SCORES", 3 * 7 * 2)
  weight = np.random.default_rng(1).standard_normal(args[0].shape).astype(np.float32)

  def grads(implementation):
    def loss(q, k, v):
      out = attention.attend(q, k, v, mask=mask, implementation=implementation)
      return jnp.sum(out * weight), out

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*args)

  for got, want in zip(jax.tree.leaves(grads("heads")), jax.tree.leaves(grads("einsum"))):
    # Float32 sums of at most seven terms of size one, in another order.
    np.testing.assert_allclose(got, want, atol=3e-6)


@pytest.mark.parametrize("mask", [None, MASK])
def test_a_program_for_several_platforms_has_the_attention_of_each(mask):
  q, k, v = qkv()
  b = jax.export.symbolic_shape("b")[0]
  specs = [jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype) for x in (q, k, v)]
  specs += [] if mask is None else [jax.ShapeDtypeStruct((b, 7), np.bool_)]

  def run(implementation, platforms):
    def act(q, k, v, mask=None):
      return attention.attend(q, k, v, mask=mask, implementation=implementation)
    with attention.portable():
      return jax.export.export(jax.jit(act), platforms=platforms)(*specs)

  def products(implementation, platforms):
    lines = run(implementation, platforms).mlir_module().splitlines()
    return [x.split(" : ")[1].split(" loc(")[0] for x in lines if "stablehlo.dot_general" in x]

  # Shapes tell them apart: heads lie before tokens in one, behind them in the other.
  assert products("einsum", ["cpu"]) != products("xla", ["cpu"])
  for platform, own in (("cpu", "einsum"), ("tpu", "xla"), ("cuda", "xla")):
    assert products(None, [platform]) == products(own, [platform])
  everywhere = run(None, ["cpu", "tpu", "cuda"])
  got = everywhere.call(q, k, v, *([] if mask is None else [mask]))
  np.testing.assert_allclose(got, ref.attend(q, k, v, mask), atol=2e-6)


def test_large_scores_do_not_overflow():
  q, k, v = qkv()
  got = attention.attend(1e3 * q, 1e3 * k, v)
  np.testing.assert_allclose(got, ref.attend(np.float64(1e3) * q, 1e3 * k, v), atol=1e-3)


@pytest.mark.parametrize("implementation", ON_CPU)
def test_bfloat16_inputs_keep_a_float32_softmax(implementation):
  q, k, v = (x.astype(jnp.bfloat16) for x in qkv(tk=512, b=1))
  got = attention.attend(q, k, v, implementation=implementation)
  assert got.dtype == jnp.bfloat16
  want = ref.attend(*(np.asarray(x, np.float64) for x in (q, k, v)))
  # Weights and results are rounded to 8 bits, but 512 of them still sum to one.
  np.testing.assert_allclose(np.float64(got), want, atol=0.012)
  ones = attention.attend(q, k, jnp.ones_like(v), implementation=implementation)
  np.testing.assert_allclose(np.float64(ones), 1.0, atol=2**-8)


def test_many_scores_are_neither_stored_for_all_heads_nor_for_the_backward_pass():
  q, k, v = (jax.ShapeDtypeStruct((1, 1024, 8, 8), jnp.float32) for _ in range(3))

  def loss(q, k, v):
    return jnp.sum(attention.attend(q, k, v) ** 2)

  compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
  one_head = 1024 * 1024 * 4
  assert compiled.memory_analysis().temp_size_in_bytes < 5 * one_head


def test_the_mesh_in_force_names_the_platform():
  assert attention.platform() == "cpu"
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    assert attention.platform() == "cpu"


def test_results_do_not_depend_on_how_heads_and_batch_are_sharded():
  q, k, v = qkv(b=4, h=4)
  mesh = jax.make_mesh((4, 2), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
  spec = jax.sharding.PartitionSpec("data", None, "tensor")
  with jax.set_mesh(mesh):
    for implementation in ON_CPU:
      run = jax.jit(
        lambda *a, i=implementation: attention.attend(*a, implementation=i),
        in_shardings=(spec,) * 3,
        out_shardings=spec,
      )
      np.testing.assert_allclose(run(q, k, v), ref.attend(q, k, v), atol=2e-6)


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda q, k, v: (q[0], k, v, None), "batch, tokens, heads, width"),
    (lambda q, k, v: (q, k, v[:, 1:], None), "values shaped like the keys"),
    (lambda q, k, v: (q[:1], k, v, None), "agree in batch"),
    (lambda q, k, v: (q, k[:, :0], v[:, :0], None), "at least one key"),
    (lambda q, k, v: (q.astype(jnp.bfloat16), k, v, None), "of one type"),
    (lambda q, k, v: (q, k, v, MASK[:, :5]), "key mask must be boolean"),
    (lambda q, k, v: (q, k, v, MASK.astype(np.float32)), "key mask must be boolean"),
  ],
)
def test_what_does_not_fit_is_refused_in_words(change, message):
  q, k, v, mask = change(*qkv())
  with pytest.raises(ValueError, match=message):
    attention.attend(q, k, v, mask=mask)


def test_an_unknown_implementation_is_refused():
  with pytest.raises(ValueError, match="'flash' is unknown"):
    attention.attend(*qkv(), implementation="flash")


SPANS = ((2, 3), (1, 7), (2, 5))


@pytest.mark.parametrize("implementation", [None, *ON_CPU])
@pytest.mark.parametrize("mask", [None, MASK])
def test_groups_of_queries_read_the_keys_of_their_span(implementation, mask):
  q, k, v = qkv()
  got = attention.attend(q, k, v, mask=mask, spans=SPANS, implementation=implementation)
  start = 0
  for queries, keys in SPANS:
    part = None if mask is None else mask[:, :keys]
    want = ref.attend(q[:, start : start + queries], k[:, :keys], v[:, :keys], part)
    np.testing.assert_allclose(got[:, start : start + queries], want, atol=2e-6)
    start += queries


@pytest.mark.parametrize("spans", [((5, 8),), ((4, 7),), ((5, 0),), ((0, 3), (5, 7))])
def test_spans_that_do_not_fit_are_refused(spans):
  with pytest.raises(ValueError, match="spans="):
    attention.attend(*qkv(), spans=spans)


def causal_reference(q, k, v):
  """Each query with the keys up to its own place."""
  parts = [ref.attend(q[:, i : i + 1], k[:, : i + 1], v[:, : i + 1]) for i in range(q.shape[1])]
  return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("implementation", [None, *ON_CPU])
def test_in_causal_order_no_query_reads_what_is_behind_it(implementation, monkeypatch):
  q, k, v = qkv(tq=7)
  # Seven queries in three tiles, the last of which is not full.
  monkeypatch.setattr(attention_cpu, "_TILE_SCORES", 3 * 7 * 3)
  weight = np.random.default_rng(1).standard_normal(q.shape).astype(np.float32)

  def loss(implementation):
    def act(q, k, v):
      out = attention.attend(q, k, v, causal=True, implementation=implementation)
      return jnp.sum(out * weight), out

    return jax.jit(jax.grad(act, argnums=(0, 1, 2), has_aux=True))(q, k, v)

  grads, out = loss(implementation)
  np.testing.assert_allclose(out, causal_reference(q, k, v), atol=2e-6)
  for got, want in zip(grads, loss("einsum")[0]):
    np.testing.assert_allclose(got, want, atol=3e-6)


def test_what_cannot_be_causal_is_refused():
  q, k, v = qkv(tq=7)
  for args, kw in (((q[:, :5], k, v), {}), ((q, k, v), dict(mask=MASK))):
    with pytest.raises(ValueError, match="Causal attention is of tokens to themselves"):
      attention.attend(*args, causal=True, **kw)
  with pytest.raises(ValueError, match="'splash' is not causal"):
    attention.attend(q, k, v, causal=True, implementation="splash")
