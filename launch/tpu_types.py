"""Which TPU does a name mean, and what is it called by whom?

One table for TPU VMs and GKE: accelerator type, runtime image, hosts, node selectors. A slice is
named as Google names it (`v5litepod-256`, `v5e-256`, `v5p-512`, where v4 and v5p count TensorCores,
two a chip) or by its shape (`v5e:16x16`, `v5p:4x4x8`, chips).

Sources: Google's pages on v4, v5e, v5p and v6e, on runtime versions and on planning TPUs in GKE;
xpk's table of systems. 2x4 slices of v5e and v6e are the one host with eight chips.
"""

import dataclasses
import difflib
import math
import re

_SHAPES_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
# The shape that a size means when none is given: the one Google's own table has for it.
_SHAPES_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16",
              "8x16x16", "16x16x16")


class TpuTypeError(ValueError):
  """A TPU that does not exist."""


@dataclasses.dataclass(frozen=True)
class Generation:
  """One generation of TPUs.

  Attributes:
    name: ours, and the prefix of names that people write.
    type: gcloud's `--type`, and the prefix of accelerator types.
    cores: TensorCores a chip; accelerator types count these.
    runtime: image of a TPU VM that goes with it.
    gke_accelerator: GKE's node label cloud.google.com/gke-tpu-accelerator.
    machines: GKE's machine types by chips of a host.
    shapes: the shape of each size.
    most: chips of the largest slice.
  """

  name: str
  type: str
  cores: int
  runtime: str
  gke_accelerator: str
  machines: dict[int, str] = dataclasses.field(hash=False)
  shapes: tuple[str, ...]
  most: int


GENERATIONS = {g.name: g for g in (
    Generation("v4", "v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice",
               {4: "ct4p-hightpu-4t"}, _SHAPES_3D, 4096),
    Generation("v5e", "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice",
               {1: "ct5lp-hightpu-1t", 4: "ct5lp-hightpu-4t", 8: "ct5lp-hightpu-8t"},
               _SHAPES_2D, 256),
    Generation("v5p", "v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice",
               {4: "ct5p-hightpu-4t"}, _SHAPES_3D, 6144),
    Generation("v6e", "v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice",
               {1: "ct6e-standard-1t", 4: "ct6e-standard-4t", 8: "ct6e-standard-8t"},
               _SHAPES_2D, 256),
)}


@dataclasses.dataclass(frozen=True)
class TpuType:
  """One slice: a generation and a shape in chips, such as 16x16."""

  generation: Generation
  shape: str

  @property
  def chips(self) -> int:
    """Chips of the slice."""
    return _chips(self.shape)

  @property
  def chips_per_host(self) -> int:
    """Chips that one host, and so one process, sees."""
    if self.chips in self.generation.machines:
      return self.chips
    return 4

  @property
  def hosts(self) -> int:
    """Hosts of the slice."""
    return self.chips // self.chips_per_host

  @property
  def accelerator_type(self) -> str:
    """Google's name, e.g. v5litepod-256. Says nothing of the shape."""
    return f"{self.generation.type}-{self.chips * self.generation.cores}"

  @property
  def is_default_shape(self) -> bool:
    """Whether the accelerator type alone means this shape."""
    return self.shape in self.generation.shapes

  @property
  def machine(self) -> str:
    """GKE's machine type."""
    return self.generation.machines[self.chips_per_host]

  def __str__(self):
    return f"{self.generation.name}:{self.shape}"


def parse(text: str) -> TpuType:
  """The slice that a name means.

  Raises:
    TpuTypeError: there is none; the message has those that are near.
  """
  wanted = text.strip().lower()
  by_type = {g.type: g for g in GENERATIONS.values()} | GENERATIONS
  if match := re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", wanted):
    name, shape = match.groups()
    if name in by_type and _exists(by_type[name], shape):
      return TpuType(by_type[name], shape)
  elif match := re.fullmatch(r"([a-z0-9]+)-(\d+)", wanted):
    name, size = match[1], int(match[2])
    for shape in by_type[name].shapes if name in by_type else ():
      if _chips(shape) * by_type[name].cores == size:
        return TpuType(by_type[name], shape)
  near = difflib.get_close_matches(wanted, names(), n=4, cutoff=0.5)
  raise TpuTypeError(
      f"--type={text}: there is no such TPU slice"
      + (f"; did you mean {', '.join(near)}?" if near else ".")
      + " Expected a generation of v4, v5e, v5p and v6e with a size (v5e-256) or a shape in chips"
        " (v5e:16x16); sizes of v4 and v5p count TensorCores, two a chip")


def names() -> list[str]:
  """All names with a shape of their own, of both kinds."""
  return [name for g in GENERATIONS.values() for shape in g.shapes
          for name in dict.fromkeys((f"{g.name}-{_chips(shape) * g.cores}",
                                     TpuType(g, shape).accelerator_type, f"{g.name}:{shape}"))]


def _exists(generation, shape):
  if shape in generation.shapes:
    return True
  # Three-dimensional slices beyond the small ones are made of whole 4x4x4 cubes, sides in order.
  sides = [int(side) for side in shape.split("x")]
  return (len(sides) == 3 == len(generation.shapes[0].split("x")) and sides == sorted(sides)
          and all(side and side % 4 == 0 for side in sides) and _chips(shape) <= generation.most)


def _chips(shape):
  return math.prod(int(side) for side in shape.split("x"))
