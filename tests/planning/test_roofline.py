"""The roofline is the longest of three times, and MFU counts the model's own FLOPs."""

import pytest

from big_vision_ext.planning import collectives, roofline, traffic
from tests.planning import pods


def _roofline(flops=10**12, kernel=0, moved=10**9, seconds=0.001, model=4 * 10**12):
  exchange = collectives.Collective("all-gather", ("fsdp",), 4, 1, 1, 1, seconds)
  return roofline.roofline(
    model_flops=model, batch_size=64, topology=pods.pod((2, 2)),
    moved=traffic.Traffic(flops, moved, 0, {}), kernel_flops=kernel, exchanges=[exchange])


def test_each_time_is_the_count_over_the_chips_speed():
  r = _roofline(flops=197 * 10**12 // 2, kernel=197 * 10**12 // 2, moved=819 * 10**9 // 4,
                seconds=0.5)
  assert (r.compute_seconds, r.hbm_seconds, r.interconnect_seconds) == (1.0, 0.25, 0.5)
  assert r.bound == "compute" and r.step_seconds == 1.0 and r.serial_seconds == 1.75
  assert r.examples_per_second == 64


@pytest.mark.parametrize("bound, counts", [
  ("compute", dict(flops=10**15)), ("hbm", dict(moved=10**14)),
  ("interconnect", dict(seconds=10.0))])
def test_the_bound_is_the_longest(bound, counts):
  r = _roofline(**counts)
  assert r.bound == bound and r.step_seconds == getattr(r, f"{bound}_seconds")


def test_a_program_that_computes_what_the_model_needs_and_no_more_may_reach_the_peak():
  share = 10**12
  r = _roofline(flops=share, moved=0, seconds=0.0, model=4 * share)
  assert r.mfu_ceiling == pytest.approx(1.0)
  again = _roofline(flops=share * 4 // 3, moved=0, seconds=0.0, model=4 * share)
  assert again.mfu_ceiling == pytest.approx(0.75)
