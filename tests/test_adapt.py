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
  return tiny_run.save(tmp_path_factory.mktemp("run"), name="cdasr")


@pytest.fixture(scope="module")
def adapted(run, folder, tmp_path_factory):
  out = tmp_path_factory.mktemp("out") / "w2"
  lines = []
  found = adapt.run(str(run), str(folder), str(out), adapt.Options(
      steps=20, held_out=0.3, rate=0.02, patch=16, eval_every=5), say=lines.append)
  return found, out, lines


def test_it_gets_better_on_pairs_that_it_did_not_adapt_to(adapted):
  found, _, lines = adapted
  assert found.counts == {"held-out": 2, "support": 4} and found.step > 0
  for group in ("held-out", "support"):
    of = found.measures[group]
    assert of["after"]["psnr_y"] > of["before"]["psnr_y"] + 0.5
  assert lines[0].startswith("step 5: loss")
  rows = adapt.table(found).splitlines()
  assert len(rows) == 8 and len({row.count("|") for row in rows}) == 1
  assert rows[2].startswith("| 2 held-out | bicubic | ")
  assert rows[4].startswith(f"| 2 held-out | K = {found.step} | ")


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


def test_measures_are_of_whole_pictures_beside_scikit_image(run, folder):
  from skimage import metrics

  loaded = weights.load(run)
  task = tasks.make(loaded.task_name, loaded.model)
  pair = adapt._with_low(task, pairs_lib.read(folder, 2)[0])
  restored = np.asarray(jax.jit(task.restore)(loaded.params, {"image": pair.low[None]}))[0]
  y = lambda x: (16 + x.astype(np.float64) @ (65.481, 128.553, 24.966) / 255)[2:-2, 2:-2]
  a = y(np.round(np.clip(restored, 0, 1) * 255))
  found = adapt._measures(task, adapt._restored(task), loaded.params, [pair])
  # float32 on 8-bit values.
  assert found["psnr_y"] == pytest.approx(
      metrics.peak_signal_noise_ratio(y(pair.high), a, data_range=255), abs=1e-3)
  assert found["ssim_y"] == pytest.approx(metrics.structural_similarity(
      y(pair.high), a, data_range=255, gaussian_weights=True, sigma=1.5,
      use_sample_covariance=False), abs=1e-4)


def test_the_divided_pairs_do_not_overlap_and_those_held_out_stay_the_same():
  for shots in (None, 1, 3):
    support, held = adapt.divide(8, adapt.Options(steps=1, shots=shots, held_out=0.25))
    assert len(held) == 2 and len(support) == (shots or 6)
    assert not set(support) & set(held)
    assert held.tolist() == adapt.divide(8, adapt.Options(steps=1))[1].tolist()
  assert len(adapt.divide(3, adapt.Options(steps=1, held_out=0.0))[1]) == 0
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
  before = sorted(p for p in tmp_path.rglob("*"))
  argv = {"--weights": str(run), "--pairs": str(folder), "--out": "w2", "--steps": "1"}
  argv |= {args[0]: args[1]}
  assert adapt.main([part for pair in argv.items() for part in pair]) == 2
  assert message in capsys.readouterr().err
  assert sorted(p for p in tmp_path.rglob("*")) == before
