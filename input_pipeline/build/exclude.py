"""Which pictures must not be learned from? Those of a list of names, by whatever name they go.

What a method is to be tested on must not be among what it is pretrained on: the test list of AVA,
say. FLIVE holds pictures of AVA under names of its own, `AVA__953417.jpg`, and patches of them.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

from input_pipeline.build import plan
from input_pipeline.build.durable import BuildError


class _WithImage(Protocol):
  image: str


def without(items: Sequence[_WithImage], path: str, made: plan.Plan) -> list[Any]:
  """The items whose names are not in a file; the plan counts the others, and names of no item.

  Args:
    items: of a plan.
    path: a file of names, with or without an image's ending, one a line.
    made: the plan, which is another one with another list.

  Raises:
    BuildError: the file cannot be read.
  """
  try:
    with open(path, encoding="utf-8-sig") as file:
      names = {_stem(line.strip()) for line in file if line.strip()}
  except (OSError, UnicodeDecodeError) as error:
    raise BuildError(f"{path}: cannot be read as a list of names ({error})") from error
  kept, used = [], set()
  for item in items:
    found = names_of(item.image) & names
    used |= found
    if not found:
      kept.append(item)
  for reason, count in (("excluded-by-name", len(items) - len(kept)),
                        ("name-to-exclude-not-there", len(names) - len(used))):
    if count:
      made.set_aside[reason] += count
  made.settings["excluded"] = sorted(used)
  return kept


def names_of(image: str) -> set[str]:
  """The names a picture is known by: its file's, its whole picture's, and that one's in AVA."""
  own = _stem(image)
  picture = _stem(own.split("_patch_")[0])
  return {own, picture, picture.removeprefix("ava__")}


def _stem(name: str) -> str:
  base = os.path.basename(name.replace("\\", "/")).lower()
  return os.path.splitext(base)[0] if plan.is_image(base) else base
