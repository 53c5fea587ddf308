"""How does a gradient become a change of the parameters?

Frozen parameters are absent (None) from the trees that the optimiser sees: no gradient is computed
for them, no state is kept, and no norm counts them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from big_vision_ext.core import trees
from big_vision_ext.core.config import Optim
from big_vision_ext.core.typed import ConfigError


def make(optim: Optim, lr: float, params: Any) -> optax.GradientTransformation:
  """The optimiser without its schedule: the caller multiplies the updates by the schedule's factor.

  update = -(lr * lr_mult * adam(clipped gradient) + weight_decay * wd_mult * param)

  Args:
    optim: the config's settings.
    lr: the peak learning rate.
    params: the trained parameters or their shapes, None where frozen.

  Raises:
    PatternError: a pattern matches nothing.
    ConfigError: a number out of range.
  """
  for name, low in (("eps", 0), ("weight_decay", 0), ("clip_norm", 0)):
    value = getattr(optim, name)
    if value is not None and value < low:
      raise ConfigError(f"config.optim.{name}={value}: expected at least {low}")
  for name in ("b1", "b2"):
    if not 0 <= getattr(optim, name) < 1:
      raise ConfigError(f"config.optim.{name}={getattr(optim, name)}: expected in [0, 1)")
  names = trees.names(params)
  parts = []
  if optim.clip_norm is not None:
    parts.append(optax.clip_by_global_norm(optim.clip_norm))
  parts.append(optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=optim.mu_dtype))
  lr_mults = trees.first_match(optim.lr_mults, names, 1.0, "config.optim.lr_mults")
  parts.append(_scale({name: lr * mult for name, mult in lr_mults.items()}))
  if optim.weight_decay:
    wd_mults = trees.first_match(optim.wd_mults, names, 0.0, "config.optim.wd_mults")
    parts.append(_decay({name: optim.weight_decay * mult for name, mult in wd_mults.items()}))
  parts.append(optax.scale(-1.0))
  return optax.chain(*parts)


def split(params: Any, freeze: Sequence[str]) -> tuple[Any, Any]:
  """The trained and the frozen parameters: two trees with None in place of the other's leaves.

  Raises:
    PatternError: a pattern matches nothing.
    ConfigError: nothing is left to train.
  """
  rules = [(pattern, True) for pattern in freeze]
  frozen = trees.first_match(rules, trees.names(params), False, "config.optim.freeze")
  if all(frozen.values()):
    raise ConfigError("config.optim.freeze: every parameter is frozen; there is nothing to train")
  return (trees.map_with_names(lambda name, x: None if frozen[name] else x, params),
          trees.map_with_names(lambda name, x: x if frozen[name] else None, params))


def merge(trained: Any, frozen: Any) -> Any:
  """The inverse of `split`."""
  return jax.tree.map(lambda a, b: b if a is None else a, trained, frozen,
                      is_leaf=lambda x: x is None)


def _scale(factors: dict[str, float]) -> optax.GradientTransformation:
  def update(updates, params=None):
    del params
    return trees.map_with_names(lambda name, u: u * factors[name], updates)
  return optax.stateless(update)


def _decay(factors: dict[str, float]) -> optax.GradientTransformation:
  def update(updates, params):
    return trees.map_with_names(
        lambda name, u, p: u + factors[name] * p if factors[name] else u, updates, params)
  return optax.stateless(update)
