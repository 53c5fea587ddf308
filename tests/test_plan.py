"""`python -m big_vision_ext.plan`: its command line, and pods of the real compiler."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from big_vision_ext import plan
from big_vision_ext.core import config as config_lib

CONFIG = "configs/siglip/b16_224.py:runlocal,batch=16"
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs requirements-tpu.txt")


@pytest.mark.parametrize("argv, message", [
    (["--config", CONFIG], "expected --config FILE and --topology POD"),
    (["--config", CONFIG, "--topologie", "v5e:2x2"], "did you mean --topology"),
    (["--config", CONFIG, "--topology", "v5e:2x2", "lr=1"], "unknown argument 'lr=1'"),
])
def test_a_wrong_command_line_says_what_was_expected(argv, message):
  with pytest.raises(config_lib.ConfigError, match=message):
    plan.parse_args(argv)


def test_overrides_are_those_of_training():
  options, overrides = plan.parse_args(
      ["--config", CONFIG, "--topology", "v5e:2x2", "--config.batch_size=32", "--largest_batch"])
  assert overrides == ["batch_size=32"] and options.largest_batch and options.slices == 1


def _run(*argv):
  # A process of its own: the compiler is told where to look by variables that are read once.
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  return subprocess.run([sys.executable, "-m", "big_vision_ext.plan", *argv], env=env,
                        capture_output=True, text=True)


@pytest.mark.slow
def test_an_error_is_one_line_on_stderr(tmp_path):
  done = _run("--config", CONFIG, "--topology", "v5e:everything")
  assert done.returncode == 2 and done.stderr.startswith("error: --topology v5e:everything")
  assert done.stderr.count("\n") == 1


@pytest.mark.slow
@needs_compiler
def test_a_tiny_config_is_planned_for_four_chips(tmp_path):
  out, program = tmp_path / "plan.json", tmp_path / "step.hlo"
  done = _run("--config", CONFIG, "--topology", "v5e:2x2", "--json", str(out),
              "--hlo", str(program), "--config.mesh.fsdp=4", "--config.mesh.data=1")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "fits: " in done.stdout and "on 4 v5e chips" in done.stdout
  report = json.loads(out.read_text())
  assert report["fits"] and report["chips"] == 4 and report["batch_per_chip"] == 4
  assert 0 < report["peak_hbm_gib"] < report["hbm_gib"] == 15.75
  assert 0 < report["mfu_ceiling"] <= 1 and report["step_seconds"] > 0
  assert {c["axes"][0] for c in report["collectives"] if c["axes"]} == {"fsdp"}
  # The formula leaves out the loss; this config recomputes nothing.
  executed = report["executed_flops_per_chip"] * 4
  assert executed == pytest.approx(report["model_flops_per_step"], rel=0.15)
  assert program.read_text().startswith("HloModule jit_step")


@pytest.mark.slow
@needs_compiler
def test_a_batch_that_does_not_fit_is_refused_with_the_largest_arrays(tmp_path):
  out = tmp_path / "plan.json"
  done = _run("--config", "configs/siglip/b16_224.py", "--topology", "v5e:2x2", "--json", str(out),
              "--config.batch_size=32768")
  assert done.returncode == 1 and "DOES NOT FIT" in done.stdout, done.stdout + done.stderr
  report = json.loads(out.read_text())
  assert report["fits"] is False and report["peak_hbm_gib"] > 4 * report["hbm_gib"]
  assert report["largest_arrays"] and 0 < report["suggested_batch_size"] < 32768
