"""Workers that run tests side by side: what a crash and a hang come to."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
CONFTEST = """
import sys
sys.path.insert(0, {root!r})
from tests import workers
def pytest_configure(config):
  if config.option.numprocesses:
    config.pluginmanager.register(workers.Workers(config))
"""


@pytest.fixture
def run(tmp_path):
  """Runs files of tests on two workers; gives the exit code and what is said."""
  (tmp_path / "conftest.py").write_text(CONFTEST.format(root=str(ROOT)))
  (tmp_path / "pytest.ini").write_text("[pytest]\n")

  def start(files, *options):
    for name, text in files.items():
      (tmp_path / name).write_text("import os, time\n" + text)
    done = subprocess.run(
      [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "--no-loadscope-reorder",
       "-p", "no:cacheprovider", *options],
      cwd=tmp_path, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout

  return start


def _passing(count):
  return "".join(f"def test_{i}(): pass\n" for i in range(count))


def test_a_crash_fails_one_test_and_all_others_run(run):
  # Many files are over when it crashes, and many come after.
  files = {f"test_{i:02d}.py": _passing(3) for i in range(30)}
  files["test_20.py"] += "def test_crash(): os.abort()\n" + "def test_after(): time.sleep(0.1)\n"
  code, said = run(files)
  assert code == 1 and "1 failed, 91 passed" in said
  assert "crashed while running 'test_20.py::test_crash'" in said
  assert "FAILED in its ???: test_20.py::test_crash" in said
  assert "100% test_" in said


def test_what_a_crash_leaves_is_run_though_it_is_one_test_and_the_other_worker_has_ended(run):
  files = {"test_a.py": "def test_crash(): time.sleep(2); os.abort()\ndef test_last(): pass\n",
           "test_b.py": _passing(1)}
  code, said = run(files)
  assert code == 1 and "1 failed, 2 passed" in said


def test_a_test_that_hangs_ends_with_its_worker(run):
  files = {"test_a.py": "def test_hang(): time.sleep(100)\n" + _passing(2),
           "test_b.py": _passing(2)}
  code, said = run(files, "-o", "faulthandler_timeout=2", "-o", "faulthandler_exit_on_timeout=true")
  assert code == 1 and "1 failed, 4 passed" in said
  assert "test_b.py: 2 passed" in said


def test_what_fails_is_named_at_once(run):
  code, said = run({"test_a.py": "def test_no(): assert 0\n" + _passing(2)})
  before, after = said.split("= FAILURES =")
  assert code == 1 and "FAILED in its call: test_a.py::test_no" in before
  assert "test_a.py: 1 failed, 2 passed" in before and "test_no" in after
