"""The table of the prior's study says what its runs say, of each weight and beside the floor."""

import json

import pytest

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


def test_a_run_that_is_missing_is_named(tmp_path, capsys):
  write(tmp_path, 0, 1.0)
  assert prior_table.main([str(tmp_path), "--seeds", "0", "7"]) == 2
  assert "network_7: has no readable evaluation.json" in capsys.readouterr().err
  with pytest.raises(ValueError, match="finish the study"):
    prior_table.table(tmp_path, [7])
