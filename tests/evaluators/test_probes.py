"""Few-shot, nearest neighbours and linear probe, against scikit-learn on real digits."""

import types

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding
from big_vision_ext.evaluators import _labelled, fewshot, knn, linear_probe
from input_pipeline import loader

NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def digits():
  x, y = load_digits(return_X_y=True)
  x = x + np.random.default_rng(0).normal(0, 4, x.shape)  # Otherwise too easy to tell things apart.
  train = _labelled.Split(x[:600].astype(np.float32), y[:600], NAMES)
  return train, _labelled.Split(x[600:900].astype(np.float32), y[600:900], NAMES)


@pytest.mark.parametrize("shots", [1, 3, 20])
@pytest.mark.parametrize("l2", [1e-3, 1.0, 1024.0])
def test_the_closed_form_is_ridge_regression(digits, shots, l2):
  """Below and above as many images as features; float64 on both sides."""
  train, _ = digits
  chosen = fewshot.draw(train.y, shots, seed=1)
  x = train.x[chosen].astype(np.float64)
  y = 2.0 * np.eye(10)[train.y[chosen]] - 1
  (w,) = fewshot.ridge(x, y, (l2,))
  want = Ridge(alpha=l2, fit_intercept=False, solver="svd").fit(x, y).coef_.T
  np.testing.assert_allclose(x @ w, x @ want, atol=1e-8)
  np.testing.assert_allclose(w, want, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("seed", range(2))
def test_fewshot_accuracy_equals_ridge_classification(digits, seed):
  train, test = digits
  chosen = fewshot.draw(train.y, 5, seed)
  got = fewshot.accuracies(train, test, chosen, (1.0, 1024.0))
  x, y = train.x[chosen].astype(np.float64), train.y[chosen]
  mean, std = x.mean(0), x.std(0) + 1e-5
  with_bias = lambda x: np.concatenate([(x - mean) / std, np.full((len(x), 1), 100.0)], axis=1)
  for l2, accuracy in zip((1.0, 1024.0), got):
    model = Ridge(alpha=l2, fit_intercept=False, solver="svd")
    model.fit(with_bias(x), 2.0 * np.eye(10)[y] - 1)
    guess = model.predict(with_bias(test.x.astype(np.float64))).argmax(1)
    assert accuracy == pytest.approx(np.mean(guess == test.y)) and accuracy > 0.3


def test_shots_are_drawn_evenly_nested_and_by_seed(digits):
  y = digits[0].y
  few, many = fewshot.draw(y, 2, 0), fewshot.draw(y, 7, 0)
  assert np.bincount(y[many]).tolist() == [7] * 10 and len(set(many)) == 70
  assert set(few) < set(many) and set(few) != set(fewshot.draw(y, 2, 1))


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_neighbours_vote_as_scikit_learns_do(digits, k, temperature):
  train, test = digits
  near, cosine = knn.neighbours(train.x, test.x, k)
  for weights, mine in (
      ("uniform", np.ones_like(cosine)),
      (lambda d: np.exp((1 - d) / temperature), np.exp(cosine / temperature))):
    peer = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    peer.fit(train.x.astype(np.float64), train.y)
    want = peer.predict(test.x.astype(np.float64))
    np.testing.assert_array_equal(knn.vote(train.y[near], mine, 10), want)


def test_neighbours_are_the_same_in_chunks_and_ties_take_the_first(digits, monkeypatch):
  train, test = digits
  whole = knn.neighbours(train.x, test.x, 7)
  monkeypatch.setattr(knn, "_CHUNK", 1200)
  np.testing.assert_array_equal(knn.neighbours(train.x, test.x, 7)[0], whole[0])
  twice = np.concatenate([train.x[:5], train.x[:5]])
  assert knn.neighbours(twice, train.x[:5], 1)[0][:, 0].tolist() == [0, 1, 2, 3, 4]
  assert knn.vote(np.array([[3, 1]]), np.ones((1, 2)), 4).tolist() == [1]


@pytest.mark.parametrize("l2", [1e-1, 1e-2])
def test_the_linear_probe_is_scikit_learns_logistic_regression(digits, l2):
  """float32, stopped at a gradient of 1e-6, against float64: 1e-3 of probabilities."""
  train, test = digits
  w, b, scale, steps = linear_probe.fit(
    train.x, train.y, 10, l2, max_steps=1000, tolerance=1e-6)
  standard = lambda x: (x.astype(np.float64) - scale[0]) / scale[1]
  peer = LogisticRegression(C=1 / (600 * l2), tol=1e-10, max_iter=10_000)
  peer.fit(standard(train.x), train.y)
  z = linear_probe.logits(test.x, w, b, scale).astype(np.float64)
  got = np.exp(z - z.max(1, keepdims=True))
  got /= got.sum(1, keepdims=True)
  want = peer.predict_proba(standard(test.x))
  np.testing.assert_allclose(got, want, atol=1e-3)
  assert np.mean(got.argmax(1) == want.argmax(1)) > 0.99 and steps < 1000


def _arguments():
  """Evaluators' arguments where only `measure` is called."""
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices())
  return dict(task=types.SimpleNamespace(outputs={"image": None}), mesh=mesh,
              batch_sharding=sharding.batch_sharding(mesh),
              input_config=loader.InputConfig(data="x", split="val"))


