"""On which devices does each array of a run live?

Modules name the axes of their arrays (embed, heads, mlp, ...). A table maps those names to the
axes of the device mesh: `data` (parameters replicated), `fsdp` (parameters cut along with the
batch) and `tensor` (layers cut).
"""

import contextlib
import contextvars
import dataclasses
import logging
import math
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from big_vision_ext.core import programs, trees

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
DEFAULT_RULES = (
    ("act_batch", BATCH_AXES),
    ("act_length", None),
    ("act_embed", None),
    ("act_heads", "tensor"),
    ("act_mlp", "tensor"),
    ("embed", "fsdp"),
    ("heads", "tensor"),
    ("kv", None),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
    ("out", None),
    ("conv", None),
    # Networks of a population, each whole: the batch is cut over the other axes.
    ("members", "tensor"),
)
# A parameter of this many elements that cannot be cut as asked is worth a warning.
_LARGE = 2**20


# Slices of the mesh in force: what is traced sees the mesh's axes, not its devices.
_slices = contextvars.ContextVar("slices", default=1)


class ShardingError(ValueError):
  """A mesh or batch that does not fit the devices."""


@dataclasses.dataclass(frozen=True)
class Ring:
  """The devices that the rows of a batch lie on, as one ring.

  Attributes:
    axes: mesh axes, the outermost first; a device's place in the ring is its index along them.
    size: number of devices.
    slices: how many groups of devices, one after the other in the ring, a slow network connects.
  """

  axes: tuple[str, ...]
  size: int
  slices: int = 1


def join_processes(peer_seconds: int = 60) -> None:
  """Makes this process one of several that train together; to be called before any use of devices.

  On TPU pods, Slurm and Kubernetes jax finds the others by itself. Elsewhere three variables name
  them: JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Args:
    peer_seconds: when one of the others has given no sign of life for so long, jax says so and ends
      this process (by SIGABRT; see `core.processes`), whatever it waits for.

  Raises:
    ShardingError: only some of the variables are set.
  """
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  unset = [name for name in names if name not in os.environ]
  known = ()
  if not unset:
    address, count, index = (os.environ[name] for name in names)
    known = (address, int(count), int(index))
  elif len(unset) < len(names):
    raise ShardingError(f"to train in several processes, {', '.join(unset)} must be set too")
  jax.distributed.initialize(*known, heartbeat_timeout_seconds=peer_seconds)
  # jax takes SIGTERM for itself and goes on. Before the loop there is nothing to save: end at once;
  # the loop has a handler of its own, `core.stopping`.
  signal.signal(signal.SIGTERM, signal.SIG_DFL)


