"""A prepared TFDS data set is read without TensorFlow, or the user is told what is in the way."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from input_pipeline.build import tfds_source
from input_pipeline.build.durable import BuildError
from input_pipeline.build.skips import SkipRecord

# TFDS builds only classes of an importable module.
_MODULE = '''
import io
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class Miniature(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    f = tfds.features
    return self.dataset_info_from_configs(features=f.FeaturesDict({
      "image": f.Image(shape=(None, None, 3)),
      "image/filename": f.Text(),
      "caption": f.Text(),
      "captions": f.Sequence(f.Text()),
      "label": f.ClassLabel(names=["indoors", "outdoors"]),
      "objects": f.Sequence({
        "bbox": f.BBoxFeature(), "label": f.ClassLabel(names=["cat", "dog"]), "phrase": f.Text()}),
    }))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(3):
      data = io.BytesIO()
      Image.fromarray(np.full((40, 80, 3), i * 50, np.uint8)).save(data, "JPEG")
      data.seek(0)
      box = tfds.features.BBox(ymin=0.25, xmin=0.125, ymax=0.5, xmax=1.0)
      yield i, {
        "image": data, "image/filename": f"{i}.jpg", "caption": f"picture {i}",
        "captions": [f"one {i}", "two."], "label": i % 2,
        "objects": [{"bbox": box, "label": j, "phrase": f"part {j}"} for j in range(i)]}
'''


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  (root / "miniature.py").write_text(_MODULE)
  sys.path.insert(0, str(root))
  try:
    import miniature

    builder = miniature.Miniature(data_dir=root / "data", file_format="array_record")
    builder.download_and_prepare()
  finally:
    sys.path.remove(str(root))
  return root / "data" / "miniature" / "1.0.0"


def samples(prepared, split="train", **keys):
  plan = tfds_source.read(str(prepared), split, tfds_source.Keys(**keys))
  found = {sample.global_text: sample for sample in map(plan.load, plan.items)}
  return plan, found


def test_boxes_become_pixels_and_labels_their_names(prepared):
  plan, found = samples(
    prepared, text="caption", box="objects/bbox", box_text="objects/label")
  assert sorted(found) == ["picture 0", "picture 1", "picture 2"]
  sample = found["picture 2"]
  assert sample.texts == ["cat", "dog"]
  # The box is y 0.25 to 0.5 of 40, x 0.125 to 1 of 80.
  np.testing.assert_array_equal(sample.boxes, [[10, 10, 80, 20]] * 2)
  assert (sample.width, sample.height) == (80, 40)
  assert sample.image[:2] == b"\xff\xd8"
  assert len({item.id for item in plan.items}) == 3
  assert "tensorflow" not in sys.modules


def test_texts_sequences_and_names_with_a_slash_are_found(prepared):
  _, found = samples(prepared, text="captions", box="objects/bbox", box_text="objects/phrase")
  assert found["one 2. two."].texts == ["part 0", "part 1"]
  assert set(samples(prepared, text="label")[1]) == {"indoors", "outdoors"}
  assert set(samples(prepared, text="image/filename")[1]) == {"0.jpg", "1.jpg", "2.jpg"}


def test_class_labels_and_several_captions_are_kept_for_evaluation(prepared):
  _, found = samples(prepared, text="captions", label="label")
  assert found["one 1. two."].label == "outdoors"
  assert found["one 1. two."].captions == ["one 1", "two."]
  # Without another caption, an image's class is one.
  _, found = samples(prepared, label="label")
  assert {(text, s.label) for text, s in found.items()} == {
    ("indoors", "indoors"), ("outdoors", "outdoors")}
  plan = tfds_source.read(str(prepared), "train", tfds_source.Keys(
    label="objects/label", text="caption"))
  with pytest.raises(SkipRecord, match="labels.*expected one"):
    for item in plan.items:
      plan.load(item)


def test_slices_of_splits_are_understood(prepared):
  plan, _ = samples(prepared, "train[:2]", text="caption")
  assert len(plan.items) == 2


@pytest.mark.parametrize(
  "keys, message",
  [({}, "needs to know where captions are"), ({"box": "objects/bbox"}, "where captions are"),
   ({"text": "captoin"}, "no feature 'captoin'"), ({"text": "objects/nope"}, "objects/nope"),
   ({"text": "caption", "image": "label"}, "is no image")],
)
def test_a_wrong_key_is_named(prepared, keys, message):
  with pytest.raises(BuildError, match=message):
    samples(prepared, **keys)


def test_a_wrong_split_is_named_with_those_there_are(prepared):
  with pytest.raises(BuildError, match=r"'valid'.*\['train'\]"):
    samples(prepared, "valid", text="caption")


def test_a_directory_or_name_of_nothing_is_an_error(tmp_path):
  keys = tfds_source.Keys(text="caption")
  with pytest.raises(BuildError, match="no dataset_info.json"):
    tfds_source.read(str(tmp_path), "train", keys)
  with pytest.raises(BuildError, match="no_such_data_set"):
    tfds_source.read("no_such_data_set", "train", keys)


def test_a_format_that_needs_tensorflow_says_how_to_convert_it(prepared, tmp_path):
  for file in prepared.iterdir():
    (tmp_path / file.name).write_bytes(file.read_bytes())
  info = json.loads((tmp_path / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  (tmp_path / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(BuildError, match="tfrecord, which only TensorFlow reads.*convert_format"):
    samples(tmp_path, text="caption")


def test_items_are_plain_data(prepared):
  plan, _ = samples(prepared, text="caption")
  assert dataclasses.asdict(plan.items[0])["index"] == 0
  json.dumps(plan.settings)
