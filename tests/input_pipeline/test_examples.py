import dataclasses
import pickle

import numpy as np
import pytest

from input_pipeline import captions, examples, images, pyramid, transforms
from input_pipeline.build import layouts
from input_pipeline.input_config import InputConfig, InputError


def _array(value, size=100):
  return np.full(size, value, np.uint8)


def _fill(cache, keys, made):
  for key in keys:
    got = cache.get(key, lambda key=key: made.append(key) or _array(key))
    assert (got == key).all()


def test_the_cache_forgets_what_was_used_longest_ago():
  cache, made = examples.ImageCache(300), []
  _fill(cache, [1, 2, 3, 1, 4, 1, 3, 2], made)
  # 4 pushed out 2, not 1, which had just been used.
  assert made == [1, 2, 3, 4, 2]


def test_the_cache_keeps_nothing_larger_than_itself_and_nothing_at_size_zero():
  for capacity in (0, 99):
    cache, made = examples.ImageCache(capacity), []
    _fill(cache, [1, 1, 1], made)
    assert made == [1, 1, 1]


def test_a_failure_to_decode_is_not_remembered():
  cache = examples.ImageCache(1000)
  with pytest.raises(ZeroDivisionError):
    cache.get(1, lambda: 1 // 0)
  assert (cache.get(1, lambda: _array(7)) == 7).all()


def test_a_cache_arrives_empty_in_a_worker():
  cache, made = examples.ImageCache(1000), []
  _fill(cache, [1], made)
  _fill(pickle.loads(pickle.dumps(cache)), [1, 1], made)
  assert made == [1, 1]


def _train_row(config, sample, *key):
  maker = examples.ExampleMaker(config)
  batch = maker.allocate(1)
  rng = np.random.default_rng(key)
  maker.write_train(batch, 0, sample, rng, key=0, where="the record")
  return batch


def test_the_chosen_box_is_among_the_shipped_ones_however_few(make_sample):
  sample = make_sample(0, regions=6)
  config = InputConfig("unused", image_size=16, max_boxes=2)
  chosen = set()
  for i in range(40):
    batch = _train_row(config, sample, i)
    assert batch["num_boxes"][0] == 2
    np.testing.assert_array_equal(batch["boxes"][0, 0], batch["box"][0])
    chosen.add(tuple(batch["box"][0].round()))
  assert len(chosen) >= 6


def test_boxes_out_of_the_crop_are_not_shipped(make_sample):
  sample = make_sample(0, regions=2)
  w, h = sample.width, sample.height
  sample.boxes = np.float32([[0, 0, w, h], [w - 1, h - 1, w, h]])
  config = InputConfig("unused", image_size=16, max_boxes=4, crop_scale=(0.3, 0.3))
  counts = set()
  for i in range(30):
    batch = _train_row(config, sample, i)
    n = int(batch["num_boxes"][0])
    boxes = batch["boxes"][0, :n]
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    counts.add(n)
  assert counts == {1, 2}


def test_a_caption_without_words_cannot_be_trained_on(make_sample):
  sample = make_sample(0, regions=1, global_text=None)
  sample.texts = ["?!"]
  with pytest.raises(transforms.CaptionError, match="the record: the caption has no words left"):
    _train_row(InputConfig("unused", image_size=8), sample, 0)
  _train_row(InputConfig("unused", image_size=8, canonicalize=False), sample, 0)


def test_sentences_are_sampled_only_if_asked(make_sample):
  sample = make_sample(0, regions=1, global_text=None)
  sample.texts = ["One. Two. Three."]
  for sampling, least in ((False, 1), (True, 4)):
    config = InputConfig("unused", image_size=8, sentence_sampling=sampling)
    rows = {_train_row(config, sample, i)["text"].tobytes() for i in range(40)}
    assert (len(rows) == 1) if least == 1 else (len(rows) >= least)


def test_a_row_of_tiles_is_the_row_of_the_whole_with_less_around_it(make_sample):
  """Same words and boxes to the bit, and the pixels of the whole where there are tiles."""
  whole = InputConfig("unused", image_size=80, max_boxes=3)
  tiled = dataclasses.replace(whole, tiles=6, tile_size=16, view_size=40)
  covered, all_off = 0, []
  for i in range(12):
    sample = make_sample(i, regions=3)
    a, b = _train_row(whole, sample, i), _train_row(tiled, sample, i)
    for name in ("text", "box", "is_global", "boxes", "num_boxes"):
      np.testing.assert_array_equal(a[name], b[name])
    assert b["image"].shape == (1, 40, 40, 3) and b["tiles"].shape == (1, 6, 16, 16, 3)
    for tile, at in zip(b["tiles"][0], b["tile_at"][0]):
      y, x = 16 * (at // 5), 16 * (at % 5)
      there = a["image"][0, y:y + 16, x:x + 16].astype(int) if at >= 0 else 0
      # Pillow rounds to whole levels after each of two passes, rows or columns first, whichever is
      # cheaper for the shape: some of the pixels are off by one, a few by two.
      all_off.append(np.abs(tile - there))
      assert all_off[-1].max() <= 2
    x0, y0, x1, y1 = np.floor(b["box"][0] / 16)
    covered += {5 * y0 + x0, 5 * min(y1, 4) + min(x1, 4)} <= set(b["tile_at"][0])
  assert covered >= 6 and np.mean(all_off) < 0.2


def test_layouts_and_kinds_of_resizing_share_words_and_boxes_to_the_bit(make_sample, monkeypatch):
  monkeypatch.setattr(pyramid, "WORTH_IT", 30)
  for i in range(6):
    sample = make_sample(i, regions=3)
    stored = layouts.tiled(sample)
    assert stored.pyramid is not None and not stored.image
    rows = [_train_row(InputConfig("unused", image_size=32, max_boxes=3, resize=resize), s, i)
            for s in (sample, stored) for resize in ("bicubic", "fast")]
    for other in rows[1:]:
      for name in ("text", "box", "is_global", "boxes", "num_boxes"):
        np.testing.assert_array_equal(rows[0][name], other[name])
      assert np.abs(rows[0]["image"].astype(int) - other["image"]).mean() < 6


@pytest.mark.parametrize("settings, says", [
  ({"tile_size": 30}, "tile_size is 30, expected a divisor of input.image_size, 80"),
  ({"tiles": 26, "tile_size": 16}, "tiles is 26, but 80 pixels hold 25 tiles of 16"),
  ({"tile_size": 16, "view_size": 81}, "view_size is 81, expected no more than input.image_size"),
  ({"tiles": -1}, "tiles is -1"),
])
def test_tiles_that_do_not_fit_the_image_are_refused(settings, says):
  with pytest.raises(InputError, match=says):
    InputConfig("unused", image_size=80, **{"tiles": 4} | settings)


@pytest.mark.parametrize("share, least, most", [(0.25, 1.0, 1.0), (0.1, 0.25, 0.55), (0, 0, 0)])
def test_captions_of_an_image_differ_and_are_global_as_often_as_asked_for(
  make_sample, share, least, most
):
  sample = make_sample(1, regions=6)
  config = InputConfig(
    "unused", image_size=64, captions_per_image=4, global_share=share, max_boxes=6,
    sentence_sampling=False)  # fmt: skip
  whole = []
  for i in range(80):
    batch = _train_row(config, sample, i)
    assert batch["text"].shape == (1, 4, 64) and batch["box"].shape == (1, 4, 4)
    assert len(np.unique(batch["box"][0], axis=0)) == 4
    assert len(np.unique(batch["text"][0], axis=0)) == 4
    of_whole = batch["box"][0][batch["is_global"][0]]
    assert (of_whole == [0, 0, 64, 64]).all()
    whole.append(len(of_whole))
    shown = batch["boxes"][0, : batch["num_boxes"][0]]
    for box in batch["box"][0][~batch["is_global"][0]]:
      assert (shown == box).all(axis=1).any()
  assert max(whole) <= 1 and least <= np.mean(whole) <= most


def test_where_an_image_has_too_few_captions_they_come_again(make_sample):
  config = InputConfig("unused", image_size=64, captions_per_image=4, global_share=0.0)
  batch = _train_row(config, make_sample(1, regions=2), 0)
  # Both regions and, rather than a region again, the whole; then the first again.
  assert len(np.unique(batch["box"][0][:3], axis=0)) == 3 and batch["is_global"][0].sum() == 1
  np.testing.assert_array_equal(batch["box"][0, 3], batch["box"][0, 0])


def test_one_caption_an_image_draws_what_it_always_drew(make_sample):
  """Another field of the config is no other stream of examples."""
  sample = make_sample(0, regions=6)
  batch = _train_row(InputConfig("unused", image_size=64), sample, 5)
  rng = np.random.default_rng((5,))
  region = transforms.choose_region(sample, rng, global_share=0.25)
  transforms.sample_sentences(sample.texts[region], rng)
  crop = transforms.crop_for_region(
    rng, sample.width, sample.height, sample.boxes[region], scale=(0.9, 1.0), ratio=(3 / 4, 4 / 3))
  want = transforms.crop_boxes(sample.boxes[region : region + 1], crop, 64)
  np.testing.assert_array_equal(batch["box"], want)


@pytest.mark.parametrize("clean", [True, False])
def test_what_a_captioner_says_of_its_own_input_is_kept_where_it_shall_be(make_sample, clean):
  said = "The image is a close-up of A blurred sign. No text is visible."
  want = "A blurred sign." if clean else said
  config = InputConfig("unused", image_size=16, text_len=70, clean_captions=clean,
                       canonicalize=False, sentence_sampling=False, global_share=1.0)
  assert captions.whole(config, said).strip() == want
  ids = _train_row(config, dataclasses.replace(make_sample(0), global_text=said), 0)["text"][0]
  assert bytes(ids[ids > 2].astype(np.uint8) - 3).decode().strip() == want


def test_several_captions_and_tiles_around_one_region_exclude_each_other():
  with pytest.raises(InputError, match="captions_per_image is 2 with input.tiles=4"):
    InputConfig("unused", image_size=1400, view_size=700, tiles=4, captions_per_image=2)


def test_without_captions_rows_are_crops_of_the_whole_image_and_need_no_words(make_sample):
  sample = make_sample(0, regions=2)
  sample.texts, sample.global_text = [" "] * 2, None
  config = InputConfig("unused", image_size=16, crop_scale=(0.2, 0.6), captions=False)
  rows = [_train_row(config, sample, i) for i in range(6)]
  assert all(set(row) == {"image"} for row in rows)
  assert len({row["image"].tobytes() for row in rows}) == 6
  np.testing.assert_array_equal(rows[3]["image"], _train_row(config, sample, 3)["image"])


def test_half_of_the_images_are_mirrored_and_their_boxes_with_them(make_sample):
  sample = make_sample(0, regions=3)
  plain = InputConfig("unused", image_size=32, max_boxes=3)
  flipped = dataclasses.replace(plain, flip=True)
  mirrored = 0
  for i in range(40):
    row, other = _train_row(plain, sample, i), _train_row(flipped, sample, i)
    for key in ("text", "is_global", "num_boxes"):
      np.testing.assert_array_equal(row[key], other[key])
    if np.array_equal(row["image"], other["image"]):
      np.testing.assert_array_equal(row["box"], other["box"])
      np.testing.assert_array_equal(row["boxes"], other["boxes"])
      continue
    mirrored += 1
    np.testing.assert_array_equal(row["image"][:, :, ::-1], other["image"])
    n = int(row["num_boxes"][0])
    for a, b in ((row["box"], other["box"]), (row["boxes"][0, :n], other["boxes"][0, :n])):
      np.testing.assert_allclose(b[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [32, 0, 32, 0], a, atol=1e-4)
  assert 10 <= mirrored <= 30


@pytest.mark.parametrize("settings", [dict(flip=True), dict(captions=False)])
def test_tiles_are_of_a_captions_region_as_it_lies(settings):
  with pytest.raises(InputError, match="input.tiles is 4 with flip=.*, captions="):
    InputConfig("unused", image_size=280, view_size=280, tile_size=140, tiles=4, **settings)


def test_a_picture_without_the_detail_of_a_crop_is_refused_where_detail_is_learned(make_sample):
  sample = make_sample(0)
  side = min(sample.width, sample.height)
  how = dict(captions=False, crop="plain", eval_plain=True)
  config = InputConfig("unused", image_size=side + 1, enlarge=False, **how)
  for show in (lambda: _train_row(config, sample, 0),
               lambda: examples.ExampleMaker(config).eval_image(sample, "the record")):
    with pytest.raises(images.ImageError, match="fewer than input.image_size") as error:
      show()
    assert error.value.reason == "too-small"
  for fine in (dataclasses.replace(config, image_size=side), InputConfig(
      "unused", image_size=side + 1, **how)):
    assert _train_row(fine, sample, 0)["image"].shape[1] == fine.image_size
