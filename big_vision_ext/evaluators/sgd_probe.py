"""How well does a linear layer, trained by gradient steps, tell the classes from frozen features?

The readout of Weiler et al. 2024 (FocusMIM), as its code has it: a linear layer with PyTorch's
initial values on the features as they are, not standardised; Adam with a little L2 in the gradient;
batches of 512, the last one of an epoch smaller; a fifth of the training images, drawn by a seed,
held out. After each epoch the loss on them is looked at; the best classifier is kept, and training
ends after 10 epochs without a gain of 1e-4 (a smaller gain still counts for the best). Features are
computed once, of whole images: nothing is masked and nothing augmented.

Where a task has the output `autoencode`, the mean squared error of its images is measured too, in
units where white is 1. The held-out loss is the mean over images; the released code takes the mean
over two batches, of 512 and 488. A tie is no find.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from big_vision_ext.evaluators import _common, _labelled, _ranks


class Evaluator(_labelled.Probe):
  """Accuracy on the test images, and how training the classifier went.

  Args:
    lr, weight_decay, train_batch_size, max_epochs: of the classifier's training.
    patience, gain: training ends after so many epochs without such a gain of the held-out loss.
    held_out: share of the training images that is held out.
    seed: of the division, the initial values and the order of images.
    features, train_split, train_data, batch_size: see `_labelled.Probe`.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, features: str = "image",
               lr: float = 1e-4, weight_decay: float = 1e-8, train_batch_size: int = 512,
               max_epochs: int = 1000, patience: int = 10, gain: float = 1e-4,
               held_out: float = 0.2, seed: int = 0, train_split: str = "train",
               train_data: str | None = None, batch_size: int = 32):
    super().__init__(task=task, input_config=input_config, mesh=mesh,
                     batch_sharding=batch_sharding, train_split=train_split,
                     train_data=train_data, features=features, batch_size=batch_size)
    if min(lr, train_batch_size, max_epochs, patience) <= 0 or min(weight_decay, gain) < 0:
      raise ValueError(
          f"sgd_probe: lr={lr}, train_batch_size={train_batch_size}, max_epochs={max_epochs}, "
          f"patience={patience}, weight_decay={weight_decay}, gain={gain}: expected positive "
          "numbers; the last two may be 0")
    if not 0 < held_out < 1:
      raise ValueError(f"sgd_probe: held_out={held_out}: expected a share between 0 and 1")
    self._held_out, self._seed = held_out, seed
    self._fit = functools.partial(
        fit, lr=lr, weight_decay=weight_decay, batch_size=train_batch_size, max_epochs=max_epochs,
        patience=patience, gain=gain, seed=seed)
    autoencode = task.outputs.get("autoencode") if features == "image" else None
    self._error = autoencode and functools.partial(
        reconstruction_error, jax.jit(functools.partial(_errors, autoencode)),
        batch_size=batch_size, batch_sharding=batch_sharding)

  def run(self, params) -> dict[str, float]:
    out = super().run(params)
    if self._error:
      with jax.set_mesh(self._mesh):
        out |= {"mse": self._error(params, self._test),
                "train_mse": self._error(params, self._train)}
    return out

  def measure(self, train: _labelled.Split, test: _labelled.Split) -> dict[str, float]:
    classes = len(train.classes)
    held = divide(len(train.y), self._held_out, self._seed)
    part = lambda rows: (train.x[rows], train.y[rows])
    found = self._fit(*part(~held), *part(held), classes)
    logits = lambda x: x @ found["kernel"] + found["bias"]
    right = _ranks.top_k(logits(test.x), test.y, 1)
    seen = _ranks.top_k(logits(train.x), train.y, 1)
    return {"top1": float(np.mean(right)), "mean_per_class": _ranks.mean_per_class(right, test.y),
            "train_top1": float(np.mean(seen)), "held_out_loss": found["loss"],
            "epochs": float(found["epochs"]), "best_epoch": float(found["best_epoch"])}


def divide(count: int, share: float, seed: int) -> np.ndarray:
  """Which of `count` images are held out (n,) bool: a share of them, at least one and not all.

  Raises:
    ValueError: there are too few images to hold any out.
  """
  if count < 2:
    raise ValueError(f"{count} training images: expected at least two, of which one is held out")
  out = np.zeros(count, bool)
  held = min(max(1, round(share * count)), count - 1)
  out[np.random.default_rng(seed).permutation(count)[:held]] = True
  return out


