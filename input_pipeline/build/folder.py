"""How does a directory of images become items? Captions lie beside the images, or name folders.

`a/cat.jpg` takes its global caption from `a/cat.txt`, or from `a/cat.json`, an object like a line
of the jsonl format without "image". If the whole tree has no caption file at all, the folder an
image lies in names its class, and the name, with blanks for "_" and "-", is the global caption.
"""

import json
import os
import pathlib

from input_pipeline.build import check, jsonl
from input_pipeline.build.plan import Item, Plan, all_files, is_image, words_of


def read(images: str | os.PathLike) -> Plan:
  """Plans the build of all images under a directory.

  Raises:
    BuildError: no such directory.
  """
  root = pathlib.Path(images)
  names = all_files(root)
  plan = Plan([], check.loader_of(root))
  captions = {
    os.path.splitext(name)[0]: name for name in names if name.endswith((".txt", ".json"))
  }
  # A README.txt or a dataset.json beside the images says nothing about any of them.
  stems = {os.path.splitext(name)[0] for name in names if is_image(name)}
  orphans = captions.keys() - stems
  by_class = len(orphans) == len(captions)
  if not by_class:
    plan.set_aside["caption-for-no-image"] += len(orphans)
  for name in names:
    if not is_image(name):
      continue
    caption = captions.get(os.path.splitext(name)[0])
    if caption is not None:
      plan.items.append(_captioned(root, name, caption, plan))
    elif by_class and "/" in name:
      label = name.split("/")[-2]
      plan.items.append(Item(name, name, (name,), global_text=words_of(label), label=label))
    else:
      plan.set_aside["image-without-caption"] += 1
  return plan


def _captioned(root: pathlib.Path, name: str, caption: str, plan: Plan) -> Item:
  try:
    text = (root / caption).read_bytes().decode("utf-8-sig", "surrogateescape")
  except OSError as error:
    return Item(name, name, problem=("caption-unreadable", f"{caption}: {error.strerror}"))
  if caption.endswith(".txt"):
    return Item(name, name, (name,), global_text=text)
  try:
    entry = json.loads(text)
  except ValueError as error:
    return Item(name, name, problem=("caption-not-json", f"{caption}: {error}"))
  if not isinstance(entry, dict):
    return Item(name, name, problem=("caption-not-json", f"{caption}: expected an object"))
  return jsonl.item_from({**entry, "id": name, "image": name}, caption, plan.set_aside)
