"""How does a gradient become a change of the parameters?

Frozen parameters are absent (None) from the trees that the optimiser sees: no gradient is computed
for them, no state is kept, and no norm counts them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_vision_ext.core import layer_decay, trees
from big_vision_ext.core.config import Optim
from big_vision_ext.core.typed import ConfigError

# A second moment that changes by less than half a unit in the last of bfloat16's 8 bits, 0.2 to
# 0.4 %, does not change at all.
_LARGEST_BFLOAT16_B2 = 0.99
# Kernels are factored over their two largest axes if both are at least so long: those of attention
# too, whose heads are 64 to 112 wide.
_SMALLEST_FACTORED = 32


def make(optim: Optim, lr: float, params: Any) -> optax.GradientTransformation:
  """The optimiser without its schedule: the caller multiplies the updates by the schedule's factor.

  update = -(lr * lr_mult * adam(clipped gradient) + weight_decay * wd_mult * param), or with
  another optimiser in place of adam; both terms are multiplied by the layer's scale, if layers have
  one. Of "adam", -lr * lr_mult * adam(clipped gradient + weight_decay * wd_mult * param).

  Args:
    optim: the config's settings.
    lr: the peak learning rate.
    params: the trained parameters or their shapes, None where frozen.

  Raises:
    PatternError: a pattern matches nothing.
    ConfigError: a number out of range.
  """
  for name, low in (("eps", 0), ("weight_decay", 0), ("clip_norm", 0), ("clip_rms", 0),
                    ("trust_coefficient", 0)):
    value = getattr(optim, name)
    if value is not None and value < low:
      raise ConfigError(f"config.optim.{name}={value}: expected at least {low}")
  for name in ("b1", "b2"):
    if not 0 <= getattr(optim, name) < 1:
      raise ConfigError(f"config.optim.{name}={getattr(optim, name)}: expected in [0, 1)")
  if optim.nu_dtype == "bfloat16" and optim.b2 > _LARGEST_BFLOAT16_B2:
    raise ConfigError(
        f"config.optim.nu_dtype='bfloat16' with b2={optim.b2}: its 8 bits would round the second "
        f"moment's changes away; expected b2 of at most {_LARGEST_BFLOAT16_B2}, or float32")
  names = trees.names(params)
  parts = []
  if optim.clip_norm is not None:
    parts.append(optax.clip_by_global_norm(optim.clip_norm))
  layers = dict.fromkeys(names, 1.0)
  if optim.layer_decay is not None:
    layers = layer_decay.scales(params, optim.layer_decay)
  coupled, decay = optim.name == "adam", []
  if optim.weight_decay or optim.weight_decay_end is not None:
    wd_mults = trees.first_match(optim.wd_mults, names, 0.0, "config.optim.wd_mults")
    # Part of the gradient, it is scaled with it.
    scales = dict.fromkeys(names, 1.0) if coupled else layers
    decay = [_decay({name: optim.weight_decay * mult * scales[name]
                     for name, mult in wd_mults.items()}, _growth(optim))]
  parts += decay if coupled else []
  parts.append(_OPTIMISERS[optim.name](optim))
  lr_mults = trees.first_match(optim.lr_mults, names, 1.0, "config.optim.lr_mults")
  parts.append(_scale({name: lr * mult * layers[name] for name, mult in lr_mults.items()}))
  parts += [] if coupled else decay
  parts.append(optax.scale(-1.0))
  return optax.chain(*parts)


def check_members(optim: Optim, members: int) -> None:
  """Raises ConfigError if the optimiser would mix the networks of a population.

  Adam, AdamW and SGD look at each number alone; norms over whole trees or arrays do not.
  """
  if members > 1 and optim.clip_norm is not None:
    raise ConfigError(
        f"config.optim.clip_norm={optim.clip_norm}: the norm would be that of all {members} "
        "members of the population together; expected None")
  if members > 1 and optim.name not in ("adam", "adamw", "sgd"):
    raise ConfigError(
        f"config.optim.name={optim.name!r} looks at whole arrays, in which the {members} members "
        "of the population are one; expected 'adam', 'adamw' or 'sgd'")


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


def update_average(average: Any, params: Any, decay: float, step: jax.Array) -> Any:
  """One step of the moving average of parameters; `step` is the number of steps before this one.

  Without the warm-up of the decay an average of 0.9999 would consist of the random initial values
  for ten thousand steps.
  """
  step = step.astype(jnp.float32)
  decay = jnp.minimum(decay, (1 + step) / (10 + step))
  return jax.tree.map(lambda a, p: a + (1 - decay).astype(a.dtype) * (p - a), average, params)


def _adam(optim: Optim) -> optax.GradientTransformation:
  adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps, mu_dtype=optim.mu_dtype)
  if optim.nu_dtype is None:
    return adam

  def kept(state):
    return state._replace(nu=optax.tree.cast(state.nu, optim.nu_dtype))

  def update(grads, state, params=None):
    # Computed in the gradients' type, only stored in another.
    nu = jax.tree.map(lambda n, g: n.astype(g.dtype), state.nu, grads)
    updates, state = adam.update(grads, state._replace(nu=nu), params)
    return updates, kept(state)

  return optax.GradientTransformation(lambda params: kept(adam.init(params)), update)


def _adafactor(optim: Optim) -> optax.GradientTransformation:
  """Zhai et al. 2022, sec. 3.4, as in big_vision: factored moments, no scaling by parameters."""
  def decay(step, exponent):
    # The cap: without it the second moment would come to a standstill.
    return jnp.minimum(optim.b2, 1.0 - (step + 1.0) ** -exponent)

  parts = [optax.scale_by_factored_rms(
      decay_rate=0.8, min_dim_size_to_factor=_SMALLEST_FACTORED, decay_rate_fn=decay)]
  if optim.clip_rms is not None:
    parts.append(optax.clip_by_block_rms(optim.clip_rms))
  dtype = optim.mu_dtype or "bfloat16"
  parts.append(optax.ema(optim.b1, debias=False, accumulator_dtype=dtype))
  return optax.chain(*parts)


def _sgd(optim: Optim) -> optax.GradientTransformation:
  return optax.trace(optim.b1, accumulator_dtype=optim.mu_dtype)


def _lars(optim: Optim) -> optax.GradientTransformation:
  return optax.chain(_trust(optim.trust_coefficient), _sgd(optim))


def _trust(coefficient: float) -> optax.GradientTransformation:
  """Gradients as long as `coefficient` times their kernel; those of biases and norms stay."""
  def update(updates, params):
    def trusted(name, u, p):
      # Layers of a stack are kernels of their own; a bias of heads has two axes.
      first = int(layer_decay.is_stacked(name))
      if p.ndim - first < 2 or name.rpartition("/")[2] in ("bias", "scale"):
        return u

      def norm(x):
        axes = tuple(range(first, x.ndim))
        return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32)), axis=axes, keepdims=True))

      of_p, of_u = norm(p), norm(u)
      ratio = coefficient * of_p / jnp.where(of_u > 0, of_u, 1.0)
      return (u * jnp.where((of_p > 0) & (of_u > 0), ratio, 1.0)).astype(u.dtype)

    return trees.map_with_names(trusted, updates, params)
  return optax.stateless(update)


_OPTIMISERS = {"adamw": _adam, "adam": _adam, "adafactor": _adafactor, "lars": _lars, "sgd": _sgd}


def _scale(factors: dict[str, Any]) -> optax.GradientTransformation:
  def update(updates, params=None):
    del params
    return trees.map_with_names(lambda name, u: (u * factors[name]).astype(u.dtype), updates)
  return optax.stateless(update)


def _growth(optim: Optim) -> Callable[[jax.Array], jax.Array] | None:
  """What the weight decay is multiplied by after so many steps; None: it stays as it is."""
  first, last = optim.weight_decay, optim.weight_decay_end
  if last is None:
    return None
  if not first or last < 0 or optim.weight_decay_steps < 1:
    raise ConfigError(
        f"config.optim: weight_decay={first}, weight_decay_end={last}, weight_decay_steps="
        f"{optim.weight_decay_steps}: expected decays above 0 and the number of steps between")

  def growth(count):
    share = jnp.minimum(count / optim.weight_decay_steps, 1.0)
    return (last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * share))) / first
  return growth


def _decay(factors: dict[str, Any], growth: Callable | None) -> optax.GradientTransformation:
  def decayed(updates, params, now):
    return trees.map_with_names(
        lambda name, u, p: (u + now * factors[name] * p).astype(u.dtype)
        if np.any(factors[name]) else u, updates, params)

  if growth is None:
    return optax.stateless(lambda updates, params: decayed(updates, params, 1.0))

  def update(updates, state, params):
    updates = decayed(updates, params, growth(state.count))
    return updates, optax.ScaleByScheduleState(state.count + 1)

  start = lambda params: optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))
  return optax.GradientTransformation(start, update)
