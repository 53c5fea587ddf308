import collections
import pickle
import types

import numpy as np
import pytest

from input_pipeline import mixture, records


def _mix(seed=0, **members):
  """Mixture of fake data sets given as name=(size, weight)."""
  return mixture.Mixture(
    [mixture.Member(name, range(size), weight) for name, (size, weight) in members.items()], seed
  )


def _epoch(mix, number, size):
  return [mix[p][1] for p in range(number * size, (number + 1) * size)]


@pytest.mark.parametrize("size", [1, 2, 3, 10, 101])
def test_every_epoch_holds_each_record_once(size):
  mix = _mix(a=(size, 1.0))
  for epoch in (0, 1, 2, 1_000_000):
    assert sorted(_epoch(mix, epoch, size)) == list(range(size))


def test_every_epoch_is_shuffled_anew_and_seeds_do_not_repeat_each_other():
  orders = [tuple(_epoch(_mix(seed, a=(50, 1.0)), e, 50)) for seed in range(4) for e in range(4)]
  assert len(set(orders)) == len(orders)
  assert tuple(range(50)) not in orders


def test_a_position_is_a_function_of_the_seed_alone():
  mix = _mix(3, a=(7, 1.0), b=(5, 2.0))
  forwards = [mix[p] for p in range(100)]
  again = pickle.loads(pickle.dumps(_mix(3, a=(7, 1.0), b=(5, 2.0))))
  assert [again[p] for p in reversed(range(100))] == forwards[::-1]
  assert len(mix) > 10**15 and mix[10**12] == again[10**12]


def test_weights_hold_over_any_stretch_and_are_equal_by_default():
  mix = _mix(a=(7, 1.0), b=(1000, 3.0))
  for start in (0, 12_345):
    counts = collections.Counter(mix[start + p][0] for p in range(400))
    assert abs(counts[1] - 300) <= 2
  members = [mixture.Member(name, range(9)) for name in "abcd"]
  equal = mixture.Mixture(members, 0)
  counts = collections.Counter(equal[p][0] for p in range(400))
  assert set(counts.values()) == {100}


def test_each_member_goes_through_its_own_epochs():
  mix = _mix(a=(4, 1.0), b=(6, 1.0))
  by_member = {0: [], 1: []}
  for p in range(48):
    member, record = mix[p]
    by_member[member].append(record)
  for member, size in ((0, 4), (1, 6)):
    for k in range(0, 24, size):
      assert sorted(by_member[member][k : k + size]) == list(range(size))


def test_another_data_set_leaves_the_order_of_the_first_as_it_was():
  alone = _mix(a=(20, 1.0))
  mixed = _mix(a=(20, 1.0), b=(30, 1.0))
  first = [record for member, record in (mixed[p] for p in range(80)) if member == 0]
  assert first == [alone[p][1] for p in range(len(first))]


def test_data_sets_of_one_size_have_orders_of_their_own():
  mix = _mix(a=(40, 1.0), b=(40, 1.0))
  orders = {0: [], 1: []}
  for p in range(80):
    orders[mix[p][0]].append(mix[p][1])
  assert orders[0] != orders[1]


def test_substitutes_are_drawn_by_weight():
  mix = _mix(a=(3, 1.0), b=(5, 4.0))
  rng = np.random.default_rng(0)
  draws = [mix.draw(rng) for _ in range(3000)]
  # Five standard deviations of a binomial count.
  assert abs(sum(m for m, _ in draws) - 2400) < 5 * (3000 * 0.8 * 0.2) ** 0.5
  assert set(draws) == {(0, i) for i in range(3)} | {(1, i) for i in range(5)}


def test_an_empty_data_set_is_named():
  class Empty(types.SimpleNamespace):
    def __len__(self):
      return 0

  member = mixture.Member("a", Empty(name="/data/a [train]"))
  with pytest.raises(records.DatasetError, match=r"/data/a \[train\] has no records to train on"):
    mixture.Mixture([member], 0)


def test_groups_are_of_one_data_set_each_and_of_records_that_differ():
  members = [mixture.Member("a", range(7)), mixture.Member("b", range(12))]
  mix = mixture.Mixture(members, 0, group=4)
  rows = [mix[p] for p in range(4 * 42)]
  groups = [rows[i:i + 4] for i in range(0, len(rows), 4)]
  assert all(len({member for member, _ in group}) == 1 for group in groups)
  assert all(len(set(group)) == 4 for group in groups)
  # Both take turns: of any two groups in a row one is of either.
  assert [g[0][0] for g in groups[:6]] in ([0, 1] * 3, [1, 0] * 3)
  for member, size in ((0, 7), (1, 12)):
    drawn = [record for m, record in rows if m == member]
    assert len(drawn) == 84 and set(drawn) == set(range(size))
    whole = size // 4 * 4
    for epoch in range(84 // whole):
      assert len(set(drawn[epoch * whole:(epoch + 1) * whole])) == whole
  again = pickle.loads(pickle.dumps(mix))
  assert [again[p] for p in range(40)] == rows[:40]


def test_what_stands_in_is_of_the_domain_of_its_group_and_none_of_the_group():
  members = [mixture.Member("a", range(4)), mixture.Member("b", range(9))]
  mix = mixture.Mixture(members, 0, group=4)
  for position in range(0, 40, 3):
    first = position - position % 4
    group = [mix[first + i] for i in range(4)]
    member = group[0][0]
    drawn = {mix.draw(np.random.default_rng([position, k]), position) for k in range(60)}
    assert {m for m, _ in drawn} == {member}
    # Of the four of "a", all are in the group.
    want = {(0, i) for i in range(4)} if member == 0 else {(1, i) for i in range(9)} - set(group)
    assert drawn == want


def test_a_data_set_smaller_than_a_group_is_named():
  class Small(types.SimpleNamespace):
    def __len__(self):
      return 3

  member = mixture.Member("a", Small(name="/data/a [train]"))
  with pytest.raises(records.DatasetError, match=r"a \[train\] has 3 records; expected at least 4"):
    mixture.Mixture([member], 0, group=4)
