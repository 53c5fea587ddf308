"""What is the learning rate at a step?

With warm-up W, cool-down C and length T in steps, t the number of steps taken before:

- warm-up: min(1, (t + 1) / W), so that the first step already learns and step W has the full rate;
- cosine: from 1 at t = W to `end` at t = T, half a period; linear: the same, straight;
- rsqrt: 1 / sqrt(1 + (t - W) / timescale) from t = W on (Zhai et al. 2022, "Scaling Vision
  Transformers", sec. 3.5, in big_vision's parametrisation);
- cool-down: min(1, (T - t) / C), multiplied onto all of these;
- every: with E steps, all of these at the last multiple of E instead of at t.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from big_vision_ext.core.config import Schedule
from big_vision_ext.core.typed import ConfigError

DEFAULT_TIMESCALE = 10_000


def make(schedule: Schedule, *, total_steps: int, batch_size: int,
         epoch_examples: int | None = None) -> Callable[[jax.Array], jax.Array]:
  """A function from the step, counted from 0, to the factor on the learning rate, in [0, 1].

  Args:
    schedule: the config's settings.
    total_steps: length of the run.
    batch_size: examples a step, for durations in examples and epochs.
    epoch_examples: examples in an epoch, for durations in epochs.

  Raises:
    ConfigError: a duration that cannot be used, or does not fit into the run.
  """
  def steps(name, default, whole=True):
    duration = getattr(schedule, name)
    if duration is None:
      return default
    return duration.steps(batch_size=batch_size, epoch_examples=epoch_examples,
                          total_steps=total_steps, name=f"schedule.{name}", whole=whole)

  warmup, cooldown = steps("warmup", 0), steps("cooldown", 0)
  timescale = steps("timescale", DEFAULT_TIMESCALE)
  # Rounded to whole steps, epochs that end within a batch would drift from those of the data.
  every = steps("every", 0.0, whole=False)
  if schedule.timescale is not None and schedule.type != "rsqrt":
    raise ConfigError(f"config.schedule.timescale is of rsqrt; the type is {schedule.type!r}")
  if schedule.end and schedule.type not in ("cosine", "linear"):
    raise ConfigError(f"config.schedule.end is of cosine and linear; the type is {schedule.type!r}")
  if timescale < 1:
    raise ConfigError("config.schedule.timescale: expected at least one step")
  if not 0 <= schedule.end <= 1:
    raise ConfigError(f"config.schedule.end={schedule.end}: expected a fraction of lr, 0 to 1")
  if warmup + cooldown > total_steps:
    raise ConfigError(f"config.schedule: {warmup} steps of warm-up and {cooldown} of cool-down do "
                      f"not fit into a run of {total_steps} steps")

  # As floats: where an epoch's length is only supposed, steps may be more than an int32 holds.
  end, descent = float(total_steps), float(max(1, total_steps - warmup))

  def factor(step):
    t = jnp.asarray(step, jnp.float32)
    t = jnp.floor(t / every) * every if every else t
    progress = jnp.clip((t - warmup) / descent, 0.0, 1.0)
    if schedule.type == "cosine":
      value = schedule.end + (1 - schedule.end) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    elif schedule.type == "linear":
      value = schedule.end + (1 - schedule.end) * (1 - progress)
    elif schedule.type == "rsqrt":
      value = jax.lax.rsqrt(1 + jnp.maximum(t - warmup, 0.0) / timescale)
    else:
      value = jnp.ones_like(t)
    if warmup:
      value *= jnp.minimum(1.0, (t + 1) / warmup)
    if cooldown:
      value *= jnp.clip((end - t) / cooldown, 0.0, 1.0)
    return value

  return factor
