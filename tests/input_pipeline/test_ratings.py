"""Ratings and whom captions speak for survive a record; what contradicts itself is refused."""

import dataclasses

import msgpack
import numpy as np
import pytest

from input_pipeline import records
from input_pipeline.ratings import Rating

RATING = Rating(0.75, 3.25, "i04", {"official": "test", "pkl_1": "train"}, (0, 3, 5))


def test_a_rated_and_described_sample_comes_back_as_it_was(make_sample):
  for sample in (
    dataclasses.replace(make_sample(1), rating=RATING, captions=["a", "b"], global_text="a",
                        caption_sources=["iqa", "iaa_human"]),
    dataclasses.replace(make_sample(0, regions=0, global_text=None), rating=RATING),
  ):
    back = records.decode_sample(records.encode_sample(sample))
    assert back.rating == RATING
    assert (back.captions, back.caption_sources) == (sample.captions, sample.caption_sources)


def test_records_without_a_rating_are_the_bytes_they_were(make_sample):
  fields = msgpack.unpackb(records.encode_sample(make_sample(1)))
  assert not {"rating", "caption_sources"} & set(fields)


@pytest.mark.parametrize("change, reason", [
  ({"rating": {"score": float("nan")}}, "record-rating"),
  ({"rating": {"score": 1.06}}, "record-rating"),
  ({"rating": {"mos": float("inf")}}, "record-rating"),
  ({"rating": {"group": ""}}, "record-rating"),
  ({"rating": {"splits": {"official": "testing"}}}, "record-rating"),
  ({"rating": {"votes": [1, -2]}}, "record-rating"),
  ({"rating": {"mos": "3"}}, "record-rating"),
  ({"caption_sources": ["iqa"]}, "record-caption"),
  ({"caption_sources": ["iqa", "vqa"]}, "record-caption"),
])
def test_a_rating_that_contradicts_itself_is_refused(make_sample, change, reason):
  sample = dataclasses.replace(
    make_sample(1), rating=RATING, captions=["a", "b"], caption_sources=["iqa", "iaa"])
  fields = msgpack.unpackb(records.encode_sample(sample))
  for name, value in change.items():
    fields[name] = {**fields[name], **value} if isinstance(value, dict) else value
  with pytest.raises(records.RecordError) as error:
    records.decode_sample(msgpack.packb(fields), "shard 3, record 7")
  assert error.value.reason == reason and "shard 3, record 7" in str(error.value)


def test_numpy_scores_are_written_as_numbers(make_sample):
  rating = Rating(np.float32(0.5), np.float64(3), "g")
  back = records.decode_sample(
    records.encode_sample(dataclasses.replace(make_sample(1), rating=rating)))
  assert back.rating == Rating(0.5, 3.0, "g")
