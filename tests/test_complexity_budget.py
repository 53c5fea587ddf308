"""Which backgrounds and which rain: the rules, on numbers that are known."""

import json

import pytest

from big_vision_ext import complexity, grid
from big_vision_ext import complexity_budget as budget
from input_pipeline import pictures, records
from input_pipeline.build import backgrounds

CROPS = {8: 5.0, 16: 9.0, 64: 20.0}
RAIN = {"small": 4.0, "medium": 10.0, "large": 16.0}


@pytest.mark.parametrize("ratio, want", [
  (5.0, (64, "small", True)),  # Fits as it is.
  (2.0, (64, "medium", True)),  # Rain first: no background is given up.
  (1.3, (64, "large", True)),
  (1.0, (16, "large", True)),  # The widest does not do: fewer crops.
  (0.4, (8, "large", True)),
  (0.1, (8, "large", False))])
def test_rain_is_widened_before_backgrounds_are_left_out(ratio, want):
  choice = budget.choose(CROPS, RAIN, ratio)
  assert (choice.n, choice.range, choice.reached) == want
  assert choice.reached == (choice.ratio <= ratio)
  assert choice.ratio == CROPS[choice.n] / RAIN[choice.range]


@pytest.mark.parametrize("removal, tried, best", [
  # Wider rain helps twice, then fewer crops once.
  (lambda n, r: {"small": 0.1, "medium": 0.3, "large": 0.5}[r] - 0.1 * (n == 64),
   [(64, "small"), (64, "medium"), (64, "large"), (16, "large"), (8, "large")], (16, "large")),
  # Neither helps: each is tried once.
  (lambda n, r: 0.5, [(64, "small"), (64, "medium"), (16, "small")], (64, "small")),
  # A gain below the tolerance is none.
  (lambda n, r: 0.5 + 0.005 * (r == "medium") + 0.2 * (n < 64) + 0.2 * (n < 16),
   [(64, "small"), (64, "medium"), (16, "small"), (8, "small")], (8, "small"))])
def test_a_sweep_stops_where_removal_stops_improving(removal, tried, best):
  found, trials = budget.sweep(lambda n, r: (removal(n, r), 1.0), (8, 64, 16), tuple(RAIN))
  assert [(t.n, t.range) for t in trials] == tried and (found.n, found.range) == best
  assert found.removal == removal(*best) and found.damage == 1.0


def test_the_command_measures_what_it_chooses_from(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(budget, "_LAYERS", 48)
  data, out = str(tmp_path / "faces"), tmp_path / "choice.json"
  backgrounds.build(data, category="faces", count=12, val_count=1, side=32, progress=False)
  command = ["--data", data, "--n", "2+12", "--ranges", "small+large", "--out", str(out)]
  assert budget.main([*command, "--ratio", "100"]) == 0
  text, choice = capsys.readouterr().out, json.loads(out.read_text())
  assert (choice["n"], choice["range"], choice["reached"]) == (12, "small", True)
  assert choice["ratio"] == choice["backgrounds"] / choice["rain"] < 100
  assert "n=12,range=small: complexity of backgrounds" in text and text.count("**") == 2
  # Of more crops, and of more diverse rain, there is more to learn.
  crops, rain = (choice["measures"][of] for of in ("backgrounds", "rain"))
  of = lambda measures: measures["picture_components"]
  assert of(crops["2"]) < of(crops["12"]) == choice["backgrounds"]
  assert of(rain["large"]) > of(rain["small"]) == choice["rain"]
  # All measures are told, of backgrounds and of rain.
  source = records.open_dataset(data, "train")
  pixels = [pictures.whole(source[i], source.where(i)) for i in range(2)]
  assert crops["2"] == complexity.measures(pixels) and rain["large"].keys() == crops["2"].keys()
  rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
  for name, value in crops["2"].items():
    assert rows[f"| {name}"].startswith(f"| {name} | {value:.3g} | {crops['12'][name]:.3g} | ")
  assert budget.main([*command, "--ratio", "0"]) == 2
  assert "--ratio 0: expected numbers of at least 1, and a ratio" in capsys.readouterr().err
  assert budget.main([*command[:2], "--n", "99", "--ratio", "1"]) == 2
  assert "--n 99, but there are 12 crops" in capsys.readouterr().err


def test_a_sweep_trains_cells_of_a_grid(tmp_path, monkeypatch):
  monkeypatch.setattr(grid, "report", lambda out: "")
  config = ("configs/derain/grid.py:tiny,nets=msrresnet,categories=faces,ranges=small+large,n=2+4,"
            f"data={tmp_path / 'data'}")
  seen = []

  def train(argv):
    workdir = tmp_path / "out" / "cells" / argv[argv.index("--workdir") + 1].rsplit("/", 1)[1]
    workdir.mkdir(parents=True)
    seen.append(workdir.name)
    rho = 0.3 + 0.2 * ("large" in workdir.name) - 0.1 * workdir.name.endswith("-2")
    (workdir / "evaluation.json").write_text(json.dumps(
      {"rain/unseen/rho": rho, "rain/unseen/E_B_strict": 2.0}))
    return 0

  args = (config, tmp_path / "out", "faces", "unseen", 0.01)
  best, trials = budget.sweep_of_grid(*args, train)
  assert (best.n, best.range, best.removal) == (4, "large", 0.5) and len(trials) == 3
  assert seen == [f"msrresnet-skip-faces-{x}" for x in ("small-4", "large-4", "large-2")]
  assert budget.sweep_of_grid(*args, train)[0] == best and len(seen) == 3
  assert budget.sweep_of_grid(config, tmp_path / "other", *args[2:], lambda argv: 143) == 143
  with pytest.raises(ValueError, match="--held-out fog: .*-faces-small-4 was not measured"):
    budget.sweep_of_grid(*args[:3], "fog", 0.01, train)
  with pytest.raises(ValueError, match="--backgrounds cats: .* has faces"):
    budget.sweep_of_grid(config, tmp_path / "out", "cats", *args[3:], train)
