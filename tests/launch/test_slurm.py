"""slurm.sh: what it submits, and what becomes of each way that a stretch ends. The fake Slurm does
what the real one (22.05) was seen to do."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import HERE, ROOT, commit

TOY = """
import os, pathlib, signal, sys, time
workdir, codes = pathlib.Path(sys.argv[2]), sys.argv[3].split(",")
workdir.mkdir(parents=True, exist_ok=True)
rank = int(os.environ["SLURM_PROCID"])
def stop(*unused):
  time.sleep(0.1)
  (workdir / f"saved-{rank}").touch()
  sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(workdir / f"up-{rank}").touch()
if codes[rank] == "wait":
  time.sleep(60)
sys.exit(int(codes[rank]))
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
  """A repository with slurm.sh, and the programs it calls."""
  root = tmp_path / "code"
  for name in ("launch/slurm.sh", "launch/snapshot.py", "launch/outcome.py", "launch/__init__.py",
               "big_vision_ext/__init__.py", "big_vision_ext/core/exit_codes.py"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / name, root / name)
  (root / "toy.py").write_text(TOY)
  commit(root)
  programs = tmp_path / "bin"
  programs.mkdir()
  for name in ("sbatch", "srun", "scancel", "scontrol"):
    (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E '
                                 f'"{HERE / "fake_slurm.py"}" {name} "$@"\n')
    (programs / name).chmod(0o755)
  venv = tmp_path / "venv" / "bin"
  venv.mkdir(parents=True)
  (venv / "python").symlink_to(sys.executable)
  monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
  monkeypatch.setenv("FAKE_SLURM", str(tmp_path))
  monkeypatch.setenv("BVE_VENV", str(tmp_path / "venv"))

  class Slurm:
    workdir = tmp_path / "runs" / "x"

    def submit(self, *options, codes="0,0"):
      done = subprocess.run(
          ["bash", root / "launch" / "slurm.sh", *options, "--", "python", "-m", "toy", "--workdir",
           self.workdir, codes], capture_output=True, text=True, cwd=tmp_path)
      return done.returncode, done.stdout + done.stderr

    @property
    def calls(self):
      file = tmp_path / "calls"
      return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def start(self, restarts=0, tasks=2):
      """Starts the job's script as Slurm would."""
      [submitted] = [call for call in self.calls if call[0] == "sbatch"]
      script = next(i for i, word in enumerate(submitted) if word.endswith("slurm.sh"))
      env = {**os.environ, **json.loads((tmp_path / "env.json").read_text()),
             "SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NTASKS": str(tasks)}
      if restarts:
        env["SLURM_RESTART_COUNT"] = str(restarts)
      return subprocess.Popen(["bash", *submitted[script:]], env=env, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, start_new_session=True)

    def end(self, job):
      text = job.communicate(timeout=60)[0]
      return job.returncode, text, any(call[0] == "scontrol" for call in self.calls)

  return Slurm()


def test_a_job_is_submitted_with_a_copy_of_the_code_and_all_that_is_needed_to_come_back(slurm):
  code, text = slurm.submit("--nodes=2", "--gpus-per-node=4", "--time", "4:00:00",
                            "--sbatch=--partition=gpu")
  assert code == 0 and "job 77, code" in text
  [call] = slurm.calls
  assert {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--requeue", "--time=4:00:00",
          "--signal=B:USR1@120", "--open-mode=append", "--partition=gpu"} <= set(call)
  [copy] = slurm.workdir.with_name("x.code").iterdir()
  assert (copy / "toy.py").exists() and str(copy / "launch" / "slurm.sh") in call


@pytest.mark.parametrize("codes, exit_code, requeued", [
    ("0,0", 0, False), ("75,143", None, True), ("2,75", 75, False), ("143,143", 143, False),
    *(pytest.param(*case, marks=pytest.mark.slow) for case in (
        ("75,75", None, True), ("0,75", None, True), ("139,75", 139, False), ("1,0", 1, False)))])
def test_the_codes_of_all_processes_decide_about_the_job(slurm, codes, exit_code, requeued):
  slurm.submit("--nodes=2", codes=codes)
  code, text, came_back = slurm.end(slurm.start())
  assert came_back == requeued, text
  if exit_code is not None:
    assert code == exit_code, text


