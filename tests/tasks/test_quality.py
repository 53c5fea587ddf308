"""The adapter is trained on a frozen CLIP; from images or from their features it is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import optimizers, trees
from big_vision_ext.core.typed import ConfigError
from big_vision_ext.objectives import levels
from big_vision_ext.tasks import quality
from tests import tiny_run

FREEZE = ("(?!adapter/).*",)
IMAGES = dict(clip=tiny_run.CLIP, tokenizer="bytes", prompts="uniqa_ensemble")
FEATURES = dict(width=20, prompts="uniqa_ensemble")


def batch(seed=0, rows=6):
  rng = np.random.default_rng(seed)
  return {"image": rng.integers(0, 256, (rows, 32, 32, 3), np.uint8),
          "score": rng.uniform(0, 1, rows).astype(np.float32)}


@pytest.fixture(scope="module")
def on_images():
  """The task, and parameters as a run begins with: random towers, texts by the text tower."""
  task = tasks.make("quality", IMAGES)
  towers = dict(tiny_run.params(name="clip"))
  # A temperature at which five levels are told apart.
  towers["t"] = np.float32([2.5])
  shapes = jax.eval_shape(task.init, jax.random.key(1), batch())
  assert set(shapes) == {*towers, "adapter", "texts"}
  adapter = task.adapter.init(jax.random.key(1), np.zeros((1, 20), np.float32))["params"]
  begun = {**towers, "adapter": adapter, "texts": np.zeros(shapes["texts"].shape, np.float32)}
  return task, jax.device_get(jax.jit(task.begin)(begun))


def features_of(task, params, data):
  return np.asarray(jax.jit(task.clip.image_features)(params, data))


def test_texts_of_prompts_are_the_text_towers(on_images):
  task, params = on_images
  prompts = levels.READOUTS["uniqa_ensemble"].prompts
  text_features = jax.jit(task.clip.text_features)
  for place in (0, 7, 19):
    ids = quality.tokens(task.readout, task.clip.text, "bytes", False)[place]
    assert bytes(int(i) - 3 for i in ids if i > 2).decode() == prompts[place]
    want = text_features(params, {"text": ids[None]})[0]
    np.testing.assert_allclose(params["texts"].reshape(20, 20)[place], want, rtol=1e-5, atol=1e-6)


def test_features_in_place_of_images_give_the_same_loss_and_gradients(on_images):
  task, params = on_images
  data = batch()
  other = tasks.make("quality", FEATURES)
  mine = {k: params[k] for k in ("adapter", "texts", "t")}
  spec = jax.eval_shape(other.init, jax.random.key(0), other.batch_spec(2))
  assert trees.names(spec) == trees.names(mine)
  feature = features_of(task, params, data)
  assert np.abs(np.linalg.norm(feature, axis=1) - 1).max() > 0.05  # Not of unit length.

  def value(task, whole, data):
    trained, frozen = optimizers.split(whole, FREEZE)
    loss = lambda t: task.loss(optimizers.merge(t, frozen), data, jax.random.key(0), True)[0]
    return jax.jit(jax.value_and_grad(loss))(trained)

  (a, da), (b, db) = (
      value(task, params, data), value(other, mine, {"feature": feature, "score": data["score"]}))
  assert float(a) == pytest.approx(float(b), rel=1e-6)
  for name, g in trees.flatten(da).items():
    np.testing.assert_allclose(g, trees.flatten(db)[name], rtol=1e-4, atol=1e-7, err_msg=name)
    assert np.abs(g).max() > 0, name


def test_the_loss_is_the_squared_error_of_the_formula(on_images):
  task, params = on_images
  data = batch(1)
  f = features_of(task, params, data).astype(np.float64)
  w1, w2 = (params["adapter"][n]["kernel"].astype(np.float64) for n in ("fc_0", "fc_2"))
  f = f + np.maximum(np.maximum(f @ w1, 0) @ w2, 0)
  unit = lambda z: z / np.linalg.norm(z, axis=-1, keepdims=True)
  z = np.exp(2.5) * np.einsum("bd,gkvd->bgk", unit(f), unit(params["texts"].astype(np.float64)))
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  score = (p @ np.array(levels.UNIQA_VALUES)).mean(-1)
  loss, metrics = jax.jit(lambda p, d: task.loss(p, d, None, True))(params, data)
  # float32 through two towers, against float64 from the features on.
  assert float(loss) == pytest.approx(np.mean((score - data["score"]) ** 2), rel=1e-4)
  assert float(metrics["score"]) == pytest.approx(score.mean(), rel=1e-5)


def test_nothing_but_the_adapter_is_trained(on_images):
  task, params = on_images
  trained, frozen = optimizers.split(params, FREEZE)
  assert set(trees.names(trained)) == {
      "adapter/fc_0/kernel", "adapter/fc_2/kernel", "adapter/levels"}
  assert any(n.startswith("img/") for n in trees.names(frozen)) and "texts" in frozen
  tx = optimizers.make(config_lib.Optim(name="adam", clip_norm=None), 1e-2, trained)
  state = tx.init(trained)
  # Two moments of each trained number, and counters.
  assert sum(x.size for x in jax.tree.leaves(state) if x.ndim) == 2 * trees.count(trained)
  data = batch()
  features = features_of(task, params, data)
  loss = jax.jit(jax.value_and_grad(lambda t: jnp.mean((task.rate_features(
      optimizers.merge(t, frozen), features)["score"] - data["score"]) ** 2)))
  history = []
  for _ in range(20):
    value, grads = loss(trained)
    updates, state = tx.update(grads, state, trained)
    trained = jax.tree.map(jnp.add, trained, updates)
    history.append(float(value))
  # Scores that nothing in the images tells: by the levels and by heart, a little.
  assert history[-1] < 0.98 * history[0]
  assert np.abs(trained["adapter"]["levels"] - np.float32(levels.UNIQA_VALUES)).max() > 0.01


def test_another_towers_tokenizer_is_refused():
  model = tiny_run.CLIP | {"text": tiny_run.CLIP["text"] | {"vocab_size": 49_408}}
  task = tasks.make("quality", IMAGES | {"clip": model})
  with pytest.raises(ValueError, match="'bytes' has 259 ids and the text tower 49408"):
    quality.tokens(task.readout, task.clip.text, "bytes", False)


def test_without_its_adapter_it_rates_by_the_words_alone(on_images):
  task, params = on_images
  data = batch(2)
  changed = {**params, "adapter": jax.tree.map(lambda x: x + 1, params["adapter"])}
  rate = jax.jit(task.outputs["quality_zero_shot"])
  found = [rate(p, data)["score"] for p in (params, changed)]
  np.testing.assert_array_equal(*found)
  want = jax.jit(levels.score)(features_of(task, params, data), params["texts"], 2.5,
                               np.float32(levels.UNIQA_VALUES))["score"]
  np.testing.assert_allclose(found[0], want, rtol=1e-5)


def test_a_step_costs_the_image_tower_once_and_no_text_tower(on_images):
  task, _ = on_images
  tower = task.clip.forward_flops()
  assert 0 < task.flops_per_example < 2 * tower
  assert tasks.make("quality", FEATURES).flops_per_example == 3 * (4 * 20 * 10 + 2 * 20 * 20)


@pytest.mark.parametrize("model, message", [
    ({}, "expected either towers"),
    (IMAGES | {"width": 20}, "expected either towers"),
    (IMAGES | {"tokenizer": ""}, "config.model.tokenizer is empty"),
    (FEATURES | {"prompts": "unica"}, "config.model.prompts=unica: is none of"),
    (FEATURES | {"measures": "beauty"}, "expected one of 'quality', 'aesthetic'"),
])
def test_settings_that_cannot_be_are_told(model, message):
  with pytest.raises(ConfigError, match=message):
    tasks.make("quality", model)
