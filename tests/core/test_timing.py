import types

import jax
import pytest

from big_vision_ext.core import timing


@pytest.fixture
def clock_time(monkeypatch):
  """A clock that is moved by hand."""
  now = types.SimpleNamespace(value=1000.0)
  fake = types.SimpleNamespace(perf_counter=lambda: now.value, time=lambda: now.value + 5e8)
  monkeypatch.setattr(timing, "time", fake)
  return now


def test_time_is_split_into_steps_waiting_and_other_things(clock_time):
  clock = timing.Clock(step=10, batch_size=16, total_steps=100)
  clock_time.value += 40  # set-up
  clock.start()
  for _ in range(4):
    with clock.waiting():
      clock_time.value += 1
    clock_time.value += 4
  with clock.pause():
    clock_time.value += 20  # an evaluation
  report = clock.report(14)
  assert report["time/step"] == pytest.approx(5)
  assert report["time/data_wait"] == pytest.approx(1)
  assert report["time/examples_per_second_per_chip"] == pytest.approx(16 / 5 / jax.device_count())
  assert report["time/goodput"] == pytest.approx(20 / 80)
  assert "time/mfu" not in report  # a CPU's peak is not known
  assert clock.pace(14) == (pytest.approx(16 / 5), pytest.approx(5 * 86))


def test_goodput_goes_on_over_restarts_and_does_not_count_lost_steps(clock_time):
  clock = timing.Clock(step=0, batch_size=1, total_steps=10)
  clock.start()
  clock_time.value += 30
  saved = clock.state()
  clock_time.value += 50  # steps after the checkpoint, then killed, then started again
  clock = timing.Clock(step=3, batch_size=1, total_steps=10, **saved)
  clock.start()
  clock_time.value += 20
  assert clock.report(5)["time/goodput"] == pytest.approx((30 + 20) / 100)
  assert clock.report(5)["time/step"] == 0  # nothing happened since the report before


def test_mfu_is_model_flops_over_peak_where_the_peak_is_known(clock_time, monkeypatch):
  monkeypatch.setattr(timing.flops, "peak", lambda kind: 1e6)
  clock = timing.Clock(step=0, batch_size=16, total_steps=10, flops_per_example=1000.0)
  clock.start()
  clock_time.value += 2
  assert clock.report(1)["time/mfu"] == pytest.approx(1000 * 8 / jax.device_count() / 1e6)


def test_the_pace_is_unknown_before_the_first_step(clock_time):
  assert timing.Clock(step=0, batch_size=1, total_steps=10).pace(0) is None
