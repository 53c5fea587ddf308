"""Which TPU pods can be planned for, and what can their chips do?

The compiler knows the pods: libtpu describes them without having one. Peaks are vendors' figures.
"""

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_ext.core import flops

# One libtpu for each jax: see requirements-tpu.txt.
INSTALL = "pip install -r requirements-tpu.txt"

# The compiler is to look for no TPU, no metadata server and no lock of another process.
_ENVIRONMENT = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-1",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_STDERR_LOG_LEVEL": "3",
  "TPU_MIN_LOG_LEVEL": "3",
  "TF_CPP_MIN_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device as the compiler sees it.

  Attributes:
    name: as in a topology's name.
    kind: jax's device_kind.
    hbm_gib: memory that a program may use, GiB; the compiler keeps the rest of it for itself.
    hbm_bytes: bytes a second to and from that memory.
    link_bytes: bytes a second of one link to a neighbour, in one direction.
    torus: number of dimensions of the network, each with a neighbour on both sides.
    wraps: length from which a dimension of a slice is closed to a ring.
    dcn_bytes: bytes a second and chip out of a slice, over the data centre's network.
    mxu: rows and columns of a matrix unit; products are padded to it.
  """

  name: str
  kind: str
  hbm_gib: float
  hbm_bytes: float
  link_bytes: float
  torus: int
  wraps: int
  dcn_bytes: float
  mxu: int = 128

  @property
  def peak(self) -> float:
    """Dense bfloat16 FLOP/s."""
    return flops.peak(self.kind)


# HBM that programs get: the limit in the compiler's message about a program too large for it
# (libtpu 0.0.50). HBM and link speeds: Google Cloud's pages of each TPU ("HBM bandwidth",
# "inter-chip interconnect bandwidth", which is the sum over links and directions, halved here per
# direction). Network between slices: Austin et al. 2025, "How to scale your model", chapter 2,
# where a v4 is taken to have what a v5p has. Of v7x a device is one of the chip's two dies.
CHIPS = (
  Chip("v4", "TPU v4", 30.75, 1228e9, 45e9, 3, 4, 6.25e9),
  Chip("v5e", "TPU v5 lite", 15.75, 819e9, 45e9, 2, 16, 3.125e9),
  Chip("v5p", "TPU v5", 95.73, 2765e9, 90e9, 3, 4, 6.25e9),
  Chip("v6e", "TPU v6 lite", 31.24, 1640e9, 90e9, 2, 16, 12.5e9, mxu=256),
  Chip("tpu7x", "TPU7x", 94.74, 3690e9, 90e9, 3, 4, 6.25e9, mxu=256),
)
EXAMPLES = ("v4:4x4x4", "v5e:16x16", "v5p:4x4x8", "v6e:16x16", "tpu7x:4x4x4")


class PlanError(ValueError):
  """Something that cannot be planned; the message says what would mend it."""


def set_up_environment() -> None:
  """Keeps libtpu quiet and away from hardware; to be called before jax is imported."""
  os.environ.update(_ENVIRONMENT)


@dataclasses.dataclass(frozen=True)
class Topology:
  """A pod, or several slices of one.

  Attributes:
    name: as given, e.g. "v5e:16x16".
    slices: how many of them.
    chip: what its devices are.
    shape: of one slice's network, in chips.
    devices: descriptions of all devices, that programs can be compiled for.
  """

  name: str
  slices: int
  chip: Chip
  shape: tuple[int, ...]
  devices: Sequence[Any]

  @property
  def hosts(self) -> int:
    """Number of host machines."""
    return len({d.process_index for d in self.devices})


def describe(name: str, slices: int = 1) -> Topology:
  """The pod called `name`, of `slices` slices.

  Raises:
    PlanError: no such chip or pod, or no libtpu to ask.
  """
  chip_name, colon, sizes = name.partition(":")
  chip = next((c for c in CHIPS if c.name == chip_name), None)
  if chip is None or not colon or not re.fullmatch(r"\d+(x\d+)*", sizes) or slices < 1:
    raise PlanError(f"--topology {name} --slices {slices}: expected a chip, a colon and the chips "
                    f"along each side, as in {', '.join(EXAMPLES)}, and at least one slice")
  options = {"num_slices": slices} if slices > 1 else {}
  if chip.name == "v4":
    options["chip_config_name"] = "megacore"
  # Only here: who plans nothing needs no libtpu.
  from jax.experimental import topologies
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
  except Exception as error:  # jax raises what the plug-in does: no one class of error.
    text = str(error)
    if "libtpu" in text.lower() or isinstance(error, ImportError):
      raise PlanError(f"planning for TPUs needs their compiler, which comes in the package libtpu: "
                      f"{INSTALL} ({text.splitlines()[0][:160]})") from error
    raise PlanError(f"--topology {name}: the compiler knows no such pod ({text.splitlines()[0]}); "
                    f"known ones are like {', '.join(EXAMPLES)}") from error
  devices = found.devices
  if devices[0].device_kind != chip.kind:
    raise PlanError(f"--topology {name}: the compiler calls its devices "
                    f"{devices[0].device_kind!r}, expected {chip.kind!r}; is libtpu another "
                    f"version than this project was tested with? {INSTALL}")
  first = [d.coords for d in devices if getattr(d, "slice_index", 0) in (0, None)]
  shape = tuple(int(n) + 1 for n in np.max(first, axis=0))
  return Topology(name, slices, chip, shape, devices)


def links(topology: Topology, group: Sequence[int]) -> tuple[float, int]:
  """How fast the devices of a collective can pass data on, each to all others in a ring.

  A dimension of the network along which the group extends gives two links if the group fills it
  and it is closed to a ring, else one: a line of chips is a ring folded flat, which needs the
  links of both directions for one.

  Args:
    topology: the pod.
    group: positions in `topology.devices`.

  Returns:
    Bytes a second a device can send within its slice, and the number of slices of the group.
  """
  chosen = [topology.devices[i] for i in group]
  slices = {getattr(d, "slice_index", 0) or 0 for d in chosen}
  one = [d for d in chosen if (getattr(d, "slice_index", 0) or 0) == min(slices)]
  count = 0
  for axis, length in enumerate(topology.shape):
    extent = len({d.coords[axis] for d in one})
    if extent > 1:
      ring = extent == length and length >= topology.chip.wraps
      count += 2 if ring else 1
  return max(count, 1) * topology.chip.link_bytes, len(slices)


