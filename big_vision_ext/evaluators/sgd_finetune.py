"""How well are classes told apart if the encoder learns along with the linear layer?

Fine-tuning by Weiler et al. 2024 (FocusMIM), as its code has it: the readout of `sgd_probe`, with
the same division, batches and rule for stopping, but Adam trains the encoder too, with the same
little L2 in the gradient, at a rate of 1e-5. Whole images: nothing is masked and nothing augmented.
The run's own parameters stay as they are: a copy is trained, and what counts is the copy of the
epoch with the lowest held-out loss.

Each process trains on a device of its own. That is for models and data sets that fit there, such as
this model and STL-10's 5,000 images; `configs/mim/finetune.py` trains on a mesh.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Int, UInt8

from big_vision_ext.evaluators import _common, _labelled, _ranks, sgd_probe
from input_pipeline import contents


class Evaluator(_labelled.Probe):
  """Accuracy on the test images, and how training went.

  Args:
    lr, weight_decay, train_batch_size, max_epochs: of the training, encoder and classifier alike.
    patience, gain: it ends after so many epochs without such a gain of the held-out loss.
    held_out: share of the training images that is held out.
    seed: of the division, the initial values and the order of images.
    train_split, train_data, batch_size: see `_labelled.Probe`.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, lr: float = 1e-5,
               weight_decay: float = 1e-8, train_batch_size: int = 512, max_epochs: int = 1000,
               patience: int = 10, gain: float = 1e-4, held_out: float = 0.2, seed: int = 0,
               train_split: str = "train", train_data: str | None = None, batch_size: int = 32):
    super().__init__(task=task, input_config=input_config, mesh=mesh,
                     batch_sharding=batch_sharding, train_split=train_split,
                     train_data=train_data, batch_size=batch_size)
    if min(lr, train_batch_size, max_epochs, patience) <= 0 or min(weight_decay, gain) < 0:
      raise ValueError(
          f"sgd_finetune: lr={lr}, train_batch_size={train_batch_size}, max_epochs={max_epochs}, "
          f"patience={patience}, weight_decay={weight_decay}, gain={gain}: expected positive "
          "numbers; the last two may be 0")
    if not 0 < held_out < 1:
      raise ValueError(f"sgd_finetune: held_out={held_out}: expected a share between 0 and 1")
    self._embed, self._held_out, self._seed = task.outputs["image"], held_out, seed
    self._collect = functools.partial(_images, batch_size=batch_size,
                                      batch_sharding=batch_sharding)
    self._fit = functools.partial(
        fit, lr=lr, weight_decay=weight_decay, batch_size=train_batch_size, max_epochs=max_epochs,
        patience=patience, gain=gain, seed=seed)
    self._batch_size = train_batch_size
    self._params: Any = None

  def run(self, params) -> dict[str, float]:
    self._params = _common.to_host(params)
    try:
      return super().run(params)
    finally:
      self._params = None

  def measure(self, train: _labelled.Split, test: _labelled.Split) -> dict[str, float]:
    held = sgd_probe.divide(len(train.y), self._held_out, self._seed)
    part = lambda rows: (train.x[rows], train.y[rows])
    found = self._fit(self._embed, self._params, *part(~held), *part(held), len(train.classes))
    scores = functools.partial(logits, self._embed, found["params"], batch_size=self._batch_size)
    right = _ranks.top_k(scores(test.x), test.y, 1)
    seen = _ranks.top_k(scores(train.x), train.y, 1)
    return {"top1": float(np.mean(right)), "mean_per_class": _ranks.mean_per_class(right, test.y),
            "train_top1": float(np.mean(seen)), "held_out_loss": found["loss"],
            "epochs": float(found["epochs"]), "best_epoch": float(found["best_epoch"])}


def fit(embed: Callable, model: Any, x: UInt8[np.ndarray, "n y x c"], y: Int[np.ndarray, "n"],
        held_x: UInt8[np.ndarray, "m y x c"], held_y: Int[np.ndarray, "m"], classes: int, *,
        lr: float, weight_decay: float, batch_size: int, max_epochs: int, patience: int,
        gain: float, seed: int) -> dict[str, Any]:
  """Trains a copy of the model and a classifier.

  Args:
    embed: `embed(model, {"image": x}) -> (b, d)`.
    model: its parameters, on the host.
    x, y, held_x, held_y: images and classes to learn from, and to stop by.
    classes: how many there are.
    lr, weight_decay, batch_size, max_epochs, patience, gain, seed: see `Evaluator`.

  Returns:
    As `sgd_probe.until_no_gain`; its `params` have the `model` and the `head`.
  """
  tx = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(lr))

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, x, y):
    grads = jax.grad(lambda p: _loss(embed, p, x, y) / len(y))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  total = jax.jit(functools.partial(_loss, embed))
  with jax.set_mesh(_alone()):
    key = jax.random.key(seed)
    width = jax.eval_shape(embed, model, {"image": x[:1]}).shape[-1]
    head = sgd_probe.initial(jax.random.fold_in(key, 0), width, classes)
    params = jax.tree.map(jnp.array, {"model": model, "head": head})
    state = tx.init(params)

    def epoch(number):
      nonlocal params, state
      order = np.asarray(jax.random.permutation(jax.random.fold_in(key, number), len(y)))
      for start in range(0, len(order), batch_size):
        rows = order[start:start + batch_size]
        params, state = step(params, state, x[rows], y[rows])
      losses = [float(total(params, held_x[i:i + batch_size], held_y[i:i + batch_size]))
                for i in range(0, len(held_y), batch_size)]
      return sum(losses) / len(held_y), params

    return sgd_probe.until_no_gain(epoch, max_epochs=max_epochs, patience=patience, gain=gain)


def logits(embed: Callable, params: Any, x: UInt8[np.ndarray, "n y x c"],
           batch_size: int) -> np.ndarray:
  """(n, c): scores of the classes."""
  fn = jax.jit(functools.partial(_logits, embed))
  with jax.set_mesh(_alone()):
    return np.concatenate([np.asarray(fn(params, x[i:i + batch_size]))
                           for i in range(0, len(x), batch_size)])


def _logits(embed, params, x):
  features = embed(params["model"], {"image": x}).astype(jnp.float32)
  return jnp.dot(features, params["head"]["kernel"], precision="highest") + params["head"]["bias"]


def _loss(embed, params, x, y):
  """The sum over images."""
  return optax.softmax_cross_entropy_with_integer_labels(_logits(embed, params, x), y).sum()


def _alone():
  """One device of this process, whatever mesh the model lives on."""
  return jax.make_mesh((1,), ("alone",), devices=jax.local_devices()[:1],
                       axis_types=(jax.sharding.AxisType.Auto,))


def _images(params, input_config, batch_size: int, batch_sharding):
  """The labelled images of a split, uint8, and the names of their classes, in record order."""
  stream = _common.batches(input_config, "labelled", batch_size, batch_sharding)
  rows = _common.collect(lambda _, batch: {"x": batch["image"]}, params, stream)
  entries = contents.of_config(input_config)
  return rows["x"], [entries[i].label for i in rows["image_index"]]
