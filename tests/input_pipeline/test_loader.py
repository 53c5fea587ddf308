import dataclasses
import sys

import jax
import numpy as np
import pytest

from input_pipeline import images, loader, records, text

SIZE = 24


def _config(data, **changes):
  return loader.InputConfig(**{"data": data, "image_size": SIZE, "text_len": 32, **changes})


def _take(stream, n):
  batches = [next(stream) for _ in range(n)]
  stream.close()
  return batches


def _assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert list(x) == list(y)
    for key in x:
      assert x[key].dtype == y[key].dtype
      np.testing.assert_array_equal(x[key], y[key], err_msg=key)


def test_training_batches_have_the_documented_arrays(data):
  (batch,) = _take(loader.train_stream(_config(data, max_boxes=5), batch_size=6, seed=0), 1)
  shapes = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
  assert shapes == {
    "image": ("uint8", (6, SIZE, SIZE, 3)),
    "text": ("int32", (6, 32)),
    "box": ("float32", (6, 4)),
    "is_global": ("bool", (6,)),
    "boxes": ("float32", (6, 5, 4)),
    "num_boxes": ("int32", (6,)),
  }
  assert all(type(value) is np.ndarray for value in batch.values())
  (batch,) = _take(loader.train_stream(_config(data), batch_size=6, seed=0), 1)
  assert set(batch) == {"image", "text", "box", "is_global"}


def test_boxes_are_in_pixels_of_the_batch_and_the_chosen_one_comes_first(data):
  config = _config(data, max_boxes=3)
  for batch in _take(loader.train_stream(config, batch_size=8, seed=1), 12):
    for row in range(8):
      box, boxes, n = batch["box"][row], batch["boxes"][row], batch["num_boxes"][row]
      assert 1 <= n <= 3 and not boxes[n:].any()
      for b in (box, *boxes[:n]):
        assert 0 <= b[0] < b[2] <= SIZE and 0 <= b[1] < b[3] <= SIZE
      if batch["is_global"][row]:
        assert box.tolist() == [0, 0, SIZE, SIZE]
      else:
        assert box.tolist() == boxes[0].tolist()


def test_the_box_stays_on_what_it_marks_and_the_caption_with_it(make_dataset, encode_image):
  # Red, green and blue rectangles on black; the caption names the channel.
  samples = []
  for i in range(6):
    pixels = np.zeros((120, 200, 3), np.uint8)
    boxes = [[10, 20, 60, 70], [80, 5, 110, 100], [130, 60, 190, 115]]
    for channel, (x0, y0, x1, y1) in enumerate(boxes):
      pixels[y0:y1, x0:x1, channel] = 255
    samples.append(
      records.Sample(
        str(i), encode_image(pixels), 200, 120, np.float32(boxes), ["red", "green", "blue"]
      )
    )
  config = _config(make_dataset({"train": samples}), image_size=96, crop_scale=(0.5, 1.0))
  tok = text.make_tokenizer("bytes")
  seen = set()
  for batch in _take(loader.train_stream(config, batch_size=8, seed=0), 10):
    for image, box, ids in zip(batch["image"], batch["box"], batch["text"]):
      channel = ["red", "green", "blue"].index(tok.decode(ids))
      seen.add(channel)
      mask = image[..., channel] > 127
      rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
      found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
      # Half a pixel by resampling, half by the threshold's grid.
      np.testing.assert_allclose(found, box, atol=1.0)
  assert seen == {0, 1, 2}


def test_a_stream_is_the_same_for_any_threads_prefetch_and_cache(data):
  expected = _take(loader.train_stream(_config(data, max_boxes=2), batch_size=4, seed=3), 7)
  for changes in ({"threads": 0}, {"threads": 3, "prefetch": 1}, {"cache_mb": 1}):
    config = _config(data, max_boxes=2, **changes)
    _assert_same(_take(loader.train_stream(config, batch_size=4, seed=3), 7), expected)


