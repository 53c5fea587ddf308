"""Adaptation keeps the best step, changes nothing in none, and writes what loads, or nothing."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import adapt, convert, tasks, weights
from big_vision_ext.core import trees
from input_pipeline import resolution_pairs as pairs_lib
from tests import tiny_run


def _pictures(count, size=24):
  """Stripes of one direction: a domain that a network can get better at."""
  rng = np.random.default_rng(0)
  x = np.arange(size)
  for _ in range(count):
    wave = np.sin(x * rng.uniform(0.6, 1.4) + rng.uniform(0, 6))[:, None, None]
    colour = rng.uniform(60, 120, 3)
    yield np.broadcast_to(np.uint8(np.rint(120 + wave * colour)), (size, size, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  out = tmp_path_factory.mktemp("pairs")
  (out / "hr").mkdir()
  for i, picture in enumerate(_pictures(6)):
    Image.fromarray(picture).save(out / f"hr/{i}.png")
  return out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  out = tiny_run.save(tmp_path_factory.mktemp("run"), name="cdasr")
  (out / "evaluation.json").write_text(json.dumps({"step": 3.0, "seen/psnr_y": 30.0}))
  return out


@pytest.fixture(scope="module")
def adapted(run, folder, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "w2"
  lines = []
  found = adapt.run(str(run), str(folder), str(out), adapt.Options(
      steps=20, held_out=0.3, rate=0.02, patch=16, eval_every=5), say=lines.append)
  return found, out, lines


def test_it_gets_better_on_pairs_that_it_did_not_adapt_to(adapted):
  found, _, lines = adapted
  groups = ("held-out", "held-out, chose the step", "support")
  assert tuple(found.counts.items()) == tuple(zip(groups, (1, 1, 4))) and found.step > 0
  for group in groups:
    of = found.measures[group]
    assert of["after"]["psnr_y"] > of["before"]["psnr_y"] + 0.5
  assert lines[0].startswith("step 5: loss")
  rows = adapt.table(found).splitlines()
  assert len(rows) == 11 and len({row.count("|") for row in rows}) == 1
  assert rows[2].startswith("| 1 held-out | bicubic | ")
  assert rows[4].startswith(f"| 1 held-out | K = {found.step} | ")
  assert rows[7].startswith(f"| 1 held-out, chose the step | K = {found.step} | ")


def test_what_it_writes_is_a_model_that_loads(adapted, run):
  found, out, _ = adapted
  loaded = weights.load(out)
  assert loaded.task_name == "cdasr"
  assert tasks.make(loaded.task_name, loaded.model).scale == 2
  want = trees.flatten(jax.device_get(found.params))
  got = trees.flatten(loaded.params)
  assert got.keys() == want.keys() == set(trees.names(tiny_run.params(name="cdasr")))
  for name in want:
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)
  before = trees.flatten(tiny_run.params(name="cdasr"))
  moved = {n for n in got if np.any(got[n] != before[n])}
  assert moved == {n for n in got if n.startswith(("align/", "net/last/"))}
  card = (out / "README.md").read_text()
  assert "a super-resolution network" in card and f"began from: {run}" in card
  # What was measured of it, and nothing that the run once was.
  assert f"- adapted: to 4 pairs, step {found.step} of {found.last}" in card
  assert f"| held-out/after/psnr_y | {found.measures['held-out']['after']['psnr_y']:.4g} |" in card
  assert "seen/psnr_y" not in card
  # A list of arrays that others do not fit is told.
  note = json.loads((out / "export.json").read_text())
  note["meta"]["arrays"]["net/last/bias"] = [4]
  (out / "export.json").write_text(json.dumps(note))
  with pytest.raises(convert.ConvertError, match="net/last/bias"):
    weights.load(out)


def test_no_steps_are_the_model_itself_bit_for_bit(run, folder, tmp_path):
  found = adapt.run(str(run), str(folder), str(tmp_path / "w"), adapt.Options(
      steps=0, shots=1, patch=16), say=print)
  assert found.step == found.last == 0 and found.counts == {"held-out": 2, "support": 1}
  got = trees.flatten(weights.load(tmp_path / "w").params)
  for name, x in trees.flatten(tiny_run.params(name="cdasr")).items():
    np.testing.assert_array_equal(got[name], x, err_msg=name)
  assert all(of["after"] == of["before"] for of in found.measures.values())


def test_a_rate_that_harms_is_stopped_early_and_leaves_the_model(run, folder, tmp_path):
  lines = []
  found = adapt.run(str(run), str(folder), str(tmp_path / "w"), adapt.Options(
      steps=50, rate=3.0, patch=16, eval_every=1, patience=2), say=lines.append)
  assert (found.step, found.last) == (0, 2) and lines[-1] == "no gain since step 0: stopped"
  of = found.measures["held-out"]
  assert of["after"] == of["before"]


def test_a_row_says_whether_its_pairs_chose_the_step():
  pairs = list("abcde")
  chose = "held-out, chose the step"
  assert adapt._groups(pairs[2:], pairs[:1], pairs[1:2], True) == {
      "held-out": ["b"], chose: ["a"], "support": ["c", "d", "e"]}
  assert adapt._groups(pairs[1:], pairs[:1], pairs[:1], True) == {
      chose: ["a"], "support": ["b", "c", "d", "e"]}
  assert adapt._groups(pairs, [], [], True) == {"support, chose the step": pairs}
  assert adapt._groups(pairs[2:], [], pairs[:2], False) == {
      "held-out": ["a", "b"], "support": ["c", "d", "e"]}


def test_a_perfect_picture_is_counted_and_in_no_mean():
  rows = {name: {"psnr_y": np.array([30.0 + i, 20.0, 40.0]), "ssim_y": np.array([0.5, 0.7, 0.9])}
          for i, name in enumerate(("bicubic", "before", "after"))}
  rows["after"]["psnr_y"][2] = np.inf
  means = adapt._means(rows)
  assert [of["psnr_y"] for of in means.values()] == [25.0, 25.5, 26.0]
  assert {of["infinite"] for of in means.values()} == {1}
  assert means["after"]["ssim_y"] == pytest.approx(0.7)
  text = adapt.table(adapt.Adapted(None, 3, 3, {"support": means}, {"support": 3}))
  assert "| 3 support | K = 3 | 26.000 (1 infinite left out) | 0.7000 |" in text


def test_measures_are_of_whole_pictures_beside_scikit_image(run, folder):
  from skimage import metrics

  loaded = weights.load(run)
  task = tasks.make(loaded.task_name, loaded.model)
  pair = adapt._with_low(task, pairs_lib.read(folder, 2)[0])
  restored = np.asarray(jax.jit(task.restore)(loaded.params, {"image": pair.low[None]}))[0]
  y = lambda x: (16 + x.astype(np.float64) @ (65.481, 128.553, 24.966) / 255)[2:-2, 2:-2]
  a = y(np.round(np.clip(restored, 0, 1) * 255))
  found = {k: v[0] for k, v in adapt._measured(
      task, adapt._restored(task), loaded.params, [pair]).items()}
  # float32 on 8-bit values.
  assert found["psnr_y"] == pytest.approx(
      metrics.peak_signal_noise_ratio(y(pair.high), a, data_range=255), abs=1e-3)
  assert found["ssim_y"] == pytest.approx(metrics.structural_similarity(
      y(pair.high), a, data_range=255, gaussian_weights=True, sigma=1.5,
      use_sample_covariance=False), abs=1e-4)


def test_the_divided_pairs_do_not_overlap_and_those_held_out_stay_the_same():
  for shots in (None, 1, 3):
    support, *held = adapt.divide(12, adapt.Options(steps=1, shots=shots, held_out=0.25))
    assert [len(part) for part in (support, *held)] == [shots or 9, 1, 2]
    assert len(np.unique(np.concatenate([support, *held]))) == len(support) + 3
    again = adapt.divide(12, adapt.Options(steps=1))[1:]
    assert [part.tolist() for part in held] == [part.tolist() for part in again]
  # Without a step to choose, all are reported; one alone does both.
  _, choosing, reported = adapt.divide(12, adapt.Options(steps=0))
  assert len(choosing) == 0 and set(reported) == set(np.concatenate(held))
  _, choosing, reported = adapt.divide(4, adapt.Options(steps=1))
  assert choosing.tolist() == reported.tolist() and len(reported) == 1
  nothing = adapt.divide(3, adapt.Options(steps=1, held_out=0.0))
  assert [len(part) for part in nothing] == [3, 0, 0]
  with pytest.raises(ValueError, match="there are 4 pairs; expected at least 6: 5 to adapt to"):
    adapt.divide(4, adapt.Options(steps=1, shots=5))
  with pytest.raises(ValueError, match="there are 1 pairs; expected at least 2"):
    adapt.divide(1, adapt.Options(steps=1))


@pytest.mark.parametrize("args, message", [
    (["--shots", "9"], "error: there are 6 pairs; expected at least 11: 9 to adapt to"),
    (["--patch", "30"], "its shorter side has 24 pixels, and crops 30"),
    (["--patch", "7"], "expected a multiple of 2"),
    (["--held-out", "1"], "--held-out=1.0: expected a share"),
    (["--rate", "-1"], "--rate=-1.0: expected at least 0"),
    (["--out", "taken"], "holds files that are no earlier export"),
    (["--pairs", "small"], "0: its shorter side has 14 pixels; expected at least 15, for SSIM"),
    (["--pairs", "nowhere"], "there is no such folder"),
    (["--weights", "mae"], "holds weights of task 'mae'; expected 'cdasr'"),
    (["--weights", "control"], "control: has model.condition='shuffled', a control"),
])
def test_what_cannot_be_is_told_and_nothing_is_written(
    args, message, run, folder, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken/thesis.txt").write_text("all of it")
  if "mae" in args:
    tiny_run.save(tmp_path / "mae", name="mae")
  if "control" in args:
    tiny_run.save(tmp_path / "control", name="cdasr", condition="shuffled")
  if "small" in args:
    (tmp_path / "small/hr").mkdir(parents=True)
    for i, picture in enumerate(_pictures(4, 14)):
      Image.fromarray(picture).save(tmp_path / f"small/hr/{i}.png")
  before = sorted(p for p in tmp_path.rglob("*"))
  argv = {"--weights": str(run), "--pairs": str(folder), "--out": "w2", "--steps": "1"}
  argv |= {args[0]: args[1]}
  assert adapt.main([part for pair in argv.items() for part in pair]) == 2
  assert message in capsys.readouterr().err
  assert sorted(p for p in tmp_path.rglob("*")) == before
