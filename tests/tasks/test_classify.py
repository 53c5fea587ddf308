"""Classification as a task: what is trained, on what, and from which weights."""

import json

import jax
import numpy as np
import pytest

from big_vision_ext import tasks, train, weights
from big_vision_ext.core import checkpoint, optimizers, sharding, trees
from big_vision_ext.objectives import mixing
from tests import toy_classes
from tests.models import tiny_vit

IMAGE = dict(width=16, depth=2, mlp_dim=32, num_heads=2, patch_size=8, image_size=32)
CLASSES = 3


def build(**settings):
  image = IMAGE | settings.pop("image", {})
  return tasks.make("classify", dict(image=image, num_classes=CLASSES) | settings)


def batch(n=16, seed=0):
  rng = np.random.default_rng(seed)
  return {"image": rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
          "label": rng.integers(0, CLASSES, n, np.int32)}


def loss_of(task):
  return jax.jit(task.loss, static_argnums=3)


def drawn(task):
  return tiny_vit.randomize(jax.eval_shape(task.init, jax.random.key(0), batch(1)))


def log_p(logits):
  logits = np.float64(logits)
  top = logits - logits.max(1, keepdims=True)
  return top - np.log(np.exp(top).sum(1, keepdims=True))


MIXED = dict(label_smoothing=0.1, mixup=0.8, cutmix=1.0, erasing=0.5)


def test_the_loss_is_the_cross_entropy_with_the_label_and_nothing_is_random_in_evaluation():
  task = build(**MIXED, image=dict(drop_path=0.5))
  params, b = drawn(task), batch()
  loss = loss_of(task)
  got, metrics = loss(params, b, jax.random.key(0), False)
  want = -log_p(task.logits(params, b))[np.arange(16), b["label"]].mean()
  np.testing.assert_allclose(got, want, rtol=1e-5)  # float32.
  assert got == loss(params, b, jax.random.key(1), False)[0] and not metrics
  in_training = [float(loss(params, b, jax.random.key(i), True)[0]) for i in (0, 0, 1)]
  assert in_training[0] == in_training[1] != in_training[2]


def test_the_training_loss_is_that_of_the_mixed_images_and_their_targets():
  task = build(label_smoothing=0.1, mixup=0.8, cutmix=1.0)
  params, b, key = drawn(task), batch(), jax.random.key(3)
  got, _ = loss_of(task)(params, b, key, True)
  draws = mixing.draw(jax.random.split(key, 3)[1], 16, (32, 32), mixup=0.8, cutmix=1.0)
  target = np.full((16, 3), 0.1 / 3)
  target[np.arange(16), b["label"]] += 0.9
  own = np.asarray(draws.own)[:, None]
  target = own * target + (1 - own) * target[::-1]
  image, _ = mixing.mix(task._normalise(b["image"]), target, draws)
  logits, _ = task.vision.apply({"params": params}, image)
  want = -(target * log_p(logits)).sum(1).mean()
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("settings", [
  pytest.param(dict(**MIXED, image=dict(drop_path=0.3)), marks=pytest.mark.slow),
  dict(probe=True, feature="cls")])
def test_loss_and_gradients_are_the_same_on_eight_devices(settings):
  task = build(**settings)
  params, b = drawn(task), batch()
  fn = jax.value_and_grad(lambda p, b: task.loss(p, b, jax.random.key(1), True), has_aux=True)
  want = jax.jit(fn)(params, b)
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    got = jax.jit(fn)(params, jax.device_put(b, sharding.batch_sharding(mesh, 16)))
  tiny_vit.assert_close(got, want)


def test_a_number_that_is_no_class_makes_the_loss_a_nan():
  task, b = build(), batch()
  params = drawn(task)
  for wrong in (CLASSES, -1):
    b["label"][3] = wrong
    assert np.isnan(task.loss(params, b, None, False)[0])


def test_a_probe_reports_its_accuracy_and_what_its_statistics_become():
  task = build(probe=True, feature="cls")
  params, b = drawn(task), batch()
  loss, metrics = loss_of(task)(params, b, jax.random.key(0), True)
  x = np.float64(task.embed_image(params, b))
  old = params["head_norm"]
  np.testing.assert_allclose(
    metrics["params/head_norm/mean"], 0.9 * old["mean"] + 0.1 * x.mean(0), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    metrics["params/head_norm/var"], 0.9 * old["var"] + 0.1 * x.var(0, ddof=1), rtol=1e-4,
    atol=1e-6)
  x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-6)
  logits = x @ params["head"]["kernel"] + params["head"]["bias"]
  np.testing.assert_allclose(loss, -log_p(logits)[np.arange(16), b["label"]].mean(), rtol=1e-4)
  assert metrics["accuracy"] == pytest.approx(np.mean(logits.argmax(1) == b["label"]))


def test_flops_of_a_probe_are_one_forward_pass_and_three_of_the_head():
  whole, probe = build(), build(probe=True)
  head = 2 * 16 * CLASSES
  assert whole.flops_per_example == 3 * whole.forward_flops()
  assert probe.flops_per_example == probe.forward_flops() + 2 * head


@pytest.mark.parametrize("settings, says", [
  (dict(num_classes=1), "config.model.num_classes=1: expected at least 2"),
  (dict(mixup=-0.1), "config.model.mixup=-0.1"),
  (dict(erasing=1.5), "config.model.erasing=1.5"),
  (dict(image=dict(final_norm=True)), "config.model.image.final_norm: is not to be given"),
  (dict(image=dict(pool_type="map")), "pool_type='map'"),
  (dict(features="cls"), "did you mean 'feature'"),
])
def test_settings_that_cannot_be_are_errors(settings, says):
  with pytest.raises(ValueError, match=says):
    drawn(build(**settings))


