"""How batches reach a process: deterministic streams for training and evaluation.

A training stream is a function of (seed, step) alone: the number of threads, workers or processes
changes who makes a row, never what is in it. So the step is all the state there is to save, and a
run continues bit-identically anywhere.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from input_pipeline import contents, crop_features, crops, labels, pictures
from input_pipeline.examples import UNUSABLE, ExampleMaker
from input_pipeline.input_config import (
  InputConfig,
  InputError,
  dataset_size,
  open_members,
  source_names,
)
from input_pipeline.mixture import Member, Mixture
from input_pipeline.stream import Batch, LoadError, News, Stream

__all__ = [
  "InputConfig",
  "InputError",
  "LoadError",
  "dataset_size",
  "eval_stream",
  "rows_of",
  "source_names",
  "to_global",
  "train_stream",
]

# What an evaluation stream can show, as its errors call it.
_ITEMS = {
  "regions": "regions",
  "images": "images with a global caption",
  "labelled": "images with a class label",
  "rated": "images with a rating",
  "all": "images",
}
# How many other records are tried for a position whose own cannot be used.
_TRIES = 20
# Skips are a share of at least so many records: one in the first batch does not stop a run.
_JUDGED_OVER = 1000


def train_stream(
  config: InputConfig,
  *,
  batch_size: int,
  seed: int,
  start_step: int = 0,
  process_index: int = 0,
  process_count: int = 1,
  rows: Sequence[int] | None = None,
) -> Stream:
  """Returns an endless stream of this process's rows of the global batches.

  Args:
    config: what to read and how.
    batch_size: rows of the global batch; process j of m gets rows [j B / m, (j + 1) B / m).
    seed: decides order, crops and captions, together with the position.
    start_step: the step whose batch comes first.
    process_index, process_count: j and m.
    rows: the rows of the global batch to make instead, for processes whose devices hold others.

  Returns:
    a Stream of {"image": uint8 (b, S, S, 3), "text": int32 (b, L), "box": float32 (b, 4) in pixels
    of the S x S image, "is_global": bool (b,)} and, if max_boxes > 0, {"boxes": float32
    (b, max_boxes, 4), "num_boxes": int32 (b,)}: all boxes of the image that the crop shows, the
    chosen one first. If tiles > 0, "image" is the view (b, V, V, 3), and there are {"tiles": uint8
    (b, tiles, T, T, 3), "tile_at": int32 (b, tiles)}: tiles of the S x S image and their places in
    its raster, -1 where there is none. If num_classes > 0, there is {"label": int32 (b,)}; if
    scores, {"score": float32 (b,)}. With captions=False, "image", these two and, if it is asked
    for, "foreground" (b, S, S) float32 are all. With pairs there is "degraded", as "image".

  Raises:
    InputError, DatasetError, TokenizerError: at once, if it cannot start.
    LoadError: while iterating, if more than config.max_skip_share of the records are unusable.
  """
  rows = _rows(batch_size, process_index, process_count, rows)
  if seed < 0 or start_step < 0:
    raise InputError(f"seed {seed} and first step {start_step} must not be negative.")
  if batch_size % config.group:
    raise InputError(
      f"batch_size is {batch_size}, expected a multiple of input.group, {config.group}."
    )
  batches = _TrainBatches(
    config, Mixture(open_members(config), seed, config.group), batch_size, rows, seed, start_step
  )
  return Stream(batches, config, judged_over=_JUDGED_OVER)


def eval_stream(
  config: InputConfig,
  *,
  batch_size: int,
  items: Literal["regions", "images", "labelled", "rated", "all"] = "regions",
  process_index: int = 0,
  process_count: int = 1,
  rows: Sequence[int] | None = None,
) -> Stream:
  """Returns a finite stream over regions, captioned images, or labelled images, in record order.

  Images are squashed to S x S without a crop and whole, also where training has tiles, or are the
  square of config.eval_crop or config.eval_plain; captions are whole. The last batch is padded:
  rows with "mask" False stand for nothing. Every process sees the same number of batches,
  `len(stream)`.
  To know how many regions each record has, the split is read through once (and remembered).

  Args:
    config: what to read; mixture weights are ignored, each data set is gone through once.
    batch_size: rows of the global batch.
    items: "regions" (is_global False), or those with a caption of the whole ("images"), with a
      class ("labelled"), a rating ("rated") or of any kind ("all"), whose box is the whole image.
      Which class or rating it is, and further captions, `contents.of_config` says. With
      config.eval_crops, "rated" shows each image as several crops, one a row; with config.features
      too, and then "feature" float32 (b, d) is there in place of what else is in batches.
    process_index, process_count, rows: as for train_stream.

  Returns:
    a Stream of the arrays of train_stream with "mask" bool (b,), "index" int32 (b,), the running
    number of the region, image or crop, and "image_index" int32 (b,), the running number of the
    record (both -1 where mask is False). An image that cannot be decoded is masked, counted in
    `skipped`, and keeps its numbers from being used by others.

  Raises:
    InputError, DatasetError, TokenizerError: if it cannot start, for instance with no items.
    LoadError: if more than config.max_skip_share of the records are unusable.
  """
  if items not in _ITEMS:
    raise InputError(f"eval items are {items!r}; expected one of {', '.join(_ITEMS)}.")
  rows = _rows(batch_size, process_index, process_count, rows)
  members = open_members(config)
  entries, news = [], News()
  first = 0
  for member in members:
    found, skips = contents.of_source(member.source, config.threads)
    news.merge(skips)
    for i, entry in enumerate(found):
      entries += [(member, i, first + i, *shown) for shown in _rows_of(entry, items, config)]
    first += len(found)
  if not entries:
    names = ", ".join(member.source.name for member in members)
    raise InputError(f"{names}: there are no {_ITEMS[items]} to evaluate on.")
  if config.features:
    if items != "rated":
      raise InputError(f"eval items are {items!r} with input.features, which are no pixels; "
                       "expected 'rated', or input.features=''.")
    found = [(e.id, i, config.data) for i, e in enumerate(contents.of_config(config)) if e.rating]
    batches = crop_features.EvalBatches(
      crop_features.of_config(config), found, batch_size, rows)
  else:
    batches = _EvalBatches(config, entries, batch_size, rows)
  stream = Stream(batches, config, judged_over=min(first, _JUDGED_OVER))
  stream.count(news)
  return stream


def rows_of(sharding: Any, batch_size: int) -> list[int]:
  """Returns the rows of a global batch that this process's devices hold, ascending.

  Args:
    sharding: a jax.sharding.Sharding of the leading axis.
    batch_size: rows of the global batch.
  """
  return list(_places(sharding, batch_size))


def to_global(batch: Batch, sharding: Any) -> dict[str, Any]:
  """Returns global jax arrays from the rows of all processes, in the order of the rows.

  Args:
    batch: this process's rows, those of `rows_of`.
    sharding: a jax.sharding.Sharding of the leading axis, used for every array.
  """
  import jax  # Only here: workers and builders start without it.

  local = len(next(iter(batch.values())))
  batch_size = local * jax.process_count()
  place = _places(sharding, batch_size)
  if len(place) != local:
    raise InputError(
      f"this process has {local} of {batch_size} rows, but its devices hold {len(place)}."
    )

  def put(x):
    shape, parts = (batch_size, *x.shape[1:]), []
    for device, index in sharding.addressable_devices_indices_map(shape).items():
      first, last, _ = index[0].indices(batch_size)
      # The rows of one device follow each other, in the batch and here.
      parts.append(jax.device_put(x[place[first] : place[last - 1] + 1], device))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)

  return {k: put(v) for k, v in batch.items()}


@functools.lru_cache(maxsize=64)
def _places(sharding: Any, batch_size: int) -> dict[int, int]:
  """Returns {row: its place among the rows of this process}, ascending."""
  slices = [index[0] for index in sharding.addressable_devices_indices_map((batch_size,)).values()]
  rows = sorted({row for s in slices for row in range(*s.indices(batch_size))})
  return {row: i for i, row in enumerate(rows)}


class _TrainBatches:
  """Training batches: each row is a function of the seed and its global position."""

  def __init__(
    self,
    config: InputConfig,
    mixture: Mixture,
    batch_size: int,
    rows: Sequence[int],
    seed: int,
    start_step: int,
  ):
    self._maker = ExampleMaker(config, labels.classes(config) if config.num_classes else ())
    self._mixture = mixture
    self._rows = rows
    self._batch_size = batch_size
    self._start_step = start_step
    self._seed = seed

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, k: int) -> tuple[Batch, News]:
    batch, news = self._maker.allocate(len(self._rows)), News()
    first = (self._start_step + int(k)) * self._batch_size
    for row, number in enumerate(self._rows):
      self._fill(batch, row, first + number, news)
      if news.exhausted:
        break
    return batch, news

  def _fill(self, batch: Batch, row: int, position: int, news: News) -> None:
    for attempt in range(_TRIES):
      rng = np.random.default_rng([self._seed, position, attempt])
      # A position whose record is unusable takes another one, as determined as the first.
      member, index = self._mixture.draw(rng, position) if attempt else self._mixture[position]
      source = self._mixture.members[member].source
      news.seen += 1
      try:
        self._maker.write_train(
          batch, row, source[index], rng, key=(member, index), where=source.where(index)
        )
        return
      except UNUSABLE as e:
        news.skip(e, self._mixture.members[member].name)
    news.exhausted = True


class _EvalBatches:
  """Evaluation batches over a list of (member, record, running image number, region, crop)."""

  def __init__(
    self,
    config: InputConfig,
    entries: list[tuple[Member, int, int, int | None, np.ndarray | None]],
    batch_size: int,
    rows: Sequence[int],
  ):
    self._maker = ExampleMaker(config)
    self._entries = entries
    self._batch_size = batch_size
    self._rows = rows

  def __len__(self) -> int:
    return -(-len(self._entries) // self._batch_size)

  def __getitem__(self, k: int) -> tuple[Batch, News]:
    batch, news = self._maker.allocate(len(self._rows), whole=True), News()
    batch["mask"] = np.zeros(len(self._rows), bool)
    batch["index"] = np.full(len(self._rows), -1, np.int32)
    batch["image_index"] = np.full(len(self._rows), -1, np.int32)
    last = None, None, None  # The image number, sample and pixels of the row before.
    for row, number in enumerate(self._rows):
      self._maker.write_padding(batch, row)
      item = int(k) * self._batch_size + number
      if item >= len(self._entries):
        continue
      member, record, image_index, region, crop = self._entries[item]
      if last[0] != image_index:
        news.seen += 1
        try:
          sample = member.source[record]
          decode = self._maker.eval_image if crop is None else pictures.whole
          last = image_index, sample, decode(sample, member.source.where(record))
        except UNUSABLE as e:
          news.skip(e, member.name)
          last = image_index, None, None
      if last[1] is None:
        continue
      if crop is None:
        batch["image"][row] = last[2][..., :3]
        if "degraded" in batch:
          batch["degraded"][row] = last[2][..., 3:]
      else:
        self._maker.write_crop(last[2], crop, batch["image"][row])
      self._maker.write_eval(batch, row, last[1], region)
      batch["mask"][row] = True
      batch["index"][row] = item
      batch["image_index"][row] = image_index
    return batch, news


def _rows_of(
  entry: contents.Entry, items: str, config: InputConfig
) -> list[tuple[int | None, np.ndarray | None]]:
  """Returns the (region, crop) of a record to show; None stands for the whole."""
  if items == "regions":
    return [(region, None) for region in range(entry.regions)]
  shown = {
    "images": bool(entry.captions),
    "labelled": entry.label is not None,
    "rated": entry.rating is not None,
    "all": True,
  }
  if not shown[items]:
    return []
  if items == "rated" and config.eval_crops:
    boxes = crops.boxes(config.eval_crops, entry.id, *entry.size, config.image_size)
    return [(None, box) for box in boxes]
  return [(None, None)]


def _rows(
  batch_size: int, process_index: int, process_count: int, rows: Sequence[int] | None
) -> list[int]:
  if rows is not None:
    if not len(rows) or min(rows) < 0 or max(rows) >= batch_size:
      raise InputError(f"rows {list(rows)} are not those of a batch of {batch_size}.")
    return [int(row) for row in rows]
  if not 0 <= process_index < process_count:
    raise InputError(f"process {process_index} of {process_count} does not exist.")
  if batch_size < 1 or batch_size % process_count:
    raise InputError(
      f"batch_size is {batch_size}, expected a positive multiple of the {process_count} processes."
    )
  share = batch_size // process_count
  return list(range(process_index * share, (process_index + 1) * share))
