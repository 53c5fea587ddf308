"""What is to be built: the items of a data set as its annotations describe them, unchecked.

Each format's module turns its files into a `Plan`; `check.py` turns an item into a sample.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from input_pipeline import records
from input_pipeline.build.durable import BuildError

IMAGE_SUFFIXES = frozenset(
  ".jpg .jpeg .jfif .png .webp .bmp .gif .tif .tiff .avif .ppm .pgm".split()
)


@dataclasses.dataclass(frozen=True, slots=True)
class Region:
  """A box and its caption as found, whatever their type.

  Attributes:
    box: [x0, y0, x1, y1], supposedly four numbers.
    text: supposedly a caption.
    problem: why this region is left out, if the format's module knows already.
  """

  box: Any
  text: Any
  problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
  """One image with its annotations.

  Attributes:
    id: unique name; decides train or validation.
    image: its file, as the user knows it; for messages.
    files: where the file may be, under the image directory, in order of preference.
    regions: boxes and captions.
    global_text: caption of the whole image.
    label: name of its class.
    captions: captions of the whole image one by one, if there are several.
    size: (width, height) in pixels according to the annotations, if they say.
    problem: (reason, detail) if the record cannot be built.
  """

  id: str
  image: str
  files: tuple[str, ...] = ()
  regions: tuple[Region, ...] = ()
  global_text: Any = None
  label: Any = None
  captions: tuple[Any, ...] = ()
  size: tuple[int, int] | None = None
  problem: tuple[str, str] | None = None


@dataclasses.dataclass
class Plan:
  """All items of a build.

  Attributes:
    items: objects with an `id`.
    load: item -> Sample, for `writer.write_split`.
    settings: what `load` depends on besides the item.
    set_aside: things found and not used, by reason: counted, but no error.
    info: what the manifest says of the data.
  """

  items: Sequence[Any]
  load: Callable[[Any], records.Sample]
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)
  set_aside: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  info: dict[str, Any] = dataclasses.field(default_factory=dict)


def readable(text: str) -> str:
  """A file name as valid Unicode: bytes that are none become escapes."""
  return text.encode("utf-8", "backslashreplace").decode("utf-8")


def words_of(label: str) -> str:
  """The name of a class as a caption says it: with blanks for "_" and "-"."""
  return " ".join(label.replace("_", " ").replace("-", " ").split())


def sentences(texts: Iterable[Any]) -> str | None:
  """Several captions of one image as the sentences of one; None if none of them is a text."""
  texts = [t.decode("utf-8", "surrogateescape") if isinstance(t, bytes) else t for t in texts]
  texts = [t.strip() for t in texts if isinstance(t, str) and t.strip()]
  return " ".join(t if t[-1] in ".!?" else f"{t}." for t in texts) or None


def only_first_of_each_id(items: Iterable[Item]) -> list[Item]:
  """Marks each item whose id was used before; it will be skipped and counted."""
  seen = set()
  kept = []
  for item in items:
    if item.id in seen and item.problem is None:
      detail = f"id {item.id!r} was used before; put all regions of an image in one record"
      item = dataclasses.replace(item, problem=("id-duplicated", detail))
    seen.add(item.id)
    kept.append(item)
  return kept


def split_by_hash(
  items: Sequence[Any], val_share: float, key: Callable[[Any], str] = lambda item: item.id
) -> tuple[list[Any], list[Any]]:
  """Divides items into (train, validation) by their ids alone, or by what `key` says of each.

  The same image lands on the same side in every build, however many others there are. If the
  share is positive and the draw leaves a side empty, the item next in line goes there.

  Raises:
    BuildError: a share outside [0, 1).
  """
  if not 0 <= val_share < 1:
    raise BuildError(f"val share {val_share} must lie in [0, 1)")
  places = [_place(key(item)) for item in items]
  limit = val_share
  if val_share and len(items) > 1:
    order = sorted(places)
    limit = min(max(val_share, order[0] + 1e-12), order[-1])
  train = [item for item, place in zip(items, places) if place >= limit]
  val = [item for item, place in zip(items, places) if place < limit]
  return train, val


def image_files(images: str | os.PathLike) -> list[str]:
  """Paths of the image files under a directory, relative to it, sorted.

  Raises:
    BuildError: no such directory.
  """
  return [name for name in all_files(images) if is_image(name)]


def all_files(directory: str | os.PathLike) -> list[str]:
  """Paths of all files but hidden ones under a directory, relative to it, sorted."""
  root = pathlib.Path(directory)
  if not root.is_dir():
    raise BuildError(f"{root}: no such directory of images")
  found = []
  for folder, folders, files in os.walk(root, followlinks=True):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    inside = pathlib.Path(folder).relative_to(root)
    found += [(inside / name).as_posix() for name in files if not name.startswith(".")]
  return sorted(found)


def is_image(name: str) -> bool:
  """Whether a file's name ends like an image's."""
  return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def count_unmentioned(images: str | os.PathLike, items: Iterable[Item]) -> int:
  """How many image files lie in the directory that no item asks for."""
  mentioned = {os.path.basename(name) for item in items for name in item.files}
  return sum(os.path.basename(name) not in mentioned for name in image_files(images))


def _place(name: str) -> float:
  digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
  return int.from_bytes(digest[:8], "big") / 2**64
