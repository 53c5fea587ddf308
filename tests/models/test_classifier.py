"""The classifier: names of a masked autoencoder, features and norms by their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import sharding, trees
from big_vision_ext.models import classifier, ijepa, layouts, mae, vit
from tests.models import tiny_vit

SIZES = dict(width=24, depth=2, mlp_dim=40, num_heads=3, posemb_grid=(4, 6), patch_size=4)


def made(**kw):
  kw = dict(classes=5, final_norm=kw.get("probe", False) or kw.get("feature") == "cls") | kw
  model = classifier.Classifier(**SIZES | kw)
  image = np.random.default_rng(1).standard_normal((6, 16, 24, 3)).astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), image[:1])["params"]
  return model, tiny_vit.randomize(shapes), image


def reference(params, image, feature, probe):
  """The feature, by an independent way there: the encoder alone, tokens put together by hand."""
  tower = vit.ViT(**SIZES, pool_type="none", act="gelu", final_norm="encoder_norm" in
                  params["Transformer"])
  own = {k: params[k] for k in ("embedding", "pos_embedding", "Transformer")}
  tokens = tower.apply({"params": own}, image, method="embed")
  cls = np.broadcast_to(params["cls"] + params["cls_pos_embedding"], (len(image), *np.shape(
    params["cls"])[1:]))
  y, _ = tower.apply({"params": own}, jnp.concatenate([cls, tokens], axis=1), method="encode")
  y = np.float64(y)
  if feature == "cls":
    return y[:, 0]
  x = y[:, 1:].mean(axis=1)
  if not probe:
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
    x = x * params["fc_norm"]["scale"] + params["fc_norm"]["bias"]
  return x


@pytest.mark.parametrize("feature, probe", [
  ("mean", False), ("cls", False), ("cls", True), ("mean", True)])
def test_logits_are_a_linear_map_of_the_feature(feature, probe):
  model, params, image = made(feature=feature, probe=probe)
  if probe:
    params["head_norm"]["var"] = np.abs(params["head_norm"]["var"]) + 0.5
  logits, out = jax.jit(lambda p, x: model.apply({"params": p}, x))(params, image)
  x = reference(params, image, feature, probe)
  tiny_vit.assert_close(out["feature"], x.astype(np.float32))
  if probe:
    x = (x - params["head_norm"]["mean"]) / np.sqrt(params["head_norm"]["var"] + 1e-6)
  want = x @ np.float64(params["head"]["kernel"]) + params["head"]["bias"]
  tiny_vit.assert_close(logits, want.astype(np.float32))
  assert logits.dtype == jnp.float32


def test_the_encoder_has_the_names_and_shapes_of_a_masked_autoencoder():
  sizes = dict(decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_dim=24)
  index = np.zeros((1, 4), np.int32)
  source = trees.flatten(sharding.unbox(jax.eval_shape(
    mae.MaskedAutoencoder(**SIZES, **sizes).init, jax.random.key(0),
    np.zeros((1, 16, 24, 3), np.uint8), index, index))["params"])
  for kw, own in ((dict(feature="mean"), {"fc_norm/scale", "fc_norm/bias"}),
                  (dict(feature="cls", probe=True), {"head_norm/mean", "head_norm/var"})):
    params = trees.flatten(made(**kw)[1])
    assert set(params) - set(source) == own | {"head/kernel", "head/bias"}
    assert all(np.shape(params[n]) == source[n].shape for n in params if n in source)
    left = {n for n in source if n not in params and not n.startswith(("Decoder", "decoder"))}
    norm = {"Transformer/encoder_norm/scale", "Transformer/encoder_norm/bias"}
    assert left == {"mask_token"} | (norm if "probe" not in kw else set())


def test_a_fresh_head_is_drawn_as_the_recipe_says_and_positions_are_fixed_ones():
  model = classifier.Classifier(
    **SIZES | dict(width=96, mlp_dim=100, depth=1), classes=200, final_norm=False, head_std=2e-5)
  params = sharding.unbox(jax.jit(model.init)(
    jax.random.key(0), np.zeros((1, 16, 24, 3), np.float32)))["params"]
  assert np.std(params["head"]["kernel"]) == pytest.approx(2e-5, rel=0.05)
  assert not np.any(params["head"]["bias"]) and not np.any(params["cls_pos_embedding"])
  np.testing.assert_allclose(params["pos_embedding"][0], vit.sincos2d_mae(4, 6, 96), atol=1e-6)


def test_batch_norm_is_that_of_pytorch_over_the_global_batch():
  """Normalised by the biased variance; running ones take in a tenth of the unbiased."""
  rng = np.random.default_rng(0)
  x = (rng.standard_normal((16, 8)) * rng.uniform(0.1, 9, 8) + 50).astype(np.float32)
  old = {"mean": np.float32(rng.standard_normal(8)), "var": np.float32(rng.uniform(0.5, 2, 8))}
  run = jax.jit(lambda p, x: classifier.BatchNorm().apply({"params": p}, x, True))
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  wide = np.float64(x)
  for at in (x, jax.device_put(x, sharding.batch_sharding(mesh, 16))):
    y, new = run(old, at)
    want = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-6)
    # float32: means of numbers around 50.
    np.testing.assert_allclose(y, want, atol=1e-3)
    np.testing.assert_allclose(new["mean"], 0.9 * old["mean"] + 0.1 * wide.mean(0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * old["var"] + 0.1 * wide.var(0, ddof=1), rtol=1e-4)
  y, same = classifier.BatchNorm().apply({"params": old}, x, False)
  np.testing.assert_allclose(y, (wide - old["mean"]) / np.sqrt(old["var"] + 1e-6), rtol=1e-4,
                             atol=1e-4)
  np.testing.assert_array_equal(same["mean"], old["mean"])
  with pytest.raises(ValueError, match="one image has no statistics"):
    run(old, x[:1])


def test_a_probe_s_gradient_is_its_head_s_alone():
  model, params, image = made(feature="cls", probe=True)
  loss = lambda p: jnp.sum(model.apply({"params": p}, image, True)[0] ** 2)
  grads = trees.flatten(jax.jit(jax.grad(loss))(params))
  moved = {n for n, g in grads.items() if np.any(np.asarray(g))}
  assert moved == {"head/kernel", "head/bias"}


def test_every_parameter_learns_in_fine_tuning():
  model, params, image = made(feature="mean", drop_path=0.1)
  loss = lambda p: jnp.sum(model.apply(
    {"params": p}, image, True, rngs={"dropout": jax.random.key(0)})[0] ** 2)
  grads = trees.flatten(jax.jit(jax.grad(loss))(params))
  # A key's bias adds the same to all scores of a query.
  assert {n for n, g in grads.items() if not np.abs(g).max() > 1e-4} <= {
    n for n in grads if n.endswith("key/bias")}


@pytest.mark.parametrize("scan", [False, True])
def test_branches_are_left_out_in_training_only_and_more_often_in_later_blocks(scan):
  """A block whose both branches are left out gives what it got: counted, sample by sample."""
  depth, rate, b = 5, 0.8, 256
  model = vit.ViT(width=8, depth=depth, mlp_dim=8, num_heads=1, posemb_grid=(1, 2), patch_size=2,
                  pool_type="none", drop_path=rate, scan=scan)
  image = np.random.default_rng(1).standard_normal((b, 2, 4, 3)).astype(np.float32)
  params = tiny_vit.randomize(jax.eval_shape(
    vit.ViT(**{**{f: getattr(model, f) for f in SIZES}, "pool_type": "none"}).init,
    jax.random.key(0), image)["params"])
  params = layouts.loop_to_scan(params) if scan else params

  def run(image, key=None):
    rngs = {} if key is None else {"dropout": jax.random.key(key)}
    _, out = model.apply({"params": params}, image, deterministic=key is None, rngs=rngs)
    return model.apply({"params": params}, image, method="embed"), jnp.stack(out["blocks"])

  run = jax.jit(run, static_argnames="key")
  tokens, off = run(image)
  plain = vit.ViT(**{**{f: getattr(model, f) for f in SIZES}, "pool_type": "none", "scan": scan})
  _, out = plain.apply({"params": params}, image)
  tiny_vit.assert_close(off, jnp.stack(out["blocks"]))
  _, on = run(image, 3)
  before = np.concatenate([np.asarray(tokens)[None], np.asarray(on)])
  same = np.all(before[1:] == before[:-1], axis=(2, 3)).mean(axis=1)
  # Both of a block: the square of its rate. Five deviations of 256 samples: 0.16 at most.
  np.testing.assert_allclose(same, (rate * np.arange(depth) / (depth - 1)) ** 2, atol=0.16)
  assert same[0] == 0
  _, again = run(image, 3)
  np.testing.assert_array_equal(on, again)
  assert not np.array_equal(on, run(image, 4)[1])


def test_an_encoder_without_class_tokens_has_the_names_of_i_jepa_s():
  model, params, image = made(pool_type="none", probe=True)
  source = trees.flatten(sharding.unbox(jax.eval_shape(
    ijepa.Encoder(**SIZES).init, jax.random.key(0), np.zeros((1, 16, 24, 3), np.uint8)))["params"])
  own = {"head/kernel", "head/bias", "head_norm/mean", "head_norm/var"}
  assert set(trees.flatten(params)) - own == set(source)
  pixels = np.random.default_rng(3).integers(0, 256, (2, 16, 24, 3), np.uint8)
  mean, std = (np.float32(x) for x in (ijepa.Encoder.mean, ijepa.Encoder.std))
  image = ((pixels / 255 - mean) / std).astype(np.float32)
  _, out = model.apply({"params": params}, image)
  encoder = {k: v for k, v in params.items() if not k.startswith("head")}
  tokens = ijepa.Encoder(**SIZES).apply({"params": encoder}, pixels)
  tiny_vit.assert_close(out["feature"], tokens.mean(axis=1))
  with pytest.raises(ValueError, match="feature='cls'"):
    made(pool_type="none", feature="cls")
