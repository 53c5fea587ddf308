"""What can be said of one process alone; tests/launch has several."""

import os
import signal

import jax
import numpy as np
import pytest

from big_vision_ext.core import config as config_lib
from big_vision_ext.core import exit_codes, processes, sharding, stopping


def test_one_process_tells_itself_at_once():
  exchange = processes.Exchange(sharding.make_mesh(config_lib.Mesh()))
  for values in ([0, 5.7, 3], [15, 2**40, 3]):
    told, known = exchange.tell(values)
    assert told is known
    np.testing.assert_array_equal(
        known.rows(), [[values[0], min(int(values[1]), 2**31 - 1), values[2]]])
  np.testing.assert_array_equal(processes.gather([1, 2]), [[1, 2]])


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_signal_is_noted_and_handlers_are_put_back(number):
  before = signal.getsignal(number)
  with stopping.Stopper() as stopper:
    assert stopper.signal == 0
    os.kill(os.getpid(), number)
    assert stopper.signal == number and stopping.EXIT_CODES[number] in (143, 130)
  assert signal.getsignal(number) == before


@pytest.fixture
def left(monkeypatch):
  """The codes with which the process would have ended at once."""
  codes = []
  monkeypatch.setattr(os, "_exit", codes.append)
  return codes


def test_what_others_wait_for_leaves_at_once_and_what_all_do_in_the_ordinary_way(left, capsys):
  def lost():
    raise jax.errors.JaxRuntimeError("Connection closed by peer")

  def wrong():
    raise TypeError("no number")
  for code in (exit_codes.COMPLETE, exit_codes.TERMINATED):
    assert processes.run_one_of_several(lambda code=code: code) == code
  assert not left
  processes.run_one_of_several(lambda: exit_codes.ERROR)
  processes.run_one_of_several(lost)
  processes.run_one_of_several(wrong)
  assert left == [exit_codes.ERROR, exit_codes.RESTART, exit_codes.BUG]
  err = capsys.readouterr().err
  assert "another process of the run is gone: Connection closed by peer" in err
  assert "TypeError: no number" in err


def test_codes_are_told_as_shells_do():
  assert exit_codes.from_returncode(-9) == exit_codes.KILLED
  assert exit_codes.from_returncode(-6) == 134
  assert exit_codes.from_returncode(75) == exit_codes.RESTART