def fit(x: Float[np.ndarray, "n d"], y: Int[np.ndarray, "n"], held_x: Float[np.ndarray, "m d"],
        held_y: Int[np.ndarray, "m"], classes: int, *, lr: float, weight_decay: float,
        batch_size: int, max_epochs: int, patience: int, gain: float, seed: int) -> dict:
  """Trains the classifier.

  Returns:
    kernel (d, c) and bias (c,) with the lowest held-out loss, that `loss`, the number of `epochs`
    and, from 1, the `best_epoch`.
  """
  # Each process does the same on a device of its own, whatever mesh the model lives on.
  alone = jax.make_mesh((1,), ("alone",), devices=jax.local_devices()[:1],
                        axis_types=(jax.sharding.AxisType.Auto,))
  with jax.set_mesh(alone):
    key = jax.random.key(seed)
    x, held_x = (jnp.asarray(a, jnp.float32) for a in (x, held_x))
    y, held_y = (jnp.asarray(a, jnp.int32) for a in (y, held_y))
    params = initial(jax.random.fold_in(key, 0), x.shape[1], classes)
    tx = optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(lr))
    state = tx.init(params)
    epoch = jax.jit(functools.partial(_epoch, tx, batch_size), donate_argnums=(0, 1))

    def run(number):
      nonlocal params, state
      order = jax.random.permutation(jax.random.fold_in(key, number), len(y))
      params, state = epoch(params, state, order, x, y)
      return float(_mean_loss(params, held_x, held_y)), params

    found = until_no_gain(run, max_epochs=max_epochs, patience=patience, gain=gain)
  return {**found.pop("params"), **found}


def until_no_gain(epoch: Callable[[int], tuple[float, Any]], *, max_epochs: int, patience: int,
                  gain: float) -> dict[str, Any]:
  """Runs epochs until the held-out loss gains no more.

  Args:
    epoch: given its number, from 1, trains through it; gives the loss and the parameters then.
    max_epochs: so many at most.
    patience, gain: so many epochs in a row without such a gain are the last.

  Returns:
    `params` with the lowest `loss`, on the host; that loss, the number of `epochs`, `best_epoch`.

  Raises:
    ValueError: no loss was finite.
  """
  best, waited, number = (np.inf, 0, None), 0, 0
  for number in range(1, max_epochs + 1):
    loss, params = epoch(number)
    waited = 0 if loss <= best[0] - gain else waited + 1
    if loss < best[0]:
      # Copies: the next epoch takes the arrays' memory.
      best = loss, number, jax.tree.map(lambda p: np.array(p, copy=True), params)
    if waited >= patience:
      break
  if best[2] is None:
    raise ValueError("the held-out loss is not finite: features are not, or lr is far too large")
  return {"params": best[2], "loss": best[0], "best_epoch": best[1], "epochs": number}


def initial(key, width: int, classes: int) -> dict[str, Array]:
  """A linear layer with PyTorch's initial values."""
  bound = width**-0.5
  draw = lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)
  a, b = jax.random.split(key)
  return {"kernel": draw(a, (width, classes)), "bias": draw(b, (classes,))}


def reconstruction_error(errors, params, input_config, batch_size: int, batch_sharding) -> float:
  """The mean over the labelled images of a split of `errors(params, batch)["error"]`."""
  stream = _common.batches(input_config, "labelled", batch_size, batch_sharding)
  rows = _common.collect(errors, params, stream)
  return float(np.mean(rows["error"], dtype=np.float64))


def _errors(autoencode, params, batch):
  target = batch["image"].astype(jnp.float32) / 255.0
  return {"error": jnp.mean((autoencode(params, batch) - target) ** 2, axis=(1, 2, 3))}


def _epoch(tx, batch_size, params, state, order, x, y):
  """One pass over the images in this order; the last batch has what is left."""
  def step(params, state, rows):
    grads = jax.grad(_mean_loss)(params, x[rows], y[rows])
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  whole = len(order) // batch_size
  if whole:
    batches = order[:whole * batch_size].reshape(whole, batch_size)
    (params, state), _ = jax.lax.scan(
        lambda carry, rows: (step(*carry, rows), None), (params, state), batches)
  if len(order) % batch_size:
    params, state = step(params, state, order[whole * batch_size:])
  return params, state


@jax.jit
def _mean_loss(params, x, y):
  logits = jnp.dot(x, params["kernel"], precision="highest") + params["bias"]
  return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
