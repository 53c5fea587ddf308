"""What does a compiled program send between its devices?

Per collective and device:

  all-gather          payload = result      sent = payload (n - 1) / n
  reduce-scatter      payload = operand     sent = payload (n - 1) / n
  all-reduce          payload = operand     sent = 2 payload (n - 1) / n
  all-to-all          payload = operand     sent = payload (n - 1) / n
  collective-permute  payload = operand     sent = payload

n devices in a group, ring algorithms, as many times as the surrounding loops turn. Asynchronous
ones consist of a start and a done, of which the start counts.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Sequence

import jax
import numpy as np

from big_vision_ext.planning import hlo, topologies

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_OPCODE = re.compile(rf"({'|'.join(KINDS)}|collective-broadcast|ragged-all-to-all)(-start)?")
_PAIRS = re.compile(r"source_target_pairs=\{(.*?)\}\}")
_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
  r"replica_groups=mesh\[([^\]]*)\](?:,? *device_ids=\(\[([\d,]+)\]"
  r"(?:T\(([\d,]+)\))?\))?,? *\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One kind of exchange over the same mesh axes, summed over the program.

  Attributes:
    kind: one of `KINDS`.
    axes: mesh axes along which the members of a group differ.
    group: members of a group.
    count: how often it happens in a step.
    payload_bytes, sent_bytes: of one device in a step; see the module's docstring.
    seconds: at the speed of the links, nothing else going on.
  """

  kind: str
  axes: tuple[str, ...]
  group: int
  count: int
  payload_bytes: int
  sent_bytes: int
  seconds: float


def find(module: hlo.Module, mesh: jax.sharding.Mesh,
         topology: topologies.Topology) -> list[Collective]:
  """All collectives of a program, the most expensive first.

  Args:
    module: the compiled program.
    mesh: the mesh it was compiled for; its devices are those of the topology.
    topology: where it is to run.
  """
  places = {d: i for i, d in enumerate(topology.devices)}
  order = [places[d] for d in mesh.devices.flat]
  sums = collections.defaultdict(lambda: [0, 0, 0, 0.0])
  speeds = {}
  for body, instruction, kind, times in occurrences(module):
    groups = members(instruction, mesh.size)
    group = max(groups, key=len, default=())
    if len(group) < 2:
      continue
    size = 2 if kind == "collective-permute" else len(group)
    payload = _payload(instruction, kind, body)
    sent = _sent(kind, payload, len(group))
    key = (kind, mesh_axes(groups, mesh), size)
    where = tuple(sorted(order[i] for i in group))
    if where not in speeds:
      speeds[where] = topologies.links(topology, where)
    total = sums[key]
    total[0] += times
    total[1] += times * payload
    total[2] += times * sent
    total[3] += times * _seconds(kind, payload, sent, len(group), topology, *speeds[where])
  out = [Collective(*key, *total) for key, total in sums.items()]
  return sorted(out, key=lambda c: -c.seconds)


def occurrences(module: hlo.Module):
  """(instructions around it, instruction, kind, times) of every collective, each once.

  An asynchronous one stands in the text several times: at its start, at its done, and in whatever
  is computed while it runs, all with one channel.
  """
  starts, continued = _asynchronous(module)
  for computation, instruction, times in module.instructions():
    found = _OPCODE.fullmatch(instruction.opcode)
    if not found or computation in continued:
      continue
    if "chain_id=" in instruction.attributes and starts and computation not in starts:
      continue
    yield module.computations[computation], instruction, found.group(1), times


def members(instruction: hlo.Instruction, devices: int) -> list[tuple[int, ...]]:
  """Groups of a collective, as positions in the mesh; for a permutation its rings.

  Raises:
    ValueError: groups in a notation that is not known here.
  """
  text = instruction.attributes
  if found := _PAIRS.search(text):
    pairs = re.findall(r"(\d+),(\d+)", found.group(1))
    return _rings([(int(a), int(b)) for a, b in pairs])
  if found := _MESH.search(text):
    return _mesh_groups(*found.groups())
  if found := _IOTA.search(text):
    shape, dims, order = (_numbers(g) for g in found.groups())
    ids = np.arange(math.prod(dims)).reshape(dims)
    ids = ids.transpose(order) if order else ids
    return [tuple(row) for row in ids.reshape(shape).tolist()]
  if found := _LISTS.search(text):
    groups = [tuple(_numbers(g)) for g in re.findall(r"\{([\d,]+)\}", found.group(1))]
    return groups or [tuple(range(devices))]
  if "replica_groups" in text:
    raise ValueError(f"cannot read the groups of {instruction.name}: {text[:300]}")
  return [tuple(range(devices))]


