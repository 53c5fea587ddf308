"""How much of the learning rate has each layer, when a pretrained encoder is trained further?

Layer-wise decay (BEiT, MAE): decay^(L + 1 - id) for an encoder of L blocks, where id is 0 for the
patch embedding, class tokens and positions, i + 1 for block i, and L + 1 for what comes after, so
that the head learns at the full rate and the pixels' end hardly at all.
"""

import re
from typing import Any

import numpy as np

from big_vision_ext.core import trees
from big_vision_ext.core.typed import ConfigError

_INPUT = re.compile(r"(.*/)?(embedding/.*|cls|pos_embedding|cls_pos_embedding|mask_token)")
_BLOCK = re.compile(r"(.*/)?encoderblock_(\d+)/.*")
_STACK = re.compile(r"(.*/)?encoderblock/.*")


def is_stacked(name: str) -> bool:
  """Whether a parameter of this name has the blocks of an encoder on a leading axis."""
  return bool(_STACK.fullmatch(name))


def scales(params: Any, decay: float) -> dict[str, float | np.ndarray]:
  """The factor on the learning rate of every parameter, by its slash name.

  Args:
    params: parameters or their shapes, with one encoder among them, in either layout.
    decay: of one layer, above 0 and up to 1.

  Returns:
    numbers; of a stack of blocks one for each, float32 of shape (L, 1, ...), to be multiplied onto
    the parameter.

  Raises:
    ConfigError: the decay is out of range, or there is no encoder, or several.
  """
  if not 0 < decay <= 1:
    raise ConfigError(f"config.optim.layer_decay={decay}: expected above 0 and up to 1")
  leaves = trees.flatten(params)
  depth = _depth(leaves)

  def scale(name, leaf):
    if found := _BLOCK.fullmatch(name):
      return decay ** (depth - int(found[2]))
    if is_stacked(name):
      each = np.float32([decay ** (depth - i) for i in range(depth)])
      return each.reshape(depth, *[1] * (len(leaf.shape) - 1))
    return decay ** (depth + 1) if _INPUT.fullmatch(name) else 1.0

  return {name: scale(name, leaf) for name, leaf in leaves.items()}


def _depth(leaves: dict[str, Any]) -> int:
  depths: dict[str, int] = {}
  for name, leaf in leaves.items():
    if found := _BLOCK.fullmatch(name):
      depths[found[1] or ""] = max(depths.get(found[1] or "", 0), int(found[2]) + 1)
    elif found := _STACK.fullmatch(name):
      depths[found[1] or ""] = leaf.shape[0]
  if len(depths) != 1:
    raise ConfigError(
        "config.optim.layer_decay counts the blocks of one encoder among the trained parameters; "
        f"found {sorted(depths) or 'none'}. Freeze the others, or set lr_mults instead")
  return next(iter(depths.values()))
