"""The text of a program is read as the compiler meant it."""

import pytest

from big_vision_ext.planning import hlo
from tests.planning import programs

LINES = '''HloModule jit_step, is_scheduled=true

%below.1 (state: (s32[], f32[8])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  %limit = s32[]{:T(128)} constant(27)
  ROOT %go.on = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%body.1 (state.1: (s32[], f32[8])) -> (s32[], f32[8]) {
  %state.1 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  ROOT %same = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%state.1)
}

ENTRY %main.9_spmd (p: f32[8], /*index=1*/q: bf16[3,100]) -> f32[8] {
  %p = f32[8]{0:T(128)} parameter(0), metadata={op_name="state[\\'params\\'][\\'a\\']"}
  %q = bf16[3,100]{0,1:T(8,128)(2,1)S(1)} parameter(1)
  %loop = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%p), condition=%below.1, body=%body.1
  ROOT %out = f32[8]{0:T(128)} get-tuple-element(%loop), index=1, metadata={op_name="a/b" x=1}
}
'''


def test_shapes_have_layout_tiles_and_the_memory_they_lie_in():
  module = hlo.parse(LINES)
  assert module.entry == "main.9_spmd"
  (q,) = module.computations[module.entry]["q"].shapes
  assert (q.dtype, q.dims, q.layout, q.tile, q.space) == ("bf16", (3, 100), (0, 1), (8, 128), 1)
  # 100 rows of 3 in tiles of 8 x 128: 104 x 128 elements of two bytes.
  assert q.bytes == 600 and q.padded_bytes == 104 * 128 * 2


def test_names_that_contain_quotes_are_read():
  module = hlo.parse(LINES)
  assert module.computations[module.entry]["p"].op_name == "state[\\'params\\'][\\'a\\']"


def test_the_turns_of_a_loop_are_found_in_its_condition_where_the_compiler_does_not_say_them():
  module = hlo.parse(LINES)
  assert module.times["body.1"] == 27 and not module.unknown_loops


def test_a_loop_of_unknown_length_is_reported():
  module = hlo.parse(LINES.replace("direction=LT", "direction=NE"))
  assert module.unknown_loops == ["loop"] and module.times["body.1"] == 1


def test_the_turns_that_the_compiler_writes_down_are_used():
  module = hlo.parse(programs.text())
  loops = [(i, n) for _, i, n in module.instructions() if i.opcode == "while"]
  assert [module.trips(i) for i, _ in loops] == [programs.TURNS]
  (body,) = loops[0][0].called["body"]
  assert module.times[body] == programs.TURNS


def test_what_is_not_hlo_is_refused():
  with pytest.raises(ValueError, match="no ENTRY"):
    hlo.parse("module @jit_step {}")


def test_what_a_kernel_says_of_itself_in_lines_of_its_own_ends_no_computation():
  module = hlo.parse('''HloModule kernels

%body (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %kernel = f32[8]{0} custom-call(%a), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 384}"
}}, metadata={op_name="jit(f)/splash"}
  ROOT %out = f32[8]{0} add(%kernel, %a)
}, execution_thread="main"

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  ROOT %call = f32[8]{0} call(%x), to_apply=%body
}
''')
  assert list(module.computations["body"]) == ["a", "kernel", "out"]
  assert module.root("body").name == "out"
  assert module.computations["body"]["kernel"].op_name == "jit(f)/splash"
  assert module.times == {"body": 1, "main": 1}


def test_text_of_which_something_was_not_understood_is_refused():
  text = "ENTRY %main (x: f32[8]) -> f32[8] {\n  ROOT %out = f32[8]{0} add(%gone, %gone)\n}\n"
  with pytest.raises(ValueError, match="'main': out reads 'gone'"):
    hlo.parse(text)
