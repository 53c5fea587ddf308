"""Ratings are measured picture by picture, against plain loops; nothing but the picture matters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding
from big_vision_ext.evaluators import (
  _correlation,
  _rated,
  quality,
  quality_probe,
  quality_zero_shot,
)
from big_vision_ext.objectives import levels
from input_pipeline import contents, loader, splits, text
from input_pipeline.ratings import Rating
from tests import toy_ratings

LENGTH = 32


@dataclasses.dataclass(frozen=True)
class Text:
  text_len: int = LENGTH
  vocab_size: int = 259


@dataclasses.dataclass(frozen=True)
class GrainTask:
  """A feature is how rough a crop is, in some directions; a text is the sum of its letters."""

  width: int = 6
  text: Text = Text()

  def init(self, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(6, 6)).astype(np.float32),
            "text": rng.normal(size=(259, 6)).astype(np.float32), "t": np.float32([1.5])}

  @property
  def outputs(self):
    return {"image_features": self.image_features, "text_features": self.text_features,
            "quality": self.rate}

  def image_features(self, params, batch):
    x = batch["image"].astype(jnp.float32) / 255
    rough = [jnp.abs(jnp.diff(x, axis=a)).mean((1, 2)) for a in (1, 2)]
    z = 10 * jnp.concatenate(rough, -1) - 1
    return jnp.dot(z, params["image"], precision="highest")

  def text_features(self, params, batch):
    return params["text"][batch["text"]].sum(1)

  def rate(self, params, batch):
    z = self.image_features(params, batch)
    return {"score": 1 - z[:, 0] / 5, "probs": jax.nn.softmax(z[:, :5])}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return toy_ratings.write(tmp_path_factory.mktemp("rated"), count=30, broken={4})


def place(data, devices=1, **changes):
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:devices])
  config = loader.InputConfig(**{
      "data": data, "split": "all", "image_size": 24, "text_len": LENGTH, "threads": 1,
      "canonicalize": False, "max_skip_share": 0.2, **changes})
  return {"input_config": config, "mesh": mesh, "batch_sharding": sharding.batch_sharding(mesh)}


def scores_by_hand(task, params, where, fn, crops="ten_random"):
  """{image index: mean of fn over its crops}, one crop at a time."""
  config = dataclasses.replace(where["input_config"], eval_crops=crops)
  found = {}
  for batch in loader.eval_stream(config, batch_size=1, items="rated"):
    if batch["mask"][0]:
      found.setdefault(int(batch["image_index"][0]), []).append(fn(params, batch))
  return {i: np.mean(x, axis=0) for i, x in found.items()}


def test_measures_are_those_of_plain_loops(data):
  task, where = GrainTask(), place(data)
  params = task.init()
  got = quality.Evaluator(task=task, bootstrap=30, **where).run(params)
  fn = jax.jit(lambda p, b: task.rate(p, b)["score"][0])
  found = scores_by_hand(task, params, where, fn)
  entries = contents.of_config(where["input_config"])
  mos = [entries[i].rating.mos for i in sorted(found)]
  x = [1 + 4 * float(found[i]) for i in sorted(found)]
  want = _correlation.measures(np.array(x), np.array(mos), bootstrap=30)
  assert got["images"] == 29 and got["skipped_images"] == 1
  assert abs(got["srcc"]) > 0.3
  for name, value in want.items():
    # Sums of ten float32 numbers; a rank may not change by that.
    assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("devices, batch_size", [(1, 7), (8, 24), (2, 100)])
def test_batches_and_devices_change_nothing(data, devices, batch_size):
  task = GrainTask()
  params = task.init(1)
  want = quality.Evaluator(task=task, bootstrap=0, **place(data)).run(params)
  got = quality.Evaluator(task=task, bootstrap=0, batch_size=batch_size,
                          **place(data, devices)).run(params)
  # Of scores that are the same to 1e-7; the error of the fit is a difference of them.
  assert got == pytest.approx(want, rel=2e-5)


def test_scores_do_not_depend_on_what_else_is_tested(data):
  task = GrainTask()
  params = task.init(1)
  fn = jax.jit(lambda p, b: {"score": task.rate(p, b)["score"]})

  def found(part):
    where = place(data, part=part, eval_crops="ten_random")
    rated = _rated.collect(fn, params, where["input_config"], 16, where["batch_sharding"])
    ids = [e.id for e in contents.of_config(where["input_config"]) if e.id != "p004.png"]
    return dict(zip(ids, rated.values["score"]))

  some, every = found("reference_1/test"), found("")
  assert 4 <= len(some) <= 5 and len(every) == 29
  assert all(every[name] == pytest.approx(x, rel=1e-6) for name, x in some.items())


def test_lower_is_better_changes_no_sign(tmp_path):
  up = toy_ratings.write(tmp_path / "up", count=20)
  down = toy_ratings.write(tmp_path / "down", count=20, lower_better=True)
  task = GrainTask()
  a, b = (quality.Evaluator(task=task, bootstrap=0, **place(d)).run(task.init())
          for d in (up, down))
  assert a["srcc"] == pytest.approx(b["srcc"]) and a["rmse"] == pytest.approx(b["rmse"], rel=1e-5)
  assert a["plcc_fit"] == pytest.approx(b["plcc_fit"], rel=1e-5)


def test_words_alone_rate_as_the_formula_says(data):
  task, where = GrainTask(), place(data)
  params = task.init(2)
  mine = {"groups": [["awful", "fine", "great"]], "values": [0, 0.4, 1]}
  got = quality_zero_shot.Evaluator(
      task=task, prompts={"uniqa": "uniqa", "mine": mine}, bootstrap=0, crops="five_crop",
      **where).run(params)
  fn, score = jax.jit(lambda p, b: task.image_features(p, b)[0]), jax.jit(levels.score)
  config = dataclasses.replace(where["input_config"], eval_crops="five_crop")
  tokenizer = text.make_tokenizer("bytes")
  for name, spec in (("uniqa", "uniqa"), ("mine", mine)):
    readout = levels.read(spec)
    z = np.stack([np.asarray(params["text"])[tokenizer.tokenize(p, LENGTH)].sum(0)
                  for p in readout.prompts]).reshape(*readout.shape, -1)
    scores = {}
    for batch in loader.eval_stream(config, batch_size=1, items="rated"):
      if batch["mask"][0]:
        one = score(fn(params, batch), z, 1.5, np.float32(readout.values))["score"]
        scores.setdefault(int(batch["image_index"][0]), []).append(float(one))
    entries = contents.of_config(config)
    x = np.array([np.mean(scores[i]) for i in sorted(scores)])
    y = np.array([entries[i].rating.mos for i in sorted(scores)])
    assert got[f"{name}/srcc"] == pytest.approx(_correlation.srcc(x, y), abs=1e-6)
    assert got[f"{name}/plcc"] == pytest.approx(_correlation.plcc(x, y), abs=1e-5)


@pytest.mark.parametrize("seed", range(2))
def test_the_probe_is_ridge_regression_whose_strength_the_test_pictures_do_not_choose(seed):
  rng = np.random.default_rng(seed)
  z, w = rng.normal(2, 3, (50, 8)), rng.normal(size=8)
  y = z @ w / 20 + 0.5 + rng.normal(0, 0.05, 50)
  test = rng.normal(2, 3, (20, 8))
  l2 = (100.0, 1.0)
  got, chosen = quality_probe.probe(z, y, test, l2, seed)
  unit = lambda x: (x - z.mean(0)) / (z.std(0) + 1e-5)
  want = Ridge(alpha=chosen, solver="svd").fit(unit(z), y).predict(unit(test))
  np.testing.assert_allclose(got, want, atol=1e-9)
  assert chosen == 1.0
  # Of noise alone, the strongest.
  noise, wide = rng.normal(size=40), rng.normal(size=(40, 28))
  assert quality_probe.probe(wide, noise, wide, (1e6, 1e-3), seed)[1] == 1e6


def test_the_probe_learns_from_its_part_and_is_tested_on_another(data):
  task = GrainTask()
  where = place(data, part="reference_1/test")
  probe = quality_probe.Evaluator(
      task=task, train_part="reference_1/train", bootstrap=0, **where)
  got = probe.run(task.init())
  rated = [e for e in contents.of_config(place(data)["input_config"]) if e.rating]
  assert got["labels"] == len(splits.rows(rated, "reference_1/train")) - 1  # One is broken.
  assert got["srcc"] > 0.8
  with pytest.raises(ValueError, match="is what is tested on as well"):
    quality_probe.Evaluator(task=task, train_part="reference_1/test", **where)


def test_votes_are_measured_as_avas_are():
  rng = np.random.default_rng(0)
  votes = rng.integers(0, 40, (12, 10))
  mos = (votes * np.arange(1, 11)).sum(1) / votes.sum(1)
  ratings = [Rating((m - 1) / 9, float(m), f"{i}", votes=tuple(v.tolist()))
             for i, (m, v) in enumerate(zip(mos, votes))]
  found = _rated.Rated({}, ratings, 0)
  x = (mos - 1) / 9 + rng.normal(0, 0.02, 12)
  probs = rng.dirichlet(np.ones(5), 12)
  got = _rated.measure(x, found, parameters=4, bootstrap=0, probs=probs)
  assert got["binary_accuracy"] == pytest.approx(np.mean((1 + 9 * x > 5) == (mos > 5)))
  bins = _rated.spread(probs, 10)
  np.testing.assert_allclose(bins.sum(1), 1)
  # Levels lie on bins 1, 3.25, 5.5, 7.75, 10: their mean is kept.
  np.testing.assert_allclose(bins @ np.arange(1, 11), probs @ np.linspace(1, 10, 5))
  assert got["emd"] == pytest.approx(_correlation.emd(bins, votes))


@pytest.mark.parametrize("module, kwargs, message", [
    (quality, {"output": "beauty"}, "output='beauty'"),
    (quality_zero_shot, {"prompts": ()}, "prompts is empty"),
    (quality_zero_shot, {"prompts": ["uniqua"]}, "none of uniqa"),
    (quality_probe, {"train_part": "reference_1/train", "l2": ()}, "l2="),
])
def test_arguments_that_cannot_be_are_told(data, module, kwargs, message):
  with pytest.raises(ValueError, match=message):
    module.Evaluator(task=GrainTask(), **kwargs, **place(data))
