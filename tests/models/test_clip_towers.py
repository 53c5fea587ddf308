"""CLIP's towers: what its formulas say, in float64, and what options of the towers promise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import flops
from big_vision_ext.models import activations, layouts, vit
from big_vision_ext.models.text import TextTransformer
from big_vision_ext.tasks import clip
from tests.models import tiny_vit
from tests.models import vit_reference as ref

# No two sizes are alike.
IMAGE = clip.IMAGE | dict(
  width=24, depth=3, mlp_dim=40, num_heads=3, patch_size=4, posemb_grid=(3, 5), num_classes=14,
  pooled_only=False)  # fmt: skip
TEXT = clip.TEXT | dict(
  width=20, depth=2, mlp_dim=36, num_heads=2, vocab_size=30, text_len=9, out_dim=14)
PIXELS = np.random.default_rng(0).standard_normal((2, 12, 20, 3)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 29, (4, 9)).astype(np.int32)
# An end in the middle, at the end, twice, and none at all: then the largest id is read.
IDS[[0, 1, 2, 2], [3, 8, 5, 7]] = 29


def quick_gelu(x):
  return x / (1 + np.exp(-1.702 * x))


def encoder(p, x, causal, act):
  norm = lambda p, x: ref.layer_norm(p, x, 1e-5)
  for i in range(sum(key.startswith("encoderblock_") for key in p)):
    one = p[f"encoderblock_{i}"]
    a, y = one["MultiHeadDotProductAttention_0"], norm(one["LayerNorm_0"], x)
    q, k, v = (ref.project(a[name], y) for name in ("query", "key", "value"))
    seen = [t + 1 if causal else x.shape[1] for t in range(x.shape[1])]
    z = [ref.attend(q[:, t : t + 1], k[:, :n], v[:, :n]) for t, n in enumerate(seen)]
    x = x + ref.project(a["out"], np.concatenate(z, 1), 2)
    x = x + ref.mlp(one["MlpBlock_0"], norm(one["LayerNorm_1"], x), act)
  return norm(p["encoder_norm"], x)


def image_features(p, pixels, grid, act=quick_gelu):
  """Radford et al.'s image tower, from its description."""
  x = ref.convolve_patches(p["embedding"] | {"bias": 0.0}, pixels)
  h, w = (n // s for n, s in zip(pixels.shape[1:3], p["embedding"]["kernel"].shape))
  rows, cols = ref.cubic_weights(grid[0], h), ref.cubic_weights(grid[1], w)
  table = p["pos_embedding"][0].reshape(*grid, -1)
  x = x + np.einsum("ay,yxd,bx->abd", rows, table, cols).reshape(h * w, -1)
  cls = np.repeat(p["cls"] + p["cls_pos_embedding"], len(x), 0)
  x = ref.layer_norm(p["embedding_norm"], np.concatenate([cls, x], 1), 1e-5)
  return encoder(p["Transformer"], x, False, act)[:, 0] @ p["head"]["kernel"]


def text_features(p, ids, act=quick_gelu):
  """And its text tower."""
  x = p["Embed_0"]["embedding"][ids] + p["pos_embedding"]
  y = encoder(p["Encoder_0"], x, True, act)
  return y[np.arange(len(ids)), ids.argmax(1)] @ p["head"]["kernel"]


def make(cls, spec, given, **kw):
  model = cls(**spec | kw)
  shapes = jax.eval_shape(cls(**spec | kw | {"scan": False}).init, jax.random.key(0), given)
  params = tiny_vit.randomize(shapes["params"])
  return model, layouts.loop_to_scan(params) if kw.get("scan") else params


@pytest.mark.parametrize("kw", [{}, dict(act="gelu", pooled_only=True),
                                dict(scan=True, remat_policy="nothing_saveable")], ids=str)
def test_an_image_becomes_what_the_formulas_say(kw):
  model, params = make(vit.ViT, IMAGE, PIXELS, **kw)
  z, out = tiny_vit.apply(model, params, PIXELS)
  want = image_features(tiny_vit.float64(layouts.scan_to_loop(params)), PIXELS, (3, 5),
                        ref.gelu if kw.get("act") else quick_gelu)
  # Float32 through three blocks of values of size one.
  np.testing.assert_allclose(z, want, atol=2e-5)
  assert ("encoded" in out) != bool(kw.get("pooled_only"))


@pytest.mark.parametrize("kw", [{}, dict(act="gelu", scan=True)], ids=str)
def test_a_text_becomes_what_the_formulas_say(kw):
  model, params = make(TextTransformer, TEXT, IDS, **kw)
  z, _ = tiny_vit.apply(model, params, IDS)
  want = text_features(tiny_vit.float64(layouts.scan_to_loop(params)), IDS,
                       ref.gelu if kw else quick_gelu)
  np.testing.assert_allclose(z, want, atol=2e-5)


def test_what_stands_behind_the_end_of_a_text_does_not_matter():
  model, params = make(TextTransformer, TEXT, IDS)
  padded = IDS.copy()
  padded[0, 4:] = 29
  z = tiny_vit.apply(model, params, padded)[0]
  np.testing.assert_array_equal(z, tiny_vit.apply(model, params, IDS)[0])
  # An id that is named is found although it is not the largest one.
  named, _ = make(TextTransformer, TEXT, IDS, eot_id=7)
  swapped = np.where(IDS == 29, 7, np.where(IDS == 7, 3, IDS))
  _, out = tiny_vit.apply(named, params, swapped)
  np.testing.assert_array_equal(out["pre_logits"][:3], out["encoded"][np.arange(3), [3, 8, 5]])


def test_a_last_block_for_the_class_token_alone_changes_neither_values_nor_gradients():
  (full, params), (short, _) = (
    make(vit.ViT, IMAGE, PIXELS, depth=2, pooled_only=on) for on in (False, True))
  grad = lambda m: jax.jit(
    jax.value_and_grad(lambda p: jnp.sum(jnp.sin(m.apply({"params": p}, PIXELS)[0]))),
    compiler_options={"xla_backend_optimization_level": 0})(params)  # fmt: skip
  tiny_vit.assert_close(grad(short), grad(full))
  scanned = vit.ViT(**IMAGE | dict(scan=True))
  with pytest.raises(ValueError, match="only_first=1: expected the loop layout"):
    jax.eval_shape(lambda x: scanned.init(jax.random.key(0), x, only_first=1, method="encode"),
                   jnp.zeros((1, 4, 24)))


def test_positions_of_another_size_are_stretched_and_the_class_tokens_stay():
  model, params = make(vit.ViT, IMAGE, PIXELS)
  larger = np.random.default_rng(2).standard_normal((1, 16, 8, 3)).astype(np.float32)
  want = image_features(tiny_vit.float64(params), larger, (3, 5))
  np.testing.assert_allclose(tiny_vit.apply(model, params, larger)[0], want, atol=2e-5)


def test_quick_gelu_is_its_formula():
  x = np.linspace(-9, 9, 2001).astype(np.float32)
  value, slope = jax.vmap(jax.value_and_grad(activations.activation("quick_gelu")))(x)
  sigma = 1 / (1 + np.exp(-1.702 * np.float64(x)))
  np.testing.assert_allclose(value, x * sigma, atol=1e-6)
  np.testing.assert_allclose(slope, sigma + 1.702 * x * sigma * (1 - sigma), atol=1e-6)


# The published models' numbers of parameters (openai/CLIP, open_clip).
@pytest.mark.parametrize("variant, count", [
  ("B/32", 151_277_313), ("B/16", 149_620_737), ("L/14", 427_616_513), ("L/14@336", 427_944_193)])
def test_published_models_have_their_number_of_parameters(variant, count):
  task = tasks.make("clip", dict(variant=variant, image=dict(scan=True), text=dict(scan=True)))
  batch = {k: jnp.zeros(s.shape, s.dtype) for k, s in task.batch_spec(1).items()}
  params = jax.eval_shape(task.init, jax.random.key(0), batch)
  sizes = {k: sum(math.prod(x.shape) for x in jax.tree.leaves(v)) for k, v in params.items()}
  assert sum(sizes.values()) == count
  if variant == "B/16":
    assert (sizes["img"], sizes["txt"]) == (86_192_640, 63_428_096)


def test_flops_of_the_last_block_count_what_is_computed():
  size = dict(tokens=4, width=8, depth=2, mlp_dim=16, patch_size=2, num_classes=3)
  full, short = (flops.vit(**size, pool_type="tok", pooled_only=on) for on in (False, True))
  # Queries, output and mlp of four tokens, and what these ask of five keys.
  assert full - short == 4 * (2 * 2 * 8 * 8 + 4 * 8 * 16 + 4 * 5 * 8)
