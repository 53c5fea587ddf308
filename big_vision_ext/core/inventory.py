"""Are all files of a folder there, as long as they were when it was finished?"""

import json
import pathlib

NAME = "files.json"
# Orbax writes this once more when it gives the folder its name; nothing here depends on it.
_CHANGES_LATER = ("_CHECKPOINT_METADATA",)


def take(folder: pathlib.Path) -> None:
  """Writes down the size of every file."""
  sizes = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*"))
           if p.is_file() and p.name not in _CHANGES_LATER}
  (folder / NAME).write_text(json.dumps(sizes, indent=1))


def differences(folder: pathlib.Path) -> list[str]:
  """What is missing or cut short, a sentence each; folders without an inventory pass."""
  try:
    sizes = json.loads((folder / NAME).read_text())
  except FileNotFoundError:
    return []
  except ValueError as error:
    return [f"{NAME} is no JSON ({error})"]
  wrong = []
  for name, size in sizes.items():
    try:
      found = (folder / name).stat().st_size
      if found != size:
        wrong.append(f"{name} has {found} bytes, {size} were written")
    except (FileNotFoundError, NotADirectoryError):
      wrong.append(f"{name} is missing")
  return wrong
