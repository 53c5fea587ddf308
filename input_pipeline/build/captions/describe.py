"""How does a data set get described, once, whatever interrupts it?

Each answer is a line of the output as soon as it is there; a picture that has its line is not asked
about again, nor is one whose very file was described under another name. What is refused or empty is
asked again, then counted, and never written: the next run asks for it.
"""

import collections
import concurrent.futures
import dataclasses
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
class _Task:
  """One picture to describe."""

  id: str
  image: bytes
  prompt: str
  level: str | None

  @property
  def digest(self) -> str:
    return hashlib.sha256(self.image).hexdigest()


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
    BuildError: nothing can be described (no ratings, an impossible shard), or the captioner gave up.
  """
  if tries < 1 or (limit is not None and limit < 1):
    raise BuildError(f"tries {tries} and limit {limit} must be at least 1")
  report = Report()
  chosen = list(itertools.islice(_chosen(source, prompt, guidance, shard, report), limit))
  report.asked = len(chosen)
  with CaptionLog(out) as log, durable.space_explained(log.path.parent):
    known = _Known(log.lines, captioner.name, task)
    meter = progress_lib.Progress(task, len(chosen), enabled=progress, unit="pictures")
    try:
      _run(_tasks(source, chosen, known, log, task, report, meter), captioner, log, known, task,
           tries, report, meter)
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

  def has(self, task: _Task) -> bool:
    return self._ids.get(task.id) == (task.digest, task.prompt, self._by)

  def text(self, task: _Task) -> str | None:
    return self._texts.get((task.digest, task.prompt))


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
    if int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8]) % (
      count) == part:
      level = level if wants_level else None
      yield number, prompts_lib.fill(prompt, level), level


def _tasks(source, chosen, known, log, task, report, meter) -> Iterator[_Task]:
  """What is left to ask; writes down what need not be asked."""
  for number, prompt, level in chosen:
    sample = source[number]
    if sample.pyramid is not None:
      _note(report, "stored-as-pyramid", f"{sample.id}: has no file to send; build it plain")
      meter.advance(skipped=True)
      continue
    wanted = _Task(sample.id, sample.image, prompt, level)
    if known.has(wanted):
      report.there += 1
    elif (text := known.text(wanted)) is not None:
      report.reused += 1
      _write(log, known, task, [(wanted, text)], known._by)
    else:
      yield wanted
      continue
    meter.advance()


def _run(tasks, captioner, log, known, task, tries, report, meter) -> None:
  """Asks, as many at a time as the captioner takes, and writes each answer as it comes."""
  groups = iter(lambda: list(itertools.islice(tasks, captioner.batch)), [])
  with concurrent.futures.ThreadPoolExecutor(captioner.calls) as pool:
    waiting: set[concurrent.futures.Future] = set()
    try:
      for group in groups:
        waiting.add(pool.submit(_ask, captioner, group, tries))
        if len(waiting) >= 2 * captioner.calls:
          waiting = _collect(waiting, log, known, task, captioner.name, report, meter)
      while waiting:
        waiting = _collect(waiting, log, known, task, captioner.name, report, meter)
    except BaseException:
      pool.shutdown(wait=True, cancel_futures=True)
      # What was answered meanwhile is paid for.
      for future in waiting:
        if future.done() and not future.cancelled() and future.exception() is None:
          _take(future.result(), log, known, task, captioner.name, report, meter)
      raise


def _collect(waiting, log, known, task, by, report, meter):
  done, left = concurrent.futures.wait(
    waiting, return_when=concurrent.futures.FIRST_COMPLETED)
  failed = None
  for future in done:
    if future.exception() is not None:
      failed = future.exception()
    else:
      _take(future.result(), log, known, task, by, report, meter)
  waiting -= done
  if failed is not None:
    raise failed
  return left


def _take(outcomes, log, known, task, by, report, meter) -> None:
  answers = []
  for wanted, answer, again in outcomes:
    report.again += again
    if isinstance(answer, Unanswered):
      _note(report, answer.reason, f"{wanted.id}: {answer}")
    else:
      report.answered += 1
      answers.append((wanted, answer))
    meter.advance(skipped=isinstance(answer, Unanswered))
  _write(log, known, task, answers, by)


def _ask(
  captioner: Captioner, group: Sequence[_Task], tries: int
) -> list[tuple[_Task, str | Unanswered, int]]:
  """(task, answer or why there is none, answers that were not used) of each of a group."""
  outcomes: dict[str, tuple[_Task, str | Unanswered, int]] = {}
  left = list(group)
  for attempt in range(tries):
    # A group that fails as a whole is asked about one by one.
    parts = [left] if attempt == 0 else [[wanted] for wanted in left]
    left = []
    for part in parts:
      for wanted, answer in zip(part, _answers(captioner, part)):
        outcomes[wanted.id] = wanted, answer, attempt
        if isinstance(answer, Unanswered):
          left.append(wanted)
    if not left:
      break
  return list(outcomes.values())


def _answers(captioner: Captioner, group: Sequence[_Task]) -> list[str | Unanswered]:
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


def _write(log, known, task, answers, by) -> None:
  lines = [
    {"id": wanted.id, "task": task, "text": text, "level": wanted.level, "image": wanted.digest,
     "prompt": wanted.prompt, "by": by}
    for wanted, text in answers
  ]
  if lines:
    log.add(lines)
  for line in lines:
    known.add(line)


def _note(report: Report, reason: str, example: str) -> None:
  report.unanswered[reason] += 1
  report.examples.setdefault(reason, example)
