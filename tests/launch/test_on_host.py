"""What keeps a run going on a host: it starts once, outlives connections, and says how it ended."""

import ast
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.conftest import ROOT

SCRIPT = ROOT / "launch" / "on_host.py"


@pytest.fixture
def host(tmp_path, monkeypatch):
  monkeypatch.setenv("BVE_HOME", str(tmp_path / "home"))
  monkeypatch.setenv("HOSTNAME", "host-0")
  started = []

  def call(action, *arguments):
    done = subprocess.run([sys.executable, "-S", "-E", SCRIPT, action, "--run", "r", *arguments],
                          capture_output=True, text=True, check=True, cwd=tmp_path)
    *log, last = done.stdout.splitlines()
    status = json.loads(last.removeprefix("bve-status "))
    if status.get("pid"):
      started.append(status["pid"])
    return status, log

  yield call
  for pid in started:
    try:
      os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
      pass


def start(host, attempt, script, *flags):
  return host("start", "--attempt", str(attempt), *flags, "--", "bash", "-c", script)[0]


def test_a_command_is_followed_to_its_end_and_its_exit_code_kept(host):
  start(host, 1, "echo one; echo two >&2; printf three; exit 75")
  status, log = host("follow", "--seconds", "20")
  assert [line.partition(" ")[2] for line in log] == ["one", "two", "three"]
  assert (status["state"], status["code"], status["host"]) == ("exited", 75, "host-0")


def test_the_log_goes_on_from_a_position_without_a_gap_or_a_repetition(host):
  start(host, 1, "printf 'a\\nb\\r\\n\\xff\\n'; echo c")
  _, whole = host("follow", "--seconds", "20")
  ends = [int(line[1:].partition(" ")[0]) for line in whole]
  assert ends == [2, 5, 7, 9]
  for i, end in enumerate(ends):
    assert host("follow", "--seconds", "20", "--offset", str(end))[1] == whole[i + 1:]


def test_starting_an_attempt_twice_starts_it_once(host, tmp_path):
  for _ in range(2):
    start(host, 1, f"echo x >> {tmp_path}/starts; sleep 20")
  _wait_for(tmp_path / "starts")
  assert (tmp_path / "starts").read_text() == "x\n"


def test_a_new_attempt_ends_the_one_before(host, tmp_path):
  start(host, 1, f"trap 'echo saved; exit 143' TERM; touch {tmp_path}/up; sleep 20 & wait")
  _wait_for(tmp_path / "up")
  start(host, 2, "sleep 20")
  assert host("status", "--attempt", "1")[0]["code"] == 143
  assert host("status")[0]["state"] == "running"


def test_what_does_not_stop_in_time_is_killed(host, tmp_path):
  start(host, 1, f"trap '' TERM; touch {tmp_path}/up; while true; do sleep 0.1; done")
  _wait_for(tmp_path / "up")
  assert host("stop", "--grace", "0.3")[0]["code"] == 137


def test_a_run_that_went_down_with_the_machine_is_lost_one_never_begun_absent(host, tmp_path):
  assert host("status")[0]["state"] == "absent"
  start(host, 1, "sleep 20")
  place = tmp_path / "home" / "r" / "attempt-1" / "process.json"
  process = json.loads(place.read_text())
  # The same number, but another time of birth: another process, after a restart.
  place.write_text(json.dumps({**process, "born": "other-boot:1"}))
  assert host("status")[0]["state"] == "lost"


def test_a_command_that_cannot_be_started_says_so(host):
  host("start", "--attempt", "1", "--", "no-such-program")
  status, log = host("follow", "--seconds", "20")
  assert status["code"] == 127 and "no-such-program" in log[0]


def test_it_runs_on_the_python_of_old_images():
  # 3.8 is the oldest among the images of TPU VMs. Newer functions of str and pathlib are not
  # syntax: the file uses none.
  text = SCRIPT.read_text()
  ast.parse(text, feature_version=(3, 8))
  for newer in ("removeprefix", "removesuffix", "is_relative_to", "hardlink_to", "readlink"):
    assert newer not in text


def _wait_for(path):
  until = time.monotonic() + 20
  while not path.exists():
    assert time.monotonic() < until
    time.sleep(0.01)
