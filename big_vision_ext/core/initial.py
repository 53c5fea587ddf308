"""How do weights from elsewhere become the parameters that a run begins with? Matched by name."""

import logging
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from big_vision_ext.core import checkpoint, sharding, trees
from big_vision_ext.core.config import Init


def init_params(init: Init, params: Any, shardings: Any, source: Mapping[str, Any]) -> Any:
  """`params` with the values of other weights, matched by name.

  Args:
    init: which names may differ.
    params: our parameters, placed; those that `allow_missing` names keep these values.
    shardings: where each lives.
    source: the weights under our names (see `rename`): arrays, or what NumPy makes arrays of and
      has a shape and a dtype.

  Raises:
    CheckpointError: arrays are missing, extra or misshapen; they are listed by name.
    PatternError: a pattern matches nothing.
  """
  ours, places = trees.flatten(params), trees.flatten(shardings)

  def allowed(patterns, names, what):
    return {n for n, yes in trees.first_match(
        [(p, True) for p in patterns], names, False, what).items() if yes}
  # A pattern is judged against all names: that nothing was missing is no mistake.
  may_miss = allowed(init.allow_missing, list(ours), "config.init.allow_missing")
  may_extra = allowed(init.allow_extra, list(source), "config.init.allow_extra")
  source = {n: x for n, x in source.items() if n in ours or n not in may_extra}
  want = {n: x for n, x in ours.items() if n in source or n not in may_miss}
  kind = {n: (tuple(x.shape), _kind(x.dtype)) for n, x in source.items()}
  checkpoint.check_names(kind, {n: (tuple(x.shape), _kind(x.dtype)) for n, x in want.items()},
                         f"config.init={init.path}")
  logging.info("init: %d of %d parameters come from %s", len(want), len(ours), init.path)
  return trees.map_with_names(
      lambda n, x: sharding.put(source[n], places[n], x.dtype) if n in want else x, params)


def rename(source: Mapping[str, Any], init: Init) -> dict[str, Any]:
  """Weights under the names that `init.map` gives them.

  Raises:
    CheckpointError: two of them would have one name.
    PatternError: a pattern matches nothing.
  """
  out = {}
  rules = [(pattern, (pattern, to)) for pattern, to in init.map]
  chosen = trees.first_match(rules, list(source), None, "config.init.map")
  for name, rule in chosen.items():
    new = name
    if rule:
      new = trees.compile_pattern(rule[0], "config.init.map").fullmatch(name).expand(rule[1])
    if new in out:
      raise checkpoint.CheckpointError(f"config.init.map: {name} would be a second {new}")
    out[new] = source[name]
  return out


def _kind(dtype: Any) -> str:
  return "floating" if jnp.issubdtype(dtype, jnp.floating) else str(dtype)
