import threading
import time

import pytest

from big_vision_ext.core import exit_codes, watchdog


class Left(Exception):
  pass


@pytest.fixture
def leave():
  """Stands for the end of the process: remembers the code."""
  done = threading.Event()

  def leave(code):
    leave.codes.append(code)
    done.set()
  leave.codes, leave.wait = [], done.wait
  return leave


def test_a_stall_leaves_with_the_code_for_restarts_and_the_stacks(tmp_path, capfd, leave):
  with watchdog.Watchdog(0.2, tmp_path, leave) as dog:
    dog.beat("working on step 7")
    assert leave.wait(30)
  assert leave.codes == [exit_codes.RESTART]
  for text in ((tmp_path / "stacks_0.txt").read_text(), capfd.readouterr().err):
    assert "STALLED: process 0 has been working on step 7" in text
    assert "config.stall_seconds=0.2" in text
    assert "test_a_stall_leaves_with_the_code" in text  # where this thread is


def test_signs_of_life_and_patience_keep_it_quiet(tmp_path, leave):
  # A loaded machine may stand still for a second.
  with watchdog.Watchdog(2.5, tmp_path, leave) as dog:
    for step in range(6):
      dog.beat(f"working on step {step}")
      time.sleep(0.5)
    with dog.patient("evaluating"):
      time.sleep(3.0)
  assert not leave.codes and not list(tmp_path.iterdir())


def test_nothing_is_watched_without_a_limit_nor_after_the_end(tmp_path, leave):
  before = threading.active_count()
  with watchdog.Watchdog(None, tmp_path, leave):
    assert threading.active_count() == before
  with watchdog.Watchdog(0.1, tmp_path, leave):
    pass
  time.sleep(0.4)
  assert not leave.codes


def test_a_run_that_failed_and_is_closed_leaves_the_process_alone(tmp_path, leave):
  """As after a roll-back, or in a program that goes on to something else."""
  dog = watchdog.Watchdog(0.2, tmp_path, leave)
  with pytest.raises(Left), dog:
    raise Left("no space")
  dog.stop()
  assert not leave.wait(1.0)


def test_a_hanging_clean_up_after_an_error_is_ended_too(tmp_path, leave, capfd):
  with pytest.raises(Left), watchdog.Watchdog(0.2, tmp_path, leave):
    raise Left("no space")
  assert leave.wait(30)
  assert "closing after Left: no space" in capfd.readouterr().err