def mesh_axes(groups: Sequence[Sequence[int]], mesh: jax.sharding.Mesh) -> tuple[str, ...]:
  """The mesh axes along which the members of a group differ."""
  sizes = tuple(mesh.shape.values())
  differ = np.zeros(len(sizes), bool)
  for group in groups:
    places = np.array(np.unravel_index(np.asarray(group), sizes))
    differ |= (places != places[:, :1]).any(axis=1)
  return tuple(name for name, yes in zip(mesh.axis_names, differ) if yes)


def _payload(instruction, kind, body) -> int:
  operands = [s for name in instruction.operands for s in body[name].shapes]
  if kind == "all-gather":
    # The result of a start is a tuple of what goes in and what comes out.
    shapes = instruction.shapes[len(operands):] if instruction.opcode.endswith("-start") else ()
    return sum(s.bytes for s in shapes or instruction.shapes)
  return sum(s.bytes for s in operands)


def _sent(kind, payload, n) -> int:
  share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
  return round(payload * share)


def _seconds(kind, payload, sent, n, topology, speed, slices) -> float:
  if kind == "collective-permute":
    # A neighbour is reached over one link.
    speed = topology.chip.link_bytes
  if slices == 1:
    return sent / speed
  # Each slice by itself first, so that a device sends its share of the payload only, once over.
  within = max(n // slices, 1)
  across = _sent(kind, payload, slices) / within
  return _sent(kind, payload, within) / speed + across / topology.chip.dcn_bytes


def _asynchronous(module) -> tuple[set[str], set[str]]:
  """Computations in which asynchronous collectives start, and those in which they end."""
  starts, ends = set(), set()
  for body in module.computations.values():
    for instruction in body.values():
      called = {c for group in instruction.called.values() for c in group}
      if instruction.name.startswith("async-collective-start"):
        starts |= called
      elif instruction.opcode in ("async-done", "async-update") or instruction.name.startswith(
          "async-collective-done"):
        ends |= called
  return starts, ends


def _rings(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
  following = dict(pairs)
  left, rings = set(following), []
  while left:
    ring = [min(left)]
    left.discard(ring[0])
    while (after := following.get(ring[-1])) is not None and after not in ring:
      ring.append(after)
      left.discard(after)
    rings.append(tuple(ring))
  return rings


def _mesh_groups(axes: str, dims: str | None, order: str | None, over: str):
  """mesh['a'=2,'b'=4] {'b'}, or {'b':(1)2} for a part of an axis: (what stands before)length."""
  sizes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", axes)}
  ids = np.arange(math.prod(sizes.values()))
  if dims:
    ids = ids.reshape(_numbers(dims)).transpose(_numbers(order) if order else None).reshape(-1)
  parts = {}
  for name, before, length in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", over):
    parts[name] = (int(before or 1), int(length or sizes[name]))
  shape, grouped = [], []
  for name, size in sizes.items():
    before, length = parts.get(name, (size, 1))
    for piece, inside in ((before, False), (length, name in parts), (size // before // length, 0)):
      shape.append(piece)
      grouped.append(bool(inside))
  ids = ids.reshape(shape)
  last = [i for i, g in enumerate(grouped) if g]
  first = [i for i, g in enumerate(grouped) if not g]
  ids = ids.transpose(first + last)
  length = math.prod(shape[i] for i in last)
  return [tuple(row) for row in ids.reshape(-1, length).tolist()]


def _numbers(text: str | None) -> list[int]:
  return [int(n) for n in text.split(",")] if text else []