CONFIG = '''
from big_vision_ext.core import config as config_lib

def get_config(arg=None):
  c = config_lib.base_config()
  c.update({settings!r})
  return c
'''


def run(tmp_path, name, **settings):
  """Trains a config through the command; returns (workdir, the lines of its metrics)."""
  file, workdir = tmp_path / f"{name}.py", tmp_path / name
  base = dict(batch_size=16, log_steps=1, ckpt_steps=100)
  file.write_text(CONFIG.format(settings=base | settings))
  assert train.main(["--config", str(file), "--workdir", str(workdir)]) == 0
  return workdir, [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
  """A run of a tiny masked autoencoder, and the labelled images it has seen."""
  root = tmp_path_factory.mktemp("pretrained")
  data = toy_classes.write(root / "trees", train=36, val=10)
  sizes = dict(decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_dim=16)
  workdir, _ = run(
    root, "mae", task="mae", total_steps=2, lr=1e-2,
    model=dict(image=IMAGE | sizes | {"scan": True}, mask=dict(num_visible=4)),
    input=dict(data=data, image_size=32, captions=False, threads=1),
    optim=dict(freeze=(".*pos_embedding",)))
  return data, workdir


def labelled(data, **changes):
  return dict(data=data, image_size=32, captions=False, threads=1, num_classes=3) | changes


EVALS = dict(val=dict(type="classification", input=dict(split="val"), batch_size=4))
EXTRA = ("(?!Transformer/encoderblock).*",)


@pytest.mark.slow
def test_fine_tuning_begins_from_a_masked_autoencoder_and_learns(pretrained, tmp_path):
  data, workdir = pretrained
  out, lines = run(
    tmp_path, "tuned", task="classify", total_steps=30, lr=1e-2,
    model=dict(image=IMAGE | dict(drop_path=0.1), num_classes=3, **MIXED | dict(erasing=0.25)),
    input=labelled(data, augment="rand-m9-mstd0.5-inc1", flip=True, crop_scale=(0.3, 1.0)),
    optim=dict(layer_decay=0.75, clip_norm=None, weight_decay=1e-4),
    schedule=dict(type="cosine", warmup_steps=5),
    init=dict(path=str(workdir), allow_missing=("fc_norm/.*", "head/.*"), allow_extra=EXTRA),
    evals=EVALS)
  assert lines[-1]["val/images"] == 10
  # Colours are easy; chance is 0.33.
  assert lines[-1]["val/top1"] > 0.8
  source, tuned = (trees.flatten(weights.load(str(w)).params) for w in (workdir, out))
  change = {n: np.abs(tuned[n] - source[n]).max() for n in tuned if n in source}
  # The run began from those weights and trains them, positions too; a random start is farther off.
  assert set(tuned) - set(source) >= {"fc_norm/scale", "head/kernel"} and len(change) > 2
  assert all(0 < change[n] < 0.2 for n in ("pos_embedding", "cls", "embedding/kernel"))


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["lars", "sgd"])
def test_a_probe_of_a_masked_autoencoder_leaves_the_encoder_as_it_is(pretrained, tmp_path, optim):
  data, workdir = pretrained
  rest = "(?!head/).*"
  out, lines = run(
    tmp_path, optim, task="classify", total_steps=25, lr=0.5,
    model=dict(image=IMAGE | dict(scan=True), num_classes=3, feature="cls", probe=True),
    input=labelled(data, crop_clamp=True, crop_scale=(0.3, 1.0), flip=True),
    # So few steps need a larger share of the kernel's length than the 0.001 of 7,000.
    optim=dict(name=optim, clip_norm=None, freeze=(rest,), trust_coefficient=0.05),
    init=dict(path=str(workdir), allow_missing=("head/.*", "head_norm/.*"), allow_extra=EXTRA),
    evals=EVALS)
  assert lines[-1]["val/top1"] > 0.6
  assert [line["accuracy"] for line in lines if "accuracy" in line][-1] > 0.6
  assert not any(k.startswith("params/") for line in lines for k in line)
  source, found = (trees.flatten(weights.load(str(w)).params) for w in (workdir, out))
  assert set(found) - set(source) == {
    "head/kernel", "head/bias", "head_norm/mean", "head_norm/var"}
  for name in set(found) & set(source):
    np.testing.assert_array_equal(found[name], source[name])
  # 25 steps of a tenth: they have come to where the features are.
  task = tasks.make("classify", weights.load(str(out)).model)
  images = np.stack([np.full((32, 32, 3), c, np.uint8) for c in toy_classes._COLOURS])
  x = np.asarray(task.embed_image(trees.nest(found), {"image": images}))
  gap = np.abs(found["head_norm/mean"] - x.mean(0)) / np.sqrt(found["head_norm/var"] + 1e-6)
  assert np.median(gap) < 2 and np.all(found["head_norm/var"] > 0)


@pytest.mark.slow
def test_an_encoder_of_another_depth_is_no_start(pretrained, tmp_path):
  data, workdir = pretrained
  from big_vision_ext.core.config import Init
  init = Init(str(workdir), allow_missing=("fc_norm/.*", "head/.*"), allow_extra=EXTRA)
  task = build(image=dict(depth=1))
  params = jax.device_put(drawn(task))
  with pytest.raises(checkpoint.CheckpointError, match="encoderblock_1"):
    weights.init_params(init, params, jax.tree.map(lambda x: x.sharding, params))


def test_the_published_pattern_freezes_all_but_the_head():
  trained, frozen = optimizers.split(drawn(build(probe=True)), ("(?!head/).*",))
  assert set(trees.names(trained)) == {"head/kernel", "head/bias"}
  assert "head_norm/mean" in trees.names(frozen)
