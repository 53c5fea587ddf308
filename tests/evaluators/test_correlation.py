"""Measures of agreement, against scipy and against the definitions written out."""

import itertools
import logging
import warnings

import numpy as np
import pytest
from scipy import optimize, stats

from big_vision_ext.evaluators import _correlation as corr

# Of a float64 sum of 300 terms.
EXACT = 1e-12
X = np.array([.12, .35, .35, .41, .58, .60, .77, .79, .93, .20])
Y = np.array([1.3, 2.2, 2.0, 2.9, 3.1, 3.1, 3.9, 4.4, 4.6, 1.9])


def cases():
  for seed in range(6):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 300))
    x = rng.normal(size=n)
    yield f"random{seed}", x, x + rng.normal(size=n)
    yield f"negative{seed}", x, -x + 0.3 * rng.normal(size=n)
    yield f"tied{seed}", rng.integers(0, 4, n).astype(float), rng.integers(0, 6, n).astype(float)
  yield "two", np.array([1.0, 2.0]), np.array([5.0, 3.0])
  yield "far from zero", 1e9 + np.arange(20.0), np.arange(20.0) ** 2
  yield "one tie", np.array([1.0, 1.0, 2.0]), np.array([3.0, 1.0, 2.0])


@pytest.mark.parametrize("x,y", [c[1:] for c in cases()], ids=[c[0] for c in cases()])
def test_correlations_are_scipys(x, y):
  assert corr.srcc(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=EXACT)
  assert corr.krcc(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=EXACT)
  # Numbers around 1e9 have 7 digits left behind the point.
  tolerance = 1e-7 if x.max() > 1e6 else EXACT
  assert corr.plcc(x, y) == pytest.approx(stats.pearsonr(x, y).statistic, abs=tolerance)


def test_the_known_example_has_its_known_values():
  assert corr.plcc(X, Y) == pytest.approx(0.9794203913, abs=1e-10)
  assert corr.srcc(X, Y) == pytest.approx(0.9939024390, abs=1e-10)
  assert corr.krcc(X, Y) == pytest.approx(0.9772727273, abs=1e-10)
  found = corr.measures(X, Y, bootstrap=0)
  assert found["plcc_fit"] == pytest.approx(0.9797402, abs=1e-6)
  assert found["rmse"] == pytest.approx(0.2106578, abs=1e-6)
  assert found["fit_parameters"] == 4 and found["plcc"] == corr.plcc(X, Y)


@pytest.mark.parametrize("seed", range(5))
def test_out_of_order_pairs_are_counted(seed):
  rng = np.random.default_rng(seed)
  values = rng.integers(0, [1, 2, 7, 64, 1000][seed], 120)
  want = sum(a > b for a, b in itertools.combinations(values.tolist(), 2))
  assert corr.inversions(values) == want


def test_kendall_of_many_images_is_fast_and_right():
  """AVA has 255,502: quadratic code would not come to an end here."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=200_000)
  y = np.round(x + rng.normal(size=len(x)), 2)
  assert corr.krcc(x, y) == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("x,y", [(np.ones(5), np.arange(5.0)), (np.arange(5.0), np.full(5, 0.1)),
                                 (np.array([1.0]), np.array([2.0]))])
def test_constant_predictions_are_nan_with_a_warning(x, y, caplog):
  for fn in (corr.srcc, corr.plcc, corr.krcc):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      assert np.isnan(fn(x, y))
    assert "no meaning" in caplog.text
  found = corr.measures(x, y)
  assert np.isnan(found["srcc"]) and found["fit_parameters"] == 0 and "srcc_low" not in found


def _scipys_four(x, y):
  def curve(x, b1, b2, b3, b4):
    return (b1 - b2) / (1 + np.exp(-(x - b3) / np.abs(b4))) + b2
  start = [y.max(), y.min(), x.mean(), x.std() / 4]
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    b, _ = optimize.curve_fit(curve, x, y, start, maxfev=20_000)
  return curve(x, *b)


@pytest.mark.parametrize("seed", range(4))
def test_the_fitted_curve_is_that_of_least_squares(seed):
  rng = np.random.default_rng(seed)
  x = rng.uniform(0.1, 0.9, 200)
  y = 20 + 60 / (1 + np.exp(-(x - 0.5) / 0.1)) + rng.normal(0, 4, 200)
  q, kind = corr.fit(x, y)
  want = _scipys_four(x, y)
  assert kind == "logistic4"
  assert corr.rmse(q, y) == pytest.approx(corr.rmse(want, y), rel=1e-6)
  # A curve of noise-free data is found again, whatever the scale of x.
  clean = 20 + 60 / (1 + np.exp(-(x - 0.5) / 0.1))
  for scale in (1.0, 1e-3, 1e4):
    assert corr.rmse(corr.fit(scale * x, clean)[0], clean) < 1e-6


def test_five_parameters_are_never_worse_than_four_and_fall_back():
  rng = np.random.default_rng(0)
  x = rng.normal(size=300)
  y = np.tanh(2 * x) + 0.4 * x + rng.normal(0, 0.1, 300)
  five, kind = corr.fit(x, y, 5)
  assert kind == "logistic5" and corr.rmse(five, y) < corr.rmse(corr.fit(x, y)[0], y)
  down, kind = corr.fit(x, -y, 5)
  assert kind == "logistic5" and corr.rmse(down, -y) == pytest.approx(corr.rmse(five, y), rel=1e-4)
  assert corr.fit(X, Y, 5)[1] == "logistic4"
  raw, kind = corr.fit(X[:3], Y[:3])
  assert kind == "raw" and (raw == X[:3]).all()


def test_an_interval_holds_most_of_the_truth():
  """Of 95 % intervals of 80 samples of a known correlation, most hold it and none is a point."""
  held = []
  for seed in range(60):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=80)
    x, y = a + rng.normal(size=80), a + rng.normal(size=80)
    low, high = corr.interval(corr.plcc, x, y, 200, seed)
    held.append(low < 0.5 < high)
    assert 0.02 < high - low < 0.6
  # 57 are expected; fewer than 50 of 60 would be three standard deviations away.
  assert sum(held) >= 50
  assert corr.interval(corr.plcc, x, y, 50, 3) == corr.interval(corr.plcc, x, y, 50, 3)


def test_measures_of_votes():
  p, q = np.array([[1.0, 0, 0, 0]]), np.array([[0, 0, 0, 2.0]])
  assert corr.emd(p, p) == 0
  assert corr.emd(p, q) == pytest.approx(np.sqrt(3 / 4))
  assert corr.emd(p, q, r=1) == pytest.approx(3 / 4)
  assert corr.binary_accuracy(np.array([4.0, 5.1, 6.0]), np.array([4.9, 5.0, 7.0])) == (
      pytest.approx(2 / 3))


def test_what_cannot_be_measured_is_told():
  with pytest.raises(ValueError, match=r"\(3,\) predictions and \(2,\) scores"):
    corr.srcc(np.ones(3), np.ones(2))
  with pytest.raises(ValueError, match="1 of 3 predictions are not finite"):
    corr.plcc(np.array([1, np.nan, 2]), np.arange(3.0))


def test_splits_are_summed_up():
  assert corr.summary([1.0, 2.0, 3.0, 10.0]) == {"mean": 4.0, "median": 2.5, "iqr": 3.0}
  history = [{"srcc": 0.1}, {"srcc": 0.4, "at": 1}, {"srcc": None}, {"srcc": 0.4, "at": 2}]
  assert corr.best(history, "srcc")["at"] == 1 and corr.best([], "srcc") is None
