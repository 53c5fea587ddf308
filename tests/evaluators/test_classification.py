"""Accuracy of a classifier on a labelled split: every image once, whatever the batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss, top_k_accuracy_score

from big_vision_ext.evaluators import classification
from input_pipeline import loader
from tests.evaluators.conftest import CLASSES


@dataclasses.dataclass(frozen=True)
class Colours:
  """Scores by a linear map of the mean colour of each quarter."""

  @property
  def outputs(self):
    return {"logits": self._logits}

  def _logits(self, params, batch):
    x = batch["image"].astype(jnp.float32) / 255 - 0.5
    return x.reshape(-1, 2, 4, 2, 4, 3).mean((2, 4)).reshape(len(x), -1) @ params


PARAMS = np.random.default_rng(0).normal(0, 5, (12, 4)).astype(np.float32)


def expected(config):
  """Logits and classes of the labelled images, one image at a time."""
  from input_pipeline import contents
  stream = loader.eval_stream(config, batch_size=1, items="labelled")
  entries = contents.of_config(config)
  rows = [(np.asarray(Colours()._logits(PARAMS, b))[0],
           CLASSES.index(entries[b["image_index"][0]].label)) for b in stream]
  return np.stack([x for x, _ in rows]), np.array([y for _, y in rows])


@pytest.mark.parametrize("devices, batch_size", [(1, 7), (8, 16), (1, 100)])
def test_numbers_are_scikit_learn_s_and_no_image_counts_twice(place, devices, batch_size):
  where = place(devices)
  found = classification.Evaluator(task=Colours(), batch_size=batch_size, **where).run(PARAMS)
  logits, y = expected(where["input_config"])
  assert found["images"] == len(y) == 26
  assert found["top1"] == pytest.approx(np.mean(logits.argmax(1) == y))
  assert found["mean_per_class"] == pytest.approx(balanced_accuracy_score(y, logits.argmax(1)))
  p = np.exp(np.float64(logits)) / np.exp(np.float64(logits)).sum(1, keepdims=True)
  assert found["loss"] == pytest.approx(log_loss(y, p, labels=range(4)), rel=1e-5)
  assert "top5" not in found


def test_five_best_of_many_classes_are_scikit_learn_s():
  rng = np.random.default_rng(1)
  logits, y = rng.standard_normal((200, 9)).astype(np.float32), rng.integers(0, 9, 200)
  found = classification.measure(logits, y)
  assert found["top5"] == pytest.approx(top_k_accuracy_score(y, logits, k=5, labels=range(9)))


def test_neither_equal_scores_nor_nans_are_finds():
  assert classification.measure(np.zeros((3, 2), np.float32), np.array([0, 1, 1]))["top1"] == 0
  broken = np.float32([[np.nan, np.nan], [3, np.nan], [3, 1]])
  assert classification.measure(broken, np.array([0, 0, 0]))["top1"] == pytest.approx(1 / 3)


def test_classes_follow_the_order_of_the_config(place):
  where = place()
  same = classification.Evaluator(task=Colours(), **where).run(PARAMS)
  order = (2, 0, 3, 1)
  where = place(classes=[CLASSES[i] for i in order])
  other = classification.Evaluator(task=Colours(), **where).run(PARAMS[:, order])
  assert other["top1"] == same["top1"]
  assert other["loss"] == pytest.approx(same["loss"], rel=1e-6)


def test_what_cannot_be_measured_is_refused(place, task):
  with pytest.raises(ValueError, match="no classifier"):
    classification.Evaluator(task=task, **place())
  evaluator = classification.Evaluator(task=Colours(), **place(classes=["cloud", "door"]))
  with pytest.raises(ValueError, match="2 classes that input.classes lacks, e.g. 'apple_tree'"):
    evaluator.run(PARAMS)
  evaluator = classification.Evaluator(task=Colours(), **place())
  with pytest.raises(ValueError, match="class number 3, the model has 3"):
    evaluator.run(PARAMS[:, :3])
