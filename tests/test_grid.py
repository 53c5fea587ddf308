"""Grids of runs: cells, what is left after an interruption, trends as of the numbers."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from big_vision_ext import grid, grid_report
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import typed
from big_vision_ext.models import restoration
from big_vision_ext.objectives import rain
from input_pipeline.build import backgrounds

ARG = "tiny,nets=msrresnet,skips=True,categories=faces,ranges=small+large,n=2+4,steps=2"


@pytest.fixture
def small(tmp_path):
  return grid.load(f"configs/derain/grid.py:{ARG},data={tmp_path / 'data'}")


class Trainer:
  """In place of training: writes an evaluation, after which it may end otherwise."""

  def __init__(self, stop_at=None, code=143):
    self.seen, self._stop, self._code = [], stop_at, code

  def __call__(self, argv):
    workdir = argv[argv.index("--workdir") + 1]
    name = workdir.rsplit("/", 1)[1]
    self.seen.append(name)
    if len(self.seen) == self._stop:
      return self._code
    folder = grid.pathlib.Path(workdir)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    n = int(name.rsplit("-", 1)[1])
    metrics = {f"rain/{r}/seed_{s}/rho": 0.5 - 0.1 * np.log2(n) + 0.01 * s * np.log2(n) + (
      0.2 if "large" in name else 0) for r in ("seen", "unseen") for s in range(3)}
    for r in ("seen", "unseen"):
      own = [metrics[f"rain/{r}/seed_{s}/rho"] for s in range(3)]
      metrics |= {f"rain/{r}/rho": np.mean(own), f"rain/{r}/rho_std": np.std(own, ddof=1)}
    (folder / "evaluation.json").write_text(json.dumps(metrics))
    return 0


def test_cells_are_all_combinations_and_each_is_a_config(small):
  found = grid.cells(small)
  assert [c.name for c in found] == [
    f"msrresnet-skip-faces-{r}-{n}" for r in ("small", "large") for n in (2, 4)]
  config = config_lib.resolve(config_lib.load(found[1].config, small.overrides))
  assert (config.model["seeds"], config.input["first"]) == ((0, 1, 2), 4)
  assert config.total.value == 2 and config.input["data"].endswith("data/faces")
  assert config.lr == 0.005 and config.optim.clip_norm is None


def test_every_cell_of_the_shipped_grid_is_a_config():
  found = grid.load("configs/derain/grid.py")
  cells = grid.cells(found)
  assert len(cells) == 3 * 2 * 4 * 3 * 8 and len({c.name for c in cells}) == len(cells)
  for cell in cells[::41]:
    config = config_lib.resolve(config_lib.load(cell.config))
    assert len(config.model["seeds"]) == 5


def test_steep_directions_are_measured_on_of_all_ranges_that_lack_them():
  for name, of in rain.RANGES.items():
    steepest = max(abs(x) for interval in of.angle for x in interval)
    for text in (name, f"small+{name}"):
      config = config_lib.load(f"configs/derain/train.py:range={text}")
      assert ("directions" in config.evals.rain.rains) == (steepest <= 45), text


def test_every_network_of_the_shipped_grid_is_trained_with_its_skip_and_without():
  found = grid.cells(grid.load("configs/derain/grid.py:categories=faces,ranges=small,n=8"))
  assert len(found) == 6
  for cell in found:
    net = config_lib.load(cell.config).model.net
    built = restoration.build(net.name, net.scale, **net["fields"])
    assert built.global_skip == dict(cell.values)["skip"] == ("no_skip" not in cell.name)
  with pytest.raises(config_lib.ConfigError, match="skips=yes: expected True, False or"):
    grid.load("configs/derain/grid.py:skips=yes")


def test_an_interrupted_grid_does_only_what_is_left(small, tmp_path):
  out, quiet = tmp_path / "out", lambda _: None
  names = [c.name for c in grid.cells(small)]
  first = Trainer(stop_at=3)
  assert grid.run(small, out, first, log=quiet) == 143 and first.seen == names[:3]
  assert [line["cell"] for line in grid.read(out)] == names[:2]
  second = Trainer()
  assert grid.run(small, out, second, log=quiet, keep_checkpoints=False) == 0
  assert second.seen == names[2:]
  lines = grid.read(out)
  assert [line["cell"] for line in lines] == names and lines[3]["n"] == 4
  # Only of cells that were done since it was asked for.
  assert [(out / "cells" / n / "checkpoints").is_dir() for n in names] == [True, True, False, False]
  again = Trainer()
  assert grid.run(small, out, again, log=quiet) == 0 and again.seen == []
  assert Image.open(out / "grid.png").size[0] > 300
  assert (out / "grid.md").read_text().count("msrresnet") == 4 + 2 + 2


def test_a_folder_of_other_settings_is_refused(small, tmp_path, monkeypatch):
  out, quiet = tmp_path / "out", lambda _: None
  monkeypatch.setattr(grid, "report", lambda out: "")
  grid.run(small, out, Trainer(stop_at=2), log=quiet)
  other = grid.load(f"configs/derain/grid.py:{ARG},data={tmp_path / 'data'},width=14")
  with pytest.raises(grid.GridError, match="small-2 was run with other settings"):
    grid.run(other, out, Trainer(), log=quiet)
  # How often is logged changes no result.
  same = typed.build(grid.Grid, typed.to_dict(small) | {"overrides": (*small.overrides,
                                                                      "log_steps=7")})
  assert grid.run(same, out, Trainer(), log=quiet) == 0
  (out / grid.LINES).write_text("{no line\n")
  with pytest.raises(grid.GridError, match="line 1 is no line of a grid"):
    grid.read(out)


def test_trends_are_slopes_of_each_seed_with_students_interval(small, tmp_path):
  grid.run(small, tmp_path / "out", Trainer(), log=lambda _: None)
  lines = grid.read(tmp_path / "out")
  (name, group), _ = grid_report._groups(lines, without="n")
  assert name == "msrresnet, skip=True, faces, small" and [x["n"] for x in group] == [2, 4]
  slopes = grid_report.slope(group)
  np.testing.assert_allclose(slopes, [-0.1, -0.09, -0.08], atol=1e-12)
  mean, half = grid_report.interval(slopes)
  low, high = stats.t.interval(0.95, 2, loc=slopes.mean(), scale=stats.sem(slopes))
  assert (mean - half, mean + half) == pytest.approx((low, high))
  (_, pair), _ = grid_report._groups(lines, without="range")
  assert [x["range"] for x in pair] == ["small", "large"]
  np.testing.assert_allclose(grid_report.widened(pair), 0.2, atol=1e-12)
  text = (tmp_path / "out" / "grid.md").read_text()
  assert "| msrresnet, skip=True, faces, small | each doubling of n, 2 to 4 | -0.090 (" in text
  assert "range small to large | +0.200 (+0.200 to +0.200)" in text
  assert "| msrresnet | True | faces | small | 2 | 0.410 +- 0.010 |" in text


def test_cells_with_a_skip_and_without_are_rows_trends_and_curves_of_their_own(tmp_path):
  both = grid.load(f"configs/derain/grid.py:{ARG.replace('skips=True', 'skips=True+False')}")
  grid.run(both, tmp_path, Trainer(), log=lambda _: None)
  lines = grid.read(tmp_path)
  # Of a study from before there was a choice.
  lines.append({k: v for k, v in lines[0].items() if k != "skip"})
  assert [name for name, _ in grid_report._groups(lines, without="n")] == [
    "msrresnet, faces, small", *(f"msrresnet, skip={s}, faces, {r}" for s in (False, True)
                                 for r in ("small", "large"))]
  rows = grid_report.table(lines).splitlines()
  assert sum(row.startswith("| msrresnet | False | faces |") for row in rows) == 4
  assert sum(row.startswith("| msrresnet |  | faces |") for row in rows) == 1
  drawn = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("matplotlib.axes.Axes.errorbar", lambda self, x, y, e, **how: drawn.append(how))
    grid_report.plot(lines, tmp_path / "grid.png")
  assert {how["label"]: how["markerfacecolor"] for how in drawn} == {
    "small": "C0", "large": "C1", "small without skip": "none", "large without skip": "none"}


def test_data_sets_are_built_once_and_too_small_ones_refused(small, tmp_path):
  told = []
  grid.build_data(small, told.append)
  assert len(told) == 1
  grid.build_data(small, told.append)
  assert len(told) == 1
  larger = grid.load(f"configs/derain/grid.py:{ARG.replace('2+4', '64')},data={tmp_path / 'data'}")
  with pytest.raises(grid.GridError, match="has 4 crops, the grid's largest n is 64"):
    grid.build_data(larger)


@pytest.mark.parametrize("changes, message", [
  (dict(fixed={"size": 48}), "side=32, the grid's are of side=48"),
  (dict(fixed={}), "side=32, the grid's are of side=128"),
  (dict(detail=2.0), "detail=1.0, the grid's are of detail=2.0")])
def test_crops_of_another_side_or_detail_are_refused(small, tmp_path, changes, message):
  backgrounds.build(tmp_path / "data" / "faces", category="faces", count=4, val_count=1, side=32,
                    progress=False)
  grid.build_data(small)
  other = typed.build(grid.Grid, typed.to_dict(small) | changes)
  with pytest.raises(grid.GridError, match=message):
    grid.build_data(other)


def test_crops_of_own_pictures_will_do_for_a_grid(small, tmp_path):
  for i in range(4):
    Image.fromarray(np.full((40, 40, 3), 50 * i, np.uint8)).save(tmp_path / f"{i}.png")
  backgrounds.build(tmp_path / "data" / "faces", category="faces", count=4, val_count=1, side=32,
                    image_dir=tmp_path, progress=False)
  grid.build_data(small)


def test_an_axis_of_equal_values_is_refused(small):
  twice = typed.build(grid.Grid, typed.to_dict(small) | {"axes": (("n", (2, 2)),)})
  with pytest.raises(grid.GridError, match="grid.axes.n"):
    grid.cells(twice)
