"""What does a compiled program consist of?

Reads the text of an HLO module (`compiled.as_text()`): computations, instructions, shapes with
layout and memory, and how often each computation runs. Scans compile to loops whose trip count
the compiler writes down, or which their condition gives away.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s2": 0.25, "u2": 0.25, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CALLED = re.compile(
  r"(calls|to_apply|body|condition|true_computation|false_computation|called_computations)="
  r"(\{[^}]*\}|%[\w.\-]+)")
_END = re.compile(r"\}(, execution_thread=.*| *//.*)?$")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array.

  Attributes:
    dtype: HLO's name of the type, e.g. "bf16".
    dims: lengths of its axes.
    layout: axes from the fastest to the slowest changing one.
    tile: the first tile of its layout, e.g. (8, 128); the last axes are padded to it.
    space: 0 for the device's main memory; other numbers for memory on the chip or the host.
  """

  dtype: str
  dims: tuple[int, ...]
  layout: tuple[int, ...] = ()
  tile: tuple[int, ...] = ()
  space: int = 0

  @property
  def bytes(self) -> int:
    """Of its elements."""
    return math.ceil(math.prod(self.dims) * self.item_bytes)

  @property
  def padded_bytes(self) -> int:
    """What it takes in memory, tiles filled up."""
    dims = [self.dims[i] for i in reversed(self.layout)] if self.layout else list(self.dims)
    for back, size in enumerate(reversed(self.tile), 1):
      if back <= len(dims):
        dims[-back] = -(-dims[-back] // size) * size
    return math.ceil(math.prod(dims) * self.item_bytes)

  @property
  def item_bytes(self) -> float:
    """Of one element."""
    if self.dtype in _BYTES:
      return _BYTES[self.dtype]
    bits = re.search(r"\d+", self.dtype)
    return int(bits.group()) / 8 if bits else 4

  def __str__(self):
    return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: unique within the module.
    opcode: e.g. "fusion".
    shapes: of the result; several for a tuple, flattened.
    operands: names of the instructions it reads.
    text: what stands between the parentheses: an argument's number, a constant's value.
    attributes: everything behind the operands.
    root: whether this is the computation's result.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  text: str
  attributes: str
  root: bool = False

  @functools.cached_property
  def called(self) -> dict[str, tuple[str, ...]]:
    """Computations this instruction runs, by the attribute that names them."""
    out = {}
    for key, value in _CALLED.findall(self.attributes):
      out[key] = tuple(_NAME.findall(value))
    branches = _BRANCHES.search(self.attributes)
    if branches:
      out["branch_computations"] = tuple(_NAME.findall(branches.group(1)))
    return out

  @functools.cached_property
  def op_name(self) -> str:
    """Where in the traced program it comes from; empty if unknown."""
    found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
    return found.group(1) if found else ""

  @property
  def bytes(self) -> int:
    """Of all its results."""
    return sum(s.bytes for s in self.shapes)


@dataclasses.dataclass(frozen=True)
class Module:
  """A program.

  Attributes:
    computations: name -> its instructions, by name, in the order in which they run.
    entry: the computation that starts it.
  """

  computations: dict[str, dict[str, Instruction]]
  entry: str

  def root(self, computation: str) -> Instruction:
    """The result of a computation."""
    body = self.computations[computation]
    return next((i for i in body.values() if i.root), list(body.values())[-1])

  @functools.cached_property
  def times(self) -> dict[str, int]:
    """How often each computation runs in one call of the program; of branches, each counts."""
    return self._walk()[0]

  @functools.cached_property
  def unknown_loops(self) -> list[str]:
    """Loops whose number of turns the text does not tell; they are counted as one turn."""
    return self._walk()[1]

  @functools.cached_property
  def scheduled(self) -> set[str]:
    """Computations whose instructions run one by one; those of fusions and reducers do not."""
    out, queue = set(), [self.entry]
    while queue:
      name = queue.pop()
      if name in out:
        continue
      out.add(name)
      for instruction in self.computations[name].values():
        if instruction.opcode in ("while", "conditional", "call", "async-start"):
          queue += [c for group in instruction.called.values() for c in group]
    return out

  def instructions(self) -> Iterator[tuple[str, Instruction, int]]:
    """(computation, instruction, times it runs) of all that runs at least once."""
    for name, times in self.times.items():
      for instruction in self.computations[name].values():
        yield name, instruction, times

  def trips(self, loop: Instruction) -> int | None:
    """Turns of a while loop; None if they cannot be told."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
      return int(known.group(1))
    # A counter from zero, below a constant.
    (condition,) = loop.called["condition"]
    limits = [i for i in self.computations[condition].values()
              if i.opcode == "constant" and i.shapes[0].dims == () and i.text.isdigit()]
    below = any("direction=LT" in i.attributes for name in self._reached(condition)
                for i in self.computations[name].values() if i.opcode == "compare")
    return int(limits[0].text) if below and len(limits) == 1 else None

  def _reached(self, computation: str) -> list[str]:
    out = [computation]
    for name in out:
      for instruction in self.computations[name].values():
        out += [c for group in instruction.called.values() for c in group if c not in out]
    return out

  def _walk(self) -> tuple[dict[str, int], list[str]]:
    times, unknown = dict.fromkeys(self.computations, 0), []

    def visit(name, factor):
      times[name] += factor
      for instruction in self.computations[name].values():
        turns = 1
        if instruction.opcode == "while":
          turns = self.trips(instruction)
          if turns is None:
            unknown.append(instruction.name)
            turns = 1
        for group in instruction.called.values():
          for called in group:
            visit(called, factor * turns)

    visit(self.entry, 1)
    return {n: t for n, t in times.items() if t}, unknown


def parse(text: str) -> Module:
  """Reads the text of a module.

  Raises:
    ValueError: there is no entry computation in it, or an instruction's operand is not found.
  """
  computations, entry, current = {}, "", None
  for line in _lines(text):
    if current is None:
      header = _HEADER.match(line)
      if header:
        current = computations.setdefault(header.group(2), {})
        if header.group(1):
          entry = header.group(2)
    elif line.startswith("}"):
      current = None
    else:
      instruction = _instruction(line.strip())
      if instruction:
        current[instruction.name] = instruction
  if not entry:
    raise ValueError("this is not the text of an HLO module: it has no ENTRY computation")
  for name, body in computations.items():
    for instruction in body.values():
      if lost := [operand for operand in instruction.operands if operand not in body]:
        raise ValueError(f"HLO computation {name!r}: {instruction.name} reads {lost[0]!r}, which "
                         "is not there; the compiler writes something that is not understood here")
  return Module(computations, entry)


def backend_config(instruction: Instruction) -> dict:
  """What the compiler's backend notes about an instruction; empty if it notes nothing."""
  _, found, rest = instruction.attributes.partition("backend_config=")
  if not found or not rest.startswith("{"):
    return {}
  try:
    return json.JSONDecoder().raw_decode(rest)[0]
  except json.JSONDecodeError:
    return {}


def _lines(text: str) -> Iterator[str]:
  """The lines of a module; what a kernel says of itself may stand in lines of its own."""
  parts, inside = [], False
  for line in text.splitlines():
    more = inside and not line.startswith((" ", "\t")) and not _END.match(line)
    if not more and parts:
      yield " ".join(parts)
      parts = []
    parts.append(line)
    inside = not _END.match(line) and (inside or bool(_HEADER.match(line)))
  yield " ".join(parts)


def _instruction(line: str) -> Instruction | None:
  root = line.startswith("ROOT ")
  name, equals, rest = line.removeprefix("ROOT ").partition(" = ")
  if not equals:
    return None
  end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
  shapes = tuple(_shapes(rest[:end]))
  opcode, _, _ = (rest := rest[end:].lstrip()).partition("(")
  close = _closing(rest, len(opcode))
  text = rest[len(opcode) + 1:close]
  operands = tuple(_NAME.findall(text)) if opcode != "constant" else ()
  return Instruction(name.lstrip("%"), opcode, shapes, operands, text.strip(),
                     rest[close + 1:].lstrip(", "), root)


def _shapes(text: str) -> Iterator[Shape]:
  for dtype, dims, layout in _SHAPE.findall(text):
    order, _, tiles = layout.partition(":")
    tile = re.search(r"T\(([\d,]+)\)", tiles)
    space = re.search(r"S\((\d+)\)", tiles)
    numbers = lambda s: tuple(int(re.sub(r"\D", "", n)) for n in s.split(",") if n)
    yield Shape(dtype, numbers(dims), numbers(order), numbers(tile.group(1)) if tile else (),
                int(space.group(1)) if space else 0)


def _closing(text: str, start: int) -> int:
  """Position of the parenthesis that closes the one at `start`."""
  depth = 0
  for found in re.compile(r"[()]").finditer(text, start):
    depth += 1 if found.group() == "(" else -1
    if not depth:
      return found.start()
  raise ValueError(f"unbalanced parentheses in the HLO line {text[:200]!r}")
