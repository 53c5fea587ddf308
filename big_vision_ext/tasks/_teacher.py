"""A teacher is a moving average of an encoder, kept beside it among the parameters, as `teacher`.

It is frozen for the optimiser (`optim.freeze=("teacher/.*",)`), and the task moves it after each
step. Its tree has the names of the parameters that it follows.
"""

from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp

from big_vision_ext.core import typed

NAME = "teacher"


def check(momentum: float, steps: int, names: tuple[str, str]) -> None:
  """Raises ConfigError for a momentum that is no share, or a negative number of steps."""
  if not 0 <= momentum <= 1 or steps < 0:
    raise typed.ConfigError(
        f"config.model.{names[0]}={momentum}, {names[1]}={steps}: expected a share between 0 and "
        "1, and a number of steps")


def of(params: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
  """A teacher that begins as some of the parameters are."""
  return {name: jax.tree.map(jnp.copy, params[name]) for name in names}


def follow(params: dict[str, Any], step: jax.Array, momentum: float, steps: int) -> dict[str, Any]:
  """The parameters with the teacher moved: momentum * teacher + (1 - momentum) * encoder.

  Args:
    params: with or without a teacher.
    step: the number of steps before this one.
    momentum: how much of itself the teacher keeps at the first step.
    steps: over so many that rises linearly to 1; 0: it stays.
  """
  if NAME not in params:
    return params
  keep = momentum
  if steps:
    keep = momentum + (1.0 - momentum) * jnp.minimum(step / jnp.float32(steps), 1.0)
  move = lambda t, e: (keep * t + (1.0 - keep) * e.astype(t.dtype)).astype(t.dtype)
  own = {name: params[name] for name in params[NAME]}
  return {**params, NAME: jax.tree.map(move, params[NAME], own)}
