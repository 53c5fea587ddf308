"""How do Visual Genome's region descriptions become items?

`region_descriptions.json` is a list of {"id": image, "regions": [{"x", "y", "width", "height",
"phrase", ...}]}; the images lie in `VG_100K` and `VG_100K_2`, or together, as `{id}.jpg`.
`image_data.json`, if given, says how large each image was when its boxes were drawn.
"""

import os
from typing import Any

from input_pipeline.build import check, json_stream
from input_pipeline.build.durable import BuildError
from input_pipeline.build.plan import Item, Plan, Region, count_unmentioned, only_first_of_each_id

_FOLDERS = ("VG_100K/", "VG_100K_2/", "")


def read(
  images: str | os.PathLike,
  annotations: str | os.PathLike,
  image_data: str | os.PathLike | None = None,
) -> Plan:
  """Plans the build of Visual Genome's regions: 108,077 images, 5.4 million regions.

  Raises:
    BuildError: a file that is missing, not JSON, or not a list of images.
  """
  sizes = _sizes(image_data) if image_data is not None else {}
  plan = Plan([], check.loader_of(images))
  for number, (key, entry) in enumerate(json_stream.iterate(annotations)):
    if key is not None:
      raise BuildError(
        f"{os.fspath(annotations)}: expected a list of images with regions, found an object with "
        f"{key!r}. Is this region_descriptions.json?"
      )
    item = _item(entry, f"entry {number}", sizes)
    if item.problem is None and not item.regions:
      plan.set_aside["image-without-annotation"] += 1
    else:
      plan.items.append(item)
  plan.items = only_first_of_each_id(plan.items)
  if unmentioned := count_unmentioned(images, plan.items):
    plan.set_aside["image-file-without-annotation"] += unmentioned
  return plan


def _item(entry: Any, where: str, sizes: dict[int, tuple[int, int]]) -> Item:
  regions = entry.get("regions") if isinstance(entry, dict) else None
  if not isinstance(regions, list):
    detail = f'{where}: expected an object with a list "regions"'
    return Item(where, where, problem=("entry-malformed", detail))
  image = _image_of(entry, regions)
  if image is None:
    detail = f'{where}: expected the image\'s number as "id" or "image_id"'
    return Item(where, where, problem=("entry-malformed", detail))
  file = f"{image}.jpg"
  return Item(
    id=str(image),
    image=file,
    files=tuple(folder + file for folder in _FOLDERS),
    regions=tuple(_region(region) for region in regions),
    size=sizes.get(image),
  )


def _image_of(entry: dict[str, Any], regions: list[Any]) -> int | None:
  """The image's number, which releases keep under different names."""
  places = [(entry, "image_id"), (entry, "id")]
  if regions and isinstance(regions[0], dict):
    places += [(regions[0], "image_id"), (regions[0], "image")]
  for holder, key in places:
    if isinstance(holder.get(key), int):
      return holder[key]
  return None


def _region(region: Any) -> Region:
  if not isinstance(region, dict):
    return Region(None, region, problem="region-malformed")
  phrase = region.get("phrase")
  try:
    x, y = region["x"], region["y"]
    return Region((x, y, x + region["width"], y + region["height"]), phrase)
  except (KeyError, TypeError):
    return Region(None, phrase, problem="box-malformed")


def _sizes(path: str | os.PathLike) -> dict[int, tuple[int, int]]:
  sizes = {}
  for key, entry in json_stream.iterate(path):
    if key is not None or not isinstance(entry, dict):
      raise BuildError(f"{os.fspath(path)}: expected a list of images. Is this image_data.json?")
    image = entry.get("image_id", entry.get("id"))
    width, height = entry.get("width"), entry.get("height")
    if isinstance(image, int) and isinstance(width, int) and isinstance(height, int):
      sizes[image] = (width, height)
  return sizes
