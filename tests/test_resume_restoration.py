"""Restoration goes on bit by bit where it was stopped: populations and inner loops."""

import json

import numpy as np
import pytest

from big_vision_ext import train
from big_vision_ext.core import checkpoint, exit_codes, trees
from tests import stopped

# A population of two, and tasks that are adapted to.
CONFIGS = ("configs/derain/train.py", "configs/cdasr/meta.py")


def losses(workdir):
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {line["step"]: {k: v for k, v in line.items() if k.startswith(("loss", "grad_norm",
                                                                        "param_norm"))}
          for line in lines if "loss" in line}


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_a_stopped_run_ends_as_one_that_was_not(config, small_sample_data, tmp_path, monkeypatch):
  def run(name):
    return train.main(["--config", f"{config}:runlocal,data={small_sample_data}", "--workdir",
                       str(tmp_path / name), "--config.evals={}"])

  assert run("whole") == exit_codes.COMPLETE
  stopped.at_batch(monkeypatch, 2)
  assert run("parts") == exit_codes.TERMINATED
  assert len(losses(tmp_path / "parts")) < len(losses(tmp_path / "whole"))
  assert run("parts") == exit_codes.COMPLETE
  assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
  got, want = (trees.flatten(checkpoint.load_workdir(str(tmp_path / name))[1])
               for name in ("parts", "whole"))
  assert got.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(got[name], value, err_msg=name)
