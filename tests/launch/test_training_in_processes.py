"""Training in several processes, interrupted and continued in other numbers of them.

On four devices in all: gloo, which joins the processes here, gives them 30 s to find each other,
which takes the longer the more devices there are.
"""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from big_vision_ext.core import checkpoint, exit_codes, metrics
from input_pipeline import loader
from tests import interrupted_train, toy_data
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

STEPS, BATCH = 12, 8
# The schedule of the toy config does not depend on the length; neither does anything else.
OPTIONS = [f"--config.total_steps={STEPS}", "--config.ckpt_steps=4", "--config.log_steps=1",
           "--config.evals.held_out.eval_steps=8", "--config.peer_seconds=20"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return toy_data.write(tmp_path_factory.mktemp("data"))


def train(num, devices, moment, data, workdir, *extra, record=None):
  """Trains in `num` processes with `devices` each; returns the launcher's finished process."""
  command = [sys.executable, "-m", "launch.local_processes", "--num", str(num),
             "--devices-per-process", str(devices), "--", "python", "tests/interrupted_train.py",
             moment, "--", "--workdir", str(workdir), f"--config=tests/toy_config.py:data={data}",
             *OPTIONS, *extra]
  env = {**os.environ, "RECORD": str(record or "")}
  for _ in range(4):
    if record:
      shutil.rmtree(record, ignore_errors=True)
      record.mkdir()
    process = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True,
                             timeout=1800)
    # On a machine that is busy with other things processes may miss each other at the first
    # step: gloo gives them 30 s. They end with the code for restarts, and nothing has happened.
    if "Gloo context initialization failed" not in process.stderr:
      break
  return process


def expected(data):
  """Hashes of the rows of every step, from the loader alone, in one process."""
  config = loader.InputConfig(data=data, image_size=8, text_len=4, threads=1)
  stream = loader.train_stream(config, batch_size=BATCH, seed=0)
  return [[interrupted_train.hash_of(batch, row) for row in range(BATCH)]
          for batch, _ in zip(stream, range(STEPS))]


def read(folder, name):
  """{process: lines} of what was recorded there by the processes of one start."""
  return {int(path.name.split("_")[1]): [json.loads(line) for line in path.open()]
          for path in sorted(folder.glob(f"{name}_*"))}


def used(folder):
  """The global batches that a start used, in order."""
  parts = read(folder, "used")
  return [sum(rows, []) for rows in zip(*(parts[process] for process in sorted(parts)))]


def reports(workdir):
  return [{k: v for k, v in line.items() if not metrics.is_timing(k)}
          for line in metrics.read(workdir)]


def saved(workdir):
  checkpoints, step = checkpoint.find(workdir)
  return step, checkpoints.meta(step)["arrays"], checkpoints.params(step)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
  """An uninterrupted run of two processes with two devices each, and what it recorded."""
  out = tmp_path_factory.mktemp("whole")
  process = train(2, 2, "never", data, out / "run", record=out / "record")
  assert process.returncode == 0, process.stderr
  return out


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
  """A run whose second process was killed before step 8; its last checkpoint is of step 4."""
  out = tmp_path_factory.mktemp("killed")
  process = train(2, 2, "settled:8@1", data, out / "run", record=out / "record")
  assert process.returncode == exit_codes.KILLED, process.stderr
  process.out = out
  return process


