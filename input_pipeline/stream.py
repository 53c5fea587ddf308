"""How batches are made ahead of their use, and what is said about records skipped meanwhile."""

import time
import weakref
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import flags

from input_pipeline.input_config import InputConfig

Batch = dict[str, np.ndarray]


class LoadError(ValueError):
  """The data cannot be read well enough to go on."""


class News:
  """What happened to the records while a batch was made; it travels with the batch.

  Attributes:
    seen: records tried.
    skipped: how many of them were unusable, by reason.
    by_source: the same, by the name of the data set they are of.
    messages: the first error of each reason.
    exhausted: whether a row was given up, after too many unusable records in a row.
  """

  def __init__(self):
    self.seen = 0
    self.skipped: dict[str, int] = {}
    self.by_source: dict[str, int] = {}
    self.messages: dict[str, str] = {}
    self.exhausted = False

  def skip(self, error: Exception, source: str) -> None:
    self.skipped[error.reason] = self.skipped.get(error.reason, 0) + 1
    self.by_source[source] = self.by_source.get(source, 0) + 1
    self.messages.setdefault(error.reason, str(error))

  def merge(self, other: "News") -> None:
    self.seen += other.seen
    for reason, count in other.skipped.items():
      self.skipped[reason] = self.skipped.get(reason, 0) + count
      self.messages.setdefault(reason, other.messages[reason])
    for source, count in other.by_source.items():
      self.by_source[source] = self.by_source.get(source, 0) + count
    self.exhausted |= other.exhausted


class Stream:
  """An iterator of batches.

  Args:
    batches: element k is this process's rows of batch k, and what happened while they were made.
    config: how many threads and workers, and which share of records may be unusable.
    judged_over: the share is taken of at least so many records.

  Attributes:
    wait_seconds: how long the consumer has waited for batches so far.
  """

  def __init__(
    self, batches: Sequence[tuple[Batch, News]], config: InputConfig, *, judged_over: int
  ):
    self._length = len(batches)
    self._max_skip_share = config.max_skip_share
    self._judged_over = judged_over
    self._news = News()
    self.wait_seconds = 0.0
    options = grain.ReadOptions(
      num_threads=config.threads, prefetch_buffer_size=max(config.prefetch, config.threads)
    )
    dataset = grain.MapDataset.source(batches).to_iter_dataset(options)
    if config.workers:
      if not flags.FLAGS.is_parsed():
        # Grain's workers ask absl for their own flags, which outside of app.run is an error.
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(
        grain.multiprocessing.MultiprocessingOptions(
          num_workers=config.workers,
          per_worker_buffer_size=max(1, config.prefetch // config.workers),
        )
      )
    iterator = iter(dataset)
    self._iterator = iterator
    # Also at the interpreter's exit, when it is too late for the iterator's own __del__.
    self._finalizer = weakref.finalize(self, iterator.close)

  def __len__(self) -> int:
    """Returns the number of batches (sys.maxsize for a training stream)."""
    return self._length

  def __iter__(self) -> Iterator[Batch]:
    return self

  def __next__(self) -> Batch:
    start = time.perf_counter()
    batch, news = next(self._iterator)
    self.wait_seconds += time.perf_counter() - start
    self.count(news)
    # Workers send keys in another order, and arrays of a subclass that lives in shared memory.
    return {k: batch[k].view(np.ndarray) for k in sorted(batch)}

  @property
  def seen(self) -> int:
    """Records that were tried for the batches handed out so far."""
    return self._news.seen

  @property
  def skipped(self) -> dict[str, int]:
    """Unusable records among those, by reason."""
    return dict(self._news.skipped)

  @property
  def skipped_by_source(self) -> dict[str, int]:
    """The same, by the name of the data set (`input_config.source_names`) they are of."""
    return dict(self._news.by_source)

  def close(self) -> None:
    """Stops the threads or workers; a program that uses workers should call it before it ends."""
    self._finalizer()

  def count(self, news: News) -> None:
    """Adds up what happened; raises LoadError if too many records were unusable."""
    self._news.merge(news)
    bad, total = sum(self._news.skipped.values()), self._news
    if not total.exhausted and bad <= self._max_skip_share * max(total.seen, self._judged_over):
      return
    self.close()
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(total.skipped.items()))
    judged = (
      "so many in a row that the data set must be unusable"
      if total.exhausted
      else f"more than the allowed share of {self._max_skip_share:g} (input.max_skip_share)"
    )
    example = next(iter(total.messages.values()))
    raise LoadError(
      f"{bad} of {total.seen} records could not be used ({reasons}), {judged}. For "
      f"example: {example}"
    )
