"""What happens in one step of training, and what is its state?

The state is a dict: `params`; `opt`, the optimiser's state over the trained parameters; `step`, the
number of steps taken; `skipped` and `skipped_in_row`, updates left out as they were not finite;
and with `config.ema`, `ema`, the moving average of the trained parameters.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from big_vision_ext.core import optimizers, sharding, trees
from big_vision_ext.core.config import Config
from big_vision_ext.core.typed import ConfigError

COUNTERS = ("step", "skipped", "skipped_in_row")
# What a loss reports under this is no metric but the next value of a frozen parameter.
_PARAMETERS = "params/"


def plan_state(task: Any, config: Config, mesh: jax.sharding.Mesh,
               rules: Any) -> tuple[Any, Any, optax.GradientTransformation, Callable]:
  """Shapes and shardings of the state before any of it exists.

  Returns:
    (shapes, shardings, optimiser, init); `init(key) -> state` is to be jitted with the shardings.
  """
  example = task.batch_spec(config.batch_size)

  def init_params(key):
    batch = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
    return task.init(key, batch)

  # Without rules, the model's own constraints are silent: init is placed by out_shardings.
  boxed = jax.eval_shape(init_params, jax.random.key(0))
  params = sharding.unbox(boxed)
  trained, _ = optimizers.split(params, config.optim.freeze)
  optimizers.check_members(config.optim, getattr(task, "members", 1))
  tx = optimizers.make(config.optim, config.lr, trained)

  def init(key):
    values = sharding.unbox(init_params(key))
    trained, _ = optimizers.split(values, config.optim.freeze)
    counters = {name: jnp.zeros((), jnp.int32) for name in COUNTERS}
    state = {"params": values, "opt": tx.init(trained), **counters}
    return state if config.ema is None else state | {"ema": jax.tree.map(jnp.copy, trained)}

  shapes = jax.eval_shape(init, jax.random.key(0))
  places = sharding.param_shardings(boxed, mesh, rules, config.min_shard_size)
  trained_places, _ = optimizers.split(places, config.optim.freeze)
  shardings = {
      "params": places,
      "opt": sharding.state_shardings(tx, trained, trained_places, mesh),
      **{name: sharding.replicated(mesh) for name in COUNTERS},
  }
  if config.ema is not None:
    shardings["ema"] = trained_places
  return shapes, shardings, tx, init


def with_params(state: dict, params: Any) -> dict:
  """A state that begins from other parameters, its moving average too."""
  state = {**state, "params": params}
  if "ema" in state:
    # Copies, as a step gives the memory of both away.
    state["ema"] = jax.tree.map(lambda old, p: None if old is None else jnp.copy(p), state["ema"],
                                params, is_leaf=lambda x: x is None)
  return state


def evaluated(state: dict) -> Any:
  """The parameters to evaluate: the moving average where there is one."""
  return optimizers.merge(state["ema"], state["params"]) if "ema" in state else state["params"]


def make(task: Any, config: Config, tx: optax.GradientTransformation,
         schedule: Callable[[jax.Array], jax.Array], mesh: jax.sharding.Mesh) -> Callable:
  """The pure function `step(state, batch) -> (state, metrics)`, to be jitted with donation.

  Its randomness is `fold_in(seed, step)`: nothing random is stored. An update that is not finite
  leaves parameters and optimiser as they were and is counted.
  """
  after_update = getattr(task, "after_update", None) or (lambda params, step: params)
  accum = config.optim.accum_steps

  def loss_fn(trained, frozen, batch, key):
    loss, metrics = task.loss(optimizers.merge(trained, frozen), batch, key, train=True)
    # The loss itself is reported too, whatever the task calls its terms.
    return loss.astype(jnp.float32), {**metrics, "loss": loss.astype(jnp.float32)}

  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

  def step(state, batch):
    key = jax.random.fold_in(jax.random.key(config.seed), state["step"])
    trained, frozen = optimizers.split(state["params"], config.optim.freeze)
    grad = functools.partial(accumulate, value_and_grad, accum, mesh)
    (_, metrics), grads = grad(trained, frozen, batch, key)
    metrics, frozen = _observed(metrics, frozen)
    factor = schedule(state["step"])
    updates, opt = tx.update(grads, state["opt"], trained)
    updates = jax.tree.map(lambda u: u * factor.astype(u.dtype), updates)
    new = optimizers.merge(optax.apply_updates(trained, updates), frozen)
    new = after_update(new, state["step"])

    grad_norm = optax.tree.norm(_float32(grads))
    update_norm = optax.tree.norm(_float32(updates))
    good = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(update_norm)
    kept = {"params": new, "opt": opt}
    if config.ema is not None:
      # Of finite updates only, but the others count as steps.
      kept["ema"] = optimizers.update_average(
          state["ema"], optimizers.split(new, config.optim.freeze)[0], config.ema, state["step"])
    kept = jax.tree.map(lambda a, b: jnp.where(good, a, b), kept, {k: state[k] for k in kept})
    params = kept["params"]
    state = {
        **kept, "step": state["step"] + 1,
        "skipped": state["skipped"] + jnp.where(good, 0, 1),
        "skipped_in_row": jnp.where(good, 0, state["skipped_in_row"] + 1),
    }
    metrics |= {
        "lr": factor * config.lr,
        "grad_norm": grad_norm,
        "update_norm": update_norm,
        "param_norm": optax.tree.norm(_float32(params)),
        "skipped_updates": state["skipped"],
        "skipped_in_row": state["skipped_in_row"],
    }
    return state, metrics

  return step


def jitted(task: Any, config: Config, tx: optax.GradientTransformation,
           schedule: Callable[[jax.Array], jax.Array], mesh: jax.sharding.Mesh, shardings: Any,
           rows: NamedSharding) -> Any:
  """`make`'s function jitted as every program of a run is: the state donated and in its place.

  With config.debug.checks it is not donated: the check that finds a NaN runs the step once more.

  Args:
    task, config, tx, schedule, mesh: as of `make`.
    shardings: of the state, from `plan_state`.
    rows: of the batch.
  """
  return jax.jit(make(task, config, tx, schedule, mesh),
                 donate_argnums=() if config.debug.checks else 0, in_shardings=(shardings, rows),
                 out_shardings=(shardings, sharding.replicated(mesh)))


def check_batch(spec: dict[str, jax.ShapeDtypeStruct], batch: dict[str, np.ndarray],
                processes: int = 1) -> dict[str, np.ndarray]:
  """The entries of a host batch that the task wants.

  Args:
    spec: the task's shapes of a global batch.
    batch: this process's rows.
    processes: how many processes share the global batch.

  Raises:
    ValueError: an entry is missing or of another shape or dtype.
  """
  wrong = []
  for name, want in spec.items():
    shape = (want.shape[0] // processes, *want.shape[1:])
    if name not in batch:
      wrong.append(f"{name}: the task wants {want.dtype}{shape}, the input has no such entry "
                   f"(only {', '.join(sorted(batch))})")
    elif tuple(batch[name].shape) != shape or batch[name].dtype != want.dtype:
      wrong.append(f"{name}: the task wants {want.dtype}{shape}, the input gives "
                   f"{batch[name].dtype}{tuple(batch[name].shape)}")
  if wrong:
    raise ValueError("config.input does not fit config.model:\n  " + "\n  ".join(wrong))
  return {name: batch[name] for name in spec}


def _observed(metrics, frozen):
  """The metrics proper, and the frozen parameters with the values that the loss has for them."""
  own = {k: v for k, v in metrics.items() if not k.startswith(_PARAMETERS)}
  values = {k.removeprefix(_PARAMETERS): v for k, v in metrics.items() if k not in own}
  if unknown := sorted(values.keys() - set(trees.names(frozen))):
    raise ConfigError(f"config.optim.freeze: the task itself computes {unknown[0]}, which the "
                      "optimiser may not train; add a pattern that matches it")
  return own, trees.map_with_names(
      lambda name, p: values[name].astype(p.dtype) if name in values else p, frozen)


def accumulate(value_and_grad: Callable, accum: int, mesh: jax.sharding.Mesh, trained: Any,
               frozen: Any, batch: Any, key: jax.Array) -> Any:
  """Means of loss, metrics and gradients over `accum` micro-batches, one after the other.

  Args:
    value_and_grad: `(trained, frozen, batch, key) -> tree` of sums and means over examples.
    accum: divides the size of the batch.
    mesh: that the batch lies on.
    trained, frozen, batch, key: for `value_and_grad`; every micro-batch gets a key of its own.
  """
  if accum == 1:
    return value_and_grad(trained, frozen, batch, key)

  micro = jax.tree.map(lambda x: sharding.cut_batch(x, accum, mesh), batch)

  def body(total, inputs):
    index, rows = inputs
    out = value_and_grad(trained, frozen, rows, jax.random.fold_in(key, index))
    return jax.tree.map(jnp.add, total, out), None

  zeros = jax.tree.map(
      lambda s: jnp.zeros(s.shape, s.dtype),
      jax.eval_shape(value_and_grad, trained, frozen, jax.tree.map(lambda x: x[0], micro), key))
  total, _ = jax.lax.scan(body, zeros, (jnp.arange(accum), micro))
  return jax.tree.map(lambda x: x / accum, total)


def _float32(tree):
  return jax.tree.map(lambda x: x.astype(jnp.float32), tree)
