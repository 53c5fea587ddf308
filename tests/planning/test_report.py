"""The whole way from a config to a report, on eight simulated devices in place of a pod."""

import json
import math

import jax
import pytest

from big_vision_ext import plan
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import console as console_lib
from big_vision_ext.core import flops
from big_vision_ext.planning import advice, hlo, memory, program, report, topologies, traced

CONFIG = "configs/siglip/b16_224.py:runlocal,batch=16"
MESH = ("mesh.data=2", "mesh.fsdp=4", "min_shard_size=0")


def _topology():
  chip = next(c for c in topologies.CHIPS if c.name == "v5e")
  return topologies.Topology("cpu:2x4", 1, chip, (2, 4), jax.devices())


def _config(*overrides):
  return config_lib.resolve(config_lib.load(CONFIG, [*MESH, *overrides]))


@pytest.fixture(scope="module")
def planned():
  """(step, module, report) of a tiny SigLIP."""
  with pytest.MonkeyPatch.context() as patch:
    # Simulated devices stand nowhere: all links are alike.
    patch.setattr(topologies, "links", lambda topology, group: (topology.chip.link_bytes, 1))
    step = program.lay_out(_config(), _topology())
    compiled = step.compile()
    text = compiled.as_text()
    return step, hlo.parse(text), report.fitting(step, compiled, text)


def test_a_report_has_what_other_programs_read(planned):
  out = json.loads(json.dumps(planned[2]))
  assert out["fits"] is True and 0 < out["peak_hbm_gib"] < out["hbm_gib"] == 15.75
  assert out["chips"] == 8 and out["batch_per_chip"] == 2
  assert out["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
  assert out["examples_per_second"] == pytest.approx(16 / out["step_seconds"])
  assert out["host_input_bytes_per_step"] == 16 * (32 * 32 * 3 + 16 * 4 + 4 * 4 + 1)
  for key in ("kind", "axes", "count", "payload_bytes", "sent_bytes"):
    assert all(key in c for c in out["collectives"])


def test_parameters_are_gathered_over_fsdp_and_gradients_summed_over_both_axes(planned):
  over = {(c["kind"], tuple(c["axes"])) for c in planned[2]["collectives"]}
  assert ("all-gather", ("fsdp",)) in over
  assert any("data" in axes and kind == "all-reduce" for kind, axes in over)


def test_flops_are_those_of_the_formula_and_what_was_compiled_is_near_them(planned):
  step, _, out = planned
  assert out["model_flops_per_step"] == step.task.flops_per_example * 16
  executed = out["executed_flops_per_chip"] * 8
  # Nothing is recomputed in this config. The formula leaves out the loss and takes both operands'
  # gradients of the patches, of which the compiler needs one.
  assert executed == pytest.approx(out["model_flops_per_step"], rel=0.12)
  assert out["mfu_ceiling"] == pytest.approx(
    out["model_flops_per_step"] / (out["step_seconds"] * 8 * flops.peak("TPU v5 lite")))


def test_a_report_for_people_says_what_the_numbers_are(planned):
  text = "\n".join(report.lines(planned[2]))
  for part in ("parameters on 8 v5e chips", "2 examples a chip", "fits: ", "largest arrays",
               "all-gather", "over fsdp", "roofline: compute", "bound by", "MFU", "should fit"):
    assert part in text


def test_state_is_counted_as_it_is_cut(planned):
  step = planned[0]
  params = sum(math.prod(s.shape) for s in jax.tree.leaves(step.shapes["params"]))
  # Parameters and two moments in float32, a quarter on each device; what is not cut is small.
  assert step.state_gib() * 2**30 == pytest.approx(3 * 4 * params / 4, rel=0.05)


def test_narrow_heads_are_told():
  step = program.lay_out(_config(), _topology())
  found = list(advice.narrow_heads(step))
  assert any("heads of 16 fill 12% of a 128-wide" in line for line in found)


def test_a_large_parameter_that_no_axis_divides_is_told(monkeypatch):
  monkeypatch.setattr(advice, "_LARGE_BYTES", 2**20)
  kept = list(advice.replicated(program.lay_out(_config("min_shard_size=100000000"), _topology())))
  assert any("txt/Embed_0/embedding (32000, 32)" in line and "whole on every chip" in line
             for line in kept)
  assert not list(advice.replicated(program.lay_out(_config(), _topology())))


def test_activations_with_all_rows_of_the_batch_are_told(planned, monkeypatch):
  monkeypatch.setattr(advice, "_LARGE_BYTES", 1000)
  step, module, _ = planned
  whole = hlo.Instruction("x", "negate", (hlo.Shape("f32", (16, 64, 8)),), (), "",
                          'metadata={op_name="jit(step)/img/mlp"}')
  module.computations[module.entry]["x"] = whole
  found = list(advice.unsharded(step, module))
  del module.computations[module.entry]["x"]
  assert any("img/mlp f32[16,64,8]" in line and "where 2 would be" in line for line in found)


def test_a_program_that_does_not_fit_is_reported_with_its_largest_arrays():
  step = program.lay_out(_config(), _topology())
  out = report.too_large(step, memory.DoesNotFit(40.0, 15.75, []))
  text = "\n".join(report.lines(out))
  assert "DOES NOT FIT: 40.00 GiB a chip are needed, 24.25 more than 15.75" in text
  # The embedding's table has a whole vocabulary's rows, of which the batch has none.
  assert any("32000,32" in b["shape"] for b in out["largest_arrays"])
  assert json.loads(json.dumps(out))["fits"] is False


def test_traced_arrays_are_cut_as_the_batch_is():
  step = program.lay_out(_config(), _topology())
  found = {b.shape: b for b in traced.largest(step.traced.jaxpr, 16, 8, count=200)}
  assert found["f32[2,32,32,3]"].gib == 2 * 32 * 32 * 3 * 4 / 2**30
  assert not any(shape.startswith("f32[16,32,32,3") for shape in found)


def test_the_search_compiles_other_batches_and_says_which_fits(monkeypatch):
  monkeypatch.setattr(topologies, "links", lambda topology, group: (1e9, 1))
  monkeypatch.setattr(memory, "peak_gib", lambda compiled: 4.0 + 0.7 * compiled)
  monkeypatch.setattr(report, "fitting", lambda step, compiled, text: report.facts(step) | {
    "fits": True, "peak_hbm_gib": memory.peak_gib(compiled)})

  class Program(float):
    as_text = lambda self: ""

  monkeypatch.setattr(program.Step, "compile", lambda self: Program(self.batch_per_chip))
  out = plan.plan(_config(), _topology(), console_lib.Console(quiet=True), search_batch=True)
  # 4 + 0.7 * 16 = 15.2 GiB, and 17 rows are too many.
  assert out["largest_batch"] == 16 * 8
  assert all(t["fits"] == (t["peak_hbm_gib"] <= 15.75) for t in out["trials"])
