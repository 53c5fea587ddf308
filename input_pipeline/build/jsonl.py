"""How do lines of JSON become items? One line per image, in the project's own layout.

  {"image": "a/b.jpg", "id": "optional", "global_text": "optional caption of the whole image",
   "captions": ["optional: several of them", "one by one"], "label": "optional class",
   "regions": [{"box": [x0, y0, x1, y1], "text": "caption of the box"}]}

Captions without a "global_text" become its sentences. Boxes are in pixels of the image as it is
displayed; "image" is relative to the image directory.
"""

import collections
import json
import os
from typing import Any

from input_pipeline.build import check
from input_pipeline.build.durable import BuildError
from input_pipeline.build.plan import (
  Item,
  Plan,
  Region,
  count_unmentioned,
  only_first_of_each_id,
  sentences,
)

_KEYS = frozenset({"image", "id", "global_text", "captions", "label", "regions"})


def read(images: str | os.PathLike, annotations: str | os.PathLike) -> Plan:
  """Plans the build of a file of JSON lines.

  Raises:
    BuildError: no such file, or a file that is JSON but not one object a line.
  """
  plan = Plan([], check.loader_of(images))
  try:
    with open(annotations, "rb") as file:
      for number, line in enumerate(file, 1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape").strip()
        if number == 1 and text in ("[", "{"):
          raise BuildError(
            f"{os.fspath(annotations)}: line 1 is {text!r}; expected a whole object on each line "
            "(JSON lines). COCO and Visual Genome files have their own --from."
          )
        if text:
          plan.items.append(_from_line(text, f"line {number}", plan.set_aside))
  except OSError as error:
    raise BuildError(f"{os.fspath(annotations)}: cannot be read ({error.strerror})") from error
  plan.items = only_first_of_each_id(plan.items)
  if unmentioned := count_unmentioned(images, plan.items):
    plan.set_aside["image-file-without-annotation"] += unmentioned
  return plan


def item_from(entry: dict[str, Any], where: str, set_aside: collections.Counter) -> Item:
  """The item of one object; keys nobody reads are counted, since they may be misspelt."""
  for key in entry.keys() - _KEYS:
    set_aside[f"unknown-key {key!r}"] += 1
  image = entry.get("image")
  if not isinstance(image, str) or not image:
    detail = f'{where}: "image" is {image!r}, expected the path of an image'
    return Item(where, where, problem=("image-not-named", detail))
  name = str(entry.get("id", image))
  regions = entry.get("regions")
  if not isinstance(regions, (list, type(None))):
    detail = f'{where}: "regions" is {type(regions).__name__}, expected a list'
    return Item(name, image, problem=("regions-malformed", detail))
  captions = entry.get("captions")
  if not isinstance(captions, (list, type(None))):
    detail = f'{where}: "captions" is {type(captions).__name__}, expected a list'
    return Item(name, image, problem=("captions-malformed", detail))
  captions = tuple(captions or ())
  text = entry.get("global_text")
  return Item(
    id=name,
    image=image,
    files=(image,),
    regions=tuple(_region(region) for region in regions or ()),
    global_text=sentences(captions) if text is None else text,
    label=entry.get("label"),
    captions=captions,
  )


def _from_line(text: str, where: str, set_aside: collections.Counter) -> Item:
  try:
    entry = json.loads(text)
  except ValueError as error:
    return Item(where, where, problem=("line-not-json", f"{where}: {error}"))
  if not isinstance(entry, dict):
    return Item(where, where, problem=("line-not-json", f"{where}: expected an object"))
  return item_from(entry, where, set_aside)


def _region(value: Any) -> Region:
  if not isinstance(value, dict):
    return Region(None, value, problem="region-malformed")
  return Region(value.get("box"), value.get("text"))
