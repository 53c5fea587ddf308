"""What launchers make of the exit codes of several processes."""

import subprocess
import sys

import pytest

from launch.outcome import Outcome, judge
from tests.launch.conftest import ROOT


@pytest.mark.parametrize("codes, outcome", [
    ([0, 0], Outcome.COMPLETE), ([143], Outcome.RESUME), ([75, 143, 0], Outcome.RESUME),
    ([None, 75], Outcome.RESUME), ([0, None], Outcome.RESUME), ([2, 75, 75], Outcome.ERROR),
    ([139, 75], Outcome.ERROR), ([1], Outcome.ERROR), ([137, 143], Outcome.RESUME),
    ([130, 130], Outcome.STOPPED), ([130, 143], Outcome.STOPPED), ([130, 2], Outcome.ERROR)])
def test_the_worst_of_the_processes_decides(codes, outcome):
  assert judge(codes) is outcome


def test_no_process_is_no_outcome():
  with pytest.raises(ValueError):
    judge([])


def test_a_script_gets_the_outcome_in_words():
  done = subprocess.run([sys.executable, "-m", "launch.outcome", "0", "none", "75"], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.stdout == "to be resumed\n"
