"""FocusMIM as a task: what its loss and outputs promise."""

import json

import jax
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import sharding, trees, typed
from big_vision_ext.objectives import masks

SMALL = dict(widths=(4, 6), depth=1, image_size=32)
MASK = dict(family="random_patches", ratio=0.6)


def make(mask=MASK, **fields):
  return tasks.make("focusmim", dict(image=SMALL, mask=mask) | fields)


def batch(n=8, seed=0, foreground=False):
  rng = np.random.default_rng(seed)
  out = {"image": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)}
  if foreground:
    # Very unequal sums of weights: a mean of means would show.
    out["foreground"] = (rng.random((n, 32, 32)) * np.arange(n)[:, None, None] / n).astype(
      np.float32)
  return out


def drawn(task, seed=1):
  """Random parameters, biases included."""
  params = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch(1)))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: (rng.standard_normal(x.shape) / max(
    np.prod(x.shape[:-1]), 4) ** 0.5).astype(np.float32), params)


@pytest.fixture(scope="module")
def plain():
  task = make()
  return task, drawn(task)


@pytest.mark.parametrize("mask", [
  MASK, dict(family="foveate"),
  pytest.param(dict(family="periphery", ratio=0.8, attention="random"), marks=pytest.mark.thorough),
  pytest.param(dict(family="none"), marks=pytest.mark.thorough),
], ids=lambda m: m["family"])
def test_the_loss_is_the_ratio_of_sums_over_what_is_hidden(mask):
  task = make(mask)
  params, b, key = drawn(task), batch(4), jax.random.key(7)
  loss, metrics = jax.jit(lambda p, b: task.loss(p, b, key, True))(params, b)
  x = b["image"] / np.float32(255)
  seen, hidden = task.config.mask.apply(masks.sample_keys(key, 4), x)
  pred = np.asarray(task.vision.apply({"params": params}, seen)[0], np.float64)
  m = np.repeat(np.asarray(hidden, np.float64)[..., None], 3, -1)
  want = ((pred - x) ** 2 * m).sum() / m.sum()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  np.testing.assert_allclose(metrics["hidden_share"], m.mean(), rtol=1e-6)


def test_every_parameter_learns(plain):
  task, params = plain
  grads = trees.flatten(jax.jit(jax.grad(
    lambda p: task.loss(p, batch(), jax.random.key(0), True)[0]))(params))
  assert [name for name, g in grads.items() if not np.any(np.asarray(g))] == []


@pytest.mark.parametrize("mask, foreground", [
  (dict(family="periphery", ratio=0.7, attention="random"), False),
  pytest.param(dict(family="periphery", ratio=0.9, attention="foreground"), True,
               marks=pytest.mark.slow),
  pytest.param(dict(family="foveate", fixation="random"), False, marks=pytest.mark.thorough),
], ids=["discs", "foreground", "fovea"])
def test_loss_and_gradients_are_the_same_on_eight_devices_with_unequal_masks(mask, foreground):
  task = make(mask, foreground=foreground)
  params, b, key = drawn(task), batch(foreground=foreground), jax.random.key(3)
  hidden = task.config.mask.apply(
    masks.sample_keys(key, 8), b["image"] / np.float32(255), b.get("foreground"))[1]
  assert len(np.unique(np.asarray(hidden).sum((1, 2)))) > 3
  fn = lambda p, b: jax.value_and_grad(lambda p: task.loss(p, b, key, True)[0])(p)
  want, want_grads = jax.jit(fn)(params, b)
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    rows = sharding.batch_sharding(mesh, 8)
    got, grads = jax.jit(fn)(params, jax.device_put(b, rows))
  # float32 sums in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(want_grads))
  for name, g in trees.flatten(want_grads).items():
    np.testing.assert_allclose(trees.flatten(grads)[name], g, atol=1e-5 * largest, err_msg=name)


def test_errors_of_what_is_seen_and_hidden_pixels_of_the_input_do_not_matter():
  """With black in their place, the loss has hidden pixels as targets and in no other way."""
  task = make(MASK | dict(fill="zero"))
  params, b = drawn(task), batch(2)
  out = jax.jit(task.reconstruct)(params, b)
  hidden = np.asarray(out["hidden"]) > 0
  assert hidden.shape == (2, 32, 32)
  other = dict(b, image=np.where(hidden[..., None], 255 - b["image"], b["image"]))
  again = jax.jit(task.reconstruct)(params, other)
  np.testing.assert_array_equal(again["input"], out["input"])
  np.testing.assert_array_equal(again["prediction"], out["prediction"])
  assert np.all(np.asarray(again["loss"]) != np.asarray(out["loss"]))
  np.testing.assert_allclose(
    out["input"], np.where(hidden[..., None], 0, b["image"]), atol=1e-4)


