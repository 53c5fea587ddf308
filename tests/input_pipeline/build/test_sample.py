"""The sample data is what it says: deterministic, disjoint, well placed, truthfully captioned."""

import importlib.util
import io
import re

import numpy as np
import pytest
from PIL import Image

from input_pipeline import records
from input_pipeline.build import (
  sample,
  sample_glyphs,
  sample_items,
  sample_photos,
  sample_scene,
)


def content(text):
  """("digit" or "word", what the caption says is to be read)."""
  sentence = text.split(".")[0]
  kind = "digit" if "handwritten" in sentence.lower() else "word"
  pattern = r"handwritten (?:digit )?(\w+)" if kind == "digit" else r"word (\w+)"
  return kind, re.search(pattern, sentence, re.IGNORECASE).group(1)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  out = tmp_path_factory.mktemp("sample")
  sample.build(out, train=10, val=24, max_side=2048, progress=False)
  return out


@pytest.fixture(scope="module")
def splits(built):
  return {split: list(records.open_dataset(built, split)) for split in ("train", "val")}


def both(splits):
  return [*splits["train"], *splits["val"]]


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads_and_counts(splits, tmp_path):
  sample.build(tmp_path, train=2, val=3, max_side=2048, threads=1, progress=False)
  for split in ("train", "val"):
    again = list(records.open_dataset(tmp_path, split))
    for one, other in zip(again, splits[split]):
      assert records.encode_sample(one) == records.encode_sample(other)


def test_another_seed_gives_other_canvases_and_another_partition():
  zero, one = (sample_glyphs.split_pools(seed) for seed in (0, 1))
  assert set(zero["val"].words) != set(one["val"].words)
  scenes = [
    sample_scene.render(np.random.default_rng([seed, 1, 0]), zero["train"], 2048) for seed in (0, 1)
  ]
  assert scenes[0].texts != scenes[1].texts


def test_a_second_build_finds_everything_done(built):
  reports = sample.build(built, train=10, val=24, max_side=2048, progress=False)
  assert {split: report.resumed for split, report in reports.items()} == {"train": 10, "val": 24}


def test_a_directory_with_another_seed_is_refused(built):
  with pytest.raises(ValueError, match="another build"):
    sample.build(built, train=10, val=24, max_side=2048, seed=1, progress=False)


def test_train_and_val_share_neither_digit_instances_nor_words():
  pools = sample_glyphs.split_pools(3)
  for field, everything in (("digits", 1797), ("words", len(sample_glyphs.WORDS))):
    train, val = (set(getattr(pools[split], field)) for split in ("train", "val"))
    assert not train & val
    assert len(train) + len(val) == everything
  labels = sample_glyphs.digits()[1]
  # Every digit is as frequent in val as in train, but for rounding.
  shares = [np.bincount(labels[list(pools[s].digits)]) / len(pools[s].digits) for s in pools]
  np.testing.assert_allclose(*shares, atol=0.005)


def test_what_is_written_comes_from_the_pool_of_its_split(splits):
  pools = sample_glyphs.split_pools(0)
  for split, samples in splits.items():
    for kind, what in (content(text) for s in samples for text in s.texts):
      known = sample_glyphs.DIGIT_NAMES if kind == "digit" else pools[split].words
      assert what in known


def test_the_words_are_distinct_and_have_three_to_five_letters():
  assert len(set(sample_glyphs.WORDS)) == len(sample_glyphs.WORDS) >= 300
  assert all(3 <= len(word) <= 5 and word.isalpha() for word in sample_glyphs.WORDS)


def test_canvases_have_1536_to_4096_pixels_and_moderate_aspects():
  rng = np.random.default_rng(0)
  sizes = np.array([sample_scene._canvas_size(rng, 4096) for _ in range(2000)])
  assert sizes.min() == 1536 and 4000 < sizes.max() <= 4096
  aspects = sizes[:, 0] / sizes[:, 1]
  assert 0.749 < aspects.min() < 0.76 and 1.32 < aspects.max() < 1.334


def test_records_tell_the_size_of_their_image(splits):
  for s in both(splits):
    with Image.open(io.BytesIO(s.image)) as image:
      assert image.size == (s.width, s.height) and image.mode == "RGB"


def test_items_number_six_to_twelve_do_not_overlap_and_keep_their_size(splits):
  for s in both(splits):
    assert 6 <= len(s.boxes) <= 12
    x0, y0, x1, y1 = s.boxes.T[:, :, None]
    apart = (x1 <= x0.T) | (x1.T <= x0) | (y1 <= y0.T) | (y1.T <= y0)
    assert (apart | np.eye(len(s.boxes), dtype=bool)).all()
    # The side lengths on the canvas squashed to the low scale: seen, but in a few pixels only.
    unit = np.sqrt(s.width * s.height) / sample_items.LOW_SCALE
    for box, text in zip(s.boxes, s.texts):
      wide, high = (box[2:] - box[:2]) / unit
      assert 3.0 < high < (6.2 if content(text)[0] == "digit" else 8.5)
      assert 3.0 < wide < (6.2 if content(text)[0] == "digit" else 19)


def test_captions_are_unique_in_their_image_and_nearly_so_in_val(splits):
  for s in both(splits):
    assert len(set(s.texts)) == len(s.texts)
  texts = [text for s in splits["val"] for text in s.texts]
  assert len(set(texts)) > 0.98 * len(texts)