def test_a_stream_is_the_same_made_by_worker_processes(data):
  expected = _take(loader.train_stream(_config(data), batch_size=4, seed=3, start_step=2), 5)
  stream = loader.train_stream(_config(data, workers=2), batch_size=4, seed=3, start_step=2)
  batches = _take(stream, 5)
  assert all(type(v) is np.ndarray for batch in batches for v in batch.values())
  assert stream.seen == 20
  _assert_same(batches, expected)


@pytest.mark.parametrize("start", [1, 5, 8])
def test_a_stream_goes_on_bit_identically_from_any_step(data, start):
  config = _config(data, max_boxes=2)
  whole = _take(loader.train_stream(config, batch_size=4, seed=5), 10)
  rest = _take(loader.train_stream(config, batch_size=4, seed=5, start_step=start), 10 - start)
  _assert_same(rest, whole[start:])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_together_hold_the_rows_of_the_single_process(data, processes):
  config = _config(data)
  whole = _take(loader.train_stream(config, batch_size=8, seed=5, start_step=3), 4)
  parts = [
    _take(
      loader.train_stream(
        config, batch_size=8, seed=5, start_step=3, process_index=j, process_count=processes
      ),
      4,
    )
    for j in range(processes)
  ]
  joined = [{k: np.concatenate([p[k] for p in step]) for k in step[0]} for step in zip(*parts)]
  _assert_same(joined, whole)


def test_an_epoch_shows_each_image_once_and_the_next_one_differently(make_dataset, make_sample):
  samples = [make_sample(i, regions=1, global_text=None) for i in range(12)]
  directory = make_dataset({"train": samples})
  config = _config(directory, text_len=48, sentence_sampling=False)
  tok = text.make_tokenizer("bytes")
  batches = _take(loader.train_stream(config, batch_size=4, seed=0), 6)
  captions = [tok.decode(ids) for batch in batches for ids in batch["text"]]
  expected = {text.canonicalize(sample.texts[0]) for sample in samples}
  assert set(captions[:12]) == set(captions[12:]) == expected
  assert captions[:12] != captions[12:]
  first = {c: b for c, b in zip(captions, np.concatenate([x["image"] for x in batches]))}
  second = dict(zip(captions[:12], np.concatenate([x["image"] for x in batches[:3]])))
  assert any((first[c] != second[c]).any() for c in expected)


def test_seeds_differ(data):
  a, b = (_take(loader.train_stream(_config(data), batch_size=8, seed=s), 1)[0] for s in (0, 1))
  assert (a["image"] != b["image"]).any() and (a["text"] != b["text"]).any()


def test_a_mixture_is_drawn_by_weight(make_dataset, make_sample):
  directories = {}
  for name in ("left", "right"):
    samples = [
      dataclasses.replace(make_sample(i, regions=1, global_text=None), texts=[name])
      for i in range(3)
    ]
    directories[name] = make_dataset({"train": samples}, name)
  data = {
    "left": {"path": directories["left"], "weight": 3},
    "right": {"path": directories["right"]},
  }
  tok = text.make_tokenizer("bytes")
  batches = _take(loader.train_stream(_config(data), batch_size=8, seed=0), 5)
  names = [tok.decode(ids) for batch in batches for ids in batch["text"]]
  assert abs(names.count("left") - 30) <= 1 and names.count("right") == 40 - names.count("left")


