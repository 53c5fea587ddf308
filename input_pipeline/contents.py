"""What does each record of a split say, pixels aside? Its regions, captions, class and rating.

Evaluation needs that before it starts: how many rows there will be, which captions compete, which
classes there are. A split is read through once for it, and remembered.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from input_pipeline import captions, records, splits, text
from input_pipeline.examples import UNUSABLE
from input_pipeline.input_config import InputConfig, open_members
from input_pipeline.ratings import Rating
from input_pipeline.stream import News


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """One record.

  Attributes:
    regions: number of its boxes.
    captions: what is said about the whole image, one by one; empty if nothing is.
    label: name of its class, if it has one.
    id: its name, unique within its data set; "" where the record cannot be read.
    size: width and height in pixels.
    caption_sources: whom each of `captions` speaks for, if that is known.
    rating: what people thought of it, if they were asked.
  """

  regions: int = 0
  captions: tuple[str, ...] = ()
  label: str | None = None
  id: str = ""
  size: tuple[int, int] = (0, 0)
  caption_sources: tuple[str, ...] = ()
  rating: Rating | None = None


def of_config(config: InputConfig) -> list[Entry]:
  """Returns the entries of all data sets of a config; `image_index` of a batch counts them.

  A record that cannot be read is an empty entry here; evaluation streams count it.

  Raises:
    DatasetError: one of the data sets is none, or has no such split.
    PartError: or no such part.
  """
  return [e for m in open_members(config) for e in of_source(m.source, config.threads)[0]]


def of_source(
  source: records.RecordSource | splits.PartSource | splits.FirstSource, threads: int
) -> tuple[tuple[Entry, ...], News]:
  """Returns the entries of one data set's split or part, and what could not be read of it."""
  directory, split = source.directory, source.split
  stamp = os.stat(os.path.join(directory, records.MANIFEST)).st_mtime_ns
  return _read(directory, split, source.part, stamp, threads, len(source))


def token_rows(config: InputConfig, texts: Sequence[str]) -> Int32[np.ndarray, "n l"]:
  """Returns texts as an evaluation batch has them: cleaned, canonical if so configured, as ids."""
  tokenizer = text.make_tokenizer(config.tokenizer)
  rows = np.empty((len(texts), config.text_len), np.int32)
  for row, words in zip(rows, texts):
    row[:] = tokenizer.tokenize(captions.whole(config, words), config.text_len)
  return rows


@functools.lru_cache(maxsize=16)
def _read(
  directory: str, split: str, part: str, stamp: int, threads: int, count: int
) -> tuple[tuple[Entry, ...], News]:
  # `stamp` makes a rebuilt data set be read again.
  del stamp
  source = records.open_dataset(directory, split)
  if part:
    source = splits.select(source, part, threads)

  def look(index: int) -> Entry | Exception:
    try:
      sample = source[index]
    except UNUSABLE as e:
      return e
    whole = (sample.global_text,) if sample.global_text is not None else ()
    return Entry(
      regions=len(sample.texts),
      captions=tuple(sample.captions) or whole,
      label=sample.label,
      id=sample.id,
      size=(sample.width, sample.height),
      caption_sources=tuple(sample.caption_sources),
      rating=sample.rating,
    )

  entries, news = [], News()
  with concurrent.futures.ThreadPoolExecutor(max(1, threads)) as pool:
    for found in pool.map(look, range(count)):
      if isinstance(found, Exception):
        news.seen += 1
        news.skip(found, directory)
        found = Entry()
      entries.append(found)
  return tuple(entries), news
