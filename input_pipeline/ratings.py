"""What did people think of a picture, and how is that written into its record?"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

# Who a caption of a described picture speaks for: a description of its quality, one of its
# aesthetics, a person's comment.
CAPTION_SOURCES = ("iqa", "iaa", "iaa_human")
SIDES = ("train", "val", "test")
# Published means may lie a little outside the range their own authors state.
LEAST, MOST = -0.05, 1.05


class RatingError(ValueError):
  """A rating that contradicts itself."""


@dataclasses.dataclass(frozen=True)
class Rating:
  """The rating of a picture.

  Attributes:
    score: 0 worst to 1 best, by the range of its data set.
    mos: as published, on the data set's own scale and in its direction.
    group: pictures of one group (of one reference, one scene) must not be on two sides of a split.
    splits: name of a split that came with the data -> "train", "val" or "test".
    votes: how many people gave 1, 2, ..., where that is known.
  """

  score: float
  mos: float
  group: str
  splits: dict[str, str] = dataclasses.field(default_factory=dict)
  votes: tuple[int, ...] = ()


def to_fields(rating: Rating) -> dict[str, Any]:
  """What a record holds of a rating."""
  return {
    "score": float(rating.score),
    "mos": float(rating.mos),
    "group": rating.group,
    "splits": dict(rating.splits),
    "votes": list(rating.votes),
  }


def from_fields(fields: Mapping[str, Any]) -> Rating:
  """The rating that `to_fields` wrote; raises RatingError for anything else."""
  kinds = {"score": float, "mos": float, "group": str, "splits": dict, "votes": list}
  for name, kind in kinds.items():
    if not isinstance(fields.get(name), kind):
      raise RatingError(f"{name!r} is {fields.get(name)!r}, expected {kind.__name__}")
  if not LEAST <= fields["score"] <= MOST:  # NaN is neither.
    raise RatingError(f"score is {fields['score']}, expected {LEAST} to {MOST}")
  if not math.isfinite(fields["mos"]):
    raise RatingError(f"mos is {fields['mos']}, expected a finite number")
  if not fields["group"]:
    raise RatingError("group is empty, expected the name of a reference or of the picture")
  for name, side in fields["splits"].items():
    if side not in SIDES:
      raise RatingError(f"split {name!r} has it in {side!r}, expected one of {', '.join(SIDES)}")
  for votes in fields["votes"]:
    if not isinstance(votes, int) or isinstance(votes, bool) or votes < 0:
      raise RatingError(f"votes are {fields['votes']}, expected counts")
  return Rating(
    score=fields["score"],
    mos=fields["mos"],
    group=fields["group"],
    splits=dict(fields["splits"]),
    votes=tuple(fields["votes"]),
  )
