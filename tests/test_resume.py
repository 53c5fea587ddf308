"""A run that is killed and started again ends as if nothing had happened."""

import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from big_vision_ext.core import checkpoint, metrics
from tests import toy_data

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return toy_data.write(tmp_path_factory.mktemp("data"))


def run(moment, data, workdir, *extra):
  """Trains in a process of its own, with one device; returns the finished process."""
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  command = [sys.executable, "tests/interrupted_train.py", moment, "--", "--workdir", str(workdir),
             f"--config=tests/toy_config.py:data={data}", *extra]
  return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)


def lines(workdir):
  """What a run reported, without the times that no two runs share."""
  return [{k: v for k, v in line.items() if not metrics.is_timing(k)}
          for line in metrics.read(workdir)]


def everything(workdir):
  """Every saved array of the last checkpoint, by name, as bytes' checksum, and the parameters."""
  checkpoints, step = checkpoint.find(workdir)
  return step, checkpoints.meta(step)["arrays"], checkpoints.params(step)


def test_a_run_killed_again_and_again_ends_bit_identically(data, tmp_path):
  whole = run("never", data, tmp_path / "whole")
  assert whole.returncode == 0, whole.stderr

  killed = tmp_path / "killed"
  # Where each start is interrupted, and the steps that the last complete checkpoint may then be of
  # (a save goes on in the background of the next steps). Checkpoints are at 5, 10, 15 and 20, lines
  # at 1, 2, 4, 6, ..., evaluations at 4, 8, ...
  plan = [
      ("batch:4", {0}),     # before the first checkpoint
      ("save:1", {0}),      # while the first one is being written
      ("commit:2", {5}),    # when the second one, of step 10, is complete but has not its name
      ("takeback:1", {5}),  # while going on from it
      ("line:3", {5}),      # after an evaluation at 8, whose line is not written
      ("term:4", {9}),      # asked to stop: the step under way is saved
      ("line:2", {9, 10}),
  ]
  for moment, last in plan:
    process = run(moment, data, killed)
    expected = 143 if moment.startswith("term") else -signal.SIGKILL
    assert process.returncode == expected, (moment, process.stdout, process.stderr)
    found = checkpoint.Checkpoints(killed, read_only=True).steps()
    assert (found[-1] if found else 0) in last, (moment, found, process.stdout)
  process = run("never", data, killed)
  assert process.returncode == 0, process.stderr
  assert "Going on from step" in process.stdout

  assert lines(killed) == lines(tmp_path / "whole")
  (step, arrays, params), (want_step, want_arrays, want_params) = map(
      everything, (killed, tmp_path / "whole"))
  assert step == want_step == 20
  assert arrays == want_arrays  # optimiser and counters too, by checksum
  for name, value in want_params.items():
    np.testing.assert_array_equal(params[name], value, err_msg=name)
  assert not list((killed / "checkpoints").glob("*tmp*"))
