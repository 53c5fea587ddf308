import dataclasses
import json
import os
import pickle

import msgpack
import numpy as np
import pytest

from input_pipeline import images, pyramid, records


def test_a_sample_survives_encoding_unchanged(make_sample):
  for sample in (make_sample(0), make_sample(1), make_sample(2, regions=0, global_text="é 字 🙂")):
    back = records.decode_sample(records.encode_sample(sample))
    assert back.boxes.dtype == np.float32 and back.boxes.shape == (len(sample.texts), 4)
    np.testing.assert_array_equal(back.boxes, sample.boxes)
    for name in ("id", "image", "width", "height", "texts", "global_text", "source"):
      assert getattr(back, name) == getattr(sample, name)


def test_a_label_and_captions_survive_and_leave_other_records_as_they_were(make_sample):
  plain = make_sample(1)
  known = set(msgpack.unpackb(records.encode_sample(plain)))
  # What a reader that knows neither field looks for is all there, under the same version.
  assert known == {"format", "version", "image", *records._FIELDS}
  plain.label, plain.captions = "golden_retriever", ["one", "two"]
  fields = msgpack.unpackb(records.encode_sample(plain))
  assert set(fields) == known | {"label", "captions"} and fields["version"] == 1
  back = records.decode_sample(records.encode_sample(plain))
  assert (back.label, back.captions) == ("golden_retriever", ["one", "two"])
  bare = records.decode_sample(records.encode_sample(make_sample(1)))
  assert (bare.label, bare.captions) == (None, [])


def _tiled(sample):
  pixels = images.decode_image(sample.image)
  made = pyramid.make(pixels, full_colour=True, tile=16)
  return dataclasses.replace(sample, image=b"", pyramid=made)


def test_a_pyramid_in_place_of_the_file_survives_under_a_version_of_its_own(make_sample):
  sample = _tiled(make_sample(1))
  data = records.encode_sample(sample)
  fields = msgpack.unpackb(data)
  # Readers that know no pyramids ask for version 1 and refuse others.
  assert fields["version"] == 2 and "image" not in fields
  back = records.decode_sample(data)
  assert (back.image, back.pyramid) == (b"", sample.pyramid)
  assert records.encode_sample(back) == data


@pytest.mark.parametrize("changes, says", [
  ({"pyramid": ...}, "field 'pyramid' is missing"),
  ({"pyramid": {}}, "field 'pyramid' is empty"),
  ({"pyramid": {"tile": 16, "levels": [[b"x"]]}}, r"no pyramid of the image \(level 0 has 1 tiles"),
  ({"version": 1}, "field 'image' is missing"),
  ({"width": 500}, "no pyramid of the image"),
])
def test_a_bad_pyramid_is_named_with_the_record(make_sample, changes, says):
  with pytest.raises(records.RecordError, match=f"record 7 .*{says}"):
    records.decode_sample(_changed(_tiled(make_sample(0, regions=0, global_text="x")), **changes),
                          "record 7")


def test_a_sample_with_both_a_file_and_a_pyramid_is_not_written(make_sample):
  sample = dataclasses.replace(_tiled(make_sample(0)), image=b"file")
  with pytest.raises(records.RecordError, match="both an image file and a pyramid"):
    records.encode_sample(sample)


def test_encoding_is_deterministic(make_sample):
  assert records.encode_sample(make_sample(3)) == records.encode_sample(make_sample(3))


def _changed(sample, **changes):
  fields = msgpack.unpackb(records.encode_sample(sample))
  fields.update(changes)
  return msgpack.packb({k: v for k, v in fields.items() if v is not ...})


@pytest.mark.parametrize(
  "changes, reason, says",
  [
    ({"version": 3}, "record-version", "version is 3, this program reads versions 1 and 2"),
    ({"format": "other"}, "record-format", "format is 'other', expected 'bve-regions'"),
    ({"width": ...}, "record-invalid", "field 'width' is missing"),
    ({"width": "9"}, "record-invalid", "field 'width' is a str, expected int"),
    ({"height": 0}, "record-invalid", "expected at least 1 x 1"),
    ({"image": b""}, "record-invalid", "field 'image' is empty"),
    ({"boxes": b"123"}, "record-invalid", "has 3 bytes, expected 16"),
    ({"texts": ["one"]}, "record-invalid", "2 boxes but 1 captions"),
    ({"texts": ["one", "  "]}, "record-caption", "caption 1 is '  '"),
    ({"texts": ["one", 2]}, "record-caption", "caption 1 is 2, expected text"),
    ({"global_text": ""}, "record-caption", "global caption is ''"),
    ({"label": " "}, "record-label", "label is ' '"),
    ({"label": 3}, "record-invalid", "field 'label' is a int"),
    ({"captions": "one"}, "record-invalid", "field 'captions' is a str"),
    ({"captions": ["one", ""]}, "record-caption", "caption 1 of the whole is ''"),
    ({"captions": ["one"]}, "record-caption", "1 captions of the whole but no global caption"),
  ],
)
def test_a_bad_field_is_named_with_the_record(make_sample, changes, reason, says):
  with pytest.raises(records.RecordError) as error:
    records.decode_sample(_changed(make_sample(), **changes), "shard 3, record 7")
  assert error.value.reason == reason
  assert says in str(error.value) and "shard 3, record 7" in str(error.value)


