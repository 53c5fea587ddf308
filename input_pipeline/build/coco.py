"""How does COCO-style JSON become items? COCO, LVIS, Objects365 and referring-expression files.

Boxes are [x, y, width, height]. A box's captions are the annotation's "caption" (text or a list)
or "sentences" (texts, or objects with "raw" or "sent", as RefCOCO has them): one region for each.
Without them the category's name serves, as "a zebra" or "an apple", with blanks for "_".
Annotations without a box, as in COCO's caption files, describe the whole image: all captions of
an image, in the order of their ids, become the sentences of its global caption, and are kept one
by one beside it.
"""

import collections
import dataclasses
import os
import urllib.parse
from typing import Any

from input_pipeline.build import check, json_stream
from input_pipeline.build.durable import BuildError
from input_pipeline.build.plan import (
  Item,
  Plan,
  Region,
  count_unmentioned,
  only_first_of_each_id,
  sentences,
)


@dataclasses.dataclass
class _Tables:
  """What the files say, before it is joined."""

  images: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  categories: dict[Any, str] = dataclasses.field(default_factory=dict)
  boxes: dict[Any, list[tuple]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(list)
  )
  captions: dict[Any, list[tuple]] = dataclasses.field(
    default_factory=lambda: collections.defaultdict(list)
  )
  set_aside: collections.Counter = dataclasses.field(default_factory=collections.Counter)


def read(
  images: str | os.PathLike,
  annotations: str | os.PathLike,
  captions: str | os.PathLike | None = None,
) -> Plan:
  """Plans the build of a COCO-style file, with an optional COCO caption file for the same images.

  Raises:
    BuildError: a file that is missing, not JSON, or has no "images" and "annotations".
  """
  tables = _Tables()
  _collect(annotations, tables)
  if captions is not None:
    # Its list of images would repeat the first file's.
    known = list(tables.images)
    _collect(captions, tables)
    tables.images = known
  plan = Plan([], check.loader_of(images), set_aside=tables.set_aside)
  ids = set()
  for entry in tables.images:
    ids.add(entry["id"])
    regions = tuple(
      region for box in tables.boxes.get(entry["id"], ()) for region in _regions(box, tables)
    )
    found = sorted(tables.captions.get(entry["id"], ()), key=lambda pair: pair[0])
    captions = tuple(text for _, text in found)
    if regions or captions:
      plan.items.append(_item(entry, regions, captions))
    else:
      plan.set_aside["image-without-annotation"] += 1
  lost = [len(found) for image, found in tables.boxes.items() if image not in ids]
  if lost:
    plan.set_aside["annotation-for-no-image"] += sum(lost)
  plan.items = only_first_of_each_id(plan.items)
  if unmentioned := count_unmentioned(images, plan.items):
    plan.set_aside["image-file-without-annotation"] += unmentioned
  return plan


def _collect(path: str | os.PathLike, tables: _Tables):
  found = set()
  for key, entry in json_stream.iterate(path):
    found.add(key)
    if key not in ("images", "annotations", "categories"):
      continue
    if not isinstance(entry, dict):
      tables.set_aside[f"{key}-entry-malformed"] += 1
    elif key == "images":
      _collect_image(entry, tables)
    elif key == "categories":
      if isinstance(name := entry.get("name"), str) and _hashable(entry.get("id")):
        tables.categories[entry["id"]] = name
    else:
      _collect_annotation(entry, tables)
  if not found >= {"images", "annotations"}:
    raise BuildError(
      f'{os.fspath(path)}: expected an object with "images" and "annotations", found '
      f"{sorted(map(str, found)) or 'nothing'}. Is this a COCO-style file?"
    )


def _collect_image(entry: dict[str, Any], tables: _Tables):
  if not _hashable(entry.get("id")):
    tables.set_aside["images-entry-malformed"] += 1
    return
  # A new, small object: the fields nobody needs would fill the memory.
  tables.images.append(
    {key: entry.get(key) for key in ("id", "file_name", "coco_url", "width", "height")}
  )


def _collect_annotation(entry: dict[str, Any], tables: _Tables):
  image = entry.get("image_id")
  if not _hashable(image):
    tables.set_aside["annotations-entry-malformed"] += 1
    return
  number = entry.get("id")
  number = number if isinstance(number, int) else 0
  texts = _texts(entry)
  if "bbox" in entry:
    crowd = bool(entry.get("iscrowd"))
    tables.boxes[image].append((entry["bbox"], texts, entry.get("category_id"), crowd))
  elif texts:
    tables.captions[image] += [(number, text) for text in texts]
  else:
    tables.set_aside["annotation-without-box-and-caption"] += 1


def _texts(entry: dict[str, Any]) -> tuple[Any, ...]:
  if "caption" in entry:
    caption = entry["caption"]
    return tuple(caption) if isinstance(caption, list) else (caption,)
  sentences = entry.get("sentences")
  if not isinstance(sentences, list):
    return ()
  return tuple(
    sentence.get("raw", sentence.get("sent")) if isinstance(sentence, dict) else sentence
    for sentence in sentences
  )


def _regions(box: tuple, tables: _Tables) -> list[Region]:
  bbox, texts, category, crowd = box
  if not texts:
    name = tables.categories.get(category) if _hashable(category) else None
    texts = (None if name is None else _phrase(name),)
  problem = "box-of-a-crowd" if crowd else ""
  return [Region(_corners(bbox), text, problem) for text in texts]


def _corners(bbox: Any) -> Any:
  """[x, y, width, height] as [x0, y0, x1, y1]; anything else as it is, for the checks to name."""
  try:
    x, y, width, height = bbox
    return (x, y, x + width, y + height)
  except (TypeError, ValueError):
    return bbox


def _phrase(name: str) -> str:
  name = name.replace("_", " ").strip()
  if not name:
    return ""
  return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _item(
  entry: dict[str, Any], regions: tuple[Region, ...], captions: tuple[Any, ...]
) -> Item:
  files = []
  if isinstance(name := entry["file_name"], str) and name:
    files += [name, os.path.basename(name)]
  if isinstance(url := entry["coco_url"], str) and url:
    # LVIS names its images by their address only: .../train2017/000000391895.jpg
    parts = urllib.parse.urlparse(url).path.strip("/").split("/")
    files += ["/".join(parts[-2:]), parts[-1]]
  name = str(entry["id"])
  if not files:
    detail = f'image {name} has neither "file_name" nor "coco_url"'
    return Item(name, name, problem=("image-not-named", detail))
  width, height = entry["width"], entry["height"]
  known = isinstance(width, int) and isinstance(height, int)
  return Item(
    id=name,
    image=files[0],
    files=tuple(dict.fromkeys(files)),
    regions=regions,
    # With nothing to join, the first one is passed on, for the checks to count it.
    global_text=(sentences(captions) or captions[0]) if captions else None,
    captions=captions,
    size=(width, height) if known else None,
  )


def _hashable(value: Any) -> bool:
  return isinstance(value, (int, str))
