"""The vision transformer: big_vision's tree, NumPy's numbers, and its own promises."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from big_vision_ext.models import vit
from tests.models import vit_reference as ref
from tests.models.tiny_vit import TINY, apply, float64, make

ACTS = {"gelu_tanh": ref.gelu_tanh, "gelu": ref.gelu}


def shapes(model, *args):
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *args)["params"])
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  return {"/".join(k.key for k in path): x for path, x in flat}


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


def test_cropped_positions_are_the_upper_left_part_of_the_table():
  model, params, _ = make(posemb_grid=(4, 6), posemb_fit="crop")
  table = np.asarray(params["pos_embedding"][0]).reshape(4, 6, -1)
  got = model.apply({"params": params}, 3, 2, method="posemb")
  np.testing.assert_array_equal(got, table[:3, :2].reshape(6, -1))
  with pytest.raises(ValueError, match="cannot give 5 x 2 positions"):
    model.apply({"params": params}, 5, 2, method="posemb")


def test_patches_without_positions_are_the_convolution():
  model, params, x = make((2, 8, 12, 3))
  patches = x.reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 4, 4, 3)
  got = apply(model, params, patches, method="embed_patches")
  want = ref.convolve_patches(float64(params["embedding"]), np.float64(x))
  np.testing.assert_allclose(got, want, atol=1e-5)
  tokens = apply(model, params, x, method="embed")
  place = model.apply({"params": params}, 2, 3, method="posemb")
  np.testing.assert_allclose(got + place, tokens, atol=1e-6)


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


def test_initial_values_have_the_scale_of_big_vision():
  model = vit.ViT(**TINY | dict(width=96, mlp_dim=384), scan=True, num_classes=3)
  images = np.zeros((1, 16, 16, 3), np.float32)

  @jax.jit
  def init():
    p = nn.unbox(model.init(jax.random.key(0), images)["params"])
    block = p["Transformer"]["encoderblock"]
    mha, mlp = block["MultiHeadDotProductAttention_0"], block["MlpBlock_0"]
    kernels = [mha["query"]["kernel"], mha["out"]["kernel"], mlp["Dense_0"]["kernel"]]
    rest = mlp["Dense_1"]["bias"], p["embedding"]["kernel"], p["pos_embedding"], p["head"]["kernel"]
    return kernels, rest

  kernels, (bias, patches, positions, head) = init()
  # Glorot's uniform bound per layer, over the flattened heads.
  for kernel, fans in zip(kernels, (96 + 96, 96 + 96, 96 + 384)):
    assert 0.98 < np.abs(kernel).max() / math.sqrt(6 / fans) <= 1
    assert not np.array_equal(kernel[0], kernel[1])
  assert 0 < np.abs(bias).max() < 1e-5
  assert not np.any(head)
  # Standard deviations of more than a thousand draws: good to a few percent.
  np.testing.assert_allclose(patches.std(), 1 / math.sqrt(48), rtol=0.06)
  np.testing.assert_allclose(positions.std(), 1 / math.sqrt(96), rtol=0.06)


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