def test_every_row_is_made_once_by_one_process_and_used_in_the_order_of_the_stream(whole, data):
  want = expected(data)
  assert used(whole / "record") == want
  made = read(whole / "record", "made")
  assert set(made) == {0, 1}
  for process, lines in made.items():
    # Process j of two makes rows 4 j to 4 j + 3 of each batch of eight; some are made ahead.
    assert all(position % BATCH // 4 == process for position, _, _ in lines)
  lines = sum(made.values(), [])
  positions = [position for position, _, _ in lines]
  assert len(set(positions)) == len(positions)
  needed = {p: h for p, _, h in lines if p < STEPS * BATCH}
  assert [needed[p] for p in range(STEPS * BATCH)] == sum(want, [])
  # An epoch has 24 records, each of which is seen once in it.
  ids = {p: i for p, i, _ in lines}
  for epoch in range(STEPS * BATCH // 24):
    assert len({ids[24 * epoch + k] for k in range(24)}) == 24


def test_one_process_that_dies_ends_the_other_with_a_message(killed):
  assert "process 1 ended with 137" in killed.stderr
  assert "another task died" in killed.stderr  # jax's own words
  assert "[0] error: this process was aborted" in killed.stderr
  assert checkpoint.Checkpoints(killed.out / "run", read_only=True).steps() == [4]


def test_continued_by_as_many_processes_a_run_ends_bit_identically(whole, killed, data, tmp_path):
  shutil.copytree(killed.out / "run", tmp_path / "run")
  # Asked to stop, the second process only; both save and leave.
  process = train(2, 2, "term:2@1", data, tmp_path / "run", record=tmp_path / "first")
  assert process.returncode == exit_codes.TERMINATED, process.stderr
  assert "Going on from step 4 of 12" in process.stdout
  (step,) = {s for s in checkpoint.Checkpoints(tmp_path / "run", read_only=True).steps()} - {4}
  assert step in (6, 7) and f"Stopped after step {step} of 12, which is saved" in process.stdout
  process = train(2, 2, "never", data, tmp_path / "run", record=tmp_path / "second")
  assert process.returncode == 0, process.stderr
  assert f"Going on from step {step} of 12" in process.stdout

  want = expected(data)
  assert used(tmp_path / "first")[:step - 4] == want[4:step]
  assert used(tmp_path / "second") == want[step:]
  assert reports(tmp_path / "run") == reports(whole / "run")
  (step, arrays, params), (want_step, want_arrays, want_params) = map(
      saved, (tmp_path / "run", whole / "run"))
  assert step == want_step == STEPS and arrays == want_arrays
  for name, value in want_params.items():
    np.testing.assert_array_equal(params[name], value, err_msg=name)


def test_continued_by_one_and_then_four_processes_it_sees_the_same_stream_and_losses(
    whole, killed, data, tmp_path):
  shutil.copytree(killed.out / "run", tmp_path / "run")
  process = train(1, 4, "term:3", data, tmp_path / "run", "--config.mesh.data=1",
                  "--config.mesh.fsdp=4", "--config.min_shard_size=0",
                  record=tmp_path / "one")
  assert process.returncode == exit_codes.TERMINATED, process.stderr
  assert "1 process(es)" in process.stdout and "Going on from step 4" in process.stdout
  process = train(4, 1, "never", data, tmp_path / "run", "--config.mesh.data=1",
                  "--config.mesh.fsdp=2", "--config.mesh.tensor=2", "--config.min_shard_size=0",
                  record=tmp_path / "four")
  assert process.returncode == 0, process.stderr
  assert "4 process(es)" in process.stdout and "Going on from step 7" in process.stdout

  want = expected(data)
  assert used(tmp_path / "one")[:3] == want[4:7]
  assert used(tmp_path / "four") == want[7:]
  found, whole_run = reports(tmp_path / "run"), reports(whole / "run")
  assert [line["step"] for line in found] == [line["step"] for line in whole_run]
  for line, other in zip(found, whole_run):
    # Sums over rows and parameters are taken in another order: float32 rounding, a few steps long.
    assert line == pytest.approx(other, rel=1e-5, abs=1e-6), line["step"]


def test_an_error_of_one_process_is_told_and_ends_the_other(data, tmp_path):
  began = time.monotonic()
  process = train(2, 2, "fail:3@1", data, tmp_path / "run")
  assert process.returncode == exit_codes.ERROR
  assert "[1] error: the disk of this machine is on fire" in process.stderr
  assert time.monotonic() - began < 300


def test_a_stall_of_one_process_ends_both_with_their_stacks(data, tmp_path):
  process = train(2, 2, "hang:3@1", data, tmp_path / "run", "--config.stall_seconds=20")
  assert process.returncode == exit_codes.RESTART, process.stderr
  assert "STALLED: process" in process.stderr
  text = "".join(path.read_text() for path in (tmp_path / "run").glob("stacks_*.txt"))
  assert "STALLED" in text and "train.py" in text
