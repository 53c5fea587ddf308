"""Products and bytes are counted as often as they happen, loops included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.planning import hlo, traffic
from tests.planning import programs


def _compiled(f, *shapes):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return jax.jit(f).lower(*args).compile()


def test_products_in_a_loop_count_every_turn():
  # Two products of (8, 16) with (16, 32) and back.
  assert traffic.count(hlo.parse(programs.text())).flops == programs.TURNS * 2 * 2 * 8 * 16 * 32


def test_a_loop_of_blocks_costs_as_much_as_the_blocks_written_out():
  def scanned(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  def written_out(x, w):
    for i in range(6):
      x = jnp.tanh(x @ w[i])
    return x

  a, b = (hlo.parse(_compiled(f, (32, 48), (6, 48, 48)).as_text()) for f in (scanned, written_out))
  assert traffic.count(a).flops == traffic.count(b).flops == 6 * 2 * 32 * 48 * 48
  # A turn reads its own weights, not all of them.
  assert traffic.count(a).hbm_bytes < 2 * traffic.count(b).hbm_bytes


@pytest.mark.parametrize("stride, padding, dilation", [
  ((1, 1), "VALID", (1, 1)), ((2, 2), "SAME", (1, 1)), ((3, 2), "SAME", (1, 2)),
  ((4, 4), "VALID", (1, 1))])
def test_a_convolutions_products_with_padding_do_not_count(stride, padding, dilation):
  x, kernel = (2, 13, 10, 3), (4, 5, 3, 8)

  def convolve(x, k):
    return jax.lax.conv_general_dilated(
      x, k, stride, padding, rhs_dilation=dilation, dimension_numbers=("NHWC", "HWIO", "NHWC"))

  module = hlo.parse(_compiled(convolve, x, kernel).as_text())
  found = [(module.computations[c], i) for c, i, _ in module.instructions()
           if i.opcode == "convolution"]
  assert found, "this compiler has turned the convolution into something else"
  counted = sum(traffic.instruction_flops(i, body) for body, i in found)
  # Convolving ones counts, at every output, the products that meet the image.
  meets = np.sum(np.asarray(convolve(jnp.ones(x), jnp.ones(kernel))))
  assert counted == 2 * int(meets)


def test_bytes_are_those_of_operands_and_results_in_main_memory():
  text = '''HloModule m, is_scheduled=true

%fused (a: f32[10,128], i: s32[]) -> f32[1,128] {
  %a = f32[10,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,128]{1,0} dynamic-slice(%a, %i, %zero), dynamic_slice_sizes={1,128}
  ROOT %neg = f32[1,128]{1,0} negate(%row)
}

%update (a.1: f32[10,128], row.1: f32[1,128], i.1: s32[]) -> f32[10,128] {
  %a.1 = f32[10,128]{1,0} parameter(0)
  %row.1 = f32[1,128]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  ROOT %new = f32[10,128]{1,0} dynamic-update-slice(%a.1, %row.1, %i.1, %zero.1)
}

ENTRY %main (p: f32[10,128], i.2: s32[]) -> f32[10,128] {
  %p = f32[10,128]{1,0} parameter(0)
  %i.2 = s32[] parameter(1)
  %taken = f32[1,128]{1,0:T(8,128)S(1)} fusion(%p, %i.2), kind=kLoop, calls=%fused
  ROOT %put = f32[10,128]{1,0} fusion(%p, %taken, %i.2), kind=kLoop, calls=%update
}
'''
  module = hlo.parse(text)
  body = module.computations["main"]
  # A row of 512 bytes is read; the result stays on the chip. The index is four bytes.
  assert traffic.moved_bytes(body["taken"], body, module) == 512 + 4
  # The row is on the chip already; one row of the array is written in place.
  assert traffic.moved_bytes(body["put"], body, module) == 512 + 4
