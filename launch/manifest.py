"""Kubernetes objects as YAML that people can read, without a library for it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_NOT_STRINGS = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}


def to_yaml(value: Mapping[str, Any], indent: int = 0) -> str:
  """The YAML of a mapping of strings, numbers, booleans, lists and mappings.

  Text of several lines becomes a block. What could be mistaken for something else is quoted.
  """
  return "\n".join(_lines(value, indent)) + "\n"


def _lines(value, indent):
  pad = " " * indent
  if isinstance(value, Mapping):
    for key, item in value.items():
      yield from _item(f"{pad}{_scalar(key)}:", item, indent, indent + 2)
  else:
    for item in value:
      if isinstance(item, Mapping) and item:
        first, *rest = _lines(item, indent + 2)
        yield f"{pad}- {first.lstrip()}"
        yield from rest
      else:
        yield from _item(f"{pad}-", item, indent, indent + 2)


def _item(head, item, indent, deeper):
  if isinstance(item, str) and "\n" in item:
    # Kept as it is, line by line; "-": without a line break added at the end.
    yield f"{head} |{'' if item.endswith(chr(10)) else '-'}"
    for line in item.rstrip("\n").split("\n"):
      yield (" " * deeper + line).rstrip()
  elif isinstance(item, Mapping | Sequence) and not isinstance(item, str) and item:
    yield head
    yield from _lines(item, deeper if isinstance(item, Mapping) else indent)
  else:
    yield f"{head} {_scalar(item)}"


def _scalar(value):
  if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_STRINGS:
    return value
  return json.dumps(value)
