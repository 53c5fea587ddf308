"""Division into splits depends on the ids alone."""

import pytest

from input_pipeline.build import plan
from input_pipeline.build.durable import BuildError


def items(n):
  return [plan.Item(f"id{i}", f"{i}.jpg") for i in range(n)]


def test_the_share_of_validation_images_is_about_what_was_asked_for():
  train, val = plan.split_by_hash(items(4000), 0.1)
  assert len(train) + len(val) == 4000
  # Binomial: 400 +- 19; four standard deviations, and the ids are fixed.
  assert abs(len(val) - 400) < 76


def test_an_image_stays_on_its_side_when_others_come_or_change_order():
  _, few = plan.split_by_hash(items(500), 0.1)
  _, many = plan.split_by_hash(items(900)[::-1], 0.1)
  assert {item.id for item in few} == {item.id for item in many} & {i.id for i in items(500)}


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_small_data_sets_get_something_on_both_sides(share):
  for n in (2, 3, 10):
    train, val = plan.split_by_hash(items(n), share)
    assert train and val and len(train) + len(val) == n


def test_no_share_means_no_validation_images():
  assert plan.split_by_hash(items(50), 0) == (items(50), [])
  assert plan.split_by_hash(items(1), 0.02)[1] == []


@pytest.mark.parametrize("share", [-0.1, 1, 2, float("nan")])
def test_an_impossible_share_is_refused(share):
  with pytest.raises(BuildError, match="val share"):
    plan.split_by_hash(items(3), share)


def test_only_the_first_of_equal_ids_is_used():
  first, second, other = plan.only_first_of_each_id(items(1) + items(1) + [plan.Item("x", "x")])
  assert first.problem is None and other.problem is None
  assert second.problem[0] == "id-duplicated"


def test_hidden_files_and_other_kinds_are_no_images(tmp_path):
  for name in ("b/z.JPG", "a.png", ".hidden.png", ".git/x.png", "note.txt", "b/c/q.webp"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
  assert plan.image_files(tmp_path) == ["a.png", "b/c/q.webp", "b/z.JPG"]
  with pytest.raises(BuildError, match="no such directory"):
    plan.image_files(tmp_path / "none")


def test_names_that_are_not_unicode_become_readable():
  assert plan.readable("caf\udce9.jpg").encode() == b"caf\\udce9.jpg"
