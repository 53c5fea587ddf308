"""How do the loop and the scan layout of an encoder's parameters turn into each other?

Loop: `encoderblock_0`, ..., `encoderblock_{L-1}`, as in SigLIP's checkpoints. Scan: one
`encoderblock` whose leaves have a leading axis L, as in SigLIP 2's. Both functions convert every
encoder they find in a tree, in either tower, and leave alone what is in their layout already.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SCAN = "encoderblock"
_LOOP = "encoderblock_"


def loop_to_scan(params: Mapping[str, Any], where: str = "") -> dict[str, Any]:
  """Stacks the blocks of each encoder. NumPy leaves stay NumPy.

  Args:
    params: nested mapping of arrays.
    where: path of `params`, for messages.

  Raises:
    ValueError: block numbers are not 0..L-1, or the blocks of an encoder differ in names or shapes.
  """
  out, blocks = {}, {}
  for key, value in params.items():
    if key.startswith(_LOOP) and key[len(_LOOP) :].isdecimal():
      blocks[int(key[len(_LOOP) :])] = value
    else:
      out[key] = loop_to_scan(value, f"{where}{key}/") if isinstance(value, Mapping) else value
  if not blocks:
    return out
  if sorted(blocks) != list(range(len(blocks))) or _SCAN in out:
    raise ValueError(
      f"{where or 'The tree'} has encoder blocks {sorted(blocks)}"
      f"{' and a stacked one' if _SCAN in out else ''}; expected numbers from 0 on without a gap."
    )
  try:
    out[_SCAN] = jax.tree.map(lambda *xs: _stack(xs), *(blocks[i] for i in range(len(blocks))))
  except ValueError as e:
    raise ValueError(f"The encoder blocks of {where or 'the tree'} differ: {e}") from e
  return out


def scan_to_loop(params: Mapping[str, Any], where: str = "") -> dict[str, Any]:
  """Splits the stacked blocks of each encoder: the inverse of `loop_to_scan`.

  Raises:
    ValueError: the leaves of a stack have different numbers of layers.
  """
  out = {}
  for key, value in params.items():
    if key == _SCAN and isinstance(value, Mapping):
      depths = {np.shape(x)[0] if np.ndim(x) else None for x in jax.tree.leaves(value)}
      if len(depths) != 1 or None in depths:
        raise ValueError(
          f"{where}{key} stacks different numbers of layers: {sorted(map(str, depths))}."
        )
      for i in range(depths.pop()):
        out[f"{_LOOP}{i}"] = jax.tree.map(lambda x, i=i: x[i], value)
    else:
      out[key] = scan_to_loop(value, f"{where}{key}/") if isinstance(value, Mapping) else value
  return out


def _stack(xs):
  return np.stack(xs) if all(isinstance(x, np.ndarray) for x in xs) else jnp.stack(xs)
