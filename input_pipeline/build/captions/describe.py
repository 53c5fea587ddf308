"""How does a data set get described, once, whatever interrupts it?

Each answer is a line of the output as soon as it is there; a picture that has its line is not asked
about again, nor is one whose very file was described under another name. What is refused or empty
is asked again, then counted, and never written: the next run asks for it.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from input_pipeline import records, splits
from input_pipeline.build import durable
from input_pipeline.build import progress as progress_lib
from input_pipeline.build.captions import prompts as prompts_lib
from input_pipeline.build.captions.caption_file import CaptionLog
from input_pipeline.build.captions.captioner import Captioner, Unanswered, checked
from input_pipeline.build.durable import BuildError

Source = records.RecordSource | splits.PartSource


@dataclasses.dataclass
class Report:
  """What was described.

  Attributes:
    asked: pictures of this shard.
    there: had their line before.
    reused: got the text of the same file under another name.
    answered: were described now.
    unanswered: were not, by reason.
    again: answers that were not used, and asked for again.
    examples: an example of each reason.
  """

  asked: int = 0
  there: int = 0
  reused: int = 0
  answered: int = 0
  unanswered: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  again: int = 0
  examples: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Picture:
  """One picture to describe."""

  id: str
  image: bytes
  prompt: str
  level: str | None

  @functools.cached_property
  def digest(self) -> str:
    return hashlib.sha256(self.image).hexdigest()

  @property
  def content(self) -> tuple[str, str]:
    """What the answer depends on, but for who answers."""
    return self.digest, self.prompt


def describe(
  source: Source,
  captioner: Captioner,
  out: str,
  *,
  task: str,
  prompt: str,
  guidance: str = "range",
  shard: tuple[int, int] = (0, 1),
  tries: int = 3,
  limit: int | None = None,
  progress: bool = True,
) -> Report:
  """Describes the pictures of a split that have no line in a file yet.

  Args:
    source: the records.
    captioner: who describes.
    out: the file of descriptions to add to.
    task: "iqa" or "iaa".
    prompt: may have `{level}`, the word for the picture's score.
    guidance: how scores become levels (`prompts.levels`), over the whole split.
    shard: (k, n): only the k-th of n parts, by a hash of the id.
    tries: how often a picture is asked about whose answers are refused or empty.
    limit: only the first so many of the shard.
    progress: whether to report on standard error.

  Returns:
    counts.

  Raises:
    BuildError: nothing can be described (no ratings, an impossible shard), or the captioner gave
      up.
  """
  if tries < 1 or (limit is not None and limit < 1):
    raise BuildError(f"tries {tries} and limit {limit} must be at least 1")
  report = Report()
  chosen = list(itertools.islice(_chosen(source, prompt, guidance, shard, report), limit))
  report.asked = len(chosen)
  with CaptionLog(out) as log, durable.space_explained(log.path.parent):
    meter = progress_lib.Progress(task, len(chosen), enabled=progress, unit="pictures")
    try:
      _Job(captioner, log, task, tries, report, meter).run(source, chosen)
    finally:
      meter.close()
  return report


class _Known:
  """What was answered so far: by id, and by the content that was asked about."""

  def __init__(self, lines: Iterable[dict[str, Any]], by: str, task: str):
    self._by, self._ids = by, {}
    self._texts: dict[tuple[str, str], str] = {}
    for line in lines:
      if line["task"] == task:
        self.add(line)

  def add(self, line: dict[str, Any]) -> None:
    content = line.get("image", ""), line.get("prompt", "")
    self._ids[line["id"]] = (*content, line.get("by", ""))
    if line.get("by") == self._by:
      self._texts[content] = line["text"]

  def has(self, picture: _Picture) -> bool:
    return self._ids.get(picture.id) == (*picture.content, self._by)

  def text(self, picture: _Picture) -> str | None:
    return self._texts.get(picture.content)


def _chosen(
  source: Source, prompt: str, guidance: str, shard: tuple[int, int], report: Report
) -> Iterator[tuple[int, str, str | None]]:
  """(record number, prompt, level) of each picture of a shard."""
  part, count = shard
  if not 0 <= part < count:
    raise BuildError(f"shard {part}/{count}: expected K/N with K from 0 to N - 1")
  wants_level = prompts_lib.asks_for_level(prompt)
  rated = []
  for number in range(len(source)):
    try:
      sample = source[number]
    except records.RecordError as error:
      _note(report, error.reason, str(error))
      continue
    if sample.rating is None and wants_level:
      _note(report, "no-rating", f"{sample.id} has no rating, and the prompt asks for its level")
      continue
    rated.append((number, sample.id, sample.rating.score if sample.rating else 0.0))
  if not rated:
    raise BuildError(f"{source.name}: no picture can be asked about "
                     f"({dict(report.unanswered) or 'it is empty'})")
  words = prompts_lib.levels([score for _, _, score in rated], guidance)
  for (number, name, _), level in zip(rated, words):
    if _place(name) % count == part:
      level = level if wants_level else None
      yield number, prompts_lib.fill(prompt, level), level


def _place(name: str) -> int:
  return int.from_bytes(hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()[:8])


class _Job:
  """Asks about pictures, as many at a time as the captioner takes, and writes down what it says."""

  def __init__(self, captioner: Captioner, log: CaptionLog, task: str, tries: int, report: Report,
               meter: progress_lib.Progress):
    self._captioner, self._log, self._task, self._tries = captioner, log, task, tries
    self._report, self._meter = report, meter
    self._known = _Known(log.lines, captioner.name, task)
    # Being asked about, with pictures of the same file that wait for the same answer.
    self._pending: dict[tuple[str, str], list[_Picture]] = {}

  def run(self, source: Source, chosen: Sequence[tuple[int, str, str | None]]) -> None:
    """Asks about the chosen (record number, prompt, level)."""
    tasks = self._left_of(source, chosen)
    groups = iter(lambda: list(itertools.islice(tasks, self._captioner.batch)), [])
    waiting: set[concurrent.futures.Future] = set()
    with concurrent.futures.ThreadPoolExecutor(self._captioner.calls) as pool:
      try:
        for group in groups:
          waiting.add(pool.submit(_ask, self._captioner, group, self._tries))
          if len(waiting) >= 2 * self._captioner.calls:
            waiting = self._collect(waiting)
        while waiting:
          waiting = self._collect(waiting)
      except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        # What was answered meanwhile is paid for.
        for future in waiting:
          if not future.cancelled() and future.exception() is None:
            self._take(future.result())
        raise

  def _left_of(self, source: Source, chosen) -> Iterator[_Picture]:
    """What is left to ask about; writes down what need not be asked."""
    for number, prompt, level in chosen:
      sample = source[number]
      picture = _Picture(sample.id, sample.image, prompt, level)
      if sample.pyramid is not None:
        _note(self._report, "stored-as-pyramid", f"{sample.id}: has no file; build it plain")
      elif self._known.has(picture):
        self._report.there += 1
      elif (text := self._known.text(picture)) is not None:
        self._report.reused += 1
        self._write([(picture, text)])
      elif picture.content in self._pending:
        self._pending[picture.content].append(picture)
        continue
      else:
        self._pending[picture.content] = []
        yield picture
        continue
      self._meter.advance(skipped=sample.pyramid is not None)

  def _collect(self, waiting: set[concurrent.futures.Future]) -> set[concurrent.futures.Future]:
    """Writes what is done and returns what is not; raises what a call has raised."""
    done, left = concurrent.futures.wait(
      waiting, return_when=concurrent.futures.FIRST_COMPLETED)
    waiting -= done
    failed = None
    for future in done:
      failed = failed or future.exception()
      if future.exception() is None:
        self._take(future.result())
    if failed is not None:
      raise failed
    return left

  def _take(self, outcomes: Sequence["_Outcome"]) -> None:
    answers = []
    for picture, answer, again in outcomes:
      self._report.again += again
      waiting = self._pending.pop(picture.content)
      for same in (picture, *waiting):
        if isinstance(answer, Unanswered):
          _note(self._report, answer.reason, f"{same.id}: {answer}")
        else:
          answers.append((same, answer))
        self._meter.advance(skipped=isinstance(answer, Unanswered))
      if not isinstance(answer, Unanswered):
        self._report.answered += 1
        self._report.reused += len(waiting)
    self._write(answers)

  def _write(self, answers: Sequence[tuple[_Picture, str]]) -> None:
    lines = [
      {"id": picture.id, "task": self._task, "text": text, "level": picture.level,
       "image": picture.digest, "prompt": picture.prompt, "by": self._captioner.name}
      for picture, text in answers
    ]
    if lines:
      self._log.add(lines)
    for line in lines:
      self._known.add(line)


# A picture, its answer or why there is none, and how many answers before were not used.
_Outcome = tuple[_Picture, str | Unanswered, int]


def _ask(captioner: Captioner, group: Sequence[_Picture], tries: int) -> list[_Outcome]:
  """What becomes of each of a group. What fails together is asked about one by one."""
  outcomes: dict[str, _Outcome] = {}
  parts = [list(group)]
  for attempt in range(tries):
    again = []
    for part in parts:
      for picture, answer in zip(part, _answers(captioner, part)):
        outcomes[picture.id] = picture, answer, attempt
        if isinstance(answer, Unanswered) and not (answer.final and len(part) == 1):
          again.append([picture])
    parts = again
  return list(outcomes.values())


def _answers(captioner: Captioner, group: Sequence[_Picture]) -> list[str | Unanswered]:
  try:
    texts = captioner.describe([t.image for t in group], [t.prompt for t in group])
  except Unanswered as error:
    return [error] * len(group)
  if len(texts) != len(group):
    raise BuildError(f"{captioner.name}: gave {len(texts)} answers for {len(group)} pictures")
  answers: list[str | Unanswered] = []
  for text in texts:
    try:
      answers.append(checked(text))
    except Unanswered as error:
      answers.append(error)
  return answers


def _note(report: Report, reason: str, example: str) -> None:
  report.unanswered[reason] += 1
  report.examples.setdefault(reason, example)
