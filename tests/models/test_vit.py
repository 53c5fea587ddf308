"""The vision transformer: big_vision's tree, NumPy's numbers, and its own promises."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from big_vision_ext.models import layouts, vit
from tests.models import vit_reference as ref

TINY = dict(width=24, depth=2, mlp_dim=40, num_heads=3, posemb_grid=(4, 4), patch_size=4)
ACTS = {"gelu_tanh": ref.gelu_tanh, "gelu": ref.gelu}


def randomize(params, seed=0):
  """Every parameter at random, of the size a trained one has: nothing may hide behind a zero."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    *parents, name = (key.key for key in path)
    into_heads = parents and parents[-1] in ("query", "key", "value")
    fan = x.shape[0] if into_heads else math.prod(x.shape[:-1])
    scale = 1 / math.sqrt(fan) if name == "kernel" else 0.3
    mean = 1.0 if name == "scale" else 0.0
    return (mean + scale * rng.standard_normal(x.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(params))


def shapes(model, *args):
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *args)["params"])
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  return {"/".join(k.key for k in path): x for path, x in flat}


def make(images=(2, 16, 16, 3), scan=False, **kw):
  """A model, random parameters that do not depend on its layout, and images."""
  x = np.random.default_rng(1).standard_normal(images).astype(np.float32)
  loop = vit.ViT(**TINY | kw)
  params = randomize(jax.eval_shape(loop.init, jax.random.key(0), x)["params"])
  if scan:
    return vit.ViT(**TINY | kw, scan=True), layouts.loop_to_scan(params), x
  return loop, params, x


def apply(model, params, *args, method="__call__"):
  return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))(params, *args)


def float64(tree):
  return jax.tree.map(np.float64, tree)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
  "name, grid, count",
  [
    ("B/16", 14, 92_884_224),
    ("L/16", 14, 315_894_784),
    ("So400m/14", 16, 427_680_704),
    ("g-opt/16", 14, 1_163_076_096),
  ],
)
def test_parameter_counts_are_those_of_big_vision(name, grid, count, scan):
  model = vit.build(vit.ViT, {"variant": name, "posemb_grid": (grid, grid), "scan": scan})
  side = grid * model.patch_size
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  assert sum(math.prod(x.shape) for x in shapes(model, image).values()) == count


def test_parameter_names_and_shapes_are_those_of_big_vision():
  d, f, n, h, p = 24, 40, 3, 8, 4

  def dense(name, i, o):
    return {f"{name}/kernel": (*i, *o), f"{name}/bias": o}

  def norm(name):
    return {f"{name}/scale": (d,), f"{name}/bias": (d,)}

  attention = {}
  for part in ("query", "key", "value"):
    attention |= dense(f"MultiHeadDotProductAttention_0/{part}", (d,), (n, h))
  attention |= dense("MultiHeadDotProductAttention_0/out", (n, h), (d,))
  mlp = dense("MlpBlock_0/Dense_0", (d,), (f,)) | dense("MlpBlock_0/Dense_1", (f,), (d,))
  want = dense("embedding", (p, p, 3), (d,)) | {"pos_embedding": (1, 16, d)}
  for i in range(2):
    block = attention | mlp | norm("LayerNorm_0") | norm("LayerNorm_1")
    want |= {f"Transformer/encoderblock_{i}/{k}": v for k, v in block.items()}
  want |= norm("Transformer/encoder_norm") | {"MAPHead_0/probe": (1, 1, d)}
  want |= {f"MAPHead_0/{k}": v for k, v in (attention | mlp | norm("LayerNorm_0")).items()}
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  assert {k: v.shape for k, v in shapes(vit.ViT(**TINY), image).items()} == want

  rest = dict(pool_type="tok", rep_size=10, num_classes=7)
  got = {k: v.shape for k, v in shapes(vit.ViT(**TINY | rest), image).items()}
  want = {k: v for k, v in want.items() if not k.startswith("MAPHead_0")} | {"cls": (1, 1, d)}
  want |= dense("pre_logits", (d,), (10,)) | dense("head", (10,), (7,))
  assert got == want