def _with_bad(make_sample, good=8):
  bad = make_sample(100)
  truncated = dataclasses.replace(bad, image=bad.image[: len(bad.image) // 2])
  wrong_size = dataclasses.replace(bad, width=bad.width + 7)
  version = records.encode_sample(bad).replace(b"\xa7version\x01", b"\xa7version\x03")
  silent = make_sample(101, regions=0, global_text=None)
  wordless = dataclasses.replace(make_sample(102, regions=1, global_text=None), texts=["?!"])
  samples = [make_sample(i) for i in range(good)]
  return samples, [truncated, wrong_size, version, silent, wordless]


def test_unusable_records_are_replaced_alike_everywhere_and_counted(make_dataset, make_sample):
  good, bad = _with_bad(make_sample)
  directory = make_dataset({"train": good + bad})
  config = _config(directory, max_skip_share=0.9, max_boxes=2)
  stream = loader.train_stream(config, batch_size=4, seed=0)
  batches = _take(stream, 13)
  assert set(stream.skipped) == {
    "image-undecodable", "image-size", "record-version", "no-caption"
  }  # fmt: skip
  # Four epochs of 13 records, each with five bad ones at their own positions at least.
  assert sum(stream.skipped.values()) >= 4 * 5
  assert stream.seen == 52 + sum(stream.skipped.values())
  again = loader.train_stream(
    dataclasses.replace(config, threads=0), batch_size=4, seed=0, start_step=6
  )
  _assert_same(_take(again, 7), batches[6:])
  halves = [
    _take(loader.train_stream(config, batch_size=4, seed=0, process_index=j, process_count=2), 13)
    for j in range(2)
  ]
  joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*halves)]
  _assert_same(joined, batches)


def test_skips_are_counted_by_data_set_and_any_rows_can_be_asked_for(make_dataset, make_sample):
  good, bad = _with_bad(make_sample)
  members = {"clean": {"path": make_dataset({"train": good}, "clean")},
             "mixed": {"path": make_dataset({"train": good + bad}, "mixed"), "weight": 2}}
  config = _config(members, max_skip_share=0.9)
  assert loader.source_names(config) == ["clean", "mixed"]
  whole = loader.train_stream(config, batch_size=8, seed=0)
  batches = _take(whole, 5)
  counts = whole.skipped_by_source
  assert set(counts) == {"mixed"} and counts["mixed"] == sum(whole.skipped.values()) > 0

  parts = [loader.train_stream(config, batch_size=8, seed=0, rows=rows)
           for rows in ((0, 2, 7), (1, 3, 4, 5, 6))]
  for step in range(5):
    some, others = (next(part) for part in parts)
    for key, value in batches[step].items():
      np.testing.assert_array_equal(some[key], value[[0, 2, 7]])
      np.testing.assert_array_equal(others[key], value[[1, 3, 4, 5, 6]])
  assert sum(part.skipped_by_source["mixed"] for part in parts) == counts["mixed"]
  with pytest.raises(loader.InputError, match="rows .* are not those of a batch of 8"):
    loader.train_stream(config, batch_size=8, seed=0, rows=[8])


def test_skips_are_counted_as_of_the_batch_in_hand_whatever_was_made_ahead(
  make_dataset, make_sample
):
  good, bad = _with_bad(make_sample)
  directory = make_dataset({"train": good + bad})
  counts = []
  for prefetch in (1, 6):
    config = _config(directory, max_skip_share=1.0, prefetch=prefetch)
    stream = loader.train_stream(config, batch_size=4, seed=0)
    _take(stream, 3)
    counts.append((stream.seen, stream.skipped))
  assert counts[0] == counts[1]


def test_too_many_unusable_records_stop_the_run_with_reasons_and_an_example(
  make_dataset, make_sample
):
  good, bad = _with_bad(make_sample)
  config = _config(make_dataset({"train": good + bad}), max_skip_share=0.01)
  stream = loader.train_stream(config, batch_size=4, seed=0)
  with pytest.raises(loader.LoadError) as error:
    for _ in range(100):
      next(stream)
  message = str(error.value)
  assert "records could not be used" in message and "record-version" in message
  assert "allowed share of 0.01 (input.max_skip_share)" in message
  assert "For example:" in message and ".arrayrecord, record " in message
  # More than a hundredth of a thousand, and it did not wait for much more than that.
  assert sum(stream.skipped.values()) in range(11, 20)


def test_no_skip_is_tolerated_if_none_is_allowed(make_dataset, make_sample):
  good, bad = _with_bad(make_sample)
  config = _config(make_dataset({"train": good + bad[:1]}), max_skip_share=0.0)
  with pytest.raises(loader.LoadError, match="1 of [0-9]+ records could not be used"):
    _take(loader.train_stream(config, batch_size=4, seed=0), 4)


