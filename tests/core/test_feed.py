import jax
import numpy as np
import pytest

from big_vision_ext.core import config as config_lib
from big_vision_ext.core import feed, sharding
from input_pipeline import loader
from tests import toy_data, toy_task


@pytest.fixture(scope="module")
def input_config(tmp_path_factory):
  """A clean data set and one of which a quarter cannot be used."""
  folder = tmp_path_factory.mktemp("data")
  members = {"clean": {"path": toy_data.write(folder / "clean", 16)},
             "poor": {"path": toy_data.write(folder / "poor", 16, unusable=4)}}
  return loader.InputConfig(data=members, image_size=8, text_len=4, threads=1, max_skip_share=0.9)


@pytest.fixture
def make(input_config):
  place = sharding.batch_sharding(sharding.make_mesh(config_lib.Mesh()), 8)

  def make(start, account=None):
    return feed.Feed(input_config, toy_task.Toy().batch_spec(8), place, batch_size=8, seed=1,
                     start=start, account=account)
  return make


def take(feed, count):
  return [np.asarray(feed.next()["image"]) for _ in range(count)]


def rows(feed):
  """What one process alone tells all, by source."""
  return np.array([feed.skipped()]).T


def test_the_account_goes_on_where_an_earlier_process_ended(make):
  whole = make(0)
  images = take(whole, 12)
  want = whole.metrics(rows(whole))
  assert want["skipped_records/poor"] == want["skipped_records"] > 8
  assert want["skipped_records/clean"] == 0 and "passed_over_batches" not in want
  first = make(0)
  assert np.array_equal(take(first, 5), images[:5])
  second = make(5, first.account(rows(first)))
  assert np.array_equal(take(second, 7), images[5:])
  assert second.metrics(rows(second)) == want


def test_batches_that_were_passed_over_are_left_out_and_counted(make):
  images = take(make(0), 9)
  later = make(2, {"passed_over": 4})
  assert np.array_equal(take(later, 3), images[6:])
  assert later.metrics(rows(later))["passed_over_batches"] == 4
  assert later.account(rows(later))["passed_over"] == 4


def test_what_other_processes_skipped_is_added(make):
  one = make(0)
  assert one.metrics(np.array([[1, 2], [30, 40]])) == {
      "skipped_records": 73, "skipped_records/clean": 3, "skipped_records/poor": 70}


def test_one_process_makes_all_rows_for_any_mesh():
  want = np.arange(16)
  for mesh in (config_lib.Mesh(), config_lib.Mesh(1, 2, 4), config_lib.Mesh(1, 1, 8)):
    place = sharding.batch_sharding(sharding.make_mesh(mesh), 16)
    take = feed.Intake(place, 16)
    assert take.rows == list(range(16))
    array = take({"x": want})["x"]
    assert isinstance(array, jax.Array) and array.sharding == place
    np.testing.assert_array_equal(array, want)