@pytest.mark.parametrize("images", [(2, 16, 16, 3), (2, 12, 20, 3), (1, 26, 9, 3), (1, 8, 8, 3)])
@pytest.mark.parametrize("act", sorted(ACTS))
def test_forward_is_that_of_a_float64_reference(images, act):
  model, params, x = make(images, act=act)
  pooled, out = apply(model, params, x)
  want, tokens = ref.vit(float64(params), np.float64(x), (4, 4), ACTS[act])
  # Float32 through two blocks; values are of size one.
  np.testing.assert_allclose(out["encoded"], tokens, atol=1e-5)
  np.testing.assert_allclose(pooled, want, atol=1e-5)


def test_a_non_square_position_table_keeps_its_aspect():
  model, params, x = make((1, 24, 16, 3), posemb_grid=(3, 2))
  got = model.apply({"params": params}, 6, 4, method="posemb")
  want = ref.positions(np.float64(params["pos_embedding"][0]), (3, 2), (6, 4))
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_positions_of_their_own_grid_are_untouched():
  model, params, _ = make()
  got = model.apply({"params": params}, 4, 4, method="posemb")
  np.testing.assert_array_equal(got, params["pos_embedding"][0])


def test_patches_without_positions_are_the_convolution():
  model, params, x = make((2, 8, 12, 3))
  patches = x.reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 4, 4, 3)
  got = apply(model, params, patches, method="embed_patches")
  want = ref.convolve_patches(float64(params["embedding"]), np.float64(x))
  np.testing.assert_allclose(got, want, atol=1e-5)
  tokens = apply(model, params, x, method="embed")
  place = model.apply({"params": params}, 2, 3, method="posemb")
  np.testing.assert_allclose(got + place, tokens, atol=1e-6)


def value_and_grad(model, params, x):
  weight = np.random.default_rng(5).standard_normal((len(x), model.width)).astype(np.float32)

  def loss(params):
    pooled, out = model.apply({"params": params}, x)
    return jnp.sum(pooled * weight) + jnp.sum(jnp.stack(out["blocks"])[1] ** 2)

  return jax.jit(jax.value_and_grad(loss))(params)


def assert_close(got, want):
  """Equal but for the order of float32 sums: 1e-6 of the largest number there is.

  Of the tree, not of each array: the gradient of a key's bias, say, is a zero of rounded terms.
  """
  got, want = jax.device_get((got, want))
  atol = 1e-6 * max(np.abs(x).max() for x in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), got, want)


def test_scan_equals_loop_in_values_and_gradients():
  loop, params, x = make()
  scan, stacked, _ = make(scan=True)
  value, grads = value_and_grad(loop, params, x)
  scan_value, scan_grads = value_and_grad(scan, stacked, x)
  assert_close((scan_value, layouts.scan_to_loop(scan_grads)), (value, grads))

  y, out = apply(loop, params, x)
  z, scan_out = apply(scan, stacked, x)
  assert_close(z, y)
  for key in ("encoded", "last", "head_input"):
    assert_close(scan_out[key], out[key])
  assert_close(scan_out["blocks"], np.stack(out["blocks"]))
  for got, want in zip(scan_out["kv"], zip(*out["kv"])):
    assert_close(got, np.stack(want))


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("policy", ["nothing_saveable", "dots_saveable"])
def test_rematerialisation_changes_no_number(scan, policy):
  plain, params, x = make(scan=scan)
  remat, _, _ = make(scan=scan, remat_policy=policy)
  assert_close(value_and_grad(remat, params, x), value_and_grad(plain, params, x))


@pytest.mark.parametrize("scan", [False, True])
def test_full_rematerialisation_saves_memory(scan):
  images = jax.ShapeDtypeStruct((8, 64, 64, 3), jnp.float32)
  temp = {}
  for policy in ("none", "nothing_saveable"):
    model = vit.ViT(**TINY | dict(depth=4), scan=scan, remat_policy=policy)
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images)["params"])

    def loss(p, x, m=model):
      return jnp.sum(m.apply({"params": p}, x)[0])

    compiled = jax.jit(jax.grad(loss)).lower(params, images).compile()
    temp[policy] = compiled.memory_analysis().temp_size_in_bytes
  assert temp["nothing_saveable"] < 0.7 * temp["none"]


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
  assert jax.tree.leaves(out["kv"])[0].shape[-3] == 4  # Only its own: looks do not pile up.


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


