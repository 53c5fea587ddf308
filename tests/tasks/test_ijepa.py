"""I-JEPA: the teacher follows and is not trained, and the context knows nothing of its targets."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks, train
from big_vision_ext.core import sharding, trees
from tests import toy_classes
from tests.models import tiny_vit

MODEL = dict(
  image=dict(width=24, depth=1, mlp_dim=40, num_heads=3, patch_size=4, image_size=32),
  predictor=dict(width=16, depth=1, num_heads=2, mlp_dim=24),
  blocks=dict(num_context=16, num_blocks=4, block_size=11), momentum=0.9, momentum_steps=20)



@pytest.fixture(scope="module")
def case():
  task = tasks.make("ijepa", MODEL)
  batch = {"image": np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)}
  return task, tiny_vit.randomize(jax.eval_shape(task.init, jax.random.key(0), batch)), batch


def test_the_teacher_begins_as_the_encoder_does(case):
  task, _, batch = case
  params = sharding.unbox(jax.jit(task.init)(jax.random.key(0), batch))
  teacher = trees.flatten(params["teacher"])
  own = {n: x for n, x in trees.flatten(params).items()
         if not n.startswith(("teacher/", "predictor/"))}
  assert teacher.keys() == own.keys() and "Transformer/encoder_norm/scale" in own
  for name, x in own.items():
    np.testing.assert_array_equal(x, teacher[name])


@pytest.mark.parametrize("step, momentum", [(0, 0.9), (10, 0.95), (20, 1.0), (50, 1.0)])
def test_the_teacher_follows_by_a_momentum_that_rises_to_one(case, step, momentum):
  task, params, _ = case
  new = jax.jit(task.after_update)(params, jnp.int32(step))
  flat = trees.flatten(params)
  for name, x in trees.flatten(new).items():
    want = flat[name]
    if name.startswith("teacher/"):
      want = momentum * np.float64(want) + (1 - momentum) * flat[name.removeprefix("teacher/")]
    np.testing.assert_allclose(x, want, rtol=1e-6, atol=1e-6, err_msg=name)


def test_nothing_is_learned_through_the_teacher_and_everything_else_learns(case):
  task, params, batch = case
  grads = jax.jit(jax.grad(lambda p: task.loss(p, batch, jax.random.key(1), True)[0]))(params)
  grads = trees.flatten(grads)
  idle = {n for n, g in grads.items() if not np.abs(g).max() > 1e-9}
  assert {n for n in grads if n.startswith("teacher/")} <= idle
  # A key's bias adds the same to all scores of a query.
  assert all(n.startswith("teacher/") or n.endswith("key/bias") for n in idle)


def test_hidden_pixels_do_not_reach_the_prediction_and_do_reach_the_targets(case):
  task, params, batch = case
  drawn = jax.device_get(task._blocks(jax.random.key(2), 8))
  image = batch["image"]
  cut = image.reshape(8, 8, 4, 8, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(8, 64, -1).copy()
  hidden = np.ones((8, 64), bool)
  hidden[np.arange(8)[:, None], drawn.context] = False
  cut[hidden] = 255 - cut[hidden]
  other = cut.reshape(8, 8, 8, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(image.shape)
  predict, targets = jax.jit(task.predict), jax.jit(task.targets)
  np.testing.assert_array_equal(predict(params, image, drawn), predict(params, other, drawn))
  assert not np.allclose(targets(params, image, drawn), targets(params, other, drawn))


def test_a_block_s_prediction_does_not_depend_on_the_other_blocks(case):
  task, params, batch = case
  drawn = jax.device_get(task._blocks(jax.random.key(2), 8))
  whole = task.predict(params, batch["image"], drawn)
  one = task.predict(params, batch["image"], drawn._replace(target=drawn.target[:, 2:3]))
  tiny_vit.assert_close(one, whole[:, 2:3])


def test_the_loss_is_smooth_l1_of_the_teacher_s_normed_tokens(case):
  task, params, batch = case
  key = jax.random.key(4)
  loss = jax.jit(task.loss, static_argnums=3)
  got, metrics = loss(params, batch, key, True)
  drawn = jax.device_get(task._blocks(key, 8))
  tokens = np.float64(task.vision.apply({"params": params["teacher"]}, batch["image"]))
  tokens -= tokens.mean(-1, keepdims=True)
  tokens /= np.sqrt((tokens**2).mean(-1, keepdims=True) + 1e-5)
  wanted = np.stack([tokens[i][drawn.target[i]] for i in range(8)])
  error = np.abs(np.float64(task.predict(params, batch["image"], drawn)) - wanted)
  assert (error < 1).any() and (error > 1).any()
  want = np.where(error < 1, error**2 / 2, error - 0.5).mean()
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(metrics["teacher_deviation"], wanted.std((0, 1, 2)).mean(), rtol=1e-5)


@pytest.mark.slow
def test_loss_and_gradients_are_the_same_on_eight_devices(case):
  task, params, batch = case
  fn = jax.value_and_grad(lambda p, b: task.loss(p, b, jax.random.key(1), True)[0])
  want = jax.jit(fn)(params, batch)
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    got = jax.jit(fn)(params, jax.device_put(batch, sharding.batch_sharding(mesh, 8)))
  tiny_vit.assert_close(got, want)


def test_flops_are_counted_by_parts(case):
  task, _, _ = case
  # Per block of the encoder on k tokens: 8 k d^2 + 4 k^2 d + 4 k d f, by hand.
  block = lambda k, d, f: 8 * k * d**2 + 4 * k * k * d + 4 * k * d * f
  teacher = 2 * 64 * 48 * 24 + block(64, 24, 40)
  context = 2 * 16 * 48 * 24 + block(16, 24, 40) + 2 * 16 * 24 * 16
  predictor = 4 * (block(16 + 11, 16, 24) + 2 * 11 * 16 * 24)
  assert task.forward_flops() == teacher
  assert task.flops_per_example == 3 * (context + predictor) + teacher


@pytest.mark.parametrize("changes, says", [
  (dict(momentum=1.5), "config.model.momentum=1.5"),
  (dict(blocks=dict(num_context=30, block_size=11)), "config.model.blocks: num_context=30"),
  (dict(image=MODEL["image"] | dict(image_size=30)), "image_size=30 is no multiple"),
])
def test_settings_that_cannot_be_are_errors(changes, says):
  with pytest.raises(ValueError, match=says):
    tasks.make("ijepa", MODEL | changes)


@pytest.mark.slow
def test_it_trains_through_the_command_and_the_teacher_is_in_the_checkpoint(tmp_path):
  data = toy_classes.write(tmp_path / "trees", train=16, val=8)
  config = dict(
    task="ijepa", batch_size=8, total_steps=20, lr=3e-3, log_steps=1, model=MODEL,
    input=dict(data=data, image_size=32, captions=False, threads=1),
    optim=dict(clip_norm=None, freeze=("teacher/.*", "pos_embedding")),
    schedule=dict(type="cosine", warmup_steps=3),
    evals=dict(near=dict(type="knn", ks=(1,), input=dict(split="val"), batch_size=8)))
  file = tmp_path / "x.py"
  file.write_text(f"def get_config(arg=None):\n  return {config!r}\n")
  assert train.main(["--config", str(file), "--workdir", str(tmp_path / "run")]) == 0
  lines = [json.loads(x) for x in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  losses = [line["loss"] for line in lines if "loss" in line]
  assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
  assert "near/plain/top1_k1" in lines[-1]
