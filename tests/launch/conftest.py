"""A cloud in a folder, a repository with a toy to train, and a clock that does not wait."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import pytest

from launch import snapshot, tools, tpu_hosts
from tests.launch import fake_gcloud

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]

# Counts to `steps` in its workdir and goes on where it was; as told, it ends early with some code.
TOY = '''
import argparse, os, pathlib, signal, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--workdir", type=pathlib.Path)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--hold", action="store_true", help="wait for WORKDIR/go after two steps")
parser.add_argument("--codes", default="")
options = parser.parse_args()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
options.workdir.mkdir(parents=True, exist_ok=True)
first = os.environ.get("HOSTNAME", "").endswith("w-0")
file = options.workdir / "step"
starts = options.workdir / f"starts-{os.environ.get('HOSTNAME', '')}"
count = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (count + 1))
codes = [int(c) for c in options.codes.split(",") if c]
done = int(file.read_text()) if file.exists() else 0
print(f"from step {done}, secret {os.environ.get('MY_TOKEN', 'none')}", flush=True)
for step in range(done + 1, options.steps + 1):
  while options.hold and step == 3 and not (options.workdir / "go").exists():
    time.sleep(0.02)
  if first:
    # Whole or not at all: it may be killed at any moment. Each slice has a first host.
    part = file.with_suffix(f".{os.environ['HOSTNAME']}")
    part.write_text(str(step))
    os.replace(part, file)
  print(f"step {step}", flush=True)
if count < len(codes):
  sys.exit(codes[count])
print("complete", flush=True)
'''
# Stands for the real set-up, which has a test of its own.
SETUP = '''#!/usr/bin/env bash
set -e
mkdir -p "$HOME/.bve/venv/bin"
ln -sf "$(command -v python3)" "$HOME/.bve/venv/bin/python"
echo "set up with $BVE_MOUNTS"
'''


def put_on_path(monkeypatch, folder, name, script=None):
  """Makes a program of a Python script (or of Python itself), first on PATH."""
  folder.mkdir(exist_ok=True)
  program = folder / name
  script = f'"{HERE / script}" ' if script else ""
  program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E {script}"$@"\n')
  program.chmod(0o755)
  monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


class FakeCloud:
  """The fake gcloud's world, for tests to script and to look into."""

  def __init__(self, folder):
    self.folder = folder
    self.script()

  def script(self, **script):
    """What shall happen; see fake_gcloud.py."""
    (self.folder / "script.json").write_text(json.dumps(script))

  @property
  def state(self):
    """What has happened."""
    file = self.folder / "cloud.json"
    return json.loads(file.read_text()) if file.exists() else {"calls": [], "resources": {}}

  def calls(self, *words):
    """The calls that have all of these words."""
    return [call for call in self.state["calls"] if all(word in call for word in words)]

  def kill(self):
    """Ends whatever a test left running on hosts."""
    for file in self.folder.glob("hosts/*/*/.bve/*/attempt-*/process.json"):
      try:
        os.killpg(json.loads(file.read_text())["pid"], signal.SIGKILL)
      except (ProcessLookupError, ValueError):
        pass


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """A fake gcloud on PATH."""
  folder = tmp_path / "cloud"
  folder.mkdir()
  monkeypatch.setenv("FAKE_CLOUD", str(folder))
  put_on_path(monkeypatch, tmp_path / "bin", "gcloud", "fake_gcloud.py")
  # What hosts have as `python3`, without the detours that a developer's may take.
  put_on_path(monkeypatch, tmp_path / "bin", "python3")
  fake = FakeCloud(folder)
  yield fake
  fake.kill()


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory):
  """A git repository with the launcher's part for hosts, and a toy instead of a trainer."""
  root = tmp_path_factory.mktemp("repository")
  (root / "launch").mkdir()
  shutil.copy(ROOT / "launch" / "on_host.py", root / "launch")
  (root / "launch" / "host_setup.sh").write_text(SETUP)
  (root / "toy_train.py").write_text(TOY)
  commit(root)
  return root


@pytest.fixture
def toy_code(toy_repository, monkeypatch):
  """Launchers send the toy repository instead of this one."""
  monkeypatch.setattr(snapshot, "ROOT", toy_repository)
  monkeypatch.setattr(snapshot.take, "__defaults__", (toy_repository,))
  return toy_repository


def commit(root):
  """Makes `root` a git repository with all of its files in one commit."""
  git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@t"]
  if not (root / ".git").exists():
    subprocess.run([*git, "init", "-q"], check=True)
  subprocess.run([*git, "add", "-A"], check=True)
  subprocess.run([*git, "commit", "-qm", "x"], check=True)


class Clock:
  """Time that passes when somebody sleeps, and a list of who did how long."""

  def __init__(self):
    self.seconds, self.sleeps = 0.0, []

  def sleep(self, seconds):
    """Lets time pass at once; `before` may do something meanwhile."""
    self.sleeps.append(seconds)
    self.seconds += seconds
    self.meanwhile(seconds)

  def meanwhile(self, seconds):
    """For tests to replace."""

  def make_tools(self, **options):
    """Tools with this clock; gcloud is called without the detour of a process."""
    return InProcess(sleep=self.sleep, now=lambda: self.seconds, **options)


class InProcess(tools.Tools):
  """Tools that know the fake gcloud."""

  def _execute(self, argv, stdin, timeout):
    if argv[0] != "gcloud":
      return super()._execute(argv, stdin, timeout)
    code, out, err = fake_gcloud.call(os.environ["FAKE_CLOUD"], argv[1:])
    return tools.Result(code, self.hide(out), self.hide(err))


@pytest.fixture
def clock(monkeypatch):
  """A clock that does not wait; hosts are followed for a moment only."""
  monkeypatch.setattr(tpu_hosts, "FOLLOW_SECONDS", 0.2)
  return Clock()
