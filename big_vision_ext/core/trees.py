"""How are parameters named, and how does a pattern choose among them?

A leaf's name is its path joined by slashes, "img/Transformer/encoderblock_0/LayerNorm_0/scale".
A pattern is a regular expression that must match a whole name; of several, the first match wins.
"""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax


class PatternError(ValueError):
  """A pattern that is no regular expression or that matches no name."""


def flatten(tree: Any) -> dict[str, Any]:
  """The leaves of a tree under their slash names, in the tree's order."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {"/".join(map(_part, path)): leaf for path, leaf in leaves}


def names(tree: Any) -> list[str]:
  """The slash names of a tree's leaves, in the tree's order."""
  return list(flatten(tree))


def map_with_names(fn: Callable, tree: Any, *rest: Any) -> Any:
  """`jax.tree.map` whose function also gets the leaf's name, first."""
  return jax.tree_util.tree_map_with_path(
      lambda path, *leaves: fn("/".join(map(_part, path)), *leaves), tree, *rest)


def nest(flat: dict[str, Any]) -> dict:
  """Nested dicts from slash names; the inverse of `flatten` for trees of dicts."""
  out: dict = {}
  for name, leaf in flat.items():
    *parents, last = name.split("/")
    node = out
    for part in parents:
      node = node.setdefault(part, {})
    node[last] = leaf
  return out


def first_match(rules: Sequence[tuple[str, Any]], all_names: Sequence[str], default: Any,
                what: str) -> dict[str, Any]:
  """For each name the value of the first rule whose pattern matches the whole name.

  Args:
    rules: (pattern, value) pairs.
    all_names: the names to choose among.
    default: the value of names that no pattern matches.
    what: where the patterns were written, e.g. "config.optim.freeze"; used in messages.

  Raises:
    PatternError: a pattern cannot be compiled or matches no name at all.
  """
  compiled = [(compile_pattern(pattern, what), value) for pattern, value in rules]
  for regex, _ in compiled:
    if not any(regex.fullmatch(name) for name in all_names):
      near = difflib.get_close_matches(regex.pattern, all_names, n=3, cutoff=0.3)
      hint = f" (names look like {', '.join(near or list(all_names)[:3])})" if all_names else ""
      raise PatternError(f"{what}: the pattern {regex.pattern!r} matches no parameter; a pattern "
                         f"must match a whole name{hint}")

  def choose(name):
    return next((value for regex, value in compiled if regex.fullmatch(name)), default)
  return {name: choose(name) for name in all_names}


def matches_any(patterns: Sequence[str], name: str, what: str) -> bool:
  """Whether one of the patterns matches the whole name."""
  return any(compile_pattern(p, what).fullmatch(name) for p in patterns)


def compile_pattern(pattern: str, what: str) -> re.Pattern:
  """Compiles a pattern; a bad one is a PatternError that says where it was written."""
  try:
    return re.compile(pattern)
  except re.error as error:
    raise PatternError(f"{what}: {pattern!r} is no regular expression: {error}") from error


def overview(tree: Any, limit: int = 0) -> str:
  """A table of names, shapes, dtypes and sizes, by clu; of more than `limit` the middle is cut."""
  # Imported here: it is needed once a run and takes a second.
  from clu import parameter_overview
  table = parameter_overview.get_parameter_overview(tree, include_stats=False)
  rows = table.splitlines()
  if limit and len(rows) > limit:
    rows = [*rows[:limit - 2], f"... {len(rows) - limit} more rows ...", *rows[-2:]]
  return "\n".join(rows)


def count(tree: Any) -> int:
  """The number of array elements in a tree."""
  return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))


def _part(key: Any) -> str:
  for attribute in ("key", "name", "idx"):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)
