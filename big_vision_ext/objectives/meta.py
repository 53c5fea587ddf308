"""How does a model learn to adapt from a few examples? Gradient steps inside of the loss.

Model-agnostic meta-learning (Finn et al. 2017) as super-resolution uses it (MZSR, CVPR 2020): the
loss is taken on other pictures of a task after each of K steps of plain SGD on its support set,
with a weight of its own. First order, the steps' gradients count as constants; second order, they
are differentiated too. Trees have None where something else holds a leaf (`split`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from big_vision_ext.core import sharding, trees


def split(params: Any, patterns: Sequence[str], where: str) -> tuple[Any, Any]:
  """The parameters that adapt and the others: two trees with None in place of the other's leaves.

  Args:
    params: all.
    patterns: of names, see `core.trees`.
    where: the setting that has them, for messages.

  Raises:
    PatternError: a pattern matches nothing.
  """
  chosen = trees.first_match([(p, True) for p in patterns], trees.names(params), False, where)
  return (trees.map_with_names(lambda name, x: x if chosen[name] else None, params),
          trees.map_with_names(lambda name, x: None if chosen[name] else x, params))


def merge(adapted: Any, rest: Any) -> Any:
  """The inverse of `split`."""
  return jax.tree.map(lambda a, b: b if a is None else a, adapted, rest,
                      is_leaf=lambda x: x is None)


def step(loss: Callable[[Any], Array], phi: Any, rate: Any, order: int = 1) -> tuple[Any, Array]:
  """One step of plain SGD: phi - rate * gradient, and the loss before it."""
  value, grads = jax.value_and_grad(loss)(phi)
  if order == 1:
    grads = jax.lax.stop_gradient(grads)
  return jax.tree.map(lambda p, g: p - (rate * g).astype(p.dtype), phi, grads), value


def episode(support: Callable[[Any], Array], query: Callable[[Any], Array], phi: Any, *,
            steps: int, rate: float, order: int = 1, unroll: bool = False
            ) -> tuple[Float[Array, "k"], Float[Array, "k"]]:
  """Losses along K steps of adaptation to one task.

  Every step is recomputed in the backward pass: memory does not grow with K but for phi itself.

  Args:
    support: the loss that is descended.
    query: the loss that counts.
    phi: what adapts.
    steps: K.
    rate: of the descent, alpha.
    order: 1 or 2.
    unroll: write the steps out in the program. CPUs compute convolutions within loops of a program
      on one core and some twenty times slower.

  Returns:
    The support loss before each step, and the query loss after each.
  """
  def body(phi, _):
    phi, before = step(support, phi, rate, order)
    return phi, (before, query(phi))

  # Written out, nothing but this keeps the compiler from undoing what is to be recomputed.
  body = jax.checkpoint(body, prevent_cse=unroll)
  _, losses = jax.lax.scan(body, phi, None, length=steps, unroll=steps if unroll else 1)
  return losses


def over_tasks(fn: Callable[[Any, Any], Any], shared: Any, tasks: Any, loop: bool = False) -> Any:
  """`fn(shared, task)` of every task, stacked; on a mesh every device has whole tasks of its own.

  Cut by hand: left to XLA's partitioner, eight tasks on eight CPU devices came to another loss.

  Args:
    fn: of arrays alone; what it closes over is on no mesh.
    shared: parameters, the same for all tasks.
    tasks: a tree of arrays with a leading axis of tasks.
    loop: those of a device one after the other, written out, and not side by side.

  Raises:
    ShardingError: the tasks cannot be cut evenly over the devices that batches are cut over.
  """
  def local(shared, tasks):
    # Here axes of the mesh have no names for layers to use.
    with nn.logical_axis_rules(()):
      if not loop:
        return jax.vmap(lambda task: fn(shared, task))(tasks)
      count = len(jax.tree.leaves(tasks)[0])
      found = [fn(shared, jax.tree.map(lambda x, i=i: x[i], tasks)) for i in range(count)]
      return jax.tree.map(lambda *values: jnp.stack(values), *found)

  ring = sharding.batch_ring(len(jax.tree.leaves(tasks)[0]))
  if ring is None:
    return local(shared, tasks)
  rows = PartitionSpec(ring.axes)
  # Of scans that begin with shared values and end with a device's own, types cannot be told.
  return jax.shard_map(local, in_specs=(PartitionSpec(), rows), out_specs=rows,
                       check_vma=False)(shared, tasks)


def query_weights(step: Any, steps: int, anneal_steps: int, floor: float = 0.03
                  ) -> Float[Array, "k"]:
  """w_k: equal at first, and over `anneal_steps` outer steps linearly to almost the last alone.

  Each of the others ends at floor / K. MZSR's numbers are 3,333 and 0.03; they sum to one.

  Args:
    step: outer steps taken so far.
    steps: K.
    anneal_steps: 0 for the end at once.
    floor: see above.
  """
  share = jnp.clip(jnp.asarray(step, jnp.float32) / anneal_steps, 0, 1) if anneal_steps else 1.0
  other = jnp.maximum(1.0 - share, floor) / steps
  weights = jnp.full((steps,), other)
  return weights.at[-1].set(1.0 - (steps - 1) * other)