def make_mesh(sizes: Any, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
  """A mesh with the axes data, fsdp and tensor.

  With several slices, `data` runs across them (over the slow network) and the rest stays within.

  Args:
    sizes: has `data`, `fsdp` and `tensor`, at most one of them -1, which takes the devices left
      over, and `max_fsdp`; see `config.Mesh`.
    devices: default: all devices of all processes.

  Raises:
    ShardingError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  shape = [getattr(sizes, axis) for axis in AXES]
  if sizes.max_fsdp and shape[:2] == [-1, -1]:
    shape[1] = _most_fsdp(devices, max(shape[2], 1), sizes.max_fsdp)
  said = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape))
  if shape.count(-1) > 1 or any(s != -1 and s < 1 for s in shape):
    raise ShardingError(f"config.mesh ({said}): expected positive sizes and at most one -1")
  if -1 in shape:
    fixed = -math.prod(shape)
    if len(devices) % fixed:
      raise ShardingError(f"config.mesh ({said}): {fixed} does not divide the {len(devices)} "
                          f"devices there are")
    shape[shape.index(-1)] = len(devices) // fixed
  if math.prod(shape) != len(devices):
    raise ShardingError(f"config.mesh ({said}): needs {math.prod(shape)} devices, there are "
                        f"{len(devices)}; -1 takes what is left over")
  if len(devices) > 1:
    programs.keep_no_collectives()
  slices = count_slices(devices)
  auto = (AxisType.Auto,) * len(AXES)
  if slices == 1:
    try:
      return jax.make_mesh(tuple(shape), AXES, axis_types=auto, devices=devices)
    except NotImplementedError:
      # No product of whole sides of the torus, as 128 chips of 8 x 8 x 8: a side is cut in two.
      grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
      return jax.sharding.Mesh(grid, AXES, axis_types=auto)
  if shape[0] % slices:
    raise ShardingError(f"config.mesh ({said}): data={shape[0]} must be a multiple of the "
                        f"{slices} slices")
  grid = mesh_utils.create_hybrid_device_mesh(
      (shape[0] // slices, *shape[1:]), (slices, 1, 1), devices=devices,
      allow_split_physical_axes=True)
  return jax.sharding.Mesh(grid, AXES, axis_types=auto)


def _most_fsdp(devices: Sequence[jax.Device], tensor: int, limit: int) -> int:
  """The largest divisor of the devices of a slice, after `tensor` took its part, up to `limit`."""
  left = len(devices) // count_slices(devices) // tensor
  return next((n for n in range(min(limit, left), 0, -1) if left % n == 0), 1)


def cut_batch(x: jax.Array, parts: int, mesh: jax.sharding.Mesh | None = None) -> jax.Array:
  """(b, ...) -> (parts, b / parts, ...), where part i has the rows i, i + parts, ...

  Every device keeps the rows it has; `join_batch` puts them back.

  Args:
    x: the rows, cut over the mesh along the batch.
    parts: divides their number.
    mesh: that they lie on; default: the one in force (`use`), if any.

  Raises:
    ShardingError: the rows of a device of the mesh in force do not divide so.
  """
  sizes = jax.sharding.get_abstract_mesh().shape
  pieces = math.prod(sizes.get(a, 1) for a in BATCH_AXES)
  if x.shape[0] % (pieces * parts):
    raise ShardingError(f"{x.shape[0]} rows on {pieces} devices do not divide into {parts} parts")
  x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
  spec = PartitionSpec(None, BATCH_AXES)
  if mesh is not None:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
  return jax.lax.with_sharding_constraint(x, spec) if set(BATCH_AXES) <= set(sizes) else x


def join_batch(x: jax.Array) -> jax.Array:
  """(parts, rows, ...) -> (parts * rows, ...): `cut_batch` undone."""
  x = jnp.swapaxes(x, 0, 1)
  return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def count_slices(devices: Sequence[jax.Device]) -> int:
  """How many slices, connected by the slow network, these devices are of."""
  return len({getattr(d, "slice_index", 0) for d in devices})


def batch_ring(rows: int) -> Ring | None:
  """The ring of the mesh in force that the rows of a batch lie on; None if they are not cut.

  The tensor axis, along which the rows are repeated, takes part if the rows can be cut so often.

  Raises:
    ShardingError: the rows cannot be cut over the batch axes.
  """
  sizes = {a: n for a, n in jax.sharding.get_abstract_mesh().shape.items() if n > 1}
  axes = tuple(a for a in BATCH_AXES if a in sizes)
  pieces = math.prod(sizes[a] for a in axes)
  if rows % pieces:
    raise ShardingError(f"{rows} rows cannot be cut evenly over {', '.join(axes)}: {pieces}")
  if "tensor" in sizes and rows % (pieces * sizes["tensor"]) == 0:
    axes, pieces = (*axes, "tensor"), pieces * sizes["tensor"]
  return Ring(axes, pieces, _slices.get()) if axes else None


def merge_rules(rules: Sequence[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
  """The default table with a config's entries in place of those of the same name.

  Raises:
    ShardingError: a mesh axis that does not exist.
  """
  for name, axes in rules:
    for axis in (axes,) if isinstance(axes, str) else axes or ():
      if axis not in AXES:
        raise ShardingError(f"config.sharding_rules: {name!r} -> {axes!r}: there is no mesh axis "
                            f"{axis!r}, only {', '.join(AXES)}")
  own = dict(rules)
  return (*own.items(), *((n, a) for n, a in DEFAULT_RULES if n not in own))


@contextlib.contextmanager
def use(mesh: jax.sharding.Mesh, rules: Sequence[tuple[str, Any]]) -> Iterator[None]:
  """The context in which a run traces and runs its programs."""
  token = _slices.set(count_slices(list(mesh.devices.flat)))
  try:
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
      yield
  finally:
    _slices.reset(token)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """Every device has the whole array."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: jax.sharding.Mesh, batch_size: int | None = None,
                   accum_steps: int = 1) -> NamedSharding:
  """The leading axis cut over data and fsdp.

  Raises:
    ShardingError: `batch_size` is given and cannot be cut evenly into micro-batches and devices.
  """
  pieces = math.prod(mesh.shape[a] for a in BATCH_AXES)
  if batch_size is not None and batch_size % (pieces * accum_steps):
    unit = pieces * accum_steps
    near = max(unit, round(batch_size / unit) * unit)
    micro = f" times {accum_steps} accumulation steps" if accum_steps > 1 else ""
    raise ShardingError(
        f"config.batch_size={batch_size} cannot be divided among {pieces} devices "
        f"(mesh data={mesh.shape['data']} times fsdp={mesh.shape['fsdp']}){micro}; "
        f"the nearest that can is {near}")
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def unbox(tree: Any) -> Any:
  """Strips flax's axis annotations, without the constraint that flax's own unbox applies."""
  return jax.tree.map(lambda x: x.value if isinstance(x, nn.meta.AxisMetadata) else x, tree,
                      is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata))


