"""How do samples become shards that a crash, a full disk or a second run cannot spoil?

Shard k of a split holds items [k * shard_size, (k + 1) * shard_size), less the skipped ones. It is
written under a temporary name, forced to disk, counted, renamed, and only then described by a
side-car file: a shard without a fitting side-car does not exist for the next run, which writes it
again. `dataset.json` comes last, and a directory without it is not a data set.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from input_pipeline import records
from input_pipeline.build import durable
from input_pipeline.build import progress as progress_lib
from input_pipeline.build.durable import BuildError
from input_pipeline.build.skips import SkipLog, SkipRecord, by_reason, label_of, news_of

# Encoded images do not compress; one record per chunk makes random access read nothing else.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass
class BuiltSample(records.Sample):
  """A sample with what had to be changed in it.

  Attributes:
    dropped: (reason, detail) of each region or caption left out.
    mended: (reason, detail) of each thing kept after a change (a clipped box).
  """

  dropped: Sequence[tuple[str, str]] = ()
  mended: Sequence[tuple[str, str]] = ()


@dataclasses.dataclass(frozen=True)
class SplitReport:
  """What was written for a split.

  Attributes:
    shards: {"file", "records", "bytes"} of each shard, in order.
    skipped: records left out, by reason.
    dropped: regions and captions left out of records that were kept, by reason.
    mended: things kept after a change, by reason.
    resumed: records found finished by an earlier run.
  """

  split: str
  shards: tuple[dict[str, Any], ...]
  records: int
  regions: int
  skipped: dict[str, int]
  dropped: dict[str, int]
  mended: dict[str, int]
  resumed: int = 0


def write_split(
  out_dir: str | os.PathLike,
  split: str,
  items: Sequence[Any],
  load: Callable[[Any], records.Sample],
  *,
  shard_size: int = 256,
  max_skip_share: float = 0.05,
  threads: int = 2,
  progress: bool = True,
  settings: dict[str, Any] | None = None,
) -> SplitReport:
  """Writes the shards of one split, or those an earlier run has not finished.

  The bytes written depend on `items` and `load` only, not on threads or interruptions.

  Args:
    out_dir: the data set's directory; made if need be.
    split: the split's name.
    items: plain data (numbers, strings, tuples, dataclasses, arrays); one item, one record.
    load: item -> Sample, called in threads; raises SkipRecord for a record to leave out.
    shard_size: items per shard.
    max_skip_share: share of the items (rounded up) that may be skipped before the build stops.
    threads: how many calls of `load` run at once.
    progress: whether to report on standard error.
    settings: whatever else `load` depends on; together with the items it identifies the build.

  Returns:
    the report over all shards, those of earlier runs included.

  Raises:
    BuildError: nothing to write, too many skips, a directory that holds another build, no space.
  """
  if not items:
    raise BuildError(f"split {split!r}: there is no record to write")
  if shard_size < 1 or threads < 1:
    raise BuildError(f"shard size {shard_size} and threads {threads} must be at least 1")
  if not 0 <= max_skip_share <= 1:
    raise BuildError(f"max_skip_share {max_skip_share} is a share: it must lie in [0, 1]")
  out_dir = pathlib.Path(out_dir)
  out_dir.mkdir(parents=True, exist_ok=True)
  with durable.only_writer_of(out_dir), durable.space_explained(out_dir):
    names = _shard_names(split, len(items), shard_size)
    _claim(out_dir, split, items, shard_size, len(names), settings or {})
    finished = {name: entry for name in names if (entry := _finished_shard(out_dir, name))}
    for stale in out_dir.glob(f"{split}-[0-9]*{durable.TEMPORARY}"):
      stale.unlink()
    resumed = sum(entry["items"] for entry in finished.values())
    meter = progress_lib.Progress(split, len(items), done=resumed, enabled=progress)
    log = SkipLog(out_dir, split, len(items), max_skip_share)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
      for entry in finished.values():
        log.extend(entry["log"])
      log.check()
      for k, name in enumerate(names):
        if name in finished:
          continue
        part = items[k * shard_size:(k + 1) * shard_size]
        outcomes = _in_order(pool, part, load, ahead=4 * threads)
        finished[name] = _write_shard(out_dir, name, part, outcomes, meter, log)
    finally:
      pool.shutdown(cancel_futures=True)
      log.save()
      meter.close()
  entries = [finished[name] for name in names]
  report = SplitReport(
    split=split,
    shards=tuple(
      {key: entry[key] for key in ("file", "records", "bytes")}
      for entry in entries if entry["records"]
    ),
    records=sum(entry["records"] for entry in entries),
    regions=sum(entry["regions"] for entry in entries),
    skipped=log.counts("record"),
    dropped=log.counts("part"),
    mended=log.counts("mended"),
    resumed=resumed,
  )
  if not report.records:
    raise BuildError(
      f"split {split!r}: every one of {len(items):,} records was skipped "
      f"({by_reason(report.skipped)}); {log.path} says why for each"
    )
  return report


def finish(
  out_dir: str | os.PathLike,
  reports: dict[str, SplitReport],
  info: dict[str, Any],
  *,
  version: int = records.VERSION,
):
  """Writes `dataset.json`, which turns the shards of a directory into a data set.

  Splits and info that an earlier build put there stay, unless this one replaces them.

  Args:
    out_dir: the directory given to `write_split`.
    reports: what `write_split` returned, by split.
    info: provenance, licence, counts: anything JSON can hold.
    version: the newest version of the records, of which a reader is warned by the manifest.

  Raises:
    BuildError: a shard is missing or has another size than was reported.
  """
  out_dir = pathlib.Path(out_dir)
  path = out_dir / records.MANIFEST
  with durable.only_writer_of(out_dir), durable.space_explained(out_dir):
    old = durable.read_json(path) or {}
    splits = dict(old.get("splits", {}))
    for split, report in reports.items():
      for shard in report.shards:
        file = out_dir / shard["file"]
        size = file.stat().st_size if file.exists() else None
        if size != shard["bytes"]:
          raise BuildError(
            f"{file}: expected {shard['bytes']:,} bytes, found "
            f"{'no file' if size is None else f'{size:,}'}; run the same build again"
          )
      splits[split] = {
        "shards": list(report.shards),
        "records": report.records,
        "regions": report.regions,
        "skipped": report.skipped,
        "dropped": report.dropped,
        "mended": report.mended,
      }
    manifest = {
      "format": records.FORMAT,
      "version": max(version, old.get("version", version)),
      "splits": splits,
      "info": {**old.get("info", {}), **info},
    }
    durable.write_json(path, manifest)


def _write_shard(out_dir, name, part, outcomes, meter, log) -> dict[str, Any]:
  """Writes one shard and its side-car; leaves nothing under the final name if it fails."""
  final = out_dir / name
  temporary = out_dir / f"{name}{durable.TEMPORARY}"
  count = regions = 0
  lines = []
  writer = array_record_module.ArrayRecordWriter(str(temporary), _WRITER_OPTIONS)
  try:
    for item, outcome in zip(part, outcomes, strict=True):
      news = news_of(label_of(item), outcome)
      lines += news
      skipped = isinstance(outcome, SkipRecord)
      meter.advance(skipped=skipped)
      log.extend(news)
      log.check()
      if not skipped:
        data = records.encode_sample(outcome)
        with _disk_errors():
          writer.write(data)
        count += 1
        regions += len(outcome.texts)
    with _disk_errors():
      writer.close()
    if count:
      _settle(temporary, final, count)
  except BaseException:
    with contextlib.suppress(Exception):
      writer.close()
    temporary.unlink(missing_ok=True)
    raise
  if not count:
    # Readers need not know shards that hold nothing.
    temporary.unlink()
    final.unlink(missing_ok=True)
  entry = {
    "file": name,
    "items": len(part),
    "records": count,
    "regions": regions,
    "bytes": final.stat().st_size if count else 0,
    "log": lines,
  }
  durable.write_json(_sidecar(final), entry)
  return entry


def _settle(temporary: pathlib.Path, final: pathlib.Path, count: int):
  """Forces a shard to disk, counts what arrived and gives it its name."""
  with open(temporary, "rb") as file:
    os.fsync(file.fileno())
  # What the writer believes and what a reader finds are two things: the file itself is asked.
  with _disk_errors():
    reader = array_record_module.ArrayRecordReader(str(temporary))
    found = reader.num_records()
    reader.close()
  if found != count:
    raise OSError(errno.EIO, f"{final.name}: {count} records were written, {found} arrived")
  os.replace(temporary, final)
  durable.sync_directory(final.parent)


@contextlib.contextmanager
def _disk_errors():
  """The record library reports a full disk as RuntimeError; everywhere else it is an OSError."""
  try:
    yield
  except (RuntimeError, ValueError) as error:
    raise OSError(errno.EIO, str(error)) from error


def _in_order(pool, part, load, ahead: int) -> Iterator[records.Sample | SkipRecord]:
  """Yields `load(item)`, or the SkipRecord it raised, for each item in turn."""

  def outcome(item):
    try:
      return load(item)
    except SkipRecord as skip:
      return skip
    except Exception as error:
      error.add_note(f"This happened while building the record of {label_of(item)}.")
      raise

  waiting = collections.deque()
  for item in part:
    # Bounded, so that slow writing does not fill the memory with decoded images.
    if len(waiting) >= ahead:
      yield waiting.popleft().result()
    waiting.append(pool.submit(outcome, item))
  while waiting:
    yield waiting.popleft().result()


def _shard_names(split: str, items: int, shard_size: int) -> list[str]:
  count = -(-items // shard_size)
  return [f"{split}-{k:05d}-of-{count:05d}.arrayrecord" for k in range(count)]


def _sidecar(shard: pathlib.Path) -> pathlib.Path:
  return shard.with_suffix(".json")


def _finished_shard(out_dir: pathlib.Path, name: str) -> dict[str, Any] | None:
  entry = durable.read_json(_sidecar(out_dir / name))
  if entry is None:
    return None
  if entry["records"]:
    file = out_dir / name
    if not file.exists() or file.stat().st_size != entry["bytes"]:
      return None
  return entry


def _claim(out_dir, split, items, shard_size, shards, settings):
  """Notes which build this directory belongs to, or refuses if it belongs to another."""
  path = out_dir / f"{split}.build.json"
  mine = {
    "version": records.VERSION,
    "items": len(items),
    "shard_size": shard_size,
    "fingerprint": _fingerprint(items, settings),
  }
  theirs = durable.read_json(path)
  if theirs is None and next(out_dir.glob(f"{split}-[0-9]*-of-*.arrayrecord"), None) is None:
    durable.write_json(path, mine)
  elif theirs != mine:
    was = "shards of unknown origin"
    if theirs is not None:
      was = f"{theirs['items']:,} records in shards of {theirs['shard_size']:,}"
    raise BuildError(
      f"{out_dir} already holds another build of split {split!r}: {was}; this one has "
      f"{len(items):,} records in shards of {shard_size:,}, and the records or settings differ. "
      "Choose another output directory, delete this one, or repeat the first command to resume it."
    )


def _fingerprint(items: Sequence[Any], settings: dict[str, Any]) -> str:
  digest = hashlib.sha256()
  for item in (settings, *items):
    digest.update(json.dumps(_plain(item), sort_keys=True).encode() + b"\n")
  return digest.hexdigest()


def _plain(value: Any) -> Any:
  """The value as JSON can spell it, the same in every run."""
  if value is None or isinstance(value, (bool, int, float, str)):
    return value
  if isinstance(value, (np.ndarray, np.generic)):
    return value.tolist()
  if dataclasses.is_dataclass(value):
    return [_plain(getattr(value, field.name)) for field in dataclasses.fields(value)]
  if isinstance(value, dict):
    return {str(key): _plain(entry) for key, entry in value.items()}
  if isinstance(value, (list, tuple, range)):
    return [_plain(entry) for entry in value]
  if isinstance(value, os.PathLike):
    return os.fspath(value)
  raise TypeError(
    f"an item to build holds a {type(value).__name__}; expected plain data (numbers, strings, "
    "tuples, dicts, dataclasses, arrays), so that a later run can tell whether it is the same"
  )
