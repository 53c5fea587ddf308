"""FLOP counts against the compiler's, published figures and counting by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from big_vision_ext.core import flops
from big_vision_ext.models import vit
from big_vision_ext.models.blocks import EncoderBlock


def compiled_flops(model, *args, **kw):
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), *args, **kw)["params"])
  run = jax.jit(lambda p, a: model.apply({"params": p}, *a, **kw)[0])
  # Before optimisation: the compiler counts the program as written, not its fused kernels.
  return run.lower(params, args).cost_analysis()["flops"]


def test_a_vit_costs_what_the_compiler_counts():
  sizes = dict(width=192, depth=2, mlp_dim=768, patch_size=8)
  model = vit.ViT(**sizes, num_heads=3, posemb_grid=(8, 8), num_classes=100)
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  want = compiled_flops(model, images)
  got = flops.vit(tokens=64, **sizes, num_classes=100)
  # The compiler also counts norms, softmax, activations and biases.
  assert 0.95 * want < got <= want


def test_a_block_with_cached_keys_costs_what_the_compiler_counts():
  block = EncoderBlock(num_heads=4, mlp_dim=768)
  x = jax.ShapeDtypeStruct((1, 96, 256), jnp.float32)
  kv = (jax.ShapeDtypeStruct((1, 160, 4, 64), jnp.float32),) * 2
  want = compiled_flops(block, x, kv)
  assert 0.95 * want < flops.block(96, 256, 768, cached=160) <= want


@pytest.mark.parametrize(
  "name, tokens, gflops",
  [("S/16", 196, 9.2), ("B/16", 196, 35.1)],
)
def test_published_costs_are_met(name, tokens, gflops):
  """Twice the 4.6 and 17.6 G multiply-adds of Touvron et al. 2021 (DeiT)."""
  sizes = vit.variant(name)
  del sizes["num_heads"]
  got = flops.vit(tokens=tokens, **sizes, pool_type="gap")
  assert got == pytest.approx(gflops * 1e9, rel=0.01)


def test_siglip_base_costs_its_published_figure():
  """46.4 GFLOP in open_clip's table: 224 px and 64 tokens."""
  sizes = vit.variant("B/16")
  del sizes["num_heads"]
  image = flops.vit(tokens=196, **sizes)
  del sizes["patch_size"]
  total = image + flops.text(text_len=64, **sizes, out_dim=768)
  assert total == pytest.approx(46.4e9, rel=0.02)


def test_parts_are_counted_as_written_by_hand():
  t, k, d, f = 5, 7, 6, 11
  assert flops.block(t, d, f, cached=k) == (
    2 * t * d * d * 4 + 2 * t * (t + k) * d * 2 + 2 * t * d * f * 2
  )
  assert flops.patches(t, d, 4) == 2 * t * 48 * d
  assert (
    flops.map_head(t, d, f) == 2 * t * d * d * 2 + 2 * d * d * 2 + 2 * t * d * 2 + 2 * d * f * 2
  )
  assert flops.text(text_len=t, width=d, depth=3, mlp_dim=f, out_dim=2) == (
    3 * flops.block(t, d, f) + 2 * d * 2
  )
  with_head = flops.text(text_len=t, width=d, depth=1, mlp_dim=f, pool_type="map")
  assert with_head == flops.block(t, d, f) + flops.map_head(t, d, f)
  assert flops.contrastive(32, 8) == 2 * 32 * 8
  assert flops.train(10, 4) == 34


