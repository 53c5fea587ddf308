"""What does a person, or a program, learn from a plan?"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from big_vision_ext.planning import (
  advice,
  collectives,
  hlo,
  memory,
  roofline,
  search,
  traced,
  traffic,
)
from big_vision_ext.planning.program import Step


def facts(step: Step) -> dict[str, Any]:
  """What is known before anything is compiled."""
  params = sum(math.prod(s.shape) for s in jax.tree.leaves(step.shapes["params"]))
  host = sum(math.prod(s.shape) * s.dtype.itemsize for s in step.batch.values())
  chip = step.topology.chip
  return {
    "topology": step.topology.name,
    "slices": step.topology.slices,
    "chip": chip.name,
    "chips": step.chips,
    "hosts": step.topology.hosts,
    "mesh": dict(step.mesh.shape),
    "parameters": params,
    "batch_size": step.config.batch_size,
    "accum_steps": step.config.optim.accum_steps,
    "batch_per_chip": step.batch_per_chip,
    "hbm_gib": chip.hbm_gib,
    "state_gib": step.state_gib(),
    "host_input_bytes_per_step": host // step.topology.hosts,
    "chip_input_gib": step.input_gib(),
  }


def too_large(step: Step, failure: memory.DoesNotFit) -> dict[str, Any]:
  """The report on a program that does not fit."""
  return facts(step) | {
    "fits": False,
    "peak_hbm_gib": failure.needed_gib,
    "hbm_gib": failure.hbm_gib,
    "largest_arrays": [dataclasses.asdict(b) for b in failure.largest or _traced(step)],
    "warnings": [*advice.replicated(step), *advice.narrow_heads(step)],
    "suggested_batch_size": _suggest(step, failure.needed_gib, failure.hbm_gib),
    "step_seconds": None, "mfu_ceiling": None, "examples_per_second": None, "collectives": None,
  }


def fitting(step: Step, compiled: Any, text: str | None = None) -> dict[str, Any]:
  """The report on a compiled program.

  Args:
    step: what was compiled.
    compiled: the program.
    text: its HLO, if at hand.
  """
  module = hlo.parse(text or compiled.as_text())
  exchanges = collectives.find(module, step.mesh, step.topology)
  moved = traffic.count(module)
  per_example = getattr(step.task, "flops_per_example", 0)
  times = roofline.roofline(
    model_flops=per_example * step.config.batch_size, batch_size=step.config.batch_size,
    topology=step.topology, moved=moved, kernel_flops=step.kernel_flops(), exchanges=exchanges)
  peak, out = memory.peak_gib(compiled), facts(step)
  return out | {
    "fits": peak <= out["hbm_gib"],
    "peak_hbm_gib": peak,
    "largest_arrays": [dataclasses.asdict(b) for b in memory.largest(module)],
    "model_flops_per_step": times.model_flops,
    "executed_flops_per_chip": times.executed_flops,
    "hbm_bytes_per_chip": moved.hbm_bytes,
    "compiler_cycles": moved.cycles,
    "kernels": moved.kernels,
    "collectives": [dataclasses.asdict(c) | {"axes": list(c.axes)} for c in exchanges],
    "collective_bytes_per_chip": sum(c.sent_bytes for c in exchanges),
    "compute_seconds": times.compute_seconds,
    "hbm_seconds": times.hbm_seconds,
    "interconnect_seconds": times.interconnect_seconds,
    "bound": times.bound,
    "step_seconds": times.step_seconds,
    "serial_step_seconds": times.serial_seconds,
    "examples_per_second": times.examples_per_second,
    "mfu_ceiling": times.mfu_ceiling,
    "warnings": advice.all_of(step, module),
    "suggested_batch_size": _suggest(step, peak, out["hbm_gib"]),
  }


def lines(report: dict[str, Any]) -> Iterator[str]:
  """A report for people."""
  r = report
  mesh = " x ".join(f"{name} {n}" for name, n in r["mesh"].items())
  slices = f", {r['slices']} slices" if r["slices"] > 1 else ""
  yield (f"{r['parameters'] / 1e6:,.1f} M parameters on {r['chips']} {r['chip']} chips "
         f"({r['topology']}{slices}; {mesh})")
  yield (f"batch {r['batch_size']:,}: {r['batch_per_chip']:g} examples a chip, input "
         f"{r['host_input_bytes_per_step'] / 2**30:.2f} GiB a step for each of {r['hosts']} hosts")
  peak, hbm = r["peak_hbm_gib"], r["hbm_gib"]
  if r["fits"]:
    yield f"fits: {peak:.2f} GiB a chip of {hbm:.2f}, {r['state_gib']:.2f} of it state"
  else:
    yield f"DOES NOT FIT: {peak:.2f} GiB a chip are needed, {peak - hbm:.2f} more than {hbm:.2f}"
  yield "largest arrays of a chip:"
  buffers = [memory.Buffer(**b) for b in r["largest_arrays"]]
  yield from (f"  {line}" for line in memory.table(buffers))
  if r["step_seconds"] is not None:
    yield from _speed(r)
  for warning in r["warnings"]:
    yield f"warning: {warning}"
  if "largest_batch" in r:
    yield (f"largest batch that fits, by compiling {len(r['trials'])}: {r['largest_batch']:,}"
           if r["largest_batch"] else "no batch that was tried fits")
  elif r["suggested_batch_size"]:
    yield (f"a batch of about {r['suggested_batch_size']:,} should fit (estimated from this "
           "compile; --largest_batch compiles to make sure)")


def _speed(r) -> Iterator[str]:
  yield "sent between chips, a step and chip:"
  for c in r["collectives"]:
    axes = " x ".join(c["axes"]) or "?"
    payload, sent = c["payload_bytes"] / 2**30, c["sent_bytes"] / 2**30
    yield (f"  {c['kind']:<18} over {axes:<14} {c['count']:>6} times {payload:9.3f} GiB payload "
           f"{sent:9.3f} GiB sent {c['seconds']:9.4f} s")
  yield (f"a step: {r['model_flops_per_step'] / 1e15:,.2f} PFLOP by the model's formula, "
         f"{r['executed_flops_per_chip'] * r['chips'] / 1e15:,.2f} as compiled")
  yield (f"roofline: compute {r['compute_seconds']:.3f} s, HBM {r['hbm_seconds']:.3f} s "
         f"({r['hbm_bytes_per_chip'] / 2**30:,.0f} GiB), interconnect "
         f"{r['interconnect_seconds']:.3f} s: bound by {r['bound']}")
  yield (f"at best {r['step_seconds']:.3f} s a step, {r['examples_per_second']:,.0f} examples/s, "
         f"MFU {r['mfu_ceiling']:.1%}; {r['serial_step_seconds']:.3f} s if nothing overlaps")


def _suggest(step: Step, gib: float, hbm_gib: float) -> int:
  """The batch that should fit, by the estimate from one program; 0 if none does."""
  rows = step.config.batch_size // (step.mesh.shape["data"] * step.mesh.shape["fsdp"])
  found = search.estimate(rows, gib, fixed_gib(step), hbm_gib)
  per = step.config.optim.accum_steps
  return found // per * per * (step.config.batch_size // rows)


def fixed_gib(step: Step) -> float:
  """Memory that does not depend on the batch: the state, and gradients like one of its moments."""
  return step.state_gib() * 4 / 3


def _traced(step: Step) -> list[memory.Buffer]:
  pieces = step.mesh.shape["data"] * step.mesh.shape["fsdp"]
  rows = step.config.batch_size // step.config.optim.accum_steps
  return traced.largest(step.traced.jaxpr, rows, pieces)
