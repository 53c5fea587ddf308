"""Studies: their arms fit their configs, and cells are run once each, whatever interrupts them."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import typed
from input_pipeline import loader
from launch import studies, study

# Stands for the trainer: writes what it "measured", or waits for a file and is told to end.
TOY = '''
import json, pathlib, signal, sys, time
workdir, value, steps, wait = pathlib.Path(sys.argv[1]), *map(float, sys.argv[2:5])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
workdir.mkdir(parents=True, exist_ok=True)
with (workdir / "starts").open("a") as file:
  file.write("x")
if value < 0:
  sys.exit("what is wrong with it")
while wait and not (workdir.parent / "go").exists():
  time.sleep(0.02)
(workdir / "evaluation.json").write_text(json.dumps({"step": steps, "probe/top1": value}))
'''


@pytest.fixture
def toy(monkeypatch):
  arms = (studies.Arm("a", "a.py", title="the first"), studies.Arm("b", "b.py"),
          studies.Arm("still", "c.py", untrained=True, once=True))
  made = studies.Study(about="a toy", data="digits", steps=5, overrides=(),
                       columns={"accuracy, %": ("probe/top1", 100)}, arms=arms)
  values = {"a": 0.5, "b": 0.25, "still": 0.1}
  monkeypatch.setitem(studies.STUDIES, "toy", made)

  def command(cell, study, data):
    del study, data
    value = values[cell.arm.name] + (0.01 * cell.seed if values[cell.arm.name] > 0 else 0)
    wait = float(cell.arm.name == "b" and cell.seed == 1)
    return [sys.executable, "-c", TOY, str(cell.workdir), str(value), str(cell.steps), str(wait)]

  monkeypatch.setattr(study.Cell, "command", command)
  monkeypatch.setattr(study.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0))
  return values


def test_a_study_is_interrupted_and_goes_on_and_every_cell_runs_once(toy, tmp_path, capsys):
  argv = ["toy", "--seeds", "0 1", "--out", str(tmp_path)]
  folder = tmp_path / "toy-5"

  def interrupt():
    while not ((folder / "b-1" / "starts").exists()
               and (folder / "a-1" / "evaluation.json").exists()):
      time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)

  thread = threading.Thread(target=interrupt, daemon=True)
  thread.start()
  assert study.main(argv) == 130
  thread.join()
  assert "goes on from here" in capsys.readouterr().err
  assert not (folder / "b-1" / "evaluation.json").exists()
  (folder / "go").touch()
  assert study.main(argv) == 0
  out = capsys.readouterr().out
  assert "| the first | 50.5 +- 0.7 | 2 |" in out and "| b | 25.5 +- 0.7 | 2 |" in out
  assert "| still | 10.0 | 1 |" in out and out.endswith((folder / "table.md").read_text())
  starts = {p.parent.name: len(p.read_text()) for p in folder.glob("*/starts")}
  assert starts == {"a-0": 1, "b-0": 1, "still-0": 1, "a-1": 1, "b-1": 2}
  rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
  assert {(r["arm"], r["seed"], r["steps"]) for r in rows} == {
    ("a", 0, 5), ("b", 0, 5), ("still", 0, 1), ("a", 1, 5), ("b", 1, 5)}
  assert study.main(argv) == 0
  assert "0 to do" in capsys.readouterr().out


def test_effects_are_told_and_runs_that_are_draws_of_their_own_have_their_seeds(tmp_path):
  """Of half of 2^4 combinations: each switch adds what was planted, none hides another."""
  one, gains = studies.SWITCHES, {"low_antialias": 0.5, "budget_rule": -0.25}
  cells = study.cells(one, tmp_path, [], [10], 5)
  assert [cell.seed for cell in cells] == list(range(10, 18))
  for cell in cells:
    cell.workdir.mkdir(parents=True)
    image = dict(o.removeprefix("model.image.").split("=") for o in cell.arm.overrides)
    result = 1 + sum(gains.get(key, 0) for key in image)
    (cell.workdir / "config.json").write_text(
        json.dumps({"seed": cell.seed, "model": {"image": image}}))
    (cell.workdir / "evaluation.json").write_text(
        json.dumps({"step": 5} | {key: result for key, _ in one.columns.values()}))
  text = study.write(one, "switches", tmp_path, cells)
  assert text.count("model.image.low_antialias: default -> True: +50.0000 +- 0.0000") == 4
  assert text.count("model.image.budget_rule: default -> cells: -25.0000 +- 0.0000") == 4
  assert text.count("model.image.selection_maps: default -> each: ") == 4
  assert "No effects yet" in study.write(one, "switches", tmp_path, cells[:3])


def test_a_cell_that_fails_is_named_with_what_it_said(toy, tmp_path, capsys):
  toy["b"] = -1.0
  assert study.main(["toy", "--seeds", "0", "--jobs", "1", "--out", str(tmp_path)]) == 2
  err = capsys.readouterr().err
  assert "b, seed 0 ended with 1" in err and "what is wrong with it" in err


def test_a_training_that_was_cut_off_before_its_results_is_measured(toy, tmp_path, monkeypatch):
  folder = tmp_path / "toy-5"
  (folder / "a-0" / "checkpoints" / "5").mkdir(parents=True)
  asked = []

  def measure(cell):
    asked.append(cell.name)
    return [sys.executable, "-c", TOY, str(cell.workdir), "0.75", "5", "0"]

  monkeypatch.setattr(study.Cell, "measure", measure)
  assert study.main(["toy", "--seeds", "0", "--arms", "a", "--out", str(tmp_path)]) == 0
  assert asked == ["a, seed 0"] and "75.0" in (folder / "table.md").read_text()


@pytest.mark.parametrize("argv, says", [
  (["toy", "--arms", "c"], "--arms has 'c'"), (["toy", "--seeds", "one"], "--seeds 'one'"),
  (["toy", "--jobs", "0"], "at least one")])
def test_wrong_arguments_are_named(toy, tmp_path, capsys, argv, says):
  try:
    assert study.main([*argv, "--out", str(tmp_path)]) == 2
  except SystemExit as error:
    assert error.code == 2
  assert says in capsys.readouterr().err


@pytest.mark.parametrize("name, arm", [
  (name, arm) for name, one in studies.STUDIES.items() for arm in one.arms],
  ids=lambda x: getattr(x, "name", x))
def test_an_arm_is_what_its_config_can_be_and_every_column_is_measured_somewhere(name, arm):
  one = studies.STUDIES[name]
  cell = study.Cell(arm, 3, 7, pathlib.Path("w"))
  command = cell.command(one, "data/x")
  settings = [part.removeprefix("--config.") for part in command if part.startswith("--config.")]
  config = config_lib.resolve(config_lib.load(command[command.index("--config") + 1], settings))
  assert config.total.value == 7 and config.seed == 3 and config.input["data"] == "data/x"
  task = tasks.make(config.task, config.model)
  inputs = typed.build(loader.InputConfig, config.input, "config.input")
  assert inputs.image_size == task.image_size
  measured = set(config.evals)
  assert measured and measured <= {key.split("/")[0] for key, _ in one.columns.values()}
  assert (config.lr == 0) == arm.untrained
