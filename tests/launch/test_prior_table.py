"""The table of the prior's study says what its runs say, of each weight and beside the floor."""

import json
import os
import pathlib
import subprocess

import pytest
from scipy import stats

from launch import prior_table

RUNS = {"network": ("",), "scratch": ("",), "adapted": ("",), "fused": ("w0/", "w50/", "w100/"),
        "adapted_other": ("",), "adapted_plain": ("",)}


def write(out, seed, value):
  for i, (run, prefixes) in enumerate(RUNS.items()):
    found = {f"rain/{p}{rain}/{m}": value + i + 100 * j for j, p in enumerate(prefixes)
             for rain in ("seen", "unseen") for m in ("E_R", "E_B", "rho", "psnr")}
    if run != "network":
      found |= {"rain/floor/psnr": 20 + value, "rain/floor/rms": 25.0}
    (out / f"{run}_{seed}").mkdir()
    (out / f"{run}_{seed}" / "evaluation.json").write_text(json.dumps(found))


def test_every_arm_is_a_row_with_its_own_numbers(tmp_path, capsys):
  write(tmp_path, 0, 1.0)
  assert prior_table.main([str(tmp_path)]) == 0
  rows = [[c.strip() for c in line.strip("|").split("|")]
          for line in capsys.readouterr().out.splitlines()]
  assert rows[0][1:5] == ["seen E_R", "seen E_B", "seen rho", "seen psnr"]
  # Of a single seed there are no differences.
  assert len(rows) == 2 + 8 and {len(row) for row in rows} == {len(rows[0])}
  by_name = {row[0]: row for row in rows[2:]}
  # The third run of three weights, the second of them.
  assert by_name["w = 0.5"][1:4] == ["104.0", "104.0", "104.00"]
  assert by_name["a plain network"][-2:] == ["", ""]
  assert by_name["prior, adapted"][-2:] == ["21.0", "25.0"]


def test_of_several_seeds_there_are_mean_and_deviation(tmp_path):
  write(tmp_path, 0, 1.0)
  write(tmp_path, 1, 3.0)
  assert "| 4.0 +- 1.4 |" in prior_table.table(tmp_path, [0, 1])


def test_arms_are_compared_seed_by_seed_with_students_interval(tmp_path, capsys):
  for seed, value in enumerate((1.0, 3.0, 8.0)):
    write(tmp_path, seed, value)
  # A seed of its own moves both arms; what they differ by is 1 in two seeds and 4 in the third.
  file = tmp_path / "adapted_2" / "evaluation.json"
  found = json.loads(file.read_text())
  file.write_text(json.dumps(found | {"rain/unseen/E_B": found["rain/unseen/E_B"] + 3}))
  assert prior_table.main([str(tmp_path), "--seeds", "0", "1", "2"]) == 0
  text = capsys.readouterr().out
  low, high = stats.t.interval(0.95, 2, loc=2, scale=stats.sem([1, 1, 4]))
  adapted = text.split("| adapted less from pairs alone | ")[1].splitlines()[0].split(" | ")
  assert adapted[0] == "+1.0 (+1.0 to +1.0)"
  assert adapted[5] == f"+2.0 ({low:+.1f} to {high:+.1f})"
  assert "| w = 0 less w = 1 | -200.0 (-200.0 to -200.0) |" in text


def test_runs_of_other_settings_are_not_taken_for_these(tmp_path):
  """What is there is asked before anything is set up or run; no Python ends it after that."""
  root = pathlib.Path(__file__).resolve().parents[2]

  def study(**settings):
    env = {k: v for k, v in os.environ.items() if k not in ("STEPS", "N", "OUT")}
    none = {"BVE_PYTHON": str(tmp_path / "none"), "BVE_VENV": str(tmp_path / "venv")}
    return subprocess.run(["bash", "launch/prior_study.sh"], cwd=root, env=env | none | settings,
                          capture_output=True, text=True)

  out = tmp_path / "out"
  for _ in range(2):
    assert "is not a Python" in study(OUT=str(out), N="8").stderr
  other = study(OUT=str(out), N="8", STEPS="4")
  assert other.returncode == 2 and "< STEPS=200\n> STEPS=4\n" in other.stderr
  (out / "settings").unlink()
  (out / "prior_0").mkdir()
  unsaid = study(OUT=str(out), N="8")
  assert unsaid.returncode == 2 and "settings: No such file" in unsaid.stderr


def test_a_run_that_is_missing_is_named(tmp_path, capsys):
  write(tmp_path, 0, 1.0)
  assert prior_table.main([str(tmp_path), "--seeds", "0", "7"]) == 2
  assert "network_7: has no readable evaluation.json" in capsys.readouterr().err
  with pytest.raises(ValueError, match="finish the study"):
    prior_table.table(tmp_path, [7])
