"""What is known of each data set of rated pictures: scale, direction, what belongs together?

One normalisation for all: score = (mos - lo) / (hi - lo), turned round where lower is better, so
that 0 is worst and 1 best. The ranges are the scales as published, not the extremes of what was
measured.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from input_pipeline import ratings
from input_pipeline.build.durable import BuildError

# Scores of so many pictures that use less than this share of the range were not given on it.
_JUDGED_FROM, _LEAST_SPREAD = 20, 0.25


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
  """One data set.

  Attributes:
    name: as `--from` has it.
    mos_range: the ends (lo, hi) of the published scale.
    lower_better: whether the lower end is the better one (a DMOS, as a rule).
    expected: how many rated pictures were published; 0 if unknown.
    reference: a pattern whose first group, in a picture's file name, names the reference it was
      made from; "" where each picture is its own.
    short_side: pictures with a longer shorter side are stored reduced to this; 0 for as they are.
  """

  name: str
  mos_range: tuple[float, float]
  lower_better: bool = False
  expected: int = 0
  reference: str = ""
  short_side: int = 0

  def score(self, mos: float, where: str) -> float:
    """The normalised score of a mean opinion.

    Args:
      mos: on the data set's scale.
      where: the row it stands in, for the message.

    Raises:
      BuildError: it is not on that scale.
    """
    low, high = self.mos_range
    score = (mos - low) / (high - low)
    if not ratings.LEAST <= score <= ratings.MOST:
      hint = ""
      if math.isfinite(mos):
        hint = ": wrong scale? Give the published one with --mos-range LO,HI"
      raise BuildError(
        f"{where}: the score is {mos:g}, expected a number of the range {low:g} to {high:g} of "
        f"{self.name}{hint}"
      )
    return 1 - score if self.lower_better else score

  def group(self, file: str) -> str:
    """The reference or whole picture that a file's name speaks of; "" if there is none."""
    name = file.rsplit("/", 1)[-1].rsplit("\\", 1)[-1]
    match = re.match(self.reference, name, re.IGNORECASE) if self.reference else None
    # Names of references are spelt in both cases, within one data set.
    return match[1].lower() if match else ""

  def check_spread(self, scores: Sequence[float], where: str) -> None:
    """Raises BuildError if so many scores cannot have been given on the stated range."""
    if len(scores) < _JUDGED_FROM:
      return
    spread = max(scores) - min(scores)
    if spread < _LEAST_SPREAD:
      low, high = self.mos_range
      ends = sorted(
        low + (1 - s if self.lower_better else s) * (high - low)
        for s in (min(scores), max(scores))
      )
      raise BuildError(
        f"{where}: {len(scores):,} scores lie between {ends[0]:.4g} and {ends[1]:.4g}, which is "
        f"{100 * spread:.1f} % of the range {low:g} to {high:g} of {self.name}; expected a quarter "
        "of it or more. They seem to be on another scale: give it with --mos-range LO,HI "
        "(KonIQ-10k goes round on 1 to 5 as well as on 0 to 100)"
      )


_SPECS = (
  DatasetSpec("koniq", (0, 100), expected=10_073),
  # Its column is called dmos, but higher is better.
  DatasetSpec("kadid", (1, 5), expected=10_125, reference=r"(i\d+)[_.]"),
  DatasetSpec("tid2013", (0, 9), expected=3_000, reference=r"(i\d+)[_.]"),
  DatasetSpec("csiq", (0, 1), lower_better=True, expected=866, reference=r"([^.]+)\."),
  DatasetSpec("clive", (0, 100), expected=1_162),
  DatasetSpec("spaq", (0, 100), expected=11_125, short_side=384),
  DatasetSpec("ava", (0, 10), expected=255_530, short_side=224),
  DatasetSpec("aadb", (0, 1), expected=9_958),
  # A patch belongs to the picture it was cut from.
  DatasetSpec("flive", (0, 100), expected=39_810, reference=r"(.+?)(?:_patch_\d+.*)?$"),
  DatasetSpec("agiqa3k", (0, 5), expected=2_982),
)
SPECS = {spec.name: spec for spec in _SPECS}


def make(
  name: str,
  *,
  mos_range: str | None = None,
  lower_better: bool | None = None,
  short_side: int | None = None,
) -> DatasetSpec:
  """The spec of a data set, with what a person says of theirs.

  Args:
    name: one of `SPECS`, or "csv" for a data set that is not known, of which all must be said.
    mos_range: "LO,HI".
    lower_better: the direction.
    short_side: replaces that of the spec.

  Raises:
    BuildError: range or direction of an unknown data set unsaid, or a range that is none.
  """
  if name not in SPECS:
    if mos_range is None:
      raise BuildError(f"--from {name} needs --mos-range LO,HI: the ends of the scale the scores "
                       "were given on (1,5 or 0,100), which no file of scores says")
    if lower_better is None:
      raise BuildError(f"--from {name} needs --higher-is-better or --lower-is-better: a MOS grows "
                       "with quality, most DMOS (differences from a reference) fall with it")
  elif lower_better is not None and lower_better != SPECS[name].lower_better:
    said, known = ("lower", "higher") if lower_better else ("higher", "lower")
    raise BuildError(f"--{said}-is-better with --from {name}, where {known} is better; use "
                     "--from csv for other scores of these pictures")
  spec = SPECS.get(name, DatasetSpec(name, (0, 1), lower_better=bool(lower_better)))
  changed = {}
  if mos_range is not None:
    changed["mos_range"] = _range(mos_range)
  if short_side is not None:
    if short_side < 0:
      raise BuildError(f"--short-side {short_side}: expected pixels, or 0 to keep the files")
    changed["short_side"] = short_side
  return dataclasses.replace(spec, **changed)


def _range(text: str) -> tuple[float, float]:
  try:
    low, high = (float(part) for part in text.split(","))
    if math.isfinite(low) and math.isfinite(high) and low < high:
      return low, high
  except ValueError:
    pass
  raise BuildError(f"--mos-range {text}: expected two numbers, the lower first, as in 1,5 "
                   "(--mos-range=-1,1 where it starts below zero)")