def test_before_the_time_limit_all_processes_save_and_the_job_comes_back(slurm):
  slurm.submit("--nodes=2", codes="wait,wait")
  job = slurm.start()
  _wait_for(slurm.workdir / "up-0", slurm.workdir / "up-1")
  job.send_signal(signal.SIGUSR1)
  _, text, came_back = slurm.end(job)
  assert came_back and "the time limit is near" in text and "2 x 143" in text
  assert (slurm.workdir / "saved-0").exists() and (slurm.workdir / "saved-1").exists()


def test_a_cancelled_job_saves_and_does_not_come_back(slurm):
  slurm.submit("--nodes=2", codes="wait,wait")
  job = slurm.start()
  _wait_for(slurm.workdir / "up-0", slurm.workdir / "up-1")
  # As scancel: SIGTERM to the script and to all processes.
  job.send_signal(signal.SIGTERM)
  subprocess.run(["scancel", "77"], check=True)
  code, text, came_back = slurm.end(job)
  assert code == 143 and not came_back
  assert (slurm.workdir / "saved-0").exists()


def test_processes_that_were_never_started_are_no_success(slurm, tmp_path):
  # The real srun ends with 0 then.
  slurm.submit("--nodes=2")
  (tmp_path / "no-launch").touch()
  code, text, came_back = slurm.end(slurm.start())
  assert code != 0 and not came_back and "2 x none" in text


def test_it_comes_back_no_more_often_than_it_may(slurm):
  slurm.submit("--nodes=2", "--max-requeues=3", codes="75,75")
  code, text, came_back = slurm.end(slurm.start(restarts=3))
  assert code == 1 and not came_back and "as often as --max-requeues allows" in text


def test_a_dry_run_prints_what_would_be_submitted_and_submits_nothing(slurm):
  code, text = slurm.submit("--nodes=2", "--dry-run")
  assert code == 0 and slurm.calls == [] and not slurm.workdir.parent.exists()
  [sbatch] = [line for line in text.splitlines() if line.startswith("sbatch ")]
  [srun] = [line for line in text.splitlines() if line.startswith("srun ")]
  slurm.submit("--nodes=2")
  [copy] = slurm.workdir.with_name("x.code").iterdir()
  assert slurm.calls[0] == shlex.split(sbatch.replace("COMMIT", copy.name))
  assert f"-m toy --workdir {slurm.workdir}" in srun


@pytest.mark.parametrize("options, message", [
    (["--nodes=x"], "--nodes x: expected a number"), (["--nodes=0"], "expected 1 or more"),
    (["--node=2"], "unknown option --node"), (["stray"], "expected an option")])
def test_what_cannot_be_is_refused(slurm, options, message):
  code, text = slurm.submit(*options)
  assert code == 2 and message in text and slurm.calls == []


@pytest.mark.parametrize("command, message", [
    ([], "expected behind --"), (["python", "-m", "x"], "no --workdir"),
    (["python", "-m", "x", "--workdir", "gs://b/r"], "a directory that all nodes share")])
def test_commands_that_could_not_be_resumed_are_refused(slurm, command, message, tmp_path):
  done = subprocess.run(["bash", tmp_path / "code" / "launch" / "slurm.sh", "--", *command],
                        capture_output=True, text=True)
  assert done.returncode == 2 and message in done.stderr


def test_a_refusal_of_slurm_is_passed_on(slurm, tmp_path):
  (tmp_path / "refuse").touch()
  code, text = slurm.submit()
  assert code == 2 and "QOSMaxGRESPerUser" in text and "nothing was submitted" in text


def test_several_processes_are_told_that_they_are(slurm, tmp_path):
  done = subprocess.run(
      ["bash", tmp_path / "code" / "launch" / "slurm.sh", "--dry-run", "--nodes=2", "--", "python",
       "-m", "big_vision_ext.train", "--config", "c.py", f"--workdir={tmp_path}/w"],
      capture_output=True, text=True)
  assert done.stdout.count("-m big_vision_ext.train --distributed") == 2


def _wait_for(*paths):
  until = time.monotonic() + 30
  while not all(path.exists() for path in paths):
    assert time.monotonic() < until
    time.sleep(0.01)
