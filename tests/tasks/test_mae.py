"""Masked autoencoding: masks by seed and place, the same on any mesh, one ratio of sums."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import sharding, trees, typed
from big_vision_ext.core.config import Mesh
from big_vision_ext.objectives import masks, mim
from tests import tiny_run


@functools.cache
def task(**mask):
  return tasks.make("mae", tiny_run.MAE | {"mask": tiny_run.MAE["mask"] | mask})


def images(n=8, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), np.uint8)


@pytest.mark.parametrize("mask, mesh", [
    ({}, Mesh(data=2, fsdp=4)),
    *(pytest.param(mask, mesh, marks=pytest.mark.slow) for mask, mesh in (
        (dict(family="disc"), Mesh(data=8)), (dict(num_target=3), Mesh(data=2, fsdp=4))))])
def test_loss_and_gradients_are_the_same_on_eight_devices(mask, mesh):
  t, params, batch = task(**mask), tiny_run.params(name="mae"), {"image": images()}
  rng = jax.random.key(3)
  run = jax.value_and_grad(lambda p, b: t.loss(p, b, rng, True)[0])
  loss, grads = jax.jit(run)(params, batch)
  m = sharding.make_mesh(mesh, jax.devices()[:8])
  with sharding.use(m, ()):
    spread = jax.device_put(batch, sharding.batch_sharding(m))
    other, others = jax.jit(run)(jax.device_put(params, sharding.replicated(m)), spread)
  np.testing.assert_allclose(loss, other, rtol=1e-6)
  want = trees.flatten(grads)
  largest = max(np.abs(g).max() for g in want.values())
  for name, g in trees.flatten(others).items():
    # Sums in another order, in float32.
    np.testing.assert_allclose(g, want[name], atol=2e-6 * largest, err_msg=name)


@pytest.mark.parametrize("image, decoder_parts, devices", [
    ({}, 4, 1), (dict(decoder="cross", drop_path=0.5), 2, 1),
    pytest.param({}, 2, 8, marks=pytest.mark.slow)])
def test_a_decoder_that_takes_the_batch_in_parts_computes_the_same(image, decoder_parts, devices):
  """Loss and every gradient, with weights that differ, and of a loss that is a part of another."""
  model = tiny_run.MAE | {"image": tiny_run.MAE["image"] | image}
  whole = tasks.make("mae", model)
  cut = tasks.make("mae", model | {"decoder_parts": decoder_parts})
  params, rng = tiny_run.params(name="mae", **image), np.random.default_rng(1)
  x, key = images(16), jax.random.key(5)
  mask = whole._masks(key, 16)
  mask = mask._replace(weight=jnp.asarray(rng.random(mask.weight.shape) ** 4, jnp.float32))

  def run(t):
    loss = lambda p, x, m: 3 * t.loss_under(p, x, m, key if image else None)
    return jax.jit(jax.value_and_grad(loss))

  loss, grads = run(whole)(params, x, mask)
  m = sharding.make_mesh(Mesh(data=devices), jax.devices()[:devices])
  with sharding.use(m, ()):
    spread = jax.device_put((x, mask), sharding.batch_sharding(m))
    other, others = run(cut)(jax.device_put(params, sharding.replicated(m)), *spread)
    alone = jax.jit(cut.loss_under)(params, *spread)
  np.testing.assert_allclose(loss, other, rtol=1e-6)
  if not image:
    np.testing.assert_allclose(3 * alone, other, rtol=1e-6)
  want = trees.flatten(grads)
  largest = max(np.abs(g).max() for g in want.values())
  for name, g in trees.flatten(others).items():
    # Sums in another order, in float32.
    np.testing.assert_allclose(g, want[name], atol=2e-6 * largest, err_msg=name)


def test_unequal_numbers_of_targets_weigh_as_many_as_they_are():
  """A target is worth the same in a sample with many as in one with few, on any device."""
  rng = np.random.default_rng(0)
  pred, target = rng.standard_normal((2, 8, 12, 5)).astype(np.float32)
  weight = (rng.random((8, 12)) < rng.random((8, 1))).astype(np.float32)
  want = np.sum(((pred - target) ** 2).mean(-1) * weight) / weight.sum()
  m = sharding.make_mesh(Mesh(data=8), jax.devices()[:8])
  spread = [jax.device_put(x, sharding.batch_sharding(m)) for x in (pred, target, weight)]
  np.testing.assert_allclose(jax.jit(mim.masked_mse)(*spread), want, rtol=1e-6)


def test_a_samples_mask_is_a_function_of_the_step_and_its_place():
  t, params = task(), tiny_run.params(name="mae")
  step = lambda seed, n: jax.random.fold_in(jax.random.key(seed), n)
  drawn = lambda rng: jax.device_get(t._masks(rng, 8))
  np.testing.assert_array_equal(drawn(step(0, 5)).visible, drawn(step(0, 5)).visible)
  assert not np.array_equal(drawn(step(0, 5)).visible, drawn(step(0, 6)).visible)
  assert len({tuple(row) for row in drawn(step(0, 5)).visible.tolist()}) > 4
  # The first rows of a larger batch have the masks of a smaller one.
  np.testing.assert_array_equal(t._masks(step(0, 5), 3).visible, drawn(step(0, 5)).visible[:3])
  # And the loss is that of the mask.
  mask = t._masks(step(0, 5), 8)
  loss = jax.jit(lambda p, x: t.loss(p, {"image": x}, step(0, 5), True)[0])(params, images())
  np.testing.assert_allclose(
      jax.jit(lambda p, x: t.loss_under(p, x, mask))(params, images()), loss, rtol=1e-6)


@pytest.mark.parametrize("norm_pix", [True, False])
def test_the_loss_is_that_of_the_papers_definition(norm_pix):
  """Counted by hand in float64 from the model's own predictions."""
  t = tasks.make("mae", tiny_run.MAE | {"norm_pix": norm_pix})
  params, image = tiny_run.params(name="mae"), images(3)
  mask = t._masks(jax.random.key(0), 3)
  pred, _ = t.vision.apply({"params": params}, image, mask.visible, mask.target)
  pixels = (image / 255.0 - np.array(t.vision.mean)) / np.array(t.vision.std)
  cut = pixels.reshape(3, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(3, 16, 192)
  wanted = cut[np.arange(3)[:, None], np.asarray(mask.target)]
  if norm_pix:
    wanted = (wanted - wanted.mean(-1, keepdims=True)) / np.sqrt(
        wanted.var(-1, ddof=1, keepdims=True) + 1e-6)
  want = np.mean((np.float64(pred) - wanted) ** 2)
  np.testing.assert_allclose(t.loss_under(params, image, mask), want, rtol=1e-5)


def test_branches_are_left_out_in_training_only():
  t = tasks.make("mae", tiny_run.MAE | {"image": tiny_run.MAE["image"] | {"drop_path": 0.9}})
  params, batch = tiny_run.params(name="mae"), {"image": images(4)}
  run = jax.jit(lambda rng, train: t.loss(params, batch, rng, train)[0], static_argnums=1)
  rng = jax.random.key(0)
  plain = jax.jit(lambda rng: task().loss(params, batch, rng, True)[0])(rng)
  np.testing.assert_allclose(run(rng, False), plain, rtol=1e-6)
  assert abs(run(rng, True) - plain) > 1e-3 * plain


def test_every_parameter_but_positions_learns():
  t, params = task(), tiny_run.params(name="mae")
  grads = jax.jit(jax.grad(lambda p: t.loss(p, {"image": images()}, jax.random.key(0), True)[0]))(
      params)
  idle = [name for name, g in trees.flatten(grads).items() if not np.any(np.asarray(g))]
  assert idle == []


def test_numbers_that_do_not_fit_are_named():
  with pytest.raises(typed.ConfigError, match="num_target=13: of 16 patches 12 are hidden"):
    task(num_target=13)
  with pytest.raises(ValueError, match="num_visible=16 must lie between 1 and 15"):
    task(num_visible=16)
  with pytest.raises(typed.ConfigError, match="decoder_parts=0: expected at least 1"):
    tasks.make("mae", tiny_run.MAE | {"decoder_parts": 0})
  with pytest.raises(ValueError, match="decoder_parts=3 does not divide a batch of 8"):
    tasks.make("mae", tiny_run.MAE | {"decoder_parts": 3}).loss(
        tiny_run.params(name="mae"), {"image": images()}, jax.random.key(0), True)
  with sharding.use(sharding.make_mesh(Mesh(data=8), jax.devices()[:8]), ()):
    with pytest.raises(sharding.ShardingError, match="16 rows on 8 devices .* into 4 parts"):
      tasks.make("mae", tiny_run.MAE | {"decoder_parts": 4}).loss(
          tiny_run.params(name="mae"), {"image": images(16)}, jax.random.key(0), True)
  with pytest.raises(ValueError, match="mask family 'disk'"):
    task(family="disk")
  with pytest.raises(ValueError, match="image_size=36 is no multiple of patch_size=8"):
    tasks.make("mae", tiny_run.MAE | {"image": tiny_run.MAE["image"] | {"image_size": 36}})


def test_masks_of_a_family_keep_their_number_wherever_the_gaze_is():
  keys = masks.sample_keys(jax.random.key(0), 6)
  centre = jnp.array([[0, 0], [0, 1], [1, 1], [0.5, 0.5], [0.31, 0.9], [1, 0]], jnp.float32)
  mask = masks.make("disc", keys, (4, 4), 5, centre=centre)
  assert mask.visible.shape == (6, 5)
  assert len({tuple(row) for row in np.asarray(mask.visible).tolist()}) >= 5
