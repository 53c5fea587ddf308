"""Super-resolution is measured as papers do, by domain, and after adapting to a few pictures."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding
from big_vision_ext.evaluators import _bootstrap, super_resolution
from input_pipeline import loader, records
from input_pipeline.build import writer
from tests import tiny_run

COUNTS = {"stripes": 5, "noise": 4}


def picture(name, i):
  rng = np.random.default_rng([len(name), i])
  if name == "noise":
    return rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
  wave = np.sin(np.arange(24) * rng.uniform(0.8, 1.2))[:, None, None]
  return np.broadcast_to(np.uint8(128 + 100 * wave), (24, 24, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  out = {}
  for name, count in COUNTS.items():
    folder = tmp_path_factory.mktemp(name)

    def load(i, name=name):
      file = io.BytesIO()
      Image.fromarray(picture(name, i)).save(file, "PNG")
      return records.Sample(id=f"{name}{i}", image=file.getvalue(), width=24, height=24,
                            boxes=np.zeros((0, 4), np.float32), texts=[])

    report = writer.write_split(folder, "val", range(count), load, progress=False)
    writer.finish(folder, {"val": report}, {"provenance": "formulas"})
    out[name] = {"path": str(folder)}
  return out


def evaluator(data, task=None, size=24, **how):
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:2])
  settings = loader.InputConfig(
      data, split="val", image_size=size, captions=False, eval_plain=True, threads=1)
  return super_resolution.Evaluator(
      task=task or tasks.make("cdasr", tiny_run.CDASR), input_config=settings, mesh=mesh,
      batch_sharding=sharding.batch_sharding(mesh), **{"batch_size": 4} | how)


@pytest.fixture(scope="module")
def found(data):
  how = dict(shots=(2,), steps=(1, 4), rate=0.02, repeats=2, each=True)
  return evaluator(data, **how).run(tiny_run.params(name="cdasr"))


def _bicubic(x, size):
  """Keys' kernel on a picture that goes on as its mirror image, in float64."""
  for axis in (0, 1):
    n, stretch = x.shape[axis], max(x.shape[axis] / size, 1)
    centre = (np.arange(size) + 0.5) * n / size - 0.5
    at = np.floor(centre)[:, None] + np.arange(-8, 9)
    d = np.abs(at - centre[:, None]) / stretch
    w = np.where(d <= 1, (1.5 * d - 2.5) * d * d + 1,
                 np.where(d < 2, ((-0.5 * d + 2.5) * d - 4) * d + 2, 0))
    at = at.astype(int) % (2 * n)
    at = np.where(at < n, at, 2 * n - 1 - at)
    w /= w.sum(1, keepdims=True)
    x = np.einsum("ok,okbc->obc", w, np.moveaxis(x, axis, 0)[at])
    x = np.moveaxis(x, 0, axis)
  return x


def test_of_bicubic_enlargement_it_finds_what_scikit_image_does(data, found):
  from skimage import metrics

  means = {}
  for name, count in COUNTS.items():
    rows = []
    for i in range(count):
      high = picture(name, i).astype(np.float64)
      low = np.round(np.clip(_bicubic(high, 12), 0, 255))
      again = np.round(np.clip(_bicubic(low, 24), 0, 255))
      a, b = (x[2:-2, 2:-2] for x in (high, again))
      y = lambda x: 16 + x @ (65.481, 128.553, 24.966) / 255
      rows.append([
          metrics.peak_signal_noise_ratio(y(a), y(b), data_range=255),
          metrics.peak_signal_noise_ratio(a, b, data_range=255),
          metrics.structural_similarity(
              a, b, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5,
              use_sample_covariance=False)])
    means[name] = np.mean(rows, axis=0)
    assert found[f"{name}/images"] == count
    for key, want in zip(("psnr_y", "psnr_rgb", "ssim_rgb"), means[name]):
      # A pixel that float32 rounds to the other side.
      assert found[f"bicubic_{name}/{key}"] == pytest.approx(want, abs=0.02), (name, key)
  want = (5 * means["stripes"][0] + 4 * means["noise"][0]) / 9
  assert found["bicubic_psnr_y"] == pytest.approx(want, abs=0.02) and found["images"] == 9


