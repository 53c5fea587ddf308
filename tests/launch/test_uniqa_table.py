"""The table of the study has the means of its runs."""

import json

import pytest

from launch import uniqa_table


def test_rows_are_means_over_seeds_of_the_runs_own_measures(tmp_path, capsys):
  for towers, add in (("pretrained", 0.3), ("random", 0.0)):
    for seed in (0, 1):
      folder = tmp_path / f"adapter_{towers}_50_{seed}"
      folder.mkdir()
      (folder / "evaluation.json").write_text(json.dumps({
        "zero_shot/srcc": 0.1 + add, "test/srcc": 0.2 + add + 0.1 * seed, "linear/srcc": 0.4}))
  assert uniqa_table.main([str(tmp_path), "--labels", "50", "--seeds", "0", "1"]) == 0
  rows = capsys.readouterr().out.splitlines()
  assert len({row.count("|") for row in rows}) == 1
  assert rows[2] == ("| pretrained | 50 | 0.400 +- 0.000 | 0.550 +- 0.071 | 0.400 +- 0.000 "
                     "| 0.500, 0.600 |")
  assert rows[3].startswith("| random | 50 | 0.100 +- 0.000 | 0.250 ")
  with pytest.raises(ValueError, match="adapter_pretrained_200_0: has no readable evaluation.json"):
    uniqa_table.table(tmp_path, [200], [0])