def test_a_data_set_without_one_usable_record_ends_instead_of_searching_on(
  make_dataset, make_sample
):
  _, bad = _with_bad(make_sample)
  config = _config(make_dataset({"train": bad}), max_skip_share=1.0)
  with pytest.raises(loader.LoadError, match="so many in a row"):
    _take(loader.train_stream(config, batch_size=4, seed=0), 1)


@pytest.mark.parametrize(
  "options, says",
  [
    (
      {"batch_size": 6, "process_count": 4},
      "batch_size is 6, expected a positive multiple of the 4",
    ),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 4, "process_index": 2, "process_count": 2}, "process 2 of 2 does not exist"),
    ({"batch_size": 4, "seed": -1}, "seed -1"),
    ({"batch_size": 4, "start_step": -1}, "first step -1"),
  ],
)
def test_streams_that_cannot_be_are_refused_at_once(data, options, says):
  with pytest.raises(loader.InputError, match=says):
    loader.train_stream(_config(data), **{"seed": 0, **options})


def test_missing_splits_and_empty_data_sets_are_named(data, make_dataset):
  with pytest.raises(records.DatasetError, match="no split 'test'; it has 'train', 'val'"):
    loader.train_stream(_config(data, split="test"), batch_size=2, seed=0)
  empty = make_dataset({"train": []}, "empty")
  with pytest.raises(records.DatasetError, match=r"empty \[train\] has no records to train on"):
    loader.train_stream(_config(empty), batch_size=2, seed=0)
  for items, what in (("regions", "no regions"), ("images", "no images with a global caption")):
    with pytest.raises(loader.InputError, match=rf"empty \[train\]: there are {what} to evaluate"):
      loader.eval_stream(_config(empty), batch_size=2, items=items)
  with pytest.raises(loader.InputError, match="eval items are 'boxes'"):
    loader.eval_stream(_config(data), batch_size=2, items="boxes")


def test_reduced_decoding_and_the_cache_change_no_pixel_between_runs(make_dataset, encode_image):
  rng = np.random.default_rng(0)
  samples = []
  for i in range(4):
    pixels = rng.integers(0, 256, (10, 13, 3)).astype(np.uint8).repeat(40, 0).repeat(40, 1)
    image = encode_image(pixels, "JPEG")
    samples.append(records.Sample(str(i), image, 520, 400, np.float32([[5, 5, 300, 300]]), ["x"]))
  directory = make_dataset({"train": samples})
  expected = _take(loader.train_stream(_config(directory), batch_size=4, seed=0), 6)
  # A cache that holds all, and one so small that images push each other out.
  for megabytes in (64, 1):
    config = _config(directory, cache_mb=megabytes)
    _assert_same(_take(loader.train_stream(config, batch_size=4, seed=0), 6), expected)


def test_waiting_is_measured_and_a_training_stream_has_no_end(data):
  stream = loader.train_stream(_config(data), batch_size=2, seed=0)
  assert stream.wait_seconds == 0 and len(stream) == sys.maxsize and iter(stream) is stream
  next(stream)
  assert stream.wait_seconds > 0
  stream.close()
  stream.close()


def test_rows_become_global_arrays_on_a_mesh(data):
  import jax
  from jax.sharding import Mesh, NamedSharding, PartitionSpec

  mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "fsdp"))
  sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  (batch,) = _take(loader.train_stream(_config(data), batch_size=8, seed=0), 1)
  arrays = loader.to_global(batch, sharding)
  assert set(arrays) == set(batch)
  for key, array in arrays.items():
    assert array.sharding.is_equivalent_to(sharding, array.ndim)
    assert array.addressable_shards[0].data.shape[0] == 1
    np.testing.assert_array_equal(np.asarray(array), batch[key])


def test_jax_takes_the_images_of_a_batch_as_they_lie():
  pixels = images.empty((2, 5, 7, 3))
  pixels[:] = 9
  taken = jax.device_put(pixels, jax.devices("cpu")[0])
  assert taken.unsafe_buffer_pointer() == pixels.ctypes.data
  assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous and pixels.flags.writeable
