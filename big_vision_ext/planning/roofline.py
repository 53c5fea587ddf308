"""How fast can a program be on a chip, at best?

Three times are taken, each as if nothing else took any: computing, at the chip's dense bfloat16
peak, every product that the compiled program holds (what is recomputed in the backward pass is
among them, and so are heads filled up to a lane's width); moving what it reads and writes in main
memory; and sending what it sends to other chips. The longest is the bound and, with the others
hidden behind it, the predicted step time. The MFU ceiling is the model's own FLOPs (by the formula
of `core.flops`, nothing recomputed) over what the peak would do in that time. A real step is
slower: norms, softmax and activations are not counted, nor is what cannot be overlapped.
"""

import dataclasses
from collections.abc import Sequence

from big_vision_ext.planning import collectives, traffic
from big_vision_ext.planning.topologies import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Times of one step, and what they mean.

  Attributes:
    model_flops: of the whole batch, by formula.
    executed_flops: of one chip, as compiled.
    compute_seconds, hbm_seconds, interconnect_seconds: each by itself.
    bound: which of "compute", "hbm" and "interconnect" is longest.
    step_seconds: the longest.
    serial_seconds: their sum, if nothing overlapped.
    examples_per_second: of all chips.
    mfu_ceiling: 0..1.
  """

  model_flops: int
  executed_flops: int
  compute_seconds: float
  hbm_seconds: float
  interconnect_seconds: float
  bound: str
  step_seconds: float
  serial_seconds: float
  examples_per_second: float
  mfu_ceiling: float


def roofline(*, model_flops: int, batch_size: int, topology: Topology, moved: traffic.Traffic,
             kernel_flops: int, exchanges: Sequence[collectives.Collective]) -> Roofline:
  """Puts counts and speeds together.

  Args:
    model_flops: of the whole batch, forward and backward.
    batch_size: examples of a step.
    topology: the pod.
    moved: what one chip computes and moves.
    kernel_flops: what it computes in hand-written kernels.
    exchanges: what it sends.
  """
  chip = topology.chip
  executed = moved.flops + kernel_flops
  times = {
    "compute": executed / chip.peak,
    "hbm": moved.hbm_bytes / chip.hbm_bytes,
    "interconnect": sum(c.seconds for c in exchanges),
  }
  bound = max(times, key=times.get)
  step = times[bound]
  return Roofline(
    model_flops, executed, *times.values(), bound, step, sum(times.values()), batch_size / step,
    model_flops / (step * len(topology.devices) * chip.peak))