@pytest.mark.parametrize(
  "box",
  [
    [0, 0, np.nan, 5],
    [0, 0, np.inf, 5],
    [5, 0, 5, 5],
    [6, 0, 5, 5],
    [-1, 0, 5, 5],
    [0, 0, 1000, 5],
  ],
)
def test_boxes_that_are_empty_nan_inverted_or_outside_are_refused_both_ways(make_sample, box):
  sample = make_sample()
  boxes = sample.boxes.copy()
  boxes[1] = box
  data = _changed(sample, boxes=boxes.tobytes())
  sample.boxes = boxes
  for call in (lambda: records.encode_sample(sample), lambda: records.decode_sample(data)):
    with pytest.raises(records.RecordError, match=r"box 1 is \[.*expected \[x0, y0, x1, y1\]"):
      call()


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff\xe0", b"\x93\x01\x02", b"\x05", b"\xa1\xff"])
def test_foreign_bytes_are_no_record(data):
  with pytest.raises(records.RecordError):
    records.decode_sample(data, "x")


def test_text_that_is_no_unicode_is_refused_when_written(make_sample):
  sample = make_sample()
  sample.texts = ["fine", "broken \ud800"]
  with pytest.raises(records.RecordError, match="not valid Unicode"):
    records.encode_sample(sample)


def test_a_source_gives_every_record_of_all_shards_also_after_pickling(make_dataset, make_sample):
  directory = make_dataset({"train": [make_sample(i) for i in range(5)]}, shards=3)
  source = records.open_dataset(directory, "train")
  again = pickle.loads(pickle.dumps(source))
  assert len(source) == 5 and source.regions == 10 and source.info == {"licence": "none"}
  assert sorted(s.id for s in source) == [f"image-{i}" for i in range(5)]
  assert [again[i].id for i in range(5)] == [s.id for s in source]
  assert source.where(4).endswith("train-00002-of-00003.arrayrecord, record 0")


def test_a_split_may_be_empty(make_dataset):
  source = records.open_dataset(make_dataset({"val": []}), "val")
  assert len(source) == 0 and list(source) == []


def test_a_missing_split_names_those_that_exist(make_dataset, make_sample):
  directory = make_dataset({"train": [make_sample()], "val": []})
  with pytest.raises(records.DatasetError, match="no split 'test'; it has 'train', 'val'"):
    records.open_dataset(directory, "test")


def test_a_directory_without_manifest_is_no_data_set(tmp_path):
  for directory in (tmp_path, tmp_path / "nowhere"):
    with pytest.raises(records.DatasetError, match="not a data set: it has no dataset.json"):
      records.open_dataset(directory, "train")


@pytest.mark.parametrize(
  "text, says",
  [
    ("{", "cannot be read as JSON"),
    ("[]", "format is 'list'"),
    ('{"format": "bve-regions", "version": 9}', "version is 9, .* reads versions 1 and 2"),
    ('{"format": "bve-regions", "version": 1}', "not a complete manifest"),
    (
      '{"format": "bve-regions", "version": 1, "splits": {"a": {"shards": [], "records": 4, '
      '"regions": 0}}}',
      "shards hold 0 records, the split says 4",
    ),
  ],
)
def test_a_broken_manifest_says_what_is_wrong(tmp_path, text, says):
  (tmp_path / "dataset.json").write_text(text)
  with pytest.raises(records.DatasetError, match=says):
    records.open_dataset(tmp_path, "a")


def test_shards_that_do_not_fit_the_manifest_are_named(make_dataset, make_sample):
  directory = make_dataset({"train": [make_sample(i) for i in range(4)]})
  shard = os.path.join(directory, "train-00001-of-00002.arrayrecord")
  whole = open(shard, "rb").read()
  with open(shard, "wb") as f:
    f.write(whole[:-100])
  with pytest.raises(records.DatasetError, match=r"00001-of-00002.arrayrecord has \d+ bytes"):
    records.open_dataset(directory, "train")
  os.remove(shard)
  with pytest.raises(records.DatasetError, match="00001-of-00002.arrayrecord is missing"):
    records.open_dataset(directory, "train")


def test_a_damaged_shard_of_the_right_size_spoils_reading_not_opening(make_dataset, make_sample):
  directory = make_dataset({"train": [make_sample(i) for i in range(2)]})
  shard = os.path.join(directory, "train-00000-of-00002.arrayrecord")
  data = bytearray(open(shard, "rb").read())
  data[100:200] = bytes(100)
  with open(shard, "wb") as f:
    f.write(data)
  source = records.open_dataset(directory, "train")
  with pytest.raises(records.RecordError, match="cannot be read") as error:
    source[0]
  assert error.value.reason == "record-unreadable" and "00000-of-00002" in str(error.value)
  assert source[1].id == "image-1"


def test_errors_travel_between_processes():
  error = pickle.loads(pickle.dumps(records.RecordError("text", "why")))
  assert str(error) == "text" and error.reason == "why"


def test_the_manifest_format_is_the_documented_one(make_dataset, make_sample):
  directory = make_dataset({"train": [make_sample()]})
  manifest = records.read_manifest(directory)
  assert manifest == json.load(open(os.path.join(directory, "dataset.json")))
