"""CLIP as a task: what its loss and outputs promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks, weights
from big_vision_ext.convert import clip as formats
from big_vision_ext.convert import ours
from big_vision_ext.core import optimizers, sharding, trees
from big_vision_ext.core.config import Optim
from big_vision_ext.tasks import clip
from tests.models import tiny_vit

# For programs that run once: compiling is what takes time.
FAST_COMPILE = {"xla_backend_optimization_level": 0}
SIZES = dict(width=16, depth=1, num_heads=2)
IMAGE = dict(**SIZES, mlp_dim=24, patch_size=8, image_size=16, num_classes=12)
TEXT = dict(**SIZES, mlp_dim=28, vocab_size=40, text_len=7)


def make(**kw):
  return tasks.make("clip", {"image": IMAGE, "text": TEXT} | kw)


def batch(n=16, seed=0):
  rng = np.random.default_rng(seed)
  text = rng.integers(1, 39, (n, 7)).astype(np.int32)
  text[:, 5] = 39
  # Unequal numbers of copies, on other devices than each other.
  for copy, of in ((3, 0), (9, 0), (15, 0), (8, 4), (11, 10)):
    text[copy] = text[of]
  return {"image": rng.integers(0, 256, (n, 16, 16, 3), dtype=np.uint8), "text": text,
          "image_id": np.int32([*range(n - 1), 2])}


@pytest.fixture(scope="module")
def task():
  return make(contrast={"duplicates": "positives"})


@pytest.fixture(scope="module")
def params(task):
  given = {k: x for k, x in batch(1 + 15).items() if k != "image_id"}
  return tiny_vit.randomize(jax.eval_shape(task.init, jax.random.key(0), given))


def value_and_grad(task):
  return jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, b, None, True), has_aux=True),
                 compiler_options=FAST_COMPILE)


@pytest.fixture(scope="module")
def on_one_device(task, params):
  return value_and_grad(task)(params, batch())


def test_eight_devices_have_the_loss_and_gradients_of_one(task, params, on_one_device):
  (want, metrics), want_grads = on_one_device
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    rows = sharding.batch_sharding(mesh, 16)
    (got, seen), grads = value_and_grad(task)(params, jax.device_put(batch(), rows))
  # Float32 sums in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose([seen[k] for k in metrics], [*metrics.values()], atol=1e-5)
  grads, want_grads = (trees.flatten(jax.device_get(g)) for g in (grads, want_grads))
  largest = max(np.abs(g).max() for g in want_grads.values())
  for name, g in grads.items():
    # Of sixteen rows much cancels; measured: 1.5e-6 of the largest.
    np.testing.assert_allclose(g, want_grads[name], atol=1e-5 * largest, err_msg=name)
    # Every parameter learns.
    assert np.any(g), name


def test_the_loss_is_the_formula_on_features_with_copies_as_right_ones(
    task, params, on_one_device):
  b = batch()
  found = jax.jit(lambda p: {k: f(p, b) for k, f in task.outputs.items()},
                  compiler_options=FAST_COMPILE)(params)
  features = [np.float64(found[f"{k}_features"]) for k in ("image", "text")]
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in features]
  logits = np.exp(float(params["t"][0])) * unit[0] @ unit[1].T
  same = (b["text"][:, None] == b["text"]).all(-1) | (b["image_id"][:, None] == b["image_id"])
  want = 0.0
  for rows in (logits, logits.T):
    log_p = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    want -= np.mean([log_p[i][same[i]].mean() for i in range(16)]) / 2
  np.testing.assert_allclose(on_one_device[0][0], want, rtol=1e-5)
  # And the unit vectors are the features', the softmax of whose similarities this is.
  for key, z in zip(("image", "text"), unit):
    np.testing.assert_allclose(found[key], z, atol=1e-6)


def test_images_are_normalised_with_the_statistics_of_the_config(task, params):
  b = batch()
  plain = make(mean=(0.0,) * 3, std=(1.0,) * 3)
  pixels = b["image"] / 255.0
  images = (pixels - np.array(formats.MEAN)) / np.array(formats.STD)
  features = lambda towers, x: towers.img(x)[0]
  z = plain.towers.apply({"params": params}, images.astype(np.float32), method=features)
  np.testing.assert_allclose(task.outputs["image_features"](params, b), z, atol=1e-5)


def test_the_temperature_is_held_as_the_config_says(params):
  for largest, want in ((100.0, np.log(100)), (50.0, np.log(50)), (None, 9.0)):
    after = make(max_temperature=largest).after_update({**params, "t": jnp.array([9.0])}, 0)
    assert float(after["t"][0]) == pytest.approx(want)


def test_towers_have_the_arrays_that_formats_expect(task, params):
  model = weights.describe("clip", {"image": IMAGE, "text": TEXT})
  want = {n: x.shape for n, x in trees.flatten(params).items()}
  assert ours.shapes("clip", model) == want
  # What makes a tower CLIP's is said in two rooms.
  for mine, theirs in ((clip.IMAGE, formats.IMAGE), (clip.TEXT, formats.TEXT)):
    assert {k: mine[k] for k in theirs} == theirs
  assert clip.Config().mean == formats.MEAN and clip.Config().std == formats.STD


def test_the_recipe_of_the_public_code_decays_every_parameter_through_the_moments(params):
  """Five steps of the optimiser of `recipe=code`, as a formula: Adam on gradient + 0.2 * p."""
  optim = Optim(name="adam", b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2, wd_mults=((".*", 1.0),),
                clip_norm=None)
  some = ("t", "img/cls", "img/embedding_norm/scale", "img/embedding/kernel", "txt/head/kernel",
          "txt/Encoder_0/encoderblock_0/MlpBlock_0/Dense_0/bias")
  flat = {n: np.float64(x) for n, x in trees.flatten(params).items() if n in some}
  now = trees.nest({n: np.float32(x) for n, x in flat.items()})
  tx = optimizers.make(optim, 5e-6, now)
  state = tx.init(now)
  m, v = ({n: np.zeros_like(x) for n, x in flat.items()} for _ in range(2))
  update = jax.jit(tx.update, compiler_options=FAST_COMPILE)
  for step in range(1, 6):
    rng = np.random.default_rng(step)
    grads = {n: rng.standard_normal(np.shape(x)).astype(np.float32) for n, x in flat.items()}
    grads = trees.nest(grads)
    updates, state = update(grads, state, now)
    now = jax.tree.map(jnp.add, now, updates)
    for n, g in trees.flatten(grads).items():
      g = g + 0.2 * flat[n]
      m[n], v[n] = 0.9 * m[n] + 0.1 * g, 0.98 * v[n] + 0.02 * g * g
      flat[n] = flat[n] - 5e-6 * (m[n] / (1 - 0.9**step)) / (
        np.sqrt(v[n] / (1 - 0.98**step)) + 1e-6)
  for n, x in trees.flatten(now).items():
    # Steps of 5e-6 on float32 numbers of size one, whose last place is 6e-8.
    np.testing.assert_allclose(x, flat[n], atol=5e-7, err_msg=n)


@pytest.mark.parametrize("kw, message", [
  (dict(variant="B/15"), "config.model.variant='B/15'.*did you mean 'B/16'"),
  (dict(image=IMAGE | {"num_classes": 0}), "num_classes=0: expected the width of the space"),
  (dict(max_temperature=0.5), "max_temperature=0.5"),
  (dict(contrast={"duplicates": "copies"}), "config.model.contrast.duplicates"),
  (dict(text=TEXT | {"pool_type": "end"}), None),
])  # fmt: skip
def test_a_wrong_setting_is_refused_in_words(kw, message):
  if message:
    with pytest.raises(ValueError, match=message):
      make(**kw)
  else:
    with pytest.raises(ValueError, match="pool_type='end'"):
      jax.eval_shape(make(**kw).init, jax.random.key(0), batch())
