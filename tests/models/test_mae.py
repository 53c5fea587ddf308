"""Masked autoencoders: sizes as published, and no hidden pixel reaches the encoder."""

import functools

import jax
import numpy as np
import pytest

from big_vision_ext.core import sharding, trees
from big_vision_ext.models import mae, vit
from big_vision_ext.objectives import masks
from tests.models import tiny_vit

TINY = dict(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=4, posemb_grid=(4, 6),
            decoder_width=16, decoder_depth=2, decoder_heads=2, decoder_mlp_dim=24)


@functools.cache
def made(**kw):
  model = mae.MaskedAutoencoder(**TINY | kw)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (2, 16, 24, 3), np.uint8)
  mask = jax.device_get(masks.make("random", masks.sample_keys(jax.random.key(0), 2), (4, 6), 9))
  shapes = jax.eval_shape(model.init, jax.random.key(0), image, mask.visible, mask.target)
  params = tiny_vit.randomize(shapes["params"])
  run = jax.jit(lambda p, x, m: model.apply({"params": p}, x, m.visible, m.target))
  return run, params, image, mask


@pytest.mark.parametrize("name, count", [
  ("B/16", 111_907_840), ("L/16", 329_541_888), ("H/14", 657_074_508)])
def test_the_published_sizes_have_the_published_numbers_of_parameters(name, count):
  model = vit.build(mae.MaskedAutoencoder, dict(variant=name, image_size=224))
  visible = np.zeros((1, 49), np.int32)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.uint8), visible, visible)
  assert sum(x.size for x in jax.tree.leaves(sharding.unbox(shapes))) == count


@pytest.mark.parametrize("decoder", mae.DECODERS)
def test_hidden_pixels_do_not_reach_encoder_or_prediction(decoder):
  run, params, image, mask = made(decoder=decoder)
  changed = image.reshape(2, 4, 4, 6, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 24, 48).copy()
  rows = np.arange(2)[:, None]
  changed[rows, mask.target] = 255 - changed[rows, mask.target]
  changed = changed.reshape(2, 4, 6, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(image.shape)
  assert not np.array_equal(changed, image)
  (pred, out), (again, other) = run(params, image, mask), run(params, changed, mask)
  np.testing.assert_array_equal(out["encoded"], other["encoded"])
  np.testing.assert_array_equal(out["pooled"], other["pooled"])
  np.testing.assert_array_equal(pred, again)


@pytest.mark.parametrize("decoder", mae.DECODERS)
@pytest.mark.parametrize("change", [
  dict(select="onehot"), dict(scan=True), dict(remat_policy="nothing_saveable")])
def test_how_it_is_computed_does_not_change_what(decoder, change):
  run, params, image, mask = made(decoder=decoder)
  other, *_ = made(decoder=decoder, **change)
  if "scan" in change:
    from big_vision_ext.models import layouts

    params_other = layouts.loop_to_scan(params)
  else:
    params_other = params
  tiny_vit.assert_close(other(params_other, image, mask)[0], run(params, image, mask)[0])


def test_queries_of_a_cross_decoder_do_not_see_each_other():
  run, params, image, mask = made(decoder="cross")
  few = masks.Mask(mask.visible, mask.target[:, 3:7], mask.weight[:, 3:7])
  tiny_vit.assert_close(run(params, image, few)[0], run(params, image, mask)[0][:, 3:7])


def test_fixed_positions_are_those_of_the_reference():
  """facebookresearch/mae: columns first, frequencies 10000^(-k/(d/4)), sine then cosine."""
  table = vit.sincos2d_mae(3, 5, 16)
  for y in range(3):
    for x in range(5):
      for axis, at in enumerate((x, y)):
        for k in range(4):
          angle = at / 10_000 ** (k / 4)
          got = table[y * 5 + x, axis * 8 + np.array([k, 4 + k])]
          np.testing.assert_allclose(got, [np.sin(angle), np.cos(angle)], atol=1e-7)


def test_fresh_parameters_are_drawn_as_the_recipe_says():
  model = mae.MaskedAutoencoder(**TINY | dict(width=96, num_heads=3, mlp_dim=384))
  image, index = np.zeros((1, 16, 24, 3), np.uint8), np.zeros((1, 4), np.int32)
  fresh = model.init(jax.random.key(0), image, index, index)
  params = trees.flatten(sharding.unbox(fresh)["params"])
  block = "Transformer/encoderblock_0"
  bounds = {
    # One matrix of queries, keys and values: sqrt(6 / (d + 3 d)).
    f"{block}/MultiHeadDotProductAttention_0/query/kernel": (6 / (4 * 96)) ** 0.5,
    f"{block}/MultiHeadDotProductAttention_0/out/kernel": (6 / (2 * 96)) ** 0.5,
    f"{block}/MlpBlock_0/Dense_0/kernel": (6 / (96 + 384)) ** 0.5,
    "embedding/kernel": (6 / (96 + 48)) ** 0.5,
    "decoder_embed/kernel": (6 / (96 + 16)) ** 0.5,
  }
  for name, bound in bounds.items():
    largest = np.abs(params[name]).max()
    assert 0.95 * bound < largest <= bound, name
  assert not np.any(params["cls_pos_embedding"])
  assert 0.01 < np.std(params["mask_token"]) < 0.03


def test_an_image_of_another_size_is_refused_where_positions_would_be_wrong():
  model = mae.MaskedAutoencoder(**TINY)
  index = np.zeros((1, 4), np.int32)
  with pytest.raises(ValueError, match=r"grid of \(4, 6\)"):
    model.init(jax.random.key(0), np.zeros((1, 24, 24, 3), np.uint8), index, index)
  with pytest.raises(ValueError, match="decoder='both'"):
    mae.MaskedAutoencoder(**TINY | dict(decoder="both")).init(
      jax.random.key(0), np.zeros((1, 16, 24, 3), np.uint8))
