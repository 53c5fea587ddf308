import math

import numpy as np
import pytest

from big_vision_ext.core import config, schedules
from big_vision_ext.core.config import ConfigError


def values(total=100, **settings):
  schedule = config.build(config.Schedule, settings, "config.schedule")
  factor = schedules.make(schedule, total_steps=total, batch_size=8, epoch_examples=80)
  return np.array([float(factor(t)) for t in range(total)])


def close(got, want):
  # float32 arithmetic against float64: a few units in the last place.
  np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)


def test_warm_up_rises_linearly_and_the_first_step_already_learns():
  close(values(type="constant", warmup_steps=10),
        [min(1, (t + 1) / 10) for t in range(100)])
  close(values(type="constant", warmup_epochs=1)[:10], np.arange(1, 11) / 10)


def test_cosine_goes_from_one_to_its_end():
  close(values(type="cosine", end=0.1),
        [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * t / 100)) for t in range(100)])
  got = values(type="cosine", warmup_percent=20)
  close(got[20:], [0.5 * (1 + math.cos(math.pi * (t - 20) / 80)) for t in range(20, 100)])


def test_linear_goes_straight():
  close(values(type="linear", end=0.5), [1 - 0.5 * t / 100 for t in range(100)])


def test_rsqrt_falls_with_its_timescale_from_the_warm_up_on():
  got = values(type="rsqrt", warmup_steps=10, timescale_examples=160)
  close(got[10:], [1 / math.sqrt(1 + (t - 10) / 20) for t in range(10, 100)])


def test_cool_down_is_multiplied_onto_the_end():
  whole = values(type="rsqrt", timescale_steps=20)
  cooled = values(type="rsqrt", timescale_steps=20, cooldown_steps=25)
  close(cooled[:75], whole[:75])
  close(cooled[75:], whole[75:] * (100 - np.arange(75, 100)) / 25)


def test_a_run_may_have_more_steps_than_an_int32_holds():
  schedule = config.build(config.Schedule, {"type": "linear", "cooldown_steps": 100}, "c")
  factor = schedules.make(schedule, total_steps=2_500_000_000, batch_size=8)
  assert float(factor(1_250_000_000)) == pytest.approx(0.5)


def test_a_rate_may_stand_still_for_an_epoch():
  """UniQA's: stepped once an epoch, 2e-4 over 20 epochs, 1.910e-5 in the one after 16."""
  examples = 8058  # KonIQ's training part: its epochs end within a batch of 8.
  schedule = config.build(config.Schedule, {"type": "cosine", "every_epochs": 1}, "c")
  factor = schedules.make(schedule, total_steps=round(20 * examples / 8), batch_size=8,
                          epoch_examples=examples)
  for step in (0, 1007, 1008, 16116, 16117, 17123, 17124, 20144):
    epoch = step * 8 // examples
    want = 1e-4 * (1 + math.cos(math.pi * epoch / 20))
    # The run has 20,145 steps, its 20 epochs 20,145.0: no further error than float32's.
    assert 2e-4 * float(factor(step)) == pytest.approx(want, rel=1e-5), step
  assert f"{2e-4 * float(factor(16117)):.3e}" == "1.910e-05"


@pytest.mark.parametrize("settings,message", [
    ({"warmup_steps": 80, "cooldown_steps": 21}, "do not fit into a run of 100 steps"),
    ({"type": "cosine", "timescale_steps": 5}, "timescale is of rsqrt"),
    ({"type": "rsqrt", "end": 0.1}, "end is of cosine and linear"),
    ({"end": 2.0}, "config.schedule.end=2.0"),
    ({"type": "cosin"}, "did you mean 'cosine'"),
])
def test_a_schedule_that_cannot_be_is_an_error(settings, message):
  with pytest.raises(ConfigError, match=message):
    values(**settings)