def test_the_linear_probe_chooses_l2_without_the_test_images(digits):
  train, test = digits
  probe = linear_probe.Evaluator(l2=(1e-4, 1e-1, 1e2), **_arguments())
  got = probe.measure(train, test)
  assert got["top1"] > 0.7 and got["l2"] in (1e-1, 1e-4)
  held = linear_probe.held_out(train.y, 0)
  assert np.all(np.abs(np.bincount(train.y[held]) / np.bincount(train.y) - 0.2) < 0.02)
  # Other test images, the same choice and the same training accuracy.
  other = probe.measure(train, _labelled.Split(test.x[:50], test.y[:50][::-1], NAMES))
  assert (other["l2"], other["train_top1"]) == (got["l2"], got["train_top1"])
  assert other["top1"] < got["top1"]


def test_the_linear_probe_runs_inside_of_a_run_on_eight_devices(digits):
  train, test = digits
  fit = lambda: linear_probe.fit(train.x, train.y, 10, 0.1, max_steps=1000, tolerance=1e-6)
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices())
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    inside = fit()
  np.testing.assert_array_equal(inside[0], fit()[0])


@pytest.mark.parametrize("module,args,message", [
  (fewshot, {"shots": (100,)}, "has 5[0-9] training images; ask for fewer shots"),
  (knn, {"ks": (601,)}, "there are 600 training images"),
])
def test_more_images_than_there_are_are_refused(digits, module, args, message):
  with pytest.raises(ValueError, match=message):
    module.Evaluator(**args, **_arguments()).measure(*digits)


@pytest.mark.parametrize("module,args,message", [
  (fewshot, {"shots": (0,)}, "positive"),
  (fewshot, {"l2": (-1.0,)}, "positive"),
  (knn, {"temperature": 0.0}, "positive"),
  (linear_probe, {"l2": ()}, "positive"),
  (knn, {"train_split": "val"}, "what is tested on as well"),
  (linear_probe, {"looks": 2}, "selects nothing"),
])
def test_settings_that_cannot_be_followed_are_told_at_once(module, args, message):
  with pytest.raises(ValueError, match=message):
    module.Evaluator(**args, **_arguments())


def test_a_class_that_only_the_test_images_have_is_told():
  x = np.zeros((2, 3), np.float32)
  with pytest.raises(ValueError, match="no image of 1 of the classes.*'c'"):
    _labelled.number((x, ["a", "b"]), (x, ["a", "c"]), "here")
  train, test = _labelled.number((x, ["b", "a"]), (x, ["b", "b"]), "here")
  assert train.y.tolist() == [1, 0] and test.y.tolist() == [1, 1]
