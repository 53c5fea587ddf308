"""Zero-shot classification, against doing it image by image and text by text."""

import json

import numpy as np
import pytest

from big_vision_ext.evaluators import zero_shot
from input_pipeline import contents, loader, text
from tests.evaluators.conftest import CLASSES, LENGTH


def _by_hand(task, params, config, names, templates):
  """Class of each image by plain loops: {image_index: scores by class}."""
  tokenizer = text.make_tokenizer("bytes")

  def embed(words):
    ids = tokenizer.tokenize(text.canonicalize(words), LENGTH)
    return np.asarray(task.outputs["text"](params, {"text": ids[None]}), np.float64)[0]

  weights = []
  for label in names:
    each = [embed(t.replace("{}", n)) for n in names[label] for t in templates]
    mean = np.mean([z / np.linalg.norm(z) for z in each], axis=0)
    weights.append(mean / np.linalg.norm(mean))
  out = {}
  for batch in loader.eval_stream(config, batch_size=1, items="labelled"):
    z = np.asarray(task.outputs["image"](params, batch), np.float64)[0]
    out[int(batch["image_index"][0])] = np.array(weights) @ z
  return out


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("names,templates", [
  (None, "ensemble"),
  ({"door": ["gate", "way out"], "cloud": "sky", "big-ship": "boat", "apple_tree": "fruit",
    "absent": "nothing at all"}, ["one {}, two {}", "{}!"]),
])
def test_accuracies_equal_those_of_plain_loops(task, place, seed, names, templates):
  params, where = task.init(seed), place()
  evaluator = zero_shot.Evaluator(task=task, names=names, templates=templates, ks=(1, 2), **where)
  got = evaluator.run(params)
  plain = {c: (c.replace("_", " ").replace("-", " "),) for c in sorted(CLASSES)}
  table = plain if names is None else {k: [v] if isinstance(v, str) else v
                                       for k, v in names.items()}
  if templates == "ensemble":
    templates = zero_shot.TEMPLATES["ensemble"]
  scores = _by_hand(task, params, where["input_config"], table, templates)
  labels = {i: e.label for i, e in enumerate(contents.of_config(where["input_config"])) if e.label}
  assert sorted(scores) == sorted(labels) and len(labels) < 31
  order = {i: [list(table)[c] for c in np.argsort(-s)] for i, s in scores.items()}
  right = {i: order[i][0] == labels[i] for i in labels}
  assert got["top1"] == pytest.approx(np.mean(list(right.values())))
  assert got["top2"] == pytest.approx(np.mean([labels[i] in order[i][:2] for i in labels]))
  per_class = [np.mean([right[i] for i in labels if labels[i] == c]) for c in CLASSES]
  assert got["mean_per_class"] == pytest.approx(np.mean(per_class))
  assert got["chance/top2"] == 2 / len(table) and got["images"] == len(labels)


def test_a_model_that_says_the_same_of_everything_is_never_right():
  x = np.full((6, 4), 0.5, np.float32)
  weights = zero_shot.class_weights([np.full((2, 4), 0.5)] * 3)
  got = zero_shot.measure(x, np.array([0, 1, 2, 0, 1, 2]), weights, (1, 2))
  assert got["top1"] == got["top2"] == 0.0


def test_class_weights_do_not_depend_on_the_length_of_a_texts_embedding():
  z = np.random.default_rng(0).normal(size=(3, 5))
  longer = z * np.array([[1.0], [10.0], [0.1]])
  np.testing.assert_allclose(
    zero_shot.class_weights([longer]), zero_shot.class_weights([z]), rtol=1e-12)


def test_names_and_templates_are_read_from_files(tmp_path):
  (tmp_path / "names.json").write_text(json.dumps({"n1": ["tench", "a fish"], "n2": "shark"}))
  (tmp_path / "list.json").write_text(json.dumps(["big_ship", "cloud"]))
  (tmp_path / "templates.txt").write_text("one {}\n\ntwo {}s \n")
  assert zero_shot.read_names(str(tmp_path / "names.json")) == {
    "n1": ("tench", "a fish"), "n2": ("shark",)}
  assert zero_shot.read_names(str(tmp_path / "list.json")) == {
    "big_ship": ("big ship",), "cloud": ("cloud",)}
  assert zero_shot.read_templates(str(tmp_path / "templates.txt")) == ("one {}", "two {}s")
  assert zero_shot.read_templates("name") == ("{}",)


@pytest.mark.parametrize("changes,message", [
  ({"names": "absent.json"}, "absent.json"),
  ({"names": {"a": "x", "b": ["y", "x"]}}, "both 'a' and 'b' 'x'"),
  ({"names": ["a", "a"]}, "a class twice"),
  ({"names": {"a": []}}, "'a' has ()"),
  ({"names": {}}, "no class"),
  ({"templates": "ensembel"}, "none of the sets name, photo, ensemble"),
  ({"templates": ["a photo"]}, "'a photo'"),
  ({"templates": []}, "is empty"),
])
def test_names_and_templates_that_cannot_be_used_are_told_at_once(task, place, changes, message):
  with pytest.raises(ValueError) as error:
    zero_shot.Evaluator(task=task, **changes, **place())
  assert message in str(error.value)


def test_a_class_without_a_name_is_told(task, place):
  evaluator = zero_shot.Evaluator(task=task, names=["door", "cloud"], **place())
  with pytest.raises(ValueError, match="lacks 2 classes of .*'apple_tree'"):
    evaluator.run(task.init())
