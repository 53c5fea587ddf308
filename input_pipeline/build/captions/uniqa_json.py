"""How does UniQA write down its pictures with captions? A JSON list of {"image_path", "prompt"}.

`prompt` is a text or a list of them, of which training draws one. Several files count as one. Paths
are relative to a directory that comes beside; pictures are not part of it.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from input_pipeline.build import durable
from input_pipeline.build.durable import BuildError


def read(paths: Sequence[str | os.PathLike]) -> dict[str, list[str]]:
  """The captions of each path, in the order of their first mention, each caption once.

  Raises:
    BuildError: a file that cannot be read, or an entry that is none.
  """
  found: dict[str, dict[str, None]] = {}
  for path in paths:
    for number, entry in enumerate(_entries(path)):
      where = f"{path}, entry {number}"
      image = entry.get("image_path") if isinstance(entry, dict) else None
      if not isinstance(image, str) or not image:
        raise BuildError(f"{where}: is {str(entry)[:80]}, expected an object with 'image_path' and "
                         "'prompt'")
      prompt = entry.get("prompt")
      captions = [prompt] if isinstance(prompt, str) else prompt
      if not isinstance(captions, list) or not all(isinstance(c, str) for c in captions):
        raise BuildError(f"{where} ({image}): 'prompt' is {str(prompt)[:80]!r}, expected a text or "
                         "a list of texts")
      found.setdefault(image, {}).update(dict.fromkeys(captions))
  return {image: list(captions) for image, captions in found.items()}


def write(path: str | os.PathLike, pictures: Iterable[tuple[str, Sequence[str]]]) -> int:
  """Writes (path, captions) of pictures as UniQA does; returns how many. Without captions, none."""
  entries = [
    {"image_path": image, "prompt": captions[0] if len(captions) == 1 else list(captions)}
    for image, captions in pictures if captions
  ]
  durable.write_text(pathlib.Path(path), json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
  return len(entries)


def _entries(path: str | os.PathLike) -> list[Any]:
  try:
    with open(path, encoding="utf-8-sig") as file:
      entries = json.load(file)
  except (OSError, ValueError) as error:
    raise BuildError(f"{path}: cannot be read as JSON ({error})") from error
  if not isinstance(entries, list):
    raise BuildError(f"{path}: holds {type(entries).__name__}, expected a list of objects")
  return entries