def test_the_box_has_the_colours_that_its_caption_names(splits):
  right = total = 0
  for s in both(splits):
    image = Image.open(io.BytesIO(s.image)).convert("RGB")
    for box, text in zip(s.boxes, s.texts):
      pixels = np.asarray(image.crop(tuple(int(v) for v in box)), np.float32)
      h, w = pixels.shape[:2]
      inside = pixels[h // 6 : -h // 6, w // 6 : -w // 6].reshape(-1, 3)
      palette = np.array(list(sample_items.TAG_COLOURS.values()))
      nearest = np.argmin(np.square(np.median(inside, 0) - palette).sum(-1))
      tag = list(sample_items.TAG_COLOURS)[nearest]
      ink = re.search(r"in (\w+)", text.split(".")[0].lower()).group(1)
      distance = np.square(inside - sample_items.INK_COLOURS[ink]).sum(-1) ** 0.5
      right += f"{tag} " in text.lower() and np.mean(distance < 60) > 0.01
      total += 1
  # Bold words may cover half of their tag, so that the median is ink.
  assert right >= 0.98 * total, (right, total)


def test_a_sentence_about_the_place_names_the_right_ninth(splits):
  found = 0
  for s in both(splits):
    for box, text in zip(s.boxes, s.texts):
      if place := re.search(r"\. It is in the (.+) of the image\.$", text):
        x = ("left", "middle", "right")[int((box[0] + box[2]) * 1.5 / s.width)]
        y = ("upper", "middle", "lower")[int((box[1] + box[3]) * 1.5 / s.height)]
        assert place.group(1) == ("centre" if x == y == "middle" else f"{y} {x}")
        found += 1
  total = sum(len(s.texts) for s in both(splits))
  assert 0.2 * total < found < 0.4 * total


def test_contrast_follows_wcag_and_every_tag_has_several_inks(monkeypatch):
  monkeypatch.setitem(sample_items.TAG_COLOURS, "paper", (255, 255, 255))
  monkeypatch.setitem(sample_items.INK_COLOURS, "coal", (0, 0, 0))
  monkeypatch.setitem(sample_items.INK_COLOURS, "grey", (119, 119, 119))
  # The two values everyone quotes: 21 for black on white, 4.48 for #777 on white.
  assert sample_items.contrast("paper", "coal") == pytest.approx(21)
  assert sample_items.contrast("paper", "grey") == pytest.approx(4.48, abs=0.005)
  monkeypatch.undo()
  for tag in sample_items.TAG_COLOURS:
    inks = sample_items.inks_for(tag)
    assert len(inks) >= 2 and tag not in inks


def test_a_digit_keeps_the_shape_of_its_scan():
  ink, _ = sample_glyphs.digits()
  for index in range(0, 1797, 97):
    mask = sample_glyphs.digit_mask(index, 80)
    assert mask.height == 80
    rows, columns = np.nonzero(ink[index] > 0.3)
    scan = ink[index][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    small = np.asarray(mask.resize(scan.shape[::-1], Image.Resampling.BOX), np.float64)
    assert np.corrcoef(small.ravel(), scan.ravel())[0, 1] > 0.7


@pytest.mark.parametrize("font", range(sample_glyphs.FONT_COUNT))
def test_capitals_have_the_height_that_was_asked_for(font):
  assert abs(sample_glyphs.word_mask("hit", 60, font).height - 60) <= 2


def test_every_kind_of_decoy_is_smaller_than_a_twelfth_of_the_canvas():
  for kind in sample_items._DECOYS:
    for seed in range(5):
      patch = kind(np.random.default_rng(seed), 2.0)
      assert patch.mode == "RGBA" and patch.getchannel("A").getextrema()[1] > 200
      assert 20 < max(patch.size) < 2.0 * 768 / 6


def test_the_global_caption_names_a_photograph(splits):
  names = [name for photo in sample_photos.PHOTOS for name in photo.names]
  captions = [s.global_text for s in both(splits)]
  assert all(any(name in text.lower() for name in names) for text in captions)
  assert len(set(captions)) > 0.8 * len(captions)


def test_a_black_and_white_background_has_no_colour():
  photo = next(p for p in sample_photos.PHOTOS if p.file == "chelsea.png")
  image = sample_photos.background(np.random.default_rng(0), photo, "black and white", (300, 200))
  pixels = np.asarray(image, int)
  # Of the weak saturation left by no colour at all, rounding alone remains.
  assert np.ptp(pixels, axis=2).max() <= 2


def test_the_manifest_gives_source_and_licence_of_everything_used(built):
  sources = records.open_dataset(built, "val").info["sources"]
  assert len(sources) == len(sample_photos.PHOTOS) + 3
  assert all(entry["licence"] and entry["credit"] for entry in sources)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"train": 0}, "train is 0"),
    ({"val": -1}, "val is -1"),
    ({"seed": -5}, "seed is -5"),
    ({"max_side": 500}, "max_side is 500"),
  ],
)
def test_impossible_arguments_are_named(tmp_path, arguments, message):
  with pytest.raises(ValueError, match=message):
    sample.build(tmp_path, progress=False, **arguments)


def test_a_missing_package_is_named_with_the_mend(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ValueError, match="matplotlib is not installed.*requirements.txt"):
    sample_glyphs.word_mask("lamp", 20, 0)
