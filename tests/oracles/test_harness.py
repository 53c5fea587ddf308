"""The harness says what is wrong, and takes nothing but Python 3.11. No oracle is installed."""

import pathlib
import sys

import numpy as np
import pytest

from big_vision_ext.benches.peers import environment
from tests.oracles import harness


@pytest.fixture
def bare(monkeypatch, tmp_path):
  """A directory for scripts whose "environment" is the interpreter of the tests."""
  monkeypatch.setattr(harness, "HERE", tmp_path)
  monkeypatch.setattr(harness, "environment", lambda name: pathlib.Path(sys.executable))
  return tmp_path


def test_arrays_and_settings_go_there_and_arrays_come_back(bare):
  (bare / "twice.py").write_text(
    "import exchange\n"
    "exchange.serve(lambda arrays, factor: {k: factor * v for k, v in arrays.items()})\n"
  )
  out = harness.run("twice.py", env="bare", arrays={"a/b": np.arange(3)}, settings=2)
  assert list(out) == ["a/b"]
  np.testing.assert_array_equal(out["a/b"], [0, 2, 4])


@pytest.mark.parametrize(
  "script, said",
  [("raise ValueError('on purpose')", "on purpose"), ("", "without a result")],
)
def test_a_failing_oracle_fails_with_what_it_said(bare, script, said):
  (bare / "bad.py").write_text(script)
  with pytest.raises(harness.OracleError, match=said):
    harness.run("bad.py", env="bare")


def test_an_oracle_that_hangs_is_stopped(bare):
  (bare / "slow.py").write_text("while True: pass")
  with pytest.raises(harness.OracleError, match="longer than 0.5 s"):
    harness.run("slow.py", env="bare", timeout=0.5)


def test_unknown_requirements_are_named():
  with pytest.raises(harness.OracleError, match="requirements-nothing.txt"):
    harness.environment("nothing")


def test_without_python_3_11_the_error_says_what_to_do(monkeypatch, tmp_path):
  monkeypatch.delenv("BVE_PY311", raising=False)
  monkeypatch.setattr(environment, "_version", lambda python: (3, 12))
  with pytest.raises(harness.OracleError, match="BVE_PY311"):
    environment.find_python()
  monkeypatch.setenv("BVE_PY311", str(tmp_path / "python3.12"))
  with pytest.raises(harness.OracleError, match="no Python 3.11"):
    environment.find_python()


@pytest.mark.parametrize("path", sorted(environment.HERE.glob("requirements-*.txt")), ids=str)
def test_every_requirement_is_pinned(path):
  lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
  assert lines and all(line.count("==") == 1 for line in lines)