def test_bfloat16_computation_keeps_float32_parameters_and_gradients():
  heads = dict(scan=True, num_classes=3, rep_size=-1)
  model, params, x = make(dtype="bfloat16", **heads)
  init = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
  assert {leaf.dtype for leaf in jax.tree.leaves(init)} == {jnp.dtype("float32")}

  def loss(params):
    pooled, out = model.apply({"params": params}, x)
    return jnp.sum(pooled.astype(jnp.float32)), (pooled, out["last"])

  grads, (pooled, last) = jax.jit(jax.grad(loss, has_aux=True))(params)
  assert pooled.dtype == jnp.bfloat16 and last.dtype == jnp.bfloat16
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
  exact, _ = apply(make(**heads)[0], params, x)
  # Eight bits of mantissa through two blocks.
  np.testing.assert_allclose(np.float32(pooled), exact, atol=0.1)


def test_sincos_positions_are_sines_of_the_formula():
  got = vit.sincos2d(2, 3, 16)
  for row in range(2):
    for col in range(3):
      omega = [10_000 ** -(i / 3) for i in range(4)]
      angles = [np.sin, np.cos]
      want = [f(at * w) for at in (col, row) for f in angles for w in omega]
      np.testing.assert_allclose(got[row * 3 + col], want, atol=1e-6)
  model, params, x = make(posemb_type="sincos2d")
  assert "pos_embedding" not in params
  tokens = apply(model, params, x, method="embed")
  bare = ref.convolve_patches(float64(params["embedding"]), np.float64(x))
  np.testing.assert_allclose(
    tokens - bare, np.broadcast_to(vit.sincos2d(4, 4, 24), tokens.shape), atol=1e-5
  )


def test_pools_see_only_unmasked_tokens_and_an_empty_mask_counts_as_full():
  rng = np.random.default_rng(4)
  y = rng.standard_normal((3, 6, 24)).astype(np.float32)
  mask = np.array([[1, 0, 1, 0, 0, 1], [1] * 6, [0] * 6], bool)
  model, params, _ = make()
  got = apply(model, params, y, mask, method="pool")
  want = ref.map_head(float64(params["MAPHead_0"]), np.float64(y), mask=mask)
  np.testing.assert_allclose(got, want, atol=1e-5)
  other = np.where(mask[..., None], y, 100.0)
  again = apply(model, params, other, mask, method="pool")
  np.testing.assert_allclose(again[:2], got[:2], atol=1e-6)

  model, params, _ = make(pool_type="gap")
  got = apply(model, params, y, mask, method="pool")
  want = [y[0, mask[0]].mean(0), y[1].mean(0), y[2].mean(0)]
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_allclose(apply(model, params, y, method="pool"), y.mean(1), atol=1e-6)


def test_class_token_stands_in_front_and_is_what_is_pooled():
  model, params, x = make(pool_type="tok")
  pooled, out = apply(model, params, x)
  tokens = apply(model, params, x, method="embed")
  assert tokens.shape == (2, 17, 24) and out["encoded"].shape == (2, 16, 24)
  np.testing.assert_array_equal(tokens[0, 0], params["cls"][0, 0])
  y, _ = apply(model, params, tokens, method="encode")
  np.testing.assert_allclose(pooled, y[:, 0], atol=1e-6)
  with pytest.raises(ValueError, match="does not pool a choice"):
    model.apply({"params": params}, y, np.ones((2, 17), bool), method="pool")


def test_representation_and_head_follow_the_pool():
  model, params, x = make(rep_size=10, num_classes=7)
  logits, out = apply(model, params, x)
  rep = np.tanh(ref.project(params["pre_logits"], np.float64(out["head_input"])))
  np.testing.assert_allclose(out["pre_logits"], rep, atol=1e-5)
  np.testing.assert_allclose(logits, ref.project(params["head"], rep), atol=1e-5)


def test_dropout_acts_in_training_only():
  model, params, x = make(scan=True, dropout=0.5)

  @functools.partial(jax.jit, static_argnums=1)
  def run(seed, deterministic):
    rngs = {"dropout": jax.random.key(seed)}
    return model.apply({"params": params}, x, deterministic, rngs=rngs)[0]

  np.testing.assert_array_equal(run(0, True), run(1, True))
  assert not np.allclose(run(0, False), run(1, False))
  np.testing.assert_array_equal(run(0, False), run(0, False))


