"""A study's folder is of one size: what was trained of another is not taken for it."""

import os
import re
import subprocess

import pytest

from configs.uniqa import demo
from tests.launch.conftest import ROOT


@pytest.fixture
def study(tmp_path):
  """Runs the script with a Python that notes what it is asked for."""
  (tmp_path / "bin").mkdir()
  (tmp_path / "bin/python").write_text('#!/bin/sh\necho "$*" >>"$NOTES"\n')
  (tmp_path / "bin/python").chmod(0o755)
  with open(ROOT / "requirements.txt", "rb") as file:
    stamp = subprocess.run(["cksum"], stdin=file, capture_output=True, check=True).stdout
  (tmp_path / ".installed").write_bytes(stamp)
  notes = tmp_path / "notes"
  notes.touch()

  def run(**env):
    before = len(notes.read_text())
    done = subprocess.run(
        ["bash", ROOT / "launch/cdasr_study.sh", "0"], capture_output=True, text=True,
        env={**os.environ, "BVE_VENV": str(tmp_path), "NOTES": str(notes),
             "OUT": str(tmp_path / "out"), **env})
    return done, notes.read_text()[before:].splitlines()

  return run


def test_a_folder_of_other_sizes_is_refused_before_anything_is_run(study):
  first, asked = study(STEPS="3000")
  assert first.returncode == 0, first.stderr
  assert asked and study(STEPS="3000")[1] == asked
  for name, value in (("STEPS", "6000"), ("VAL", "12"), ("TOWER", "elsewhere")):
    refused, calls = study(**{"STEPS": "3000", name: value})
    assert refused.returncode == 2 and not calls
    assert "holds a study of other sizes" in refused.stderr
    assert f"> {name}={value}" in refused.stderr


def test_the_smoke_run_of_its_header_fits_and_takes_nothing_of_the_whole(study, tmp_path):
  text = (ROOT / "launch/cdasr_study.sh").read_text()
  line = next(line for line in text.splitlines() if line.startswith("#   STEPS="))
  small = dict(re.findall(r"(\w+)=(\S+)", line))
  assert small.pop("OUT") != "runs/cdasr_study"
  assert int(small["TOWER_STEPS"]) >= demo.get_config().schedule.warmup_steps
  builds = lambda calls: {c.split("--out ")[1] for c in calls if "--from backgrounds" in c}
  whole, part = builds(study()[1]), builds(study(**small, OUT=str(tmp_path / "small"))[1])
  assert len(whole) == len(part) == 4 and not whole & part
  # And of the data sets that the configs' headers build.
  assert not any(folder.startswith("data/backgrounds") for folder in whole | part)
