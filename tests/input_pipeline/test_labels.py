"""Classes: their numbers, what training batches carry, and what is wrong with a record."""

import numpy as np
import pytest

from input_pipeline import input_config, labels, loader
from tests import toy_classes


def config(data, **changes):
  settings = dict(image_size=16, captions=False, num_classes=3, threads=1)
  return input_config.InputConfig(data, **settings | changes)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
  return toy_classes.write(tmp_path_factory.mktemp("trees"), train=20, val=1)


def first_batch(settings, batch_size=20, **kw):
  stream = loader.train_stream(settings, batch_size=batch_size, seed=0, **kw)
  try:
    return next(stream)
  finally:
    stream.close()


def test_a_training_batch_has_pictures_and_the_numbers_of_their_classes(trees):
  batch = first_batch(config(trees))
  assert set(batch) == {"image", "label"} and batch["label"].dtype == np.int32
  # The class is the colour: red, green, blue are numbers 0, 1, 2 of the sorted names.
  np.testing.assert_array_equal(batch["image"].mean(axis=(1, 2)).argmax(axis=1), batch["label"])
  assert set(batch["label"]) == {0, 1, 2}


def test_captions_and_labels_can_come_together(trees):
  batch = first_batch(config(trees, captions=True, global_share=1.0))
  assert {"image", "label", "text", "box"} <= set(batch)


def test_workers_give_the_same_rows(trees):
  augment = dict(augment="rand-m9-mstd0.5-inc1", flip=True)
  a, b = (first_batch(config(trees, **augment, workers=w)) for w in (0, 1))
  for key in ("image", "label"):
    np.testing.assert_array_equal(a[key], b[key])


def test_numbers_are_those_of_the_training_split_whichever_is_read(trees):
  # The only record of val is of another class than the first.
  assert labels.classes(config(trees, split="val")) == toy_classes.CLASSES
  assert labels.classes(config(trees, split="val", classes="val", num_classes=0)) == ("beech",)


def test_names_can_be_given_in_an_order_of_their_own(trees, tmp_path):
  names = ("cedar", "ash", "beech")
  file = tmp_path / "names.txt"
  file.write_text("cedar\n ash\n\nbeech\n")
  for classes in (names, str(file)):
    assert labels.classes(config(trees, classes=classes)) == names
  batch = first_batch(config(trees, classes=names))
  colour = batch["image"].mean(axis=(1, 2)).argmax(axis=1)
  np.testing.assert_array_equal(np.array([1, 2, 0])[colour], batch["label"])


@pytest.mark.parametrize("changes, says", [
  (dict(num_classes=4), r"num_classes is 4, but .*train\] has 3 classes \('ash' to 'cedar'\)"),
  (dict(classes=("ash", "ash", "elm")), "input.classes has the class 'ash' twice"),
  (dict(classes="/nowhere/names.txt"), "input.classes=/nowhere/names.txt cannot be read"),
  (dict(classes="test"), "has no split 'test'"),
  (dict(classes=3), "input.classes is 3, expected a split"),
])
def test_classes_that_cannot_be_are_errors(trees, changes, says):
  with pytest.raises(ValueError, match=says):
    labels.classes(config(trees, **changes))


@pytest.mark.parametrize("label, says", [
  (None, r"train.*: the record has no class label"), ("elm", "the label 'elm' is none of the 3")])
def test_a_record_without_a_known_class_is_named(make_dataset, label, says):
  data = make_dataset({"train": [toy_classes.sample(i) for i in range(5)]
                       + [toy_classes.sample(9, label)]})
  settings = config(data, classes=toy_classes.CLASSES, max_skip_share=0.0)
  with pytest.raises(loader.LoadError, match=says):
    first_batch(settings, 6)
  stream = loader.train_stream(config(data, classes=toy_classes.CLASSES), batch_size=6, seed=0)
  # Among enough others it is left out and counted.
  assert len(next(stream)["label"]) == 6
  assert set(stream.skipped) == {"no-label" if label is None else "unknown-class"}
  stream.close()


@pytest.mark.parametrize("setting", [
  dict(augment="rand-m9-inc1"), dict(crop_clamp=True), dict(eval_crop=0.9)])
def test_what_would_move_boxes_needs_pictures_alone(setting):
  with pytest.raises(input_config.InputError, match="with captions=True: it would move"):
    input_config.InputConfig("/d", **setting)
