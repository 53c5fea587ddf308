"""Which record of which data set stands at a position of the training stream.

Position p is the p-th example since the start of training, over all processes. The answer is
computed, not stored: the stream can start anywhere.
"""

import dataclasses
import sys
import zlib
from collections.abc import Sequence

import grain
import numpy as np

from input_pipeline import records


@dataclasses.dataclass(frozen=True)
class Member:
  """A data set of a mixture; `weight` is relative to those of the other members."""

  name: str
  source: records.RecordSource
  weight: float = 1.0


class Mixture:
  """An endless, shuffled interleaving of data sets: `mixture[p] -> (member, record)` numbers.

  Every member is reshuffled each time it has been gone through, and each record of a member is
  drawn once before any is drawn again. Members take turns in proportion to their weights (to about
  a hundredth of the least one), so any stretch of the stream holds the right shares.

  With a `group` above 1, it is groups of so many positions that take turns, each of one member:
  0 to group - 1, group to 2 * group - 1, ... The records of a group differ: it is drawn within an
  epoch, whose remainder, fewer records than a group, is left out, others each time.
  """

  def __init__(self, members: Sequence[Member], seed: int, group: int = 1):
    for member in members:
      if not len(member.source):
        raise records.DatasetError(f"{member.source.name} has no records to train on.")
      if len(member.source) < group:
        raise records.DatasetError(
          f"{member.source.name} has {len(member.source)} records; expected at least {group}, as "
          "many as a group (input.group) has, which are to differ.")
    self.members = tuple(members)
    self._sizes = [len(m.source) for m in members]
    shares = np.array([m.weight for m in members], np.float64)
    self._shares = shares / shares.sum()
    # Seeded by name: adding a data set leaves the order within the others as it was. And hashed,
    # as grain's shuffle adds the epoch to the seed: close seeds would repeat each other's epochs.
    orders = [
      grain.MapDataset.range(size).shuffle(seed=_seed(seed, m.name)).repeat()
      for m, size in zip(members, self._sizes)
    ]
    self._group, self._orders = group, orders
    # Of groups, only how many of a member came before is of interest.
    turns = orders if group == 1 else [grain.MapDataset.range(sys.maxsize // group)] * len(orders)
    tagged = [order.map(_Tag(k)) for k, order in enumerate(turns)]
    self._order = (
      tagged[0] if len(tagged) == 1 else grain.MapDataset.mix(tagged, list(self._shares))
    )

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, position: int) -> tuple[int, int]:
    if self._group == 1:
      return self._order[position]
    number, place = divmod(position, self._group)
    member, turn = self._order[number]
    size = self._sizes[member]
    epoch, turn = divmod(turn, size // self._group)
    return member, int(self._orders[member][epoch * size + turn * self._group + place])

  def draw(self, rng: np.random.Generator, position: int = 0) -> tuple[int, int]:
    """Returns a random (member, record), for a position whose own record cannot be used.

    In groups it is of the member that the position's group is of, and none of the group, unless
    there are no others.
    """
    if self._group == 1:
      member = int(rng.choice(len(self.members), p=self._shares))
      return member, int(rng.integers(self._sizes[member]))
    first = position - position % self._group
    rows = [self[first + place] for place in range(self._group)]
    member, taken = rows[0][0], sorted(record for _, record in rows)
    if len(taken) == self._sizes[member]:
      return member, int(rng.integers(self._sizes[member]))
    record = int(rng.integers(self._sizes[member] - len(taken)))
    for other in taken:
      record += other <= record
    return member, record


@dataclasses.dataclass(frozen=True)
class _Tag:
  """Puts the member's number before the record's (a class, as workers must unpickle it)."""

  member: int

  def __call__(self, record: int) -> tuple[int, int]:
    return self.member, int(record)


def _seed(seed: int, name: str) -> int:
  words = np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)
  return int(words[0])
