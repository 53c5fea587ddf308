"""How much does a compiled program compute, and how much does it read and write in main memory?

Counted over the scheduled instructions, as often as the loops around them turn. An instruction
reads its operands and writes its results once, where these lie in main memory and not on the
chip. Of an operand of which a fusion takes a slice or gathers rows, only these count, and of an
array updated in place only the update. XLA's own `cost_analysis` counts a loop's body once.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

from big_vision_ext.planning import hlo

# These move nothing, or are counted where they start.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
         "opt-barrier", "while", "conditional", "call", "partition-id", "replica-id",
         "copy-done", "slice-done", "async-done", "async-update", "all-gather-done",
         "all-reduce-done", "collective-permute-done", "send-done", "recv-done", "domain"}
_KERNEL = 'custom_call_target="tpu_custom_call"'
_PART = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Of one device in a step.

  Attributes:
    flops: multiplications and additions in matrix products and convolutions, kernels not included.
    hbm_bytes: read from and written to main memory.
    cycles: the compiler's own estimate of the instructions it estimates; kernels are not among
      them.
    kernels: name of each hand-written kernel -> how often it runs.
  """

  flops: int
  hbm_bytes: int
  cycles: int
  kernels: dict[str, int]


def count(module: hlo.Module) -> Traffic:
  """Sums a program up."""
  flops = moved = cycles = 0
  kernels = {}
  for name, instruction, times in module.instructions():
    body = module.computations[name]
    if instruction.opcode in ("convolution", "dot"):
      flops += times * instruction_flops(instruction, body)
    if name not in module.scheduled or instruction.opcode in _FREE:
      continue
    moved += times * moved_bytes(instruction, body, module)
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    cycles += times * int(found.group(1)) if found else 0
    if _KERNEL in instruction.attributes:
      kernels[kernel_name(instruction)] = kernels.get(kernel_name(instruction), 0) + times
  return Traffic(flops, moved, cycles, kernels)


def instruction_flops(instruction: hlo.Instruction, body: dict[str, hlo.Instruction]) -> int:
  """FLOPs of a product or convolution; positions outside of the padded input do not count."""
  left, right = (body[name].shapes[0] for name in instruction.operands[:2])
  out = instruction.shapes[0]
  if instruction.opcode == "dot":
    over = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes).group(1)
    return 2 * math.prod(out.dims) * math.prod(left.dims[int(i)] for i in over.split(",") if i)
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
  spatial = [c for c in labels[2] if c.isdigit()]
  window = _window(instruction.attributes, len(spatial))
  pairs = 1
  for i, label in enumerate(spatial):
    sizes = (left.dims[labels[0].index(label)], right.dims[labels[1].index(label)],
             out.dims[labels[2].index(label)])
    pairs *= _valid_pairs(*sizes, **{k: v[i] for k, v in window.items()})
  rest = math.prod(n for n, c in zip(out.dims, labels[2]) if not c.isdigit())
  # The kernel's input features are those of one group already; a batch group divides the batch.
  return 2 * rest * pairs * right.dims[labels[1].index("i")]


def moved_bytes(instruction: hlo.Instruction, body: dict[str, hlo.Instruction],
                module: hlo.Module) -> int:
  """Bytes that one run of a scheduled instruction reads and writes in main memory."""
  operands = [body[name] for name in instruction.operands if name in body]
  if instruction.opcode == "fusion":
    return _fusion_bytes(instruction, operands, module)
  if instruction.opcode in _PART:
    return 2 * _main(instruction) if operands and _main(operands[0]) else _main(instruction)
  if instruction.opcode == "dynamic-update-slice":
    return 2 * operands[1].bytes if _main(instruction) else _main(operands[1])
  if instruction.opcode in ("copy-start", "slice-start", "async-start"):
    # The result is a tuple of destination, source and a token: each end counts if in main memory.
    out = instruction.shapes[0]
    size = out.bytes
    source = operands[0].shapes[0] if operands else out
    return (size if out.space == 0 else 0) + (size if source.space == 0 else 0)
  return _main(instruction) + sum(map(_main, operands))


def kernel_name(instruction: hlo.Instruction) -> str:
  """What a hand-written kernel is called."""
  found = re.search(r'kernel_name[\\"=: ]+([\w.\-]+)', instruction.attributes)
  return found.group(1) if found else instruction.op_name.rpartition("/")[2] or instruction.name


def _fusion_bytes(instruction, operands, module) -> int:
  (called,) = instruction.called["calls"]
  inside = module.computations[called]
  total = 0
  for index, operand in enumerate(operands):
    if _main(operand):
      total += min(_read(called, index, module), operand.bytes)
  roots = _results(module.root(called), inside)
  for shape, root in zip(instruction.shapes, roots):
    if shape.space == 0:
      updated = _through(root, inside)
      whole = updated.opcode != "dynamic-update-slice"
      total += shape.bytes if whole else inside[updated.operands[1]].bytes
  return total


def _read(computation, index, module) -> float:
  """Bytes of its parameter `index` that a fused computation looks at; infinite for all of them."""
  inside = module.computations[computation]
  names = [i.name for i in inside.values() if i.opcode == "parameter" and i.text == str(index)]
  total = 0
  # A bitcast is the parameter under another name; the list grows while it is walked.
  for name in names:
    for user in inside.values():
      if name not in user.operands:
        continue
      if user.opcode in _PART and user.operands[0] == name:
        total += user.bytes
      elif user.opcode == "fusion":
        (called,) = user.called["calls"]
        total += sum(_read(called, i, module) for i, o in enumerate(user.operands) if o == name)
      elif user.opcode == "bitcast":
        names.append(user.name)
      elif user.opcode != "dynamic-update-slice" or user.operands[0] != name:
        return math.inf
  return total


def _results(root, inside) -> Iterator[hlo.Instruction]:
  return [inside[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _through(instruction, inside):
  while instruction.opcode == "bitcast" and instruction.operands[0] in inside:
    instruction = inside[instruction.operands[0]]
  return instruction


def _main(instruction) -> int:
  return sum(s.bytes for s in instruction.shapes if s.space == 0)


def _window(attributes: str, dims: int) -> dict[str, list]:
  found = re.search(r"window=\{([^}]*)\}", attributes)
  given = dict(part.split("=") for part in found.group(1).split()) if found else {}
  number = lambda key, default: [int(n) for n in given[key].split("x")] if key in given else (
    [default] * dims)
  pads = given["pad"].split("x") if "pad" in given else ["0_0"] * dims
  return {
    "stride": number("stride", 1), "low": [int(p.split("_")[0]) for p in pads],
    "lhs_dilate": number("lhs_dilate", 1), "rhs_dilate": number("rhs_dilate", 1),
  }


def _valid_pairs(n_in, n_kernel, n_out, stride, low, lhs_dilate, rhs_dilate) -> int:
  """(output, kernel) positions of one axis that meet an element of the input."""
  at = np.arange(n_out)[:, None] * stride + np.arange(n_kernel) * rhs_dilate - low
  return int(np.sum((at >= 0) & (at % lhs_dilate == 0) & (at // lhs_dilate < n_in)))
