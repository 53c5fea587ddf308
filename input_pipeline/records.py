"""What one record holds, how it is written as bytes, and how a directory of records is read.

A record is one encoded image with its boxes and captions. Boxes are pixels of the image *as it is
displayed*, that is after the rotation its EXIF header may ask for. A data set is a directory with
a manifest, `dataset.json`, that names the ArrayRecord shards of each split with their sizes.
README.md of this folder describes both formats.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np
from grain import sources

from input_pipeline import pyramid as pyramid_lib
from input_pipeline import ratings

FORMAT = "bve-regions"
# 1: the encoded file as it was. 2: a pyramid of tiles in its place (`input_pipeline.pyramid`). A
# data set of version 2 may hold records of both; programs that know only 1 refuse it.
VERSION, PYRAMID_VERSION = 1, 2
VERSIONS = (VERSION, PYRAMID_VERSION)
MANIFEST = "dataset.json"


class RecordError(ValueError):
  """A record that cannot be used; `reason` is the short stable word it is counted under."""

  def __init__(self, message: str, reason: str = "record-invalid"):
    super().__init__(message)
    self.reason = reason

  def __reduce__(self):
    return type(self), (self.args[0], self.reason)


class DatasetError(ValueError):
  """A directory that is not a data set, not a complete one, or has no such split."""


@dataclasses.dataclass
class Sample:
  """One image with its regions.

  Attributes:
    id: name of the image, unique within its data set.
    image: the encoded file (JPEG, PNG or WebP), untouched; empty where there is a pyramid.
    width, height: size in pixels of the displayed image (after EXIF rotation).
    boxes: float32 (n, 4), [x0, y0, x1, y1] in pixels of the displayed image.
    texts: n captions, one per box.
    global_text: caption of the whole image, if there is one.
    source: where the image came from (a data set, a file), for messages and credits.
    label: name of the class the image belongs to, if it has one; for evaluation.
    captions: captions of the whole image one by one, where it has several.
    caption_sources: whom each of `captions` speaks for, of `ratings.CAPTION_SOURCES`, if known.
    rating: what people thought of it, if they were asked.
    pyramid: the image as tiles of several sizes, in place of the file.
    mask: an encoded grey image of the size of the displayed one, white where there is foreground;
      empty where there is none.
    degraded: an encoded image of the same with rain, noise, ..., of its size; or empty.
  """

  id: str
  image: bytes
  width: int
  height: int
  boxes: np.ndarray
  texts: list[str]
  global_text: str | None = None
  source: str = ""
  label: str | None = None
  captions: list[str] = dataclasses.field(default_factory=list)
  caption_sources: list[str] = dataclasses.field(default_factory=list)
  rating: ratings.Rating | None = None
  pyramid: pyramid_lib.Pyramid | None = None
  mask: bytes = b""
  degraded: bytes = b""


def encode_sample(sample: Sample) -> bytes:
  """Returns the record of a sample. Raises RecordError where decode_sample would."""
  boxes = np.asarray(sample.boxes, np.float32).reshape(-1, 4)
  fields = {
    "format": FORMAT,
    "version": VERSION,
    "id": sample.id,
    "width": int(sample.width),
    "height": int(sample.height),
    "boxes": boxes.astype("<f4").tobytes(),
    "texts": list(sample.texts),
    "global_text": sample.global_text,
    "source": sample.source,
  }
  if sample.pyramid is None:
    fields["image"] = sample.image
  else:
    if sample.image:
      raise RecordError(f"sample {sample.id!r} has both an image file and a pyramid, expected one.")
    fields |= {"version": PYRAMID_VERSION, "pyramid": pyramid_lib.to_fields(sample.pyramid)}
  # Only where there is one: data sets without are the same to the byte as before there were any,
  # and readers of this version that know neither ignore them.
  fields |= {"label": sample.label} if sample.label is not None else {}
  fields |= {"captions": list(sample.captions)} if sample.captions else {}
  fields |= {"mask": sample.mask} if sample.mask else {}
  fields |= {"degraded": sample.degraded} if sample.degraded else {}
  if sample.caption_sources:
    fields["caption_sources"] = list(sample.caption_sources)
  fields |= {"rating": ratings.to_fields(sample.rating)} if sample.rating is not None else {}
  _sample_from(fields, "the sample to be written")
  try:
    return msgpack.packb(fields, use_bin_type=True)
  except UnicodeEncodeError as e:
    raise RecordError(
      f"the sample to be written (id {sample.id!r}): text that is not valid Unicode ({e}).",
      "record-caption",
    ) from e


def decode_sample(data: bytes, where: str = "") -> Sample:
  """Returns the sample of a record.

  Args:
    data: the bytes of the record.
    where: name of the place the record was read from, for error messages.

  Raises:
    RecordError: the bytes are not a record of this format and version, or its fields contradict
      each other (boxes outside of the image, captions without boxes, ...).
  """
  where = where or "the record"
  try:
    fields = msgpack.unpackb(data, raw=False)
  except Exception as e:  # msgpack raises a dozen unrelated types on foreign bytes.
    raise RecordError(
      f"{where}: {len(data)} bytes that are no {FORMAT} record ({e}). Was this file written by "
      "input_pipeline.build?",
      "record-unreadable",
    ) from e
  if not isinstance(fields, dict) or fields.get("format") != FORMAT:
    found = fields.get("format") if isinstance(fields, dict) else type(fields).__name__
    raise RecordError(
      f"{where}: format is {found!r}, expected {FORMAT!r}. Build the data set again with "
      "input_pipeline.build.",
      "record-format",
    )
  if fields.get("version") not in VERSIONS:
    raise RecordError(
      f"{where}: record version is {fields.get('version')!r}, this program reads versions "
      f"{_known()}. Build the data set again with this version of input_pipeline.build.",
      "record-version",
    )
  return _sample_from(fields, where)


_FIELDS = {
  "id": str,
  "width": int,
  "height": int,
  "boxes": bytes,
  "texts": list,
  "global_text": (str, type(None)),
  "source": str,
}
# What holds the pixels, by version.
_PIXELS = {VERSION: {"image": bytes}, PYRAMID_VERSION: {"pyramid": dict}}
_OPTIONAL = {"label": str, "captions": list, "caption_sources": list, "rating": dict,
             **dict.fromkeys(("mask", "degraded"), bytes)}
_SOURCES = frozenset(ratings.CAPTION_SOURCES)


def _known() -> str:
  return " and ".join(map(str, VERSIONS))


def _sample_from(fields: Mapping[str, Any], where: str) -> Sample:
  """Checks every field of an unpacked record and returns the sample."""
  if isinstance(fields.get("id"), str) and fields["id"]:
    where = f"{where} (id {fields['id']!r})"
  for name, kind in {**_FIELDS, **_PIXELS[fields["version"]], **_OPTIONAL}.items():
    if name not in fields:
      if name in _OPTIONAL:
        continue
      raise RecordError(f"{where}: field {name!r} is missing.")
    if not isinstance(fields[name], kind) or isinstance(fields[name], bool):
      raise RecordError(
        f"{where}: field {name!r} is a {type(fields[name]).__name__}, expected "
        f"{getattr(kind, '__name__', 'text or nothing')}."
      )
  width, height, texts = fields["width"], fields["height"], fields["texts"]
  for name in ("id", *_PIXELS[fields["version"]]):
    if not fields[name]:
      raise RecordError(f"{where}: field {name!r} is empty.")
  if width < 1 or height < 1:
    raise RecordError(f"{where}: image size is {width} x {height}, expected at least 1 x 1.")
  if len(fields["boxes"]) % 16:
    raise RecordError(
      f"{where}: field 'boxes' has {len(fields['boxes'])} bytes, expected 16 (four float32) a box."
    )
  boxes = np.frombuffer(fields["boxes"], "<f4").reshape(-1, 4).astype(np.float32)
  if len(texts) != len(boxes):
    raise RecordError(f"{where}: {len(boxes)} boxes but {len(texts)} captions, expected as many.")
  for i, text in enumerate(texts):
    if not isinstance(text, str) or not text.strip():
      raise RecordError(f"{where}: caption {i} is {text!r}, expected text.", "record-caption")
  if (text := fields["global_text"]) is not None and not text.strip():
    raise RecordError(
      f"{where}: global caption is {text!r}, expected text or None.", "record-caption"
    )
  label, captions = fields.get("label"), fields.get("captions", [])
  if label is not None and not label.strip():
    raise RecordError(f"{where}: label is {label!r}, expected the name of a class.", "record-label")
  for i, text in enumerate(captions):
    if not isinstance(text, str) or not text.strip():
      raise RecordError(
        f"{where}: caption {i} of the whole is {text!r}, expected text.", "record-caption"
      )
  if captions and fields["global_text"] is None:
    raise RecordError(
      f"{where}: {len(captions)} captions of the whole but no global caption.", "record-caption"
    )
  sources = fields.get("caption_sources", [])
  if sources and (len(sources) != len(captions) or not set(sources) <= _SOURCES):
    raise RecordError(
      f"{where}: sources of captions are {sources}, expected one of {sorted(_SOURCES)} for each "
      f"of {len(captions)} captions.", "record-caption"
    )
  _check_boxes(boxes, width, height, where)
  rating = None
  if "rating" in fields:
    try:
      rating = ratings.from_fields(fields["rating"])
    except ratings.RatingError as e:
      raise RecordError(f"{where}: rating: {e}.", "record-rating") from e
  pyramid = None
  if fields["version"] == PYRAMID_VERSION:
    try:
      pyramid = pyramid_lib.from_fields(fields["pyramid"], width, height)
    except pyramid_lib.PyramidError as e:
      raise RecordError(f"{where}: no pyramid of the image ({e}).", "record-pyramid") from e
  return Sample(
    id=fields["id"],
    image=fields.get("image", b""),
    pyramid=pyramid,
    width=width,
    height=height,
    boxes=boxes,
    texts=list(texts),
    global_text=fields["global_text"],
    source=fields["source"],
    label=label,
    captions=list(captions),
    mask=fields.get("mask", b""),
    degraded=fields.get("degraded", b""),
    caption_sources=list(sources),
    rating=rating,
  )


def _check_boxes(boxes: np.ndarray, width: int, height: int, where: str) -> None:
  x0, y0, x1, y1 = boxes.T
  # Comparisons with NaN are false, so NaN boxes are caught by the same line.
  good = (0 <= x0) & (x0 < x1) & (x1 <= width) & (0 <= y0) & (y0 < y1) & (y1 <= height)
  if not good.all():
    i = int(np.argmin(good))
    raise RecordError(
      f"{where}: box {i} is {[float(v) for v in boxes[i]]}, expected [x0, y0, x1, y1] with x0 < x1 "
      f"and y0 < y1 inside of the image of {width} x {height} pixels.",
      "record-box",
    )


@dataclasses.dataclass(frozen=True)
class _Shard:
  """A whole shard, in the form that lets grain trust the count instead of opening the file."""

  filename: str
  take: int
  examples_in_shard: int
  skip: int = 0


class RecordSource:
  """Random access to the samples of one split: `len(source)`, `source[i]`.

  Threads may share one; it can be pickled into worker processes.

  Attributes:
    directory, split: where it is; `name` has both, for messages. `part` is "", all of it.
    info: the manifest's "info": provenance, licence and how the data set was built.
    regions: number of boxes of the split, as the manifest says.
  """

  part = ""

  def __init__(self, directory: str, split: str, manifest: Mapping[str, Any]):
    self.directory, self.split = directory, split
    self.name = f"{directory} [{split}]"
    self.info = manifest.get("info", {})
    entry = manifest["splits"][split]
    self.regions = entry["regions"]
    # Grain cannot open a shard of no records, and there is nothing to read in one.
    self._shards = [
      _Shard(os.path.join(directory, s["file"]), s["records"], s["records"])
      for s in entry["shards"]
      if s["records"]
    ]
    self._ends = list(itertools.accumulate(s.take for s in self._shards))
    self._reader = sources.ArrayRecordDataSource(self._shards) if self._shards else None

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __repr__(self) -> str:
    return f"RecordSource({self.name}, {len(self)} records)"

  def where(self, index: int) -> str:
    """Returns the name of a record: its shard and number."""
    shard = int(np.searchsorted(self._ends, index, side="right"))
    first = self._ends[shard - 1] if shard else 0
    return f"{self._shards[shard].filename}, record {index - first}"

  def __getitem__(self, index: int) -> Sample:
    index = int(index)
    if not 0 <= index < len(self):
      # IndexError, not ValueError: it is how Python's iteration over a sequence ends.
      raise IndexError(f"{self.name} has records 0 to {len(self) - 1}, not {index}.")
    try:
      data = self._reader[index]
    except Exception as e:
      raise RecordError(
        f"{self.where(index)}: cannot be read ({e}). The file may be damaged; build or copy the "
        "data set again.",
        "record-unreadable",
      ) from e
    return decode_sample(data, self.where(index))


def open_dataset(directory: str | os.PathLike, split: str) -> RecordSource:
  """Opens a split of the data set in a directory.

  Raises:
    DatasetError: the directory has no (readable) manifest, a shard is missing or has another size
      than the manifest says, or there is no such split.
  """
  directory = os.fspath(directory)
  manifest = read_manifest(directory)
  splits = manifest["splits"]
  if split not in splits:
    raise DatasetError(
      f"{directory} has no split {split!r}; it has {', '.join(map(repr, splits)) or 'none'}."
    )
  for shard in splits[split]["shards"]:
    path = os.path.join(directory, shard["file"])
    size = os.path.getsize(path) if os.path.isfile(path) else None
    if size != shard["bytes"]:
      found = "is missing" if size is None else f"has {size} bytes"
      raise DatasetError(
        f"{path} {found}; {MANIFEST} says {shard['bytes']} bytes. The data set is incomplete or "
        "was changed: copy or build it again."
      )
  return RecordSource(directory, split, manifest)


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
  """Reads and checks `dataset.json`; raises DatasetError naming what is wrong with it."""
  path = os.path.join(os.fspath(directory), MANIFEST)
  try:
    with open(path, encoding="utf-8") as f:
      manifest = json.load(f)
  except FileNotFoundError as e:
    raise DatasetError(
      f"{os.fspath(directory)} is not a data set: it has no {MANIFEST}, which is written last. "
      "Build it, or finish its build, with python -m input_pipeline.build."
    ) from e
  except (OSError, ValueError) as e:
    raise DatasetError(f"{path} cannot be read as JSON: {e}.") from e
  found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
  if found != FORMAT:
    raise DatasetError(f"{path}: format is {found!r}, expected {FORMAT!r}.")
  if manifest.get("version") not in VERSIONS:
    raise DatasetError(
      f"{path}: version is {manifest.get('version')!r}, this program reads versions {_known()}. "
      "Build the data set again."
    )
  try:
    for entry in manifest["splits"].values():
      known = sum(int(s["records"]) for s in entry["shards"] if s["file"] and s["bytes"] >= 0)
      if known != entry["records"] or entry["regions"] < 0:
        raise ValueError(f"shards hold {known} records, the split says {entry['records']}")
  except (KeyError, TypeError, AttributeError, ValueError) as e:
    raise DatasetError(
      f"{path} is not a complete manifest ({type(e).__name__}: {e}). Build the data set again."
    ) from e
  return manifest
