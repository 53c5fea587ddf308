"""The training step of a config, compiled for a pod that is not there.

The functions are the trainer's own: what is planned is what runs.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import schedules, sharding
from big_vision_ext.core import step as step_lib
from big_vision_ext.planning import kernels, memory, topologies

# The step's cost does not depend on how long an epoch is, only constants of the schedule do; the
# data, which would tell, are not needed for a plan.
_EPOCH_EXAMPLES = 10**9


@dataclasses.dataclass(frozen=True)
class Step:
  """A training step laid out on a pod, before it is compiled.

  Attributes:
    config, topology, mesh, task: what is to run where.
    shapes, shardings: of the state.
    batch: shapes of the global batch.
    traced: the step as jax traced it.
  """

  config: config_lib.Config
  topology: topologies.Topology
  mesh: jax.sharding.Mesh
  task: Any
  shapes: Any
  shardings: Any
  batch: dict[str, jax.ShapeDtypeStruct]
  traced: Any

  @property
  def chips(self) -> int:
    """Devices of the mesh."""
    return self.mesh.size

  @property
  def batch_per_chip(self) -> float:
    """Examples of a micro-batch on each device."""
    rows = self.config.batch_size // self.config.optim.accum_steps
    return rows / self.mesh.size

  def kernel_flops(self) -> int:
    """FLOPs in hand-written kernels on each device."""
    return kernels.flops(self.traced.jaxpr)

  def state_gib(self) -> float:
    """Parameters and optimiser state on one chip."""
    held = jax.tree.map(lambda s, place: math.prod(place.shard_shape(s.shape)) * s.dtype.itemsize,
                        self.shapes, self.shardings)
    return sum(jax.tree.leaves(held)) / 2**30

  def input_gib(self) -> float:
    """The batch on one chip."""
    pieces = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
    whole = sum(math.prod(s.shape) * s.dtype.itemsize for s in self.batch.values())
    return whole / pieces / 2**30

  def compile(self) -> "jax.stages.Compiled":
    """Compiles it; half a minute to several.

    Raises:
      memory.DoesNotFit: it needs more memory than a chip has.
    """
    try:
      with sharding.use(self.mesh, sharding.merge_rules(self.config.sharding_rules)):
        return self.traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
      held = self.state_gib() + self.input_gib()
      raise memory.read_failure(str(error), self.topology.chip.hbm_gib, held) from error


def lay_out(config: config_lib.Config, topology: topologies.Topology) -> Step:
  """Plans and traces the step of `config` on a pod.

  Raises:
    ValueError: the config does not fit the pod's number of devices, or is wrong otherwise.
  """
  mesh = sharding.make_mesh(config.mesh, topology.devices)
  rules = sharding.merge_rules(config.sharding_rules)
  rows = sharding.batch_sharding(mesh, config.batch_size, config.optim.accum_steps)
  task = tasks.make(config.task, config.model)
  schedule = _schedule(config)
  shapes, shardings, tx, _ = step_lib.plan_state(task, config, mesh, rules)
  state = jax.tree.map(_placed, shapes, shardings)
  spec = task.batch_spec(config.batch_size)
  batch = {name: _placed(shape, rows) for name, shape in spec.items()}
  step = step_lib.jitted(task, config, tx, schedule, mesh, shardings, rows)
  with sharding.use(mesh, rules):
    traced = step.trace(state, batch)
  return Step(config, topology, mesh, task, shapes, shardings, spec, traced)


def _placed(shape, place):
  return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


def _schedule(config) -> Callable:
  sizes = dict(batch_size=config.batch_size, epoch_examples=_EPOCH_EXAMPLES)
  total = config.total.steps(total_steps=None, name="total", **sizes)
  return schedules.make(config.schedule, total_steps=total, **sizes)
