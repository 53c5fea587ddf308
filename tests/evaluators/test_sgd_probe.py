"""The readout by gradient steps, against the same in float64 NumPy, step for step."""

import jax
import numpy as np
import pytest
from sklearn.datasets import load_digits

from big_vision_ext import evaluators
from big_vision_ext.evaluators import sgd_probe

HOW = dict(lr=3e-3, weight_decay=0.02, batch_size=64, patience=3, gain=2e-3, seed=2)


@pytest.fixture(scope="module")
def data():
  x, y = load_digits(return_X_y=True)
  x = (x / 16).astype(np.float32)
  return x[:200], y[:200], x[200:290], y[200:290]


def softmax(z):
  e = np.exp(z - z.max(1, keepdims=True))
  return e / e.sum(1, keepdims=True)


def by_hand(x, y, held_x, held_y, max_epochs, *, lr, weight_decay, batch_size, patience, gain,
            seed):
  """Adam as PyTorch documents it, with the probe's rule for stopping; only the draws are shared."""
  key = jax.random.key(seed)
  p = {k: np.float64(v) for k, v in sgd_probe.initial(
    jax.random.fold_in(key, 0), x.shape[1], 10).items()}
  m, v = ({k: np.zeros_like(a) for k, a in p.items()} for _ in range(2))
  best, since, losses, t = (np.inf, None, None), 0, [], 0
  for epoch in range(1, max_epochs + 1):
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), len(y)))
    for start in range(0, len(y), batch_size):
      rows = order[start:start + batch_size]
      error = (softmax(x[rows] @ p["kernel"] + p["bias"]) - np.eye(10)[y[rows]]) / len(rows)
      grads = {"kernel": x[rows].T.astype(np.float64) @ error, "bias": error.sum(0)}
      t += 1
      for k in p:
        g = grads[k] + weight_decay * p[k]
        m[k] = 0.9 * m[k] + 0.1 * g
        v[k] = 0.999 * v[k] + 0.001 * g * g
        p[k] = p[k] - lr * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
    chance = softmax(held_x @ p["kernel"] + p["bias"])
    loss = -np.log(chance[np.arange(len(held_y)), held_y]).mean()
    losses.append(loss)
    if loss < best[0]:
      since = since + 1 if best[0] - loss < gain else 0
      best = loss, epoch, {k: a.copy() for k, a in p.items()}
    else:
      since += 1
    if since >= patience:
      break
  return best, losses


@pytest.mark.parametrize("decay, gain, most", [(0.02, 2e-3, 300), (0.0, 1e-4, 7)])
def test_training_is_that_of_the_protocol_step_for_step(data, decay, gain, most):
  how = HOW | dict(weight_decay=decay, gain=gain)
  got = sgd_probe.fit(*data, 10, max_epochs=most, **how)
  (loss, epoch, want), losses = by_hand(*data, most, **how)
  assert got["epochs"] == len(losses) and got["best_epoch"] == epoch
  assert (len(losses) == most) == (most == 7), "one case stops early, one does not"
  # float32 against float64 over some hundred steps of Adam, which magnifies tiny gradients.
  np.testing.assert_allclose(got["loss"], loss, rtol=1e-4)
  np.testing.assert_allclose(got["kernel"], want["kernel"], atol=1e-3)
  np.testing.assert_allclose(got["bias"], want["bias"], atol=1e-3)
  assert losses[0] > 1.1 * loss


def test_what_is_returned_is_the_best_and_not_the_last(data):
  """A rate that is far too large soon makes things worse."""
  x, y, held_x, held_y = data
  got = sgd_probe.fit(*data, 10, max_epochs=40, **HOW | dict(lr=0.5, patience=6))
  assert got["best_epoch"] <= got["epochs"] - 6 or got["epochs"] == 40
  z = held_x @ got["kernel"] + got["bias"]
  loss = -np.log(softmax(z.astype(np.float64))[np.arange(len(held_y)), held_y]).mean()
  np.testing.assert_allclose(loss, got["loss"], rtol=1e-4)


@pytest.mark.parametrize("count, share, held", [(5000, 0.2, 1000), (7, 0.2, 1), (2, 0.9, 1)])
def test_a_share_is_held_out_by_seed(count, share, held):
  out = sgd_probe.divide(count, share, 3)
  assert out.sum() == held
  if count == 5000:
    np.testing.assert_array_equal(out, sgd_probe.divide(count, share, 3))
    assert not np.array_equal(out, sgd_probe.divide(count, share, 4))


def test_features_that_are_no_numbers_are_said_to_be(data):
  x, y, held_x, held_y = data
  with pytest.raises(ValueError, match="held-out loss is not finite"):
    sgd_probe.fit(x * np.nan, y, held_x, held_y, 10, max_epochs=20, **HOW)


class Copier:
  """The class's colours as features, and images that are off by a known amount."""

  def __init__(self, task):
    self.outputs = dict(task.outputs, autoencode=lambda params, b: b["image"] / 255.0 + 0.1)


def test_the_evaluator_reports_accuracy_and_errors_of_images_on_any_batch_size(task, place):
  params = task.init()
  spec = {"type": "sgd_probe", "lr": 0.02, "max_epochs": 60, "train_batch_size": 16}
  found = []
  for devices, size in ((1, 64), (1, 5), (8, 16)):
    found.append(evaluators.make("probe", spec | {"batch_size": size}, task=Copier(task),
                                 **place(devices)).run(params))
  for other in found[1:]:
    assert other == pytest.approx(found[0], abs=1e-5)
  got = found[0]
  assert got["mse"] == pytest.approx(0.01, rel=1e-4) == got["train_mse"]
  assert got["top1"] > 0.5 and got["classes"] == 4 and got["test_images"] == 26
  assert 1 <= got["best_epoch"] <= got["epochs"] <= 60


def test_pixels_can_be_the_features(task, place):
  spec = {"type": "sgd_probe", "features": "pixels", "max_epochs": 5, "lr": 1e-2}
  got = evaluators.make("probe", spec, task=Copier(task), **place()).run(task.init())
  assert "mse" not in got and 0 < got["train_top1"] <= 1


@pytest.mark.parametrize("spec, message", [
  ({"features": "text"}, "features='text'"), ({"held_out": 1.0}, "held_out=1.0"),
  ({"patience": 0}, "patience=0"),
])
def test_impossible_settings_are_refused(task, place, spec, message):
  with pytest.raises(ValueError, match=message):
    evaluators.make("probe", {"type": "sgd_probe", **spec}, task=task, **place())
