"""The compiler's messages about memory are understood."""

import pytest

from big_vision_ext.planning import hlo, memory, topologies

REFUSED = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total \
memory required for HLO temporaries (105.32G) exceeds available HBM (15.75G). HLO module: jit_step.
See https://openxla.org/xla/errors/error_1000 for more details."""


def test_a_refusal_says_how_much_is_needed_with_what_the_program_starts_from():
  error = memory.read_failure(REFUSED, 16.0, arguments_gib=1.5)
  assert isinstance(error, memory.DoesNotFit)
  assert (error.needed_gib, error.hbm_gib) == (pytest.approx(106.82), 15.75)
  assert "91.07 too many" in str(error)


def test_another_failure_of_the_compiler_is_no_lack_of_memory():
  error = memory.read_failure("INTERNAL: something broke", 16.0, 1.0)
  assert isinstance(error, topologies.PlanError) and "something broke" in str(error)


def test_lack_of_memory_without_a_number_is_still_told():
  error = memory.read_failure("RESOURCE_EXHAUSTED: no more", 16.0, 1.0)
  assert isinstance(error, topologies.PlanError) and "does not fit into 16.00 GiB" in str(error)


def test_the_largest_arrays_are_those_in_main_memory_tiles_filled_up():
  text = '''HloModule m, is_scheduled=true

ENTRY %main (p: f32[1024,3]) -> f32[1024,3] {
  %p = f32[1024,3]{1,0:T(8,128)} parameter(0), metadata={op_name="batch"}
  %on_chip = f32[4096,1024]{1,0:T(8,128)S(1)} broadcast(%p)
  %big = f32[2048,1024]{1,0:T(8,128)} broadcast(%p), metadata={op_name="jit(step)/img/big"}
  ROOT %out = f32[1024,3]{0,1:T(8,128)} negate(%p)
}
'''
  found = memory.largest(hlo.parse(text), at_least=1000)
  assert [b.shape for b in found] == ["f32[2048,1024]", "f32[1024,3]", "f32[1024,3]"]
  assert found[0].gib == 2**-7 and found[0].what == "img/big" and found[0].padding_gib == 0
  # Three of 128 lanes are used; turned round, three of eight rows.
  assert found[1].gib == 1024 * 128 * 4 / 2**30 and found[2].gib == 1024 * 8 * 4 / 2**30
  (line,) = memory.table(found[1:2])
  assert "fill tiles up" in line