def test_a_reconstruction_says_what_was_seen_hidden_predicted_and_how_well(plain):
  task, params = plain
  b = dict(batch(4), index=np.array([5, 2, 5, 0]))
  fn = jax.jit(task.reconstruct, static_argnames="seed")
  out = jax.device_get(fn(params, b, seed=1))
  np.testing.assert_array_equal(out["hidden"][0], out["hidden"][2])
  assert not np.array_equal(out["hidden"][0], out["hidden"][1])
  assert not np.array_equal(out["hidden"], fn(params, b, seed=2)["hidden"])
  assert 0 <= out["prediction"].min() and out["prediction"].max() <= 255
  assert out["prediction"].std() > 1 and out["input"].shape == (4, 32, 32, 3)
  error = ((out["prediction"] - b["image"]) ** 2).mean(-1) / 255**2
  want = (error * out["hidden"]).sum((1, 2)) / out["hidden"].sum((1, 2))
  np.testing.assert_allclose(out["loss"], want, rtol=1e-4)
  part = fn(params, {k: x[1:3] for k, x in b.items()}, seed=1)
  np.testing.assert_allclose(part["prediction"], out["prediction"][1:3], atol=1e-3)


def test_evaluators_see_whole_images_flat_or_averaged(plain):
  task, params = plain
  b = batch(3)
  latent = np.asarray(task.latent(params, b))
  assert latent.shape == (3, 8, 8, 6) and latent.min() >= 0
  np.testing.assert_array_equal(task.embed_image(params, b), latent.reshape(3, -1))
  np.testing.assert_allclose(make(pool="mean").embed_image(params, b), latent.mean((1, 2)),
                             rtol=1e-6)
  image = np.asarray(task.autoencode(params, b))
  want, _ = task.vision.apply({"params": params}, b["image"] / np.float32(255))
  np.testing.assert_allclose(image, want, atol=1e-6)


def test_a_mask_is_a_function_of_the_steps_key_and_of_the_row_in_the_global_batch():
  """A step's key is fold_in(seed, step): nothing else is there for a resumed run to lose."""
  task, rows = make(dict(family="periphery", ratio=0.8, attention="random")), batch(8)["image"]
  draw = lambda key, n: np.asarray(task._masked(
    masks.sample_keys(key, n), rows[:n] / np.float32(255), {})[1])
  keys = [jax.random.fold_in(jax.random.key(0), step) for step in range(2)]
  np.testing.assert_array_equal(draw(keys[0], 8)[:5], draw(keys[0], 5))
  assert not np.array_equal(draw(keys[0], 8), draw(keys[1], 8))


def test_the_arithmetic_is_that_of_the_published_model():
  task = tasks.make("focusmim", dict(image=dict(image_size=96)))
  # 344 and 324 million products for each image (its encoder, its decoder).
  assert round(task.forward_flops() / 2e6) == 668
  assert task.flops_per_example == 3 * task.forward_flops()


@pytest.mark.parametrize("fields, message", [
  (dict(image=SMALL | dict(image_size=34)), "image_size=34 is no multiple of 4"),
  (dict(image=SMALL | dict(width=8)), "config.model.image.width=8.*nearest is 'widths'"),
  (dict(mask=dict(famly="none")), "famly"),
  (dict(mask=dict(family="random")), "family"),
  (dict(mask=MASK | dict(patch=5)), "config.model.mask: patch=5 does not divide"),
  (dict(mask=dict(family="periphery", ratio=0.5, attention="foreground")),
   "set config.model.foreground=True"),
])
def test_settings_that_do_not_fit_are_named(fields, message):
  with pytest.raises((ValueError, typed.ConfigError), match=message):
    make(**fields)


def test_a_batch_without_the_weights_that_are_asked_for_is_refused_in_words(plain):
  _, params = plain
  task = make(foreground=True)
  with pytest.raises(typed.ConfigError, match="set config.input.foreground='boxes' or 'mask'"):
    task.loss(params, batch(), jax.random.key(0), True)
  # A picture shows the loss over all that is hidden, then.
  found = task.reconstruct(params, batch(2))
  np.testing.assert_array_equal(found["loss"], make().reconstruct(params, batch(2))["loss"])


@pytest.mark.slow
def test_it_trains_on_the_foreground_of_records_and_is_fine_tuned(tmp_path):
  from big_vision_ext import train
  from input_pipeline.build import digits

  digits.build(tmp_path / "digits", train=40, val=20, progress=False)
  arg = "mask=periphery,foreground=boxes,attention=foreground,jitter,finetune,runlocal"
  argv = ["--config", f"configs/mim/focusmim.py:{arg},data={tmp_path / 'digits'}",
          "--workdir", str(tmp_path / "run"), "--config.evals.finetune.max_epochs=2"]
  assert train.main(argv) == 0
  lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  assert all(np.isfinite(x["loss"]) for x in lines if "loss" in x)
  last = {k: v for line in lines for k, v in line.items()}
  assert last["finetune/train_images"] == 40 and last["finetune/epochs"] == 2


def test_images_of_another_size_are_refused(plain):
  task, params = plain
  with pytest.raises(typed.ConfigError, match="set config.input.image_size=32"):
    task.loss(params, {"image": np.zeros((2, 40, 40, 3), np.uint8)}, jax.random.key(0), True)
