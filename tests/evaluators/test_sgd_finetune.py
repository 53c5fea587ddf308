"""Fine-tuning with early stopping, against float64 NumPy, step for step; the run stays as it is."""

import jax
import numpy as np
import pytest

from big_vision_ext import evaluators
from big_vision_ext.evaluators import sgd_finetune, sgd_probe

HOW = dict(lr=3e-3, weight_decay=0.02, batch_size=16, patience=2, gain=2e-3, seed=2)


def embed(params, batch):
  """A quadratic layer: its gradient is short enough to be written by hand."""
  x = batch["image"].reshape(len(batch["image"]), -1) / np.float32(255)
  return (x @ params["w"]) ** 2


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  y = rng.integers(0, 3, 70)
  means = rng.integers(40, 216, (3, 4, 2, 3))
  x = np.clip(means[y] + rng.normal(0, 60, (70, 4, 2, 3)), 0, 255).astype(np.uint8)
  model = {"w": rng.normal(0, 0.3, (24, 5)).astype(np.float32),
           "idle": rng.normal(0, 1, 4).astype(np.float32)}
  return model, x[:50], y[:50], x[50:], y[50:]


def by_hand(model, x, y, held_x, held_y, max_epochs, *, lr, weight_decay, batch_size, patience,
            gain, seed):
  """Adam with L2 in the gradient, as PyTorch documents it; only the draws are shared."""
  key = jax.random.key(seed)
  head = sgd_probe.initial(jax.random.fold_in(key, 0), 5, 3)
  p = {k: np.float64(v) for k, v in {**model, **head}.items()}
  m, v = ({k: np.zeros_like(a) for k, a in p.items()} for _ in range(2))
  flat = lambda x: np.float64(x.reshape(len(x), -1)) / 255

  def forward(x):
    z = flat(x) @ p["w"]
    scores = z**2 @ p["kernel"] + p["bias"]
    e = np.exp(scores - scores.max(1, keepdims=True))
    return z, e / e.sum(1, keepdims=True)

  best, since, t, epoch = (np.inf, None, None), 0, 0, 0
  for epoch in range(1, max_epochs + 1):
    order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), len(y)))
    for start in range(0, len(y), batch_size):
      rows = order[start:start + batch_size]
      z, chance = forward(x[rows])
      error = (chance - np.eye(3)[y[rows]]) / len(rows)
      back = error @ p["kernel"].T * 2 * z
      grads = {"kernel": (z**2).T @ error, "bias": error.sum(0), "w": flat(x[rows]).T @ back,
               "idle": np.zeros(4)}
      t += 1
      for k in p:
        g = grads[k] + weight_decay * p[k]
        m[k] = 0.9 * m[k] + 0.1 * g
        v[k] = 0.999 * v[k] + 0.001 * g * g
        p[k] = p[k] - lr * (m[k] / (1 - 0.9**t)) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
    loss = -np.log(forward(held_x)[1][np.arange(len(held_y)), held_y]).mean()
    since = since + 1 if not best[0] - loss >= gain else 0
    if loss < best[0]:
      best = loss, epoch, {k: a.copy() for k, a in p.items()}
    if since >= patience:
      break
  return best, epoch


@pytest.mark.parametrize("lr, most", [(3e-2, 60), (3e-3, 4)])
def test_encoder_and_classifier_learn_as_the_protocol_says(data, lr, most):
  how = HOW | dict(lr=lr)
  got = sgd_finetune.fit(embed, *data, 3, max_epochs=most, **how)
  (loss, epoch, want), epochs = by_hand(*data, most, **how)
  assert (got["best_epoch"], got["epochs"]) == (epoch, epochs)
  assert (epochs == most) == (most == 4), "one case stops early, one does not"
  # float32 against float64 over some hundred steps of Adam, which magnifies tiny gradients.
  np.testing.assert_allclose(got["loss"], loss, rtol=1e-4)
  found = {**got["params"]["model"], **got["params"]["head"]}
  for name, x in want.items():
    np.testing.assert_allclose(found[name], x, atol=1e-3, err_msg=name)
  assert np.abs(found["w"] - data[0]["w"]).max() > 0.01


def test_the_evaluator_trains_a_copy_and_beats_the_frozen_features(task, place):
  params = task.init()
  before = {k: np.array(x) for k, x in params.items()}
  spec = {"lr": 0.05, "max_epochs": 30, "train_batch_size": 64}

  def run(kind, devices):
    where = place(devices)
    evaluator = evaluators.make("f", spec | {"type": kind, "batch_size": 8}, task=task, **where)
    # As within a training run.
    with jax.set_mesh(where["mesh"]):
      return evaluator.run(params)

  tuned, frozen = run("sgd_finetune", 8), run("sgd_probe", 8)
  assert tuned == run("sgd_finetune", 1)
  assert tuned["train_images"] == frozen["train_images"] and 1 <= tuned["best_epoch"] <= 30
  assert tuned["held_out_loss"] < frozen["held_out_loss"]
  for name, x in before.items():
    np.testing.assert_array_equal(params[name], x)


@pytest.mark.parametrize("spec, message", [
  (dict(lr=0), "sgd_finetune: lr=0"), (dict(held_out=1.0), "held_out=1.0"),
  (dict(train_split="val"), "train_split='val' is what is tested on")])
def test_settings_that_cannot_be_are_errors(task, place, spec, message):
  with pytest.raises(ValueError, match=message):
    evaluators.make("f", spec | {"type": "sgd_finetune"}, task=task, **place())
