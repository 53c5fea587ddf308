"""Which number has each class? The names of a config's classes, in the order of their numbers."""

import pathlib
from collections.abc import Sequence

from input_pipeline import contents
from input_pipeline.input_config import InputConfig, InputError, open_members


def classes(config: InputConfig) -> tuple[str, ...]:
  """The names that `config.classes` stands for; class i is the i-th.

  Raises:
    InputError: a file that cannot be read, a name that comes twice, or not `config.num_classes` of
      them, if that is given.
    DatasetError: no such split.
  """
  names, origin = _names(config)
  twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
  if twice:
    raise InputError(f"{origin} has the class {twice[0]!r} twice; expected different names.")
  if config.num_classes and len(names) != config.num_classes:
    raise InputError(
      f"input.num_classes is {config.num_classes}, but {origin} has {len(names)} classes"
      + (f" ({names[0]!r} to {names[-1]!r})" if names else "")
      + ". Set num_classes to that, or input.classes to the names that are meant."
    )
  return tuple(names)


def _names(config: InputConfig) -> tuple[Sequence[str], str]:
  """The names, and where they are from, for messages."""
  if not isinstance(config.classes, str):
    return list(config.classes), "input.classes"
  if config.classes.endswith(".txt"):
    origin = f"input.classes={config.classes}"
    try:
      lines = pathlib.Path(config.classes).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise InputError(f"{origin} cannot be read ({error}); expected a text file with the name of "
                       "one class on each line.") from error
    return [line.strip() for line in lines if line.strip()], origin
  # The split that the classes are of, whichever of them is being read.
  members = open_members(config, split=config.classes)
  found = {e.label for m in members for e in contents.of_source(m.source, config.threads)[0]}
  names = ", ".join(member.source.name for member in members)
  return sorted(found - {None}), names