def test_ps3_high_resolution_cost_follows_the_budget_and_not_the_image():
  so400m = dict(width=1152, depth=27, mlp_dim=4304, patch_size=14)
  at_4k = flops.ps3(scales=(378, 756, 1512, 3780), selected=[2560], **so400m)
  at_1k = flops.ps3(scales=(378, 756, 1512), selected=[2560], **so400m)
  assert at_4k == at_1k
  assert at_4k["low"] == flops.vit(tokens=729, **so400m)
  block = flops.block(2560, 1152, 4304, cached=729)
  rest = flops.patches(2560, 1152, 14) + flops.map_head(2560, 1152, 4304)
  assert at_4k["high"] == 27 * block + rest
  assert at_4k["total"] == at_4k["low"] + at_4k["select"] + at_4k["high"]
  looks = flops.ps3(scales=(378, 756, 1512), selected=[2560, 2560], **so400m)
  assert looks["high"] < 2 * at_1k["high"]  # One pooling over all looks.
  assert flops.ps3(scales=(378,), selected=[], **so400m)["high"] == 0


def test_an_adapter_and_a_pooling_head_of_its_own_size_are_counted_by_hand():
  sizes = dict(width=8, depth=2, mlp_dim=12, patch_size=4, scales=(8, 16), selected=[3])
  plain = flops.ps3(**sizes)
  own = flops.ps3(
    **sizes, adapter_hidden=5, adapter_depth=2, pool_width=6, pool_mlp_dim=7
  )  # fmt: skip
  for part, tokens in (("low", 4), ("high", 3)):
    adapter = tokens * 2 * (8 * 5 + 5 * 5 + 5 * 5 + 5 * 6)
    heads = flops.map_head(tokens, 6, 7) - flops.map_head(tokens, 8, 12)
    assert own[part] - plain[part] == adapter + heads
  assert own["select"] == plain["select"]


def test_selection_cost_is_counted_as_written_by_hand():
  sizes = dict(width=8, depth=2, mlp_dim=12, patch_size=4)
  args = dict(
    scales=(8, 16),
    selected=[3],
    num_select_layers=2,
    num_prompts=2,
    selection_size=32,
    selection_hidden=6,
    selection_out=5,
    selection_depth=3,
    selection_kernel=8,
  )
  low = 4 * (2 * 16 * 16 + 2 * 16 * 8 + 2 * 2 * 8)
  conv = 3 * (2 * 49 * 6 + 2 * 6 * 24 * 2) + 2 * 3 * 64 * 6 + 2 * 6 * 5 + 2 * 2 * 5
  assert flops.ps3(**sizes, **args)["select"] == low + 16 * conv + 2 * 2 * 8 * 5
  assert flops.ps3(**sizes, **args, highres_selection=False)["select"] == low
  # Two maps instead of one: more outputs of the two last layers, and twice the cosines.
  more = 4 * (2 * 16 * 8 + 2 * 2 * 8) + 16 * (2 * 2 * 5) + 2 * 2 * 8 * 5
  assert flops.ps3(**sizes, **args, num_maps=2)["select"] == low + 16 * conv + 160 + more


def test_a_policy_is_counted_for_every_look_but_the_first():
  sizes = dict(width=8, depth=2, mlp_dim=12, patch_size=4, scales=(8, 16), num_prompts=2)
  one, three = (flops.ps3(**sizes, selected=[3] * n)["select"] for n in (1, 3))
  assert one == three
  cell = 2 * 8 * 5 + 9 * 2 * (1 + 1 + 5) * 5 + 9 * 2 * 5 * 5 + 2 * 5
  policy = 4 * cell + 2 * 8 * 5 + 2 * 5 * 5
  for looks in (1, 3):
    own = flops.ps3(**sizes, selected=[3] * looks, policy_hidden=5)["select"]
    assert own - one == (looks - 1) * 2 * policy


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("TPU v3", 61.5e12),
    ("TPU v4", 275e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5e", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("TPU v6e", 918e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", None),
    ("cpu", None),
  ],
)
def test_device_kinds_as_jax_names_them_have_their_peak(kind, peak):
  assert flops.peak(kind) == peak


def test_utilisation_is_the_share_of_the_peak():
  assert flops.mfu(275e9, 1000, 2, "TPU v4") == pytest.approx(0.5)
  assert flops.mfu(275e9, 1000, 2, "cpu") is None