def test_initial_values_have_the_scale_of_big_vision():
  model = vit.ViT(**TINY | dict(width=96, mlp_dim=384), scan=True, num_classes=3)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 16, 3)))["params"])
  block = params["Transformer"]["encoderblock"]
  bound = math.sqrt(6 / (96 + 96))  # Glorot over the flattened heads, per layer.
  query = block["MultiHeadDotProductAttention_0"]["query"]["kernel"]
  out = block["MultiHeadDotProductAttention_0"]["out"]["kernel"]
  for kernel in (query, out):
    assert 0.98 * bound < np.abs(kernel).max() <= bound
  assert not np.array_equal(query[0], query[1])
  dense = np.abs(block["MlpBlock_0"]["Dense_0"]["kernel"]).max()
  assert 0.98 < dense / math.sqrt(6 / (96 + 384)) <= 1
  assert 0 < np.abs(block["MlpBlock_0"]["Dense_1"]["bias"]).max() < 1e-5
  assert not np.any(params["head"]["kernel"])
  # Standard deviations of a few thousand draws: good to a few percent.
  np.testing.assert_allclose(params["embedding"]["kernel"].std(), 1 / math.sqrt(48), rtol=0.05)
  np.testing.assert_allclose(params["pos_embedding"].std(), 1 / math.sqrt(96), rtol=0.05)


@pytest.mark.parametrize("scan", [False, True])
def test_a_sharded_model_gives_the_same_numbers(scan):
  model, params, x = make(
    (8, 16, 16, 3), scan=scan, width=32, num_heads=4, remat_policy="nothing_saveable"
  )
  want, _ = apply(model, params, x)
  mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  rules = (
    ("act_batch", ("data", "fsdp")),
    *((name, "tensor") for name in ("act_heads", "act_mlp", "heads", "mlp")),
    ("embed", "fsdp"),
  )
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    boxed = jax.eval_shape(model.init, jax.random.key(0), x)
    shardings = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, rules)["params"]
    sharded = jax.device_put(params, shardings)
    batch = jax.device_put(x, jax.sharding.PartitionSpec(("data", "fsdp")))
    got, out = jax.jit(model.apply)({"params": sharded}, batch)
  np.testing.assert_allclose(got, want, atol=1e-5)
  key = "encoderblock" if scan else "encoderblock_0"
  kernel = sharded["Transformer"][key]["MlpBlock_0"]["Dense_0"]["kernel"]
  assert kernel.sharding.spec[-2:] == ("fsdp", "tensor")
  assert len(out["encoded"].sharding.device_set) == 8


@pytest.mark.parametrize("name", ["B/16x", "Sol400m/14", "b/16", "B/", "B/0", ""])
def test_an_unknown_variant_is_refused_with_the_nearest_name(name):
  with pytest.raises(ValueError, match="nearest is"):
    vit.variant(name)


def test_a_variant_gives_sizes_that_other_keys_override():
  model = vit.build(vit.ViT, {"variant": "So400m/14", "image_size": 384, "depth": 2})
  assert (model.width, model.depth, model.mlp_dim, model.num_heads) == (1152, 2, 4304, 16)
  assert model.posemb_grid == (27, 27) and model.patch_size == 14
  assert "patch_size" not in vit.variant("g-opt")


@pytest.mark.parametrize(
  "spec, message",
  [
    ({"variant": "B/16", "image_size": 224, "poool": "map"}, "model.poool='map'.*'pool_type'"),
    ({"variant": "B/16"}, "model.posemb_grid is missing"),
  ],
)
def test_a_wrong_field_is_named(spec, message):
  with pytest.raises(ValueError, match=message):
    vit.build(vit.ViT, spec)


@pytest.mark.parametrize(
  "field, value",
  [
    ("pool_type", "mapp"),
    ("posemb_type", "learned"),
    ("remat_policy", "save_only_these_names"),
    ("act", "relu"),
    ("num_heads", 5),
  ],
)
def test_an_unknown_choice_is_refused(field, value):
  model = vit.ViT(**TINY | {field: value})
  with pytest.raises(ValueError, match=f"{field}={value!r}"):
    jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))


def test_an_image_smaller_than_a_patch_is_refused():
  with pytest.raises(ValueError, match="3x16 pixels is smaller than one patch"):
    jax.eval_shape(vit.ViT(**TINY).init, jax.random.key(0), np.zeros((1, 3, 16, 3), np.float32))
