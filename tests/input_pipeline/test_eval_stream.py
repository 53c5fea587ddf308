import dataclasses
import os

import numpy as np
import pytest
from PIL import Image

from input_pipeline import contents, loader, records, text

SIZE = 24


def _config(data, **changes):
  return loader.InputConfig(
    **{"data": data, "split": "val", "image_size": SIZE, "text_len": 32, **changes}
  )


def _joined(batches):
  """Returns the rows of all batches."""
  return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def _read_val(data):
  return list(records.open_dataset(data, "val"))


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_evaluation_shows_every_region_once_in_order_and_pads_the_last_batch(data, batch_size):
  samples = _read_val(data)
  regions = [(i, j) for i, s in enumerate(samples) for j in range(len(s.texts))]
  stream = loader.eval_stream(_config(data, text_len=64), batch_size=batch_size)
  assert len(stream) == -(-len(regions) // batch_size)
  batches = list(stream)
  assert len(batches) == len(stream)
  rows = _joined(batches)
  n = len(regions)
  assert rows["mask"].tolist() == [True] * n + [False] * (len(rows["mask"]) - n)
  assert rows["index"][:n].tolist() == list(range(n)) and (rows["index"][n:] == -1).all()
  assert rows["image_index"][:n].tolist() == [i for i, _ in regions]
  assert not rows["is_global"][:n].any()
  tok = text.make_tokenizer("bytes")
  for k, (i, j) in enumerate(regions):
    sample = samples[i]
    # The whole caption, and the box under a plain squash.
    assert tok.decode(rows["text"][k]) == text.canonicalize(sample.texts[j])
    scale = SIZE / np.array([sample.width, sample.height] * 2)
    np.testing.assert_allclose(rows["box"][k], sample.boxes[j] * scale, rtol=1e-5)


def test_evaluation_of_images_takes_the_globally_captioned_ones_whole(data):
  samples = _read_val(data)
  expected = [i for i, s in enumerate(samples) if s.global_text]
  config = _config(data, max_boxes=4)
  batches = list(loader.eval_stream(config, batch_size=2, items="images"))
  rows = _joined(batches)
  n = len(expected)
  assert 0 < n < len(samples) and rows["mask"].sum() == n
  assert rows["image_index"][:n].tolist() == expected and rows["is_global"][:n].all()
  assert rows["index"][:n].tolist() == list(range(n))
  assert (rows["box"] == [0, 0, SIZE, SIZE]).all()
  assert rows["num_boxes"][:n].tolist() == [len(samples[i].texts) for i in expected]


def test_evaluation_of_classes_takes_the_labelled_images_whole(make_dataset, make_sample):
  samples = [make_sample(i) for i in range(7)]
  for i in (0, 2, 5):
    samples[i].label = f"class {i}"
  assert samples[0].global_text is None and samples[5].global_text
  config = _config(make_dataset({"val": samples}, shards=1))
  rows = _joined(list(loader.eval_stream(config, batch_size=2, items="labelled")))
  assert rows["mask"].tolist() == [True, True, True, False]
  assert rows["image_index"][:3].tolist() == [0, 2, 5] and rows["is_global"].all()
  # One without a caption has an empty one.
  assert rows["text"][0, 0] == 1
  assert text.make_tokenizer("bytes").decode(rows["text"][2]) == "the whole of image 5"
  entries = contents.of_config(config)
  assert [entries[i].label for i in rows["image_index"][:3]] == ["class 0", "class 2", "class 5"]
  with pytest.raises(loader.InputError, match="no images with a class label"):
    bare = make_dataset({"val": [make_sample(0)]}, "bare")
    loader.eval_stream(_config(bare), batch_size=1, items="labelled")
  with pytest.raises(loader.InputError, match="regions, images, labelled"):
    loader.eval_stream(config, batch_size=1, items="lables")


def test_evaluation_images_are_squashed_and_alike_for_all_regions(make_dataset, encode_image):
  pixels = np.zeros((30, 90, 3), np.uint8)
  pixels[:, 45:] = 200
  boxes = np.float32([[0, 0, 45, 30], [45, 0, 90, 30]])
  sample = records.Sample("a", encode_image(pixels), 90, 30, boxes, ["dark", "light"])
  directory = make_dataset({"val": [sample]})
  (batch,) = loader.eval_stream(_config(directory), batch_size=2)
  np.testing.assert_array_equal(batch["image"][0], batch["image"][1])
  half = SIZE // 2
  # Bicubic overshoots by the edge; two pixels away it is flat.
  assert (batch["image"][0, :, : half - 2] == 0).all()
  assert (batch["image"][0, :, half + 2 :] == 200).all()
  assert batch["box"].tolist() == [[0, 0, half, SIZE], [half, 0, SIZE, SIZE]]


@pytest.mark.parametrize("width, height", [(80, 56), (48, 96), (64, 64)])
def test_evaluation_can_take_the_square_in_the_middle(
  make_dataset, make_sample, encode_image, width, height
):
  """Resize the shorter side to 32, then the middle 24 x 24: the usual 256 and 224."""
  rng = np.random.default_rng(0)
  small = Image.fromarray(rng.integers(0, 256, (7, 10, 3), np.uint8))
  image = small.resize((width, height), Image.Resampling.BICUBIC)
  sample = dataclasses.replace(
    make_sample(0, regions=0), image=encode_image(image), width=width, height=height, label="x",
    global_text="x")
  data = make_dataset({"val": [sample]})
  short = min(width, height)
  sides = tuple(32 if s == short else int(32 * s / short) for s in (width, height))
  whole = np.asarray(image.resize(sides, Image.Resampling.BICUBIC)).astype(int)
  y, x = (round((s - 24) / 2) for s in whole.shape[:2])
  want = whole[y : y + 24, x : x + 24]
  settings = _config(data, captions=False, eval_crop=0.75)
  (batch,) = loader.eval_stream(settings, batch_size=1, items="labelled")
  got = batch["image"][0].astype(int)
  # Pillow turns the order of its two passes, each of which rounds, where that saves work.
  most = 1 if width == height else 2
  assert np.abs(got - want).max() <= most and np.abs(got - want).mean() < 0.3
  (squashed,) = loader.eval_stream(_config(data), batch_size=1, items="labelled")
  assert np.abs(squashed["image"][0].astype(int) - want).mean() > 12


def test_processes_evaluate_equally_many_batches_and_together_everything(data):
  config = _config(data)
  whole = list(loader.eval_stream(config, batch_size=4))
  parts = [
    list(loader.eval_stream(config, batch_size=4, process_index=j, process_count=4))
    for j in range(4)
  ]
  assert {len(p) for p in parts} == {len(whole)}
  joined = [_joined(step) for step in zip(*parts)]
  assert len(joined) == len(whole)
  for a, b in zip(joined, whole):
    for key in b:
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_evaluation_masks_and_counts_what_cannot_be_decoded(make_dataset, make_sample):
  bad = make_sample(1)
  bad.image = bad.image[: len(bad.image) // 2]
  version = records.encode_sample(make_sample(3)).replace(b"\xa7version\x01", b"\xa7version\x03")
  directory = make_dataset({"val": [make_sample(0), bad, make_sample(2), version]}, shards=1)
  config = _config(directory, max_skip_share=0.5)
  stream = loader.eval_stream(config, batch_size=4)
  rows = [b for b in stream]
  mask = np.concatenate([b["mask"] for b in rows])
  index = np.concatenate([b["index"] for b in rows])
  assert mask.tolist() == [True, True, False, False, True, True, False, False]
  assert index.tolist() == [0, 1, -1, -1, 4, 5, -1, -1]
  assert stream.skipped == {"record-version": 1, "image-undecodable": 1}
  strict = dataclasses.replace(config, max_skip_share=0.01)
  with pytest.raises(loader.LoadError, match="record version is 3"):
    loader.eval_stream(strict, batch_size=4)


def test_evaluation_notices_that_a_data_set_was_rebuilt(make_dataset, make_sample, tmp_path):
  directory = make_dataset({"val": [make_sample(0)]})
  config = _config(directory)
  assert len(loader.eval_stream(config, batch_size=1)) == 2
  other = make_dataset({"val": [make_sample(i) for i in range(3)]}, "other")
  for name in os.listdir(other):
    os.replace(os.path.join(other, name), os.path.join(directory, name))
  assert len(loader.eval_stream(config, batch_size=1)) == 6


def test_evaluation_goes_through_each_data_set_of_a_mixture_once(make_dataset, make_sample):
  data = {
    name: {"path": make_dataset({"val": [make_sample(i) for i in range(n)]}, name), "weight": 5 - n}
    for name, n in (("a", 2), ("b", 3))
  }
  batches = list(loader.eval_stream(_config(data), batch_size=5))
  image_index = np.concatenate([b["image_index"] for b in batches])
  assert image_index.tolist() == [i for i in range(5) for _ in range(2)]


def test_rows_of_no_item_have_a_box_and_an_empty_caption(data):
  batch = list(loader.eval_stream(_config(data, max_boxes=2), batch_size=8))[-1]
  padding = ~batch["mask"]
  assert padding.any()
  assert (batch["box"][padding] == [0, 0, SIZE, SIZE]).all()
  assert (batch["text"][padding, 0] == 1).all() and not batch["text"][padding, 1:].any()
  assert not batch["num_boxes"][padding].any() and not batch["boxes"][padding].any()


def test_evaluation_of_all_shows_every_image_once_whole(data):
  samples = _read_val(data)
  rows = _joined(list(loader.eval_stream(_config(data), batch_size=4, items="all")))
  n = len(samples)
  assert rows["image_index"][:n].tolist() == list(range(n)) and rows["mask"].sum() == n
  assert (rows["box"][:n] == [0, 0, SIZE, SIZE]).all()
