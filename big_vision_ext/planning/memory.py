"""What does a program keep in a chip's memory, and what does the compiler say if it is too much?"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

from big_vision_ext.planning import hlo

_UNITS = {"": 2**-30, "K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2**10}


@dataclasses.dataclass(frozen=True)
class Buffer:
  """One array in a chip's memory.

  Attributes:
    gib: its size, tiles filled up.
    shape: type and dimensions on one chip.
    what: where in the program it comes from.
    padding_gib: how much of `gib` is filling.
  """

  gib: float
  shape: str
  what: str
  padding_gib: float = 0.0


class DoesNotFit(ValueError):
  """A program that needs more memory than a chip has.

  Attributes:
    needed_gib: how much it needs, as far as the compiler tells.
    hbm_gib: how much there is.
    largest: the largest arrays, as far as the compiler tells.
  """

  def __init__(self, needed_gib: float, hbm_gib: float, largest: list[Buffer]):
    self.needed_gib, self.hbm_gib, self.largest = needed_gib, hbm_gib, largest
    lines = [f"does not fit: {needed_gib:.2f} GiB a chip are needed and {hbm_gib:.2f} are there, "
             f"{needed_gib - hbm_gib:.2f} too many"]
    lines += [f"  {line}" for line in table(largest)]
    super().__init__("\n".join(lines))


def peak_gib(compiled: Any) -> float:
  """Memory that a compiled program needs on each chip at its fullest moment."""
  return compiled.memory_analysis().peak_memory_in_bytes / 2**30


def largest(module: hlo.Module, count: int = 12, at_least: int = 2**20) -> list[Buffer]:
  """The largest arrays of a program in a chip's memory, each shape and origin once."""
  found = {}
  for name, instruction, _ in module.instructions():
    if name not in module.scheduled or not _allocates(instruction, name == module.entry):
      continue
    for shape in instruction.shapes:
      if shape.space == 0 and shape.padded_bytes >= at_least:
        key = (str(shape), origin(instruction.op_name))
        size = shape.padded_bytes / 2**30
        if key not in found or found[key].gib < size:
          found[key] = Buffer(size, str(shape), key[1], size - shape.bytes / 2**30)
  return sorted(found.values(), key=lambda b: -b.gib)[:count]


def table(buffers: list[Buffer]) -> Iterator[str]:
  """Lines that show buffers to people."""
  for b in buffers:
    filling = b.padding_gib > 0.1 * b.gib
    padding = f" ({b.padding_gib:.2f} of it fill tiles up)" if filling else ""
    yield f"{b.gib:8.3f} GiB  {b.shape:<34} {b.what}{padding}"


def read_failure(message: str, hbm_gib: float, arguments_gib: float) -> Exception:
  """The error to raise for a compiler's failure: DoesNotFit, if it says that, else PlanError.

  Args:
    message: the compiler's.
    hbm_gib: of a chip, where the message does not tell.
    arguments_gib: what a chip holds before the program starts: state and batch.
  """
  from big_vision_ext.planning.topologies import PlanError
  if not re.search(r"CompileTimeHbmOom|Ran out of memory|Exceeded hbm|RESOURCE_EXHAUSTED", message):
    return PlanError(f"the compiler failed: {message[:2000]}")
  needed, available = _needed(message), re.search(r"available HBM \(([\d.]+)([KMGT]?)\)", message)
  available = available or re.search(r"Used [\d.]+[KMGT]? of ([\d.]+)([KMGT]?) hbm", message)
  if available:
    hbm_gib = _gib(*available.groups())
  if "HLO temporaries (" in message:
    needed += arguments_gib
  if math.isnan(needed):
    return PlanError(f"the program does not fit into {hbm_gib:.2f} GiB: {message[:2000]}")
  return DoesNotFit(needed, hbm_gib, list(_allocations(message)))


def origin(op_name: str) -> str:
  """An operation's place in the traced program without the wrappers of jax."""
  parts = [p for p in op_name.split("/") if p not in ("jit(step)", "closed_call", "while", "body")]
  text = "/".join(parts)
  return text if len(text) <= 90 else f"...{text[-87:]}"


def _allocates(instruction, entry: bool) -> bool:
  if instruction.opcode == "parameter":
    return entry
  return instruction.opcode not in (
    "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "opt-barrier",
    "copy-done", "slice-done", "all-gather-done", "all-reduce-done", "constant")


def _needed(message: str) -> float:
  for pattern in (r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm",
                  r"total memory required[^(]*\(([\d.]+)([KMGT]?)\)",
                  r"HLO temporaries \(([\d.]+)([KMGT]?)\)",
                  r"\(([\d.]+)([KMGT]?)\) exceeds available HBM"):
    if found := re.search(pattern, message):
      return _gib(*found.groups())
  return math.nan


def _allocations(message: str) -> Iterator[Buffer]:
  for entry in re.split(r"\n\s*\d+\.\s+Size: ", message)[1:]:
    size = re.match(r"([\d.]+)([KMGT]?)", entry)
    shape = re.search(r"Shape: (\w+\[[\d,]*\])", entry)
    name = re.search(r'op_name="((?:[^"\\]|\\.)*)"', entry)
    padding = re.search(r"due to padding: ([\d.]+)([KMGT]?)", entry)
    yield Buffer(_gib(*size.groups()), shape.group(1) if shape else "?",
                 origin(name.group(1)) if name else "", _gib(*padding.groups()) if padding else 0.0)


def _gib(number: str, unit: str) -> float:
  return float(number) * _UNITS[unit]
