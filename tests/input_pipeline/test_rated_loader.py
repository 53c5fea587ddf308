"""Batches of rated and described pictures: their scores, crops, captions and parts."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
from PIL import Image

from input_pipeline import contents, crops, loader
from input_pipeline.input_config import InputError, dataset_size, open_members
from input_pipeline.loader import InputConfig
from input_pipeline.ratings import Rating
from input_pipeline.splits import PartError

SIZE = 16
CAPTIONS = [("iqa", "sharp"), ("iaa", "well lit"), ("iaa_human", "love it"), ("iaa_human", "meh")]


def pixels_of(k):
  width, height = 24 + k, 40 - k
  return np.random.default_rng([9, k]).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def rated(make_dataset, make_sample):
  """Twelve pictures of four references; the last has no rating, its image is noise as PNG."""
  samples = []
  for k in range(12):
    data = io.BytesIO()
    Image.fromarray(pixels_of(k)).save(data, "PNG")
    height, width = pixels_of(k).shape[:2]
    samples.append(dataclasses.replace(
      make_sample(k, regions=0, global_text="sharp"), image=data.getvalue(), width=width,
      height=height, boxes=np.zeros((0, 4), np.float32),
      captions=[text for _, text in CAPTIONS], caption_sources=[of for of, _ in CAPTIONS],
      rating=Rating(k / 16, k / 4, f"r{k % 4}", {"official": "test" if k > 8 else "train"})
      if k < 11 else None,
    ))
  return make_dataset({"all": samples}, shards=1)


def config_of(data, **changes):
  return InputConfig(**{"data": data, "split": "all", "image_size": SIZE, "text_len": 16,
                        "threads": 0, "max_skip_share": 0.5, **changes})


def batches(config, count, **options):
  stream = loader.train_stream(config, batch_size=6, seed=3, **options)
  found = [next(stream) for _ in range(count)]
  return found, stream


def test_training_on_scores_ships_plain_crops_and_their_scores(rated):
  config = config_of(rated, captions=False, scores=True, crop="plain", flip=True)
  found, stream = batches(config, 8)
  assert set(found[0]) == {"image", "score"}
  assert found[0]["score"].dtype == np.float32 and found[0]["score"].shape == (6,)
  originals = {np.float32(k / 16): pixels_of(k) for k in range(11)}
  mirrored = set()
  for batch in found:
    for image, score in zip(batch["image"], batch["score"]):
      whole = originals[score]
      places = [
        (x, y, flip) for flip in (False, True)
        for y in range(whole.shape[0] - SIZE + 1) for x in range(whole.shape[1] - SIZE + 1)
        if np.array_equal(whole[y : y + SIZE, x : x + SIZE], image[:, ::-1] if flip else image)
      ]
      assert len(places) == 1, "every crop is a piece of its own picture, untouched"
      mirrored.add(places[0][2])
  assert mirrored == {True, False}
  assert stream.skipped.keys() == {"no-rating"}


def test_pictures_smaller_than_a_crop_are_enlarged(rated):
  config = config_of(rated, captions=False, scores=True, crop="plain", image_size=64)
  (batch,), _ = batches(config, 1)
  assert batch["image"].shape == (6, 64, 64, 3) and batch["image"].std() > 20


def test_evaluation_shows_the_crops_of_each_rated_picture_whatever_the_batch(rated):
  config = config_of(rated, eval_crops="ten_random")
  entries = contents.of_config(config)
  assert entries[3].rating.group == "r3" and entries[3].size == (27, 37)
  assert entries[3].id == "image-3" and entries[3].caption_sources[0] == "iqa"
  seen = {}
  for batch_size, processes in ((7, 1), (64, 1), (6, 2)):
    rows = {}
    for process in range(processes):
      for batch in loader.eval_stream(config, batch_size=batch_size, items="rated",
                                      process_index=process, process_count=processes):
        for i in np.flatnonzero(batch["mask"]):
          rows[int(batch["index"][i])] = int(batch["image_index"][i]), batch["image"][i].copy()
    assert sorted(rows) == list(range(110))
    seen[batch_size, processes] = rows
  first = seen[7, 1]
  for rows in seen.values():
    for index, (number, image) in rows.items():
      assert number == index // 10 == first[index][0]
      np.testing.assert_array_equal(image, first[index][1])
      entry = entries[number]
      box = crops.boxes("ten_random", entry.id, *entry.size, SIZE)[index % 10]
      np.testing.assert_array_equal(image, crops.cut(pixels_of(number), box, SIZE))


def test_without_crops_each_rated_picture_is_one_row(rated):
  (batch,) = loader.eval_stream(config_of(rated), batch_size=12, items="rated")
  assert batch["mask"].sum() == 11 and batch["image_index"][:11].tolist() == list(range(11))


def test_one_caption_is_drawn_and_every_one_of_those_asked_for(rated):
  def texts(**changes):
    found, stream = batches(config_of(rated, one_caption=True, global_share=1.0, **changes), 20)
    rows = [bytes(row[row > 2].astype(np.uint8) - 3).decode() for b in found for row in b["text"]]
    return rows, stream

  every, _ = texts()
  counts = {text: every.count(text) for text in set(every)}
  assert set(counts) == {"sharp", "well lit", "love it", "meh"}
  # 120 draws of four: 30 each, and four standard deviations are 19.
  assert all(abs(count - 30) < 20 for count in counts.values())
  assert set(texts(caption_sources=("iqa", "iaa"))[0]) == {"sharp", "well lit"}
  later, _ = batches(config_of(rated, one_caption=True, global_share=1.0), 1, start_step=7)
  words = [bytes(row[row > 2].astype(np.uint8) - 3).decode() for row in later[0]["text"]]
  assert words == every[7 * 6 : 8 * 6], "they are a function of the seed and the position"


def test_a_part_is_all_that_training_and_evaluation_see(rated):
  config = config_of(rated, part="reference_1/train", captions=False, scores=True, crop="plain")
  entries = contents.of_config(config)
  groups = {entry.rating.group for entry in entries}
  assert len(groups) == 3 and dataset_size(config) == len(entries)
  found, stream = batches(config, 10)
  allowed = {np.float32(entry.rating.score) for entry in entries}
  assert {score for b in found for score in b["score"]} == allowed and not stream.skipped
  test = config_of(rated, part="reference_1/test", eval_crops="center")
  rows = [b for b in loader.eval_stream(test, batch_size=4, items="rated")]
  numbers = np.concatenate([b["image_index"][b["mask"]] for b in rows])
  there = contents.of_config(test)
  assert numbers.tolist() == list(range(len(there)))
  assert {entry.rating.group for entry in there}.isdisjoint(groups)
  assert len(there) + len(entries) == 11
  few = config_of(rated, part="official/train/4@2")
  assert dataset_size(few) == 4 and len(contents.of_config(few)) == 4


def test_parts_go_into_worker_processes(rated):
  (member,) = open_members(config_of(rated, part="official/test"))
  other = pickle.loads(pickle.dumps(member.source))
  assert [s.id for s in other] == [s.id for s in member.source] == ["image-9", "image-10"]
  assert other.where(1) == member.source.where(1) and "record 10" in other.where(1)


def test_a_part_of_nothing_names_the_data_set(rated):
  with pytest.raises(PartError, match=r"\[all\].*pkl_1"):
    dataset_size(config_of(rated, part="pkl_1/train"))


@pytest.mark.parametrize("change, words", [
  ({"part": "reference_1"}, "input.part"),
  ({"crop": "plain"}, "input.crop"),
  ({"crop": "random"}, "resized"),
  ({"crop": "plain", "captions": False, "crop_clamp": True}, "crop_clamp"),
  ({"eval_crops": "ten"}, "ten_random"),
  ({"scores": 1}, "input.scores"),
  ({"caption_sources": "iqa", "one_caption": True}, "caption_sources"),
  ({"caption_sources": ("iqa", "hua"), "one_caption": True}, "iaa_human"),
  ({"caption_sources": ("iqa",)}, "one_caption"),
  ({"one_caption": True, "captions": False}, "captions=False"),
])
def test_settings_that_cannot_be_followed_are_refused(change, words):
  with pytest.raises((InputError, PartError)) as error:
    InputConfig(data="d", **change)
  assert words in str(error.value)