def test_adaptation_helps_pictures_of_the_domain_that_it_did_not_see(found):
  # No steps are the model, measured on what is no support in one of two draws or in both.
  drawn = [np.random.default_rng([seed, k]).permutation(np.arange(5 * k, 5 * k + n))[2:]
           for seed in range(2) for k, n in enumerate(COUNTS.values())]
  numbers = sorted(set(np.concatenate(drawn)))
  assert found["shots2/steps0/images"] == len(numbers) < sum(map(len, drawn))
  for i in numbers:
    assert found[f"shots2/steps0/each/{i:04d}"] == pytest.approx(found[f"each/{i:04d}"], abs=1e-4)
  gain = found["shots2/steps4/stripes/psnr_y"] - found["shots2/steps0/stripes/psnr_y"]
  assert gain > 0.3
  pairs = np.array([found[f"shots2/steps4/each/{i:04d}"] - found[f"shots2/steps0/each/{i:04d}"]
                    for i in numbers])
  assert found["shots2/steps4/gain_y"] == pytest.approx(pairs.mean(), abs=1e-9)
  low, high = found["shots2/steps4/gain_y_low"], found["shots2/steps4/gain_y_high"]
  assert pairs.min() <= low < pairs.mean() < high <= pairs.max()
  # Pictures are drawn anew, not what they got in a draw of the support.
  assert (low, high) == _bootstrap.interval(pairs)
  assert found["psnr_y"] == pytest.approx(
      np.mean([found[f"each/{i:04d}"] for i in range(9)]), abs=1e-9)


def test_what_a_picture_gets_depends_on_no_batch(data, found):
  again = evaluator(data, batch_size=9).run(tiny_run.params(name="cdasr"))
  for key in ("psnr_y", "ssim_y", "noise/psnr_rgb", "bicubic_ssim_y"):
    assert again[key] == pytest.approx(found[key], rel=1e-5)


def test_the_shuffled_control_is_steered_by_one_other_picture_in_any_batches(data, monkeypatch):
  t = tasks.make("cdasr", tiny_run.CDASR | {"condition": "shuffled"})
  params, e, seen = tiny_run.params(name="cdasr"), evaluator(data, t, each=True), []
  over = e._over
  monkeypatch.setattr(e, "_over", lambda fn, p, rows: seen.append((fn, rows)) or over(fn, p, rows))
  e.run(params)
  rows = dict(seen)[e._measure]
  own = over(e._vectors, params, rows)["vector"]
  other = rows["vector"]
  again = evaluator(data, t, batch_size=8)._of_others(params, rows["image"])["vector"]
  np.testing.assert_allclose(again, other, atol=1e-6)
  apart = np.abs(own[:, None] - other[None]).max(-1)
  assert sorted(apart.argmin(axis=0)) == list(range(9)) and apart.min(axis=0).max() < 1e-5
  # Neither its own nor, all of them, that of the next.
  shift = (apart.argmin(axis=0) - np.arange(9)) % 9
  assert shift.min() > 0 and len(set(shift)) > 1


def test_an_interval_of_paired_differences_leaves_out_what_both_share():
  rng = np.random.default_rng(0)
  pictures, effect = rng.normal(30, 5, 50), rng.normal(0.2, 0.1, 50)
  low, high = _bootstrap.interval(effect)
  # The mean's standard error, by the formula.
  want = 1.96 * effect.std() / 50**0.5
  assert (high - low) / 2 == pytest.approx(want, rel=0.1)
  wide = _bootstrap.interval(pictures + effect)
  assert wide[1] - wide[0] > 20 * (high - low)


@pytest.mark.parametrize("how, message", [
    (dict(output="image"), "this task has restore, condition"),
    (dict(shots=(1,), adapted="everything"), "adapted='everything': expected one of adapter, all"),
    (dict(shots=(1,), model={"condition": "shuffled"}), "a control that adapts to nothing"),
    (dict(rate=-1.0), "rate=-1.0: expected at least 0"),
    (dict(steps=(-1,)), "expected whole numbers of at least 1"),
    (dict(shots=(4,)), "domain 'noise' has 4 pictures; expected more than the 4"),
    (dict(size=25), "input.image_size=25: expected a multiple of 2"),
    (dict(crop=7), "input.image_size=24 without a border of crop=7: expected at least 25"),
])
def test_what_cannot_be_measured_is_told_before_training(how, message, data):
  with pytest.raises(ValueError, match=message):
    task = tasks.make("cdasr", tiny_run.CDASR | how.get("model", {}))
    how = {k: v for k, v in how.items() if k != "model"}
    evaluator(data, task, **how)
