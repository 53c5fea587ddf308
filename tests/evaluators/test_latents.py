"""Measures of latents against the plain way: whole D x D matrices, SciPy, scikit-learn, float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from big_vision_ext import evaluators
from big_vision_ext.evaluators import latents


def sample(b, d, seed=0, dead=0):
  """Correlated units with a ReLU, as of a network, some of them dead."""
  rng = np.random.default_rng(seed)
  r = np.maximum(rng.standard_normal((b, d)) @ rng.standard_normal((d, d)) / d**0.5 + 0.2, 0)
  r[:, :dead] = 0.3
  return r.astype(np.float32)


def directly(r, live):
  """The sum over i != j of C_ij^2 / D, with the matrix C."""
  r = r.astype(np.float64)[:, live]
  z = (r - r.mean(0)) / (r.std(0, ddof=1) + 1e-5)
  c = z.T @ z / (len(r) - 1)
  return (np.sum(c**2) - np.sum(np.diag(c) ** 2)) / r.shape[1]


@pytest.mark.parametrize("b, d", [(40, 130), (130, 40), (64, 64)])
@pytest.mark.parametrize("dead", [0, 7])
def test_decorrelation_is_that_of_the_whole_matrix(b, d, dead, monkeypatch):
  r = sample(b, d, b, dead)
  live = np.arange(d) >= dead
  for chunk in (2048, 9):
    monkeypatch.setattr(latents, "_CHUNK", chunk)
    got = latents.measures(r)
    # Products in float32 where there are more units than images.
    assert got["decorrelation"] == pytest.approx(directly(r, live), rel=1e-6)
    assert got["units"] == d and got["dead"] == dead
    floor = (d - dead - 1) / (b - 1)
    assert got["decorrelation_floor"] == pytest.approx(floor)
    assert got["decorrelation_excess"] == pytest.approx(
      directly(r, live) - floor, abs=1e-6 * got["decorrelation"])


def test_independent_units_lie_on_the_floor_and_copies_far_above():
  rng = np.random.default_rng(0)
  found = [latents.measures(np.maximum(rng.standard_normal((200, 300)), 0).astype(np.float32))
           for _ in range(8)]
  floor = 299 / 199
  # A pair's C^2 has a standard deviation of some 1.4 / 199: 0.007 for the mean of 8 x 45,000.
  assert np.mean([f["decorrelation_excess"] for f in found]) == pytest.approx(0, abs=0.01)
  assert found[0]["decorrelation_floor"] == pytest.approx(floor)
  twice = np.repeat(rng.standard_normal((200, 150)).astype(np.float32), 2, axis=1)
  # Each unit has one that is equal to it, and its noise twice.
  assert latents.measures(twice)["decorrelation_excess"] > 0.8


@pytest.mark.parametrize("b, d", [(30, 80), (80, 30)])
def test_dimensions_are_those_of_the_eigenvalues_of_the_covariance(b, d):
  r = sample(b, d, 3)
  values = np.linalg.eigvalsh(np.cov(r.astype(np.float64).T))
  values = np.maximum(values, 0)
  share = values / values.sum()
  got = latents.measures(r)
  want = values.sum() ** 2 / (values**2).sum()
  assert got["participation_ratio"] == pytest.approx(want, rel=1e-5)
  assert got["effective_rank"] == pytest.approx(np.exp(stats.entropy(share)), rel=1e-4)
  # Of noise in k directions, k.
  flat = np.linalg.qr(np.random.default_rng(0).standard_normal((b, 6)))[0]
  flat -= flat.mean(0)
  wide = np.linalg.qr(flat)[0] @ np.linalg.qr(np.random.default_rng(1).standard_normal((d, 6)))[0].T
  got = latents.measures(wide.astype(np.float32))
  assert got["participation_ratio"] == pytest.approx(6, rel=1e-4)
  assert got["effective_rank"] == pytest.approx(6, rel=1e-3)


def test_sparsity_is_that_of_the_formulas():
  r = sample(50, 20, 1, dead=3)
  x, e = r.astype(np.float64), 1e-7
  units = 1 - (x.mean(0) ** 2 + e) / ((x**2).mean(0) + e)
  rows = 1 - (x.mean(1) ** 2 + e) / ((x**2).mean(1) + e)
  got = latents.measures(r)
  assert got["lifetime_sparsity"] == pytest.approx(units[3:].mean(), rel=1e-6)
  assert got["population_sparsity"] == pytest.approx(rows.mean(), rel=1e-6)
  # A unit for each image, and units that are all alike.
  assert latents.measures(np.eye(20, dtype=np.float32))["lifetime_sparsity"] == pytest.approx(
    0.95, abs=1e-4)
  nothing = latents.measures(np.ones((9, 5), np.float32))
  assert nothing["dead"] == 5 and nothing["lifetime_sparsity"] == 0
  assert all(np.isfinite(v) for v in nothing.values())


def test_selectivity_is_the_best_classs_and_chance_stands_beside_it():
  rng = np.random.default_rng(0)
  y = rng.permutation(np.arange(240) % 4)
  r = np.maximum(rng.standard_normal((240, 30)), 0)
  r[:, 0] += 2 * (y == 2)
  r[:, 1] -= 3 * (y == 1)
  r[:, 2] = 7
  r = r.astype(np.float32)
  got_auc = latents.auc(stats.rankdata(r.astype(np.float64), axis=0), y)
  got_d = latents.dprime(r.astype(np.float64), y)
  for c in range(4):
    for j in (0, 1, 5, 29):
      assert got_auc[c, j] == pytest.approx(roc_auc_score(y == c, r[:, j]), abs=1e-12)
      a, b = r[y == c, j].astype(np.float64), r[y != c, j].astype(np.float64)
      want = abs(a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 2)
      assert got_d[c, j] == pytest.approx(want, rel=1e-9)
  got = latents.selectivity(r, y, rng.permutation(y))
  best = [max(max(s, 1 - s) for s in got_auc[:, j]) for j in range(30) if j != 2]
  assert got["auc_mean"] == pytest.approx(np.mean(best))
  assert got["auc_p95"] == pytest.approx(np.percentile(best, 95))
  assert 0.5 < got["auc_shuffled_mean"] < 0.62 and got["auc_p95"] > 0.75
  one = latents.selectivity(r[:, 3:], y, rng.permutation(y))
  assert abs(one["auc_mean"] - one["auc_shuffled_mean"]) < 0.03


def test_within_takes_pairs_of_a_group_only():
  r = np.stack([sample(60, 8, s) for s in range(3)], axis=1)
  want = np.mean([directly(r[:, g], np.ones(8, bool)) for g in range(3)])
  got = latents.within(r)
  assert got["decorrelation"] == pytest.approx(want, rel=1e-6)
  assert got["decorrelation_floor"] == pytest.approx(7 / 59)


class Mapper:
  """Latents that are maps: products of the pixels of a coarse view."""

  def __init__(self):
    self.outputs = {"latent": self.latent}

  def latent(self, params, b):
    x = b["image"][:, ::4, ::4].astype(jnp.float32) / 255 - 0.5
    return jnp.maximum(jnp.einsum("byxc,cd->byxd", x, params), 0)


def test_the_evaluator_measures_maps_in_parts_whatever_the_batches(place):
  params = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
  found = []
  for devices, size in ((1, 64), (1, 5), (8, 16)):
    found.append(evaluators.make(
      "latents", {"type": "latents", "batch_size": size}, task=Mapper(), **place(devices)
    ).run(params))
  got = found[0]
  for other in found[1:]:
    # Products in float32, of rows that differ in their last bit.
    assert other == pytest.approx(got, rel=1e-4, abs=1e-5)
  assert got["images"] == 31 and got["units"] == 2 * 2 * 5 and got["channels/units"] == 5
  assert {"within_place/decorrelation", "within_channel/decorrelation_excess",
          "channels/effective_rank", "selectivity_ours/auc_mean"} <= set(got)
  assert got["within_place/decorrelation_floor"] == pytest.approx(4 / 30)
  assert got["within_channel/decorrelation_floor"] == pytest.approx(3 / 30)
  few = evaluators.make("latents", {"type": "latents", "max_images": 7, "batch_size": 3},
                        task=Mapper(), **place()).run(params)
  assert few["images"] == 7


def test_without_classes_and_for_vectors_the_rest_is_measured(task, place, small_sample_data):
  spec = {"type": "latents", "output": "image", "batch_size": 2}
  got = evaluators.make("latents", spec, task=task,
                        **place(data=str(small_sample_data))).run(task.init())
  assert got["images"] == 3 and not any("selectivity" in k or "/" in k for k in got)
  with pytest.raises(ValueError, match="output='latent': this task has image, text, region"):
    evaluators.make("latents", {"type": "latents"}, task=task, **place())
