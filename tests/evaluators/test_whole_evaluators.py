"""Every evaluator sees each example once, whatever the batch size and the number of devices."""

import numpy as np
import pytest

from big_vision_ext import evaluators
from big_vision_ext.core import sharding
from input_pipeline import contents

SPECS = {
  "zero_shot": {},
  "image_text_retrieval": {},
  "region_retrieval": {"selections": ("low",)},
  "knn": {"ks": (1, 5)},
  "fewshot": {"shots": (1, 4), "l2": (1.0, 1024.0)},
  "linear_probe": {"l2": (1e-1,)},
}
# Labelled images, images with a caption, and regions, of the 31 in val.
COUNTS = {"zero_shot": ("images", 26), "image_text_retrieval": ("images", 24),
          "region_retrieval": ("regions", 31), "knn": ("test_images", 26)}


@pytest.mark.parametrize("kind", SPECS)
def test_results_do_not_depend_on_batches_or_devices(task, place, kind):
  params = task.init()
  found = []
  for devices, batch_size in ((1, 64), (1, 5), (8, 16)):
    where = place(devices)
    evaluator = evaluators.make(
      kind, {"type": kind, "batch_size": batch_size, **SPECS[kind]}, task=task, **where)
    found.append(evaluator.run(params))
  # Inside of a run, as the trainer calls it.
  with sharding.use(where["mesh"], sharding.DEFAULT_RULES):
    found.append(evaluator.run(params))
  name, count = COUNTS.get(kind, (None, None))
  assert name is None or found[0][name] == count
  assert any(0 < v < 1 for k, v in found[0].items() if "chance" not in k and "std" not in k)
  for other in found[1:]:
    # Ranks of float32 scores whose sums were taken in another order.
    assert other == pytest.approx(found[0], abs=1e-9)


@pytest.mark.parametrize("kind, needed", [
  ("restoration", "rains"), ("content_prior", "rains"), ("quality_probe", "train_part")])
def test_an_argument_without_a_default_is_asked_for_by_its_name(kind, needed):
  with pytest.raises(ValueError, match=f"config.evals.e: {kind} needs {needed}.*e.{needed}=..."):
    evaluators.make("e", {"type": kind}, task=None, input_config=None, mesh=None,
                    batch_sharding=None)


def test_a_good_model_is_better_than_a_random_one(place, task):
  """The probes see colours, which the classes differ in."""
  got = evaluators.make("linear_probe", {"type": "linear_probe"}, task=task, **place()).run(
    task.init())
  assert got["top1"] > 0.6 and got["classes"] == 4
  assert got["train_images"] == sum(
    e.label is not None for e in contents.of_config(place(split="train")["input_config"]))


def test_retrieval_takes_every_caption_of_an_image(task, place):
  where = place()
  got = evaluators.make(
    "image_text_retrieval", {"type": "image_text_retrieval"}, task=task, **where).run(task.init())
  entries = contents.of_config(where["input_config"])
  # Ids are cut at the text's length; each of these captions is different within it.
  assert got["captions"] == len({c for e in entries for c in e.captions})
  assert got["captions"] > got["images"] == sum(bool(e.captions) for e in entries)


def test_other_classes_can_be_learned_from_another_data_set(task, place, class_data):
  where = place()
  same = evaluators.make("knn", {"type": "knn", "ks": (3,)}, task=task, **where).run(task.init())
  other = evaluators.make(
    "knn", {"type": "knn", "ks": (3,), "train_data": class_data, "train_split": "train"},
    task=task, **where).run(task.init())
  assert other == same


def test_an_evaluator_of_classes_says_that_there_are_none(task, place, small_sample_data):
  where = place(data=str(small_sample_data))
  evaluator = evaluators.make("knn", {"type": "knn"}, task=task, **where)
  with pytest.raises(ValueError, match="no images with a class label to evaluate on"):
    evaluator.run(task.init())


def test_texts_are_embedded_once_each_and_in_any_number(task, place):
  from big_vision_ext.evaluators import _common
  where = place(8)
  params = task.init()
  texts = [f"text {i % 13}" for i in range(40)]
  seen = []

  def fn(params, batch):
    seen.append(batch["text"].shape[0])
    return task.outputs["text"](params, batch)

  z, which = _common.embed_texts(fn, params, texts, where["input_config"], 7,
                                 where["batch_sharding"])
  assert z.shape == (13, task.width) and seen == [8, 8]
  ids = contents.token_rows(where["input_config"], texts)
  want = np.asarray(task.outputs["text"](params, {"text": ids}))
  np.testing.assert_allclose(z[which], want, atol=1e-6)
