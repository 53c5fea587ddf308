"""Pods for tests that have no TPU compiler: their devices know where they stand, nothing else."""

import dataclasses
import itertools
import types

import numpy as np

from big_vision_ext.planning import topologies


@dataclasses.dataclass(frozen=True)
class Device:
  """A chip's place."""

  coords: tuple[int, ...]
  slice_index: int = 0
  process_index: int = 0


def pod(shape, chip="v5e", slices=1):
  """A topology of so many slices of a torus."""
  places = itertools.product(range(slices), *(range(n) for n in shape))
  devices = [Device(tuple(at), index, index) for index, *at in places]
  of = next(c for c in topologies.CHIPS if c.name == chip)
  return topologies.Topology(f"{chip}:test", slices, of, tuple(shape), devices)


def mesh(topology, **axes):
  """What `collectives` reads of a mesh of these devices."""
  devices = np.empty(len(topology.devices), object)
  devices[:] = topology.devices
  return types.SimpleNamespace(devices=devices.reshape(tuple(axes.values())), size=len(devices),
                               shape=axes, axis_names=tuple(axes))
