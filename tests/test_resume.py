"""A run that is killed and started again ends as if nothing had happened."""

import json
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
  return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


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


@pytest.mark.slow
def test_twenty_kills_at_random_moments_never_cost_a_checkpoint(data, tmp_path):
  """Neither the latest is ever damaged, nor one lost that is to be kept; the run goes on as it was.

  A save every third step, of which every third is to be kept: most kills fall into one.
  """
  base = [f"--config=tests/toy_config.py:data={data},steps=5000", "--config.schedule.type=constant",
          "--config.log_steps=100", "--config.evals.held_out.eval_steps=5000"]
  often = ["--config.ckpt_steps=3", "--config.keep_ckpt_steps=9"]
  workdir = tmp_path / "killed"
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "",
         "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
         "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
  process = subprocess.run(
      [sys.executable, "tests/killed_train.py", "0", "20", str(workdir), *base, *often], cwd=ROOT,
      env=env, capture_output=True, text=True, timeout=1800)
  log = (tmp_path / "log.txt").read_text()
  assert process.returncode == 0, process.stderr + log
  latest, found = 0, [json.loads(line) for line in process.stdout.splitlines()]
  assert len(found) == 20
  for moment, end, steps in found:
    # Each start has read the latest checkpoint, checksums included, or it had ended with code 2.
    assert end == -signal.SIGKILL, (moment, end, log)
    assert (steps[-1] if steps else 0) >= latest, (moment, steps)
    latest = steps[-1] if steps else 0
    assert set(range(9, latest + 1, 9)) <= set(steps), (moment, steps)
  assert latest > 9 and "DAMAGED" not in log
  for step in range(9, latest + 1, 9):
    assert checkpoint.Checkpoints(workdir, read_only=True).params(step)  # by checksum

  total = f"--config.total_steps={latest + 2}"
  assert run("never", data, workdir, *base[1:], *often, total).returncode == 0
  assert run("never", data, tmp_path / "whole", *base[1:], total).returncode == 0
  (step, arrays, params), (want_step, want_arrays, want_params) = map(
      everything, (workdir, tmp_path / "whole"))
  assert step == want_step == latest + 2 and arrays == want_arrays
  for name, value in want_params.items():
    np.testing.assert_array_equal(params[name], value, err_msg=name)
