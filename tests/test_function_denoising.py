"""The deraining study in small: the crossover, measured; what the command leaves behind."""

import json

import numpy as np
import pytest
from PIL import Image

from big_vision_ext import function_denoising
from big_vision_ext.function_denoising import Study

SMALL = Study(contents=(2, 32), templates=(8, 64), seeds=3, steps=400, batch=16, width=128)


@pytest.fixture(scope="module")
def removal():
  """Measure -> (seed, K, T)."""
  rows = function_denoising.run(SMALL)
  assert [(r["seed"], r["sines"], r["templates"]) for r in rows[:4]] == [
      (0, 2, 8), (0, 2, 64), (0, 32, 8), (0, 32, 64)]
  return {m: np.array([r[m] for r in rows]).reshape(3, 2, 2) for m in function_denoising.MEASURES}


def test_removal_of_unseen_noise_falls_with_the_content_and_rises_with_the_noise(removal):
  unseen = removal["unseen"]
  spread = unseen.std(axis=0).max()
  # Templates of training are removed in every cell, ten times better: it is no failure to fit.
  assert (removal["seen"] > 0.45).all() and (unseen < 0.045).all()
  for by_noise in unseen.mean(axis=0):
    assert by_noise[1] > by_noise[0] + 3 * spread
  # Where there is anything to lose: with eight templates nothing unseen is removed at all.
  assert unseen[:, 1, 1].mean() < unseen[:, 0, 1].mean() - 3 * spread
  assert (unseen[..., 1] > unseen[..., 0]).all() and (unseen[:, 1, 1] < unseen[:, 0, 1]).all()


def test_the_crossover_is_not_one_of_damage_to_the_content(removal):
  along = removal["projected"]
  assert (along[..., 1] > along[..., 0]).all() and (along[:, 1, 1] < along[:, 0, 1]).all()


def test_doing_nothing_removes_nothing_and_cells_do_not_depend_on_what_else_is_studied():
  one = Study(contents=(4,), templates=(2,), seeds=1, steps=1, width=8, lr=0.0)
  untouched = function_denoising.run(one)
  # The network starts with a small last layer and learns nothing at a rate of 0.
  assert abs(untouched[0]["unseen"]) < 0.1 and 0 < untouched[0]["damage"] < 0.1
  more = Study(contents=(4, 9), templates=(2, 5), seeds=1, steps=1, width=8, lr=0.0)
  assert function_denoising.run(more)[0] == pytest.approx(untouched[0], abs=1e-5)


def test_the_command_writes_rows_a_picture_and_the_table(tmp_path, capsys):
  out = tmp_path / "new" / "study"
  argv = ["--out", str(out), "--contents", "2,4", "--templates", "3", "--seeds", "2", "--steps",
          "2", "--width", "8", "--no_skip"]
  assert function_denoising.main(argv) == 0
  rows = [json.loads(line) for line in (out / "function_denoising.jsonl").read_text().splitlines()]
  assert len(rows) == 4 and {r["sines"] for r in rows} == {2, 4}
  assert not any(r["global_skip"] for r in rows)
  assert Image.open(out / "function_denoising.png").size[0] > 800
  shown = capsys.readouterr().out
  mean = np.mean([r["unseen"] for r in rows if r["sines"] == 4])
  assert "| removal, unseen templates | T=3 |" in shown and f"| K=4 | {mean:.3f} (" in shown


@pytest.mark.parametrize("argv, message", [
  (["--contents", "2,40"], "contents=(2, 40): expected numbers of sines, 1 to 32"),
  (["--templates", "0"], "templates=(0,)"),
  (["--steps", "0"], "steps=0"),
])
def test_a_study_of_nothing_is_refused(argv, message, tmp_path, capsys):
  assert function_denoising.main(["--out", str(tmp_path / "out"), *argv]) == 2
  assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
