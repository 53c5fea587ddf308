"""Several processes are told who they are, and end together."""

import os
import signal
import subprocess
import sys
import time

import pytest

from big_vision_ext.core import exit_codes
from launch import local_processes
from tests.conftest import ROOT


def start(script, *options, num=3):
  return local_processes.main(["--num", str(num), *options, "--", "python", "-c", script])


def test_each_process_is_told_its_place_and_its_devices(capfd):
  script = ("import os; print(*(os.environ[k] for k in ('JAX_PROCESS_ID', 'JAX_NUM_PROCESSES', "
            "'JAX_COORDINATOR_ADDRESS', 'XLA_FLAGS', 'JAX_PLATFORMS')))")
  assert start(script, "--devices-per-process", "2") == 0
  lines = sorted(capfd.readouterr().out.splitlines())
  assert [line.split()[:3] for line in lines] == [[f"[{i}]", str(i), "3"] for i in range(3)]
  addresses = {line.split()[3] for line in lines}
  assert len(addresses) == 1 and addresses.pop().startswith("localhost:")
  # The flag of this test's own eight devices is replaced, and no other one is lost.
  assert all(line.endswith("--xla_force_host_platform_device_count=2 cpu") for line in lines)


def test_the_code_is_that_of_the_first_to_fail_and_the_others_are_ended(capfd):
  script = ("import os, time; me = int(os.environ['JAX_PROCESS_ID'])\n"
            "if me == 1: raise SystemExit(2)\ntime.sleep(100)")
  began = time.monotonic()
  assert start(script, "--grace", "0.2") == 2
  assert time.monotonic() - began < 60
  assert "process 1 ended with 2; the others have 0.2 s" in capfd.readouterr().err


def test_of_ends_seen_at_once_the_code_is_that_of_the_cause(monkeypatch):
  """Process 1 is killed and 0 says that it is gone, before either is looked at."""
  monkeypatch.setattr(local_processes, "_POLL_SECONDS", 2.0)
  assert start("import os, sys; os.environ['JAX_PROCESS_ID'] == '1' and os.kill(os.getpid(), 9); "
               "sys.exit(75)", num=2) == exit_codes.KILLED


def test_ends_by_a_signal_are_told_as_shells_do(capfd):
  assert start("import os; os.kill(os.getpid(), 9)", num=1) == exit_codes.KILLED
  assert start("import os; os.abort()", num=1) == 134


@pytest.mark.parametrize("code,times", [
  (75, 3), (137, 3), (143, 3), (134, 1), (2, 1), (130, 1), (1, 1)])
def test_only_what_a_restart_mends_is_started_again(code, times, tmp_path, capfd):
  log = tmp_path / "log"
  script = f"open({str(log)!r}, 'a').write('x'); raise SystemExit({code})"
  assert start(script, "--restarts", "2", num=1) == code
  assert log.read_text() == "x" * times


def test_a_restart_that_helps_ends_well(tmp_path, capfd):
  mark = tmp_path / "mark"
  script = (f"import os; new = not os.path.exists({str(mark)!r}); open({str(mark)!r}, 'w')\n"
            "raise SystemExit(75 if new else 0)")
  assert start(script, "--restarts", "2", num=1) == 0


def test_sigterm_reaches_every_process(tmp_path):
  script = ("import os, signal, time\n"
            "end = lambda *a: (print('saved', flush=True), os._exit(143))\n"
            "signal.signal(signal.SIGTERM, end)\n"
            "print('ready', flush=True); time.sleep(100)")
  command = [sys.executable, "-m", "launch.local_processes", "--num", "2", "--restarts", "5", "--",
             "python", "-c", script]
  with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True,
                        env={**os.environ, "PYTHONUNBUFFERED": "1"}) as process:
    assert [process.stdout.readline()[4:] for _ in range(2)] == ["ready\n"] * 2
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()
    # Asked to stop, it does not start anything again.
    assert process.wait() == 143 and rest.count("saved") == 2 and "ready" not in rest


@pytest.mark.parametrize("argv,message", [
  (["--num", "2"], "expected the command to run after --"),
  (["--num", "0", "--", "true"], "is 0, expected a whole number above 0"),
  (["--devices-per-process", "2", "--", "true"], "--num"),
])
def test_bad_arguments_are_named(argv, message, capsys):
  with pytest.raises(SystemExit) as end:
    local_processes.main(argv)
  assert end.value.code == 2 and message in capsys.readouterr().err
