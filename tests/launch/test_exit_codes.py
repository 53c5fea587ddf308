"""What launchers make of exit codes, and that they mean the trainer's."""

import signal

import pytest

from big_vision_ext.core import stopping
from launch import exit_codes
from launch.exit_codes import Outcome, judge


@pytest.mark.parametrize("codes, outcome", [
    ([0, 0], Outcome.COMPLETE), ([143], Outcome.RESUME), ([75, 143, 0], Outcome.RESUME),
    ([None, 75], Outcome.RESUME), ([0, None], Outcome.RESUME), ([2, 75, 75], Outcome.ERROR),
    ([139, 75], Outcome.ERROR), ([1], Outcome.ERROR), ([137, 143], Outcome.ERROR),
    ([130, 130], Outcome.STOPPED), ([130, 143], Outcome.STOPPED), ([130, 2], Outcome.ERROR)])
def test_the_worst_of_the_processes_decides(codes, outcome):
  assert judge(codes) is outcome


def test_no_process_is_no_outcome():
  with pytest.raises(ValueError):
    judge([])


def test_the_codes_are_those_that_the_trainer_ends_with():
  assert stopping.EXIT_CODES[signal.SIGTERM] in exit_codes.RESUME
  assert stopping.EXIT_CODES[signal.SIGINT] == exit_codes.STOPPED