def param_shardings(boxed: Any, mesh: jax.sharding.Mesh, rules: Sequence[tuple[str, Any]],
                    min_size: int = 0) -> Any:
  """The sharding of each parameter, from its logical axes.

  An axis whose length its mesh axes do not divide stays whole, as do parameters of fewer than
  `min_size` elements.

  Args:
    boxed: parameters (or their shapes) in flax's boxes; unboxed ones are replicated.
    mesh: the mesh.
    rules: (logical axis, mesh axes) pairs.
    min_size: see above.

  Returns:
    A tree of NamedSharding shaped like the unboxed parameters.
  """
  logical = nn.get_partition_spec(boxed)
  specs = nn.logical_to_mesh(logical, rules)
  whole = []

  def place(name, shape, spec):
    if shape.size < min_size:
      return replicated(mesh)
    dims = []
    for length, axes in zip(shape.shape, tuple(spec) + (None,) * len(shape.shape)):
      pieces = math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))
      if length % pieces:
        if shape.size >= _LARGE:
          whole.append(f"{name} {shape.shape}: {length} over {axes}={pieces}")
        axes = None
      dims.append(axes)
    return NamedSharding(mesh, PartitionSpec(*dims))

  shapes = unbox(boxed)
  flat_specs = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
  treedef = jax.tree.structure(shapes)
  out = trees.map_with_names(place, shapes, jax.tree.unflatten(treedef, flat_specs))
  if whole:
    logging.warning("These large parameters have an axis that stays whole on every device, since "
                    "the mesh does not divide it:\n  %s", "\n  ".join(whole))
  return out


def state_shardings(tx: optax.GradientTransformation, params: Any, shardings: Any,
                    mesh: jax.sharding.Mesh) -> Any:
  """Shardings of an optimiser's state, from the shapes of what it keeps for each parameter.

  What has the parameter's shape (a moment) lives like it, what lacks one of its axes (a factor of
  a second moment) is cut along the others like it, and all else is replicated.

  Args:
    tx: the optimiser.
    params: shapes of the trained parameters.
    shardings: their shardings.
    mesh: the mesh.
  """
  state = jax.eval_shape(tx.init, params)

  def place(kept, param, sharding):
    spec = tuple(sharding.spec) + (None,) * (len(param.shape) - len(sharding.spec))
    if kept.shape == param.shape:
      return sharding
    for i in range(len(spec)):
      if kept.shape == (*param.shape[:i], *param.shape[i + 1:]):
        return NamedSharding(mesh, PartitionSpec(*spec[:i], *spec[i + 1:]))
    return replicated(mesh)

  return optax.tree_map_params(tx, place, state, params, shardings,
                               transform_non_params=lambda _: replicated(mesh))


def put(array: np.ndarray, sharding: NamedSharding, dtype: Any = None) -> jax.Array:
  """A host array that every process has whole, onto its devices; each takes its own part."""
  array = np.asarray(array, dtype=dtype and jnp.dtype(dtype))
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
