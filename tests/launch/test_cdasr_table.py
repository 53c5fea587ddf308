"""The tables of the study compare pictures with themselves, over seeds."""

import json

import numpy as np
import pytest

from launch import cdasr_table

# What each adds to a picture's own difficulty.
EFFECTS = {"none": 0.0, "constant": 0.01, "shuffled": 0.0, "encoder": 0.3, "plain": 0.3,
           "meta": 0.2}
SEEDS, PICTURES = (0, 1, 2), 12


def _write(out):
  hard = np.random.default_rng(0).normal(30, 6, PICTURES)
  for number, (run, effect) in enumerate(EFFECTS.items()):
    for seed in SEEDS:
      noise = np.random.default_rng([number, seed]).normal(0, 0.02, (10, PICTURES))
      found = {}
      for g, group in enumerate(("seen", "held_out")):
        found[f"{group}/bicubic_psnr_y"] = 25.0
        found |= {f"{group}/each/{i:04d}": h + effect + noise[g, i] for i, h in enumerate(hard)}
      for k in (0, 1, 5, 10):
        gain = effect + (0.1 * k if run == "meta" else 0.0)
        found |= {f"held_out/shots5/steps{k}/each/{i:04d}": h + gain + noise[2 + k % 7, i]
                  for i, h in enumerate(hard)}
      (out / f"{run}_{seed}").mkdir(parents=True)
      (out / f"{run}_{seed}/evaluation.json").write_text(json.dumps(found))


def test_effects_far_below_the_spread_of_pictures_are_found_by_pairs(tmp_path, capsys):
  _write(tmp_path)
  assert cdasr_table.main([str(tmp_path), "--shots", "5"]) == 0
  first, second = capsys.readouterr().out.split("\n\n")
  for text in (first, second):
    assert len({row.count("|") for row in text.strip().splitlines()}) == 1
  cells = [[c.strip() for c in row.split("|")[1:-1]] for row in first.splitlines()[2:]]
  assert [row[1] for row in cells] == 2 * ["bicubic", "none", "constant", "shuffled", "encoder"]
  for row in cells:
    if row[1] in cdasr_table.CONTROLS:
      want = EFFECTS["encoder"] - EFFECTS[row[1]]
      low, high = map(float, row[4].split(","))
      assert float(row[3]) == pytest.approx(want, abs=0.02)
      assert low < float(row[3]) < high and high - low < 0.06
  rows = {c[1]: c for c in ([x.strip() for x in row.split("|")[1:-1]]
                            for row in second.strip().splitlines()[2:])}
  assert float(rows["0"][4]) == pytest.approx(-0.1, abs=0.02)
  assert float(rows["10"][4]) == pytest.approx(0.9, abs=0.02)
  assert float(rows["10"][7].split(" ")[0]) == pytest.approx(1.0, abs=0.02)
  with pytest.raises(ValueError, match="encoder_0: has no readable evaluation.json"):
    cdasr_table.conditions(tmp_path / "elsewhere", SEEDS)
  with pytest.raises(ValueError, match="not with so many shots"):
    cdasr_table.adaptation(tmp_path, SEEDS, (7,))


def test_intervals_grow_with_what_differs_between_seeds():
  rng = np.random.default_rng(0)
  pictures = rng.normal(0, 0.1, (3, 30))
  alike = cdasr_table.interval(pictures)
  apart = cdasr_table.interval(pictures + np.array([[-0.5], [0.0], [0.5]]))
  assert apart[1] - apart[0] > 4 * (alike[1] - alike[0])


def test_a_perfect_picture_is_counted_and_in_no_mean(tmp_path, capsys):
  _write(tmp_path)
  tables = []
  for perfect in (False, True):
    if perfect:
      path = tmp_path / "encoder_1/evaluation.json"
      found = json.loads(path.read_text())
      # json writes what Python reads again.
      path.write_text(json.dumps(found | {"seen/each/0003": float("inf")}))
    assert cdasr_table.main([str(tmp_path), "--shots", "5"]) == 0
    tables.append(capsys.readouterr().out)
  assert "infinite" not in tables[0] and tables[1].count("(1 infinite)") == 1
  assert "nan" not in tables[1] and "inf " not in tables[1]
  cells = [row.split("|") for row in tables[1].splitlines() if "| domains trained on" in row]
  for row in cells[1:4]:
    want = EFFECTS["encoder"] - EFFECTS[row[2].strip()]
    assert float(row[4]) == pytest.approx(want, abs=0.02)
