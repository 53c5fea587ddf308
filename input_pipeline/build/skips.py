"""Which records were left out of a build, why, and is it too many?"""

import collections
import json
import math
import pathlib
from typing import Any

from input_pipeline.build import durable


class SkipRecord(Exception):
  """Raised by `load`: this record is left out and counted.

  Args:
    reason: short and stable, since it is counted ("image-missing").
    detail: a sentence about this record.
  """

  def __init__(self, reason: str, detail: str = ""):
    super().__init__(f"{reason}: {detail}" if detail else reason)
    self.reason = reason
    self.detail = detail


def news_of(label: str, outcome: Any) -> list[dict[str, str]]:
  """The log's lines about what `load` gave for an item: a sample, or the SkipRecord it raised."""
  if isinstance(outcome, SkipRecord):
    return [{"what": "record", "file": label, "reason": outcome.reason, "detail": outcome.detail}]
  news = []
  for what, field in (("part", "dropped"), ("mended", "mended")):
    for reason, detail in getattr(outcome, field, ()):
      news.append({"what": what, "file": label, "reason": reason, "detail": detail})
  return news


class SkipLog:
  """What was left out or changed so far, and whether it is too much.

  Args:
    out_dir: where the log is kept, as `skipped-{split}.jsonl`.
    split: the split's name.
    total: how many items the split has.
    max_share: share of them that may be skipped.
  """

  def __init__(self, out_dir: pathlib.Path, split: str, total: int, max_share: float):
    self.path = out_dir / f"skipped-{split}.jsonl"
    self._lines = []
    self._counts = {what: collections.Counter() for what in ("record", "part", "mended")}
    self._total = total
    self._max_share = max_share

  def extend(self, lines: list[dict[str, str]]):
    """Adds lines of `news_of`."""
    self._lines += lines
    for line in lines:
      self._counts[line["what"]][line["reason"]] += 1

  def counts(self, what: str) -> dict[str, int]:
    """Reason -> count of whole records ("record"), their "part"s, or things "mended"."""
    return dict(sorted(self._counts[what].items()))

  def check(self):
    """Raises BuildError if more was skipped than is allowed."""
    skipped = self._counts["record"].total()
    # Measured against all items: once it is passed, no later record can bring it back. Rounded up,
    # so that a single bad image does not stop a small split.
    if skipped > math.ceil(self._max_share * self._total - 1e-9):
      raise durable.BuildError(
        f"{skipped:,} of {self._total:,} records had to be skipped, more than max_skip_share = "
        f"{self._max_share:g} allows. Reasons: {by_reason(self.counts('record'))}. {self.path} "
        "names each. Mend the data, or allow more with --max-skip-share; finished shards stay, "
        "and the same command goes on from there."
      )

  def save(self):
    """Writes the log, or removes that of an earlier run if there is nothing to say."""
    if self._lines:
      text = "".join(json.dumps(line) + "\n" for line in self._lines)
      durable.write_text(self.path, text)
    else:
      self.path.unlink(missing_ok=True)


def by_reason(counts: dict[str, int]) -> str:
  """Counts as a line for a person."""
  return ", ".join(f"{reason} {count:,}" for reason, count in counts.items())


def label_of(item: Any) -> str:
  """How the skip log names an item: its image file, if it has one."""
  return str(getattr(item, "image", item))[:300]
