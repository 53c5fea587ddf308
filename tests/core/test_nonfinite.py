import pytest

from big_vision_ext.core import config as config_lib
from big_vision_ext.core import nonfinite


def policy(name, limit=None, skipped=0, roll_backs=0):
  config = config_lib.Config(task="t", total=config_lib.Duration(9, "steps"), batch_size=1,
                             nan_policy=name, nan_limit=limit)
  return nonfinite.Policy(config, skipped=skipped, roll_backs=roll_backs)


def scalars(skipped, in_row):
  return {"skipped_updates": float(skipped), "skipped_in_row": float(in_row),
          "loss": float("nan"), "grad_norm": 1.0}


def test_finite_updates_are_no_matter():
  for name in nonfinite.LIMITS:
    policy(name).check(5, scalars(0, 0), 0)


def test_stop_ends_at_the_limit_counted_from_the_start_of_this_process():
  with pytest.raises(nonfinite.TrainingError, match="1 update.* by step 5 .*loss nan"):
    policy("stop").check(5, scalars(1, 0), 0)
  policy("stop", 3).check(5, scalars(2, 2), 0)
  with pytest.raises(nonfinite.TrainingError, match="3 update"):
    policy("stop", 3).check(6, scalars(3, 0), 0)
  # Those that an earlier process was allowed to skip do not count.
  policy("stop", skipped=7).check(5, scalars(7, 0), 0)


def test_skip_ends_after_so_many_in_a_row():
  policy("skip").check(5, scalars(500, 99), 0)
  with pytest.raises(nonfinite.TrainingError, match="the last 4 updates were all not finite"):
    policy("skip", 4).check(5, scalars(4, 4), 0)


def test_roll_back_goes_on_with_the_next_batch_and_ends_after_so_many():
  with pytest.raises(nonfinite.RollBackError, match="roll-back 1 of 3") as error:
    policy("roll_back").check(5, scalars(2, 0), passed_over=0)
  # Step 5 has taken batch 4 of 0, 1, 2, ...; after earlier roll-backs others.
  assert (error.value.next_batch, error.value.count) == (5, 1)
  with pytest.raises(nonfinite.RollBackError) as error:
    policy("roll_back", roll_backs=1).check(5, scalars(2, 0), passed_over=3)
  assert (error.value.next_batch, error.value.count) == (8, 2)
  with pytest.raises(nonfinite.TrainingError, match="after 3 roll-backs"):
    policy("roll_back", roll_backs=3).check(5, scalars(1, 1), passed_over=3)
  assert policy("roll_back", roll_backs=2).metrics() == {"roll_backs": 2}
