"""How well are the classes told apart by a linear classifier trained on all training images?

Multinomial logistic regression on frozen, standardised features: the minimum of the mean cross
entropy + l2 / 2 |W|^2 (the bias is free), found by L-BFGS on the whole training set. That is
scikit-learn's LogisticRegression with C = 1 / (n l2).

With several l2, a fifth of the training images of each class is held out, the l2 with the best
accuracy on them is taken (of equals, the strongest), and the classifier is trained again on all.
The test images decide nothing. A tie is no find.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from big_vision_ext.evaluators import _labelled, _ranks

_HELD_OUT = 0.2


class Evaluator(_labelled.Probe):
  """Accuracy on the test images, and the l2 that was chosen.

  Args:
    l2: strengths of regularisation to choose from.
    max_steps: L-BFGS stops here at the latest; `steps` is reported.
    tolerance: it stops when no entry of the gradient is larger.
    seed: which training images are held out.
    **probe: see `_labelled.Probe`.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               l2: Sequence[float] = (1.0, 1e-1, 1e-2, 1e-3, 1e-4), max_steps: int = 1000,
               tolerance: float = 1e-5, seed: int = 0, train_split: str = "train",
               train_data: str | None = None, looks: int = 0, features: str = "image",
               batch_size: int = 32):
    super().__init__(task=task, input_config=input_config, mesh=mesh,
                     batch_sharding=batch_sharding, train_split=train_split,
                     train_data=train_data, looks=looks, features=features, batch_size=batch_size)
    if not l2 or min(l2) <= 0 or max_steps < 1 or tolerance <= 0:
      raise ValueError(f"linear_probe: l2={list(l2)}, max_steps={max_steps}, tolerance={tolerance}"
                       ": expected positive numbers")
    self._l2, self._seed = sorted(l2, reverse=True), seed
    self._fit = functools.partial(fit, max_steps=max_steps, tolerance=tolerance)

  def measure(self, train: _labelled.Split, test: _labelled.Split) -> dict[str, float]:
    classes = len(train.classes)
    l2 = self._l2[0]
    if len(self._l2) > 1:
      held = held_out(train.y, self._seed)
      scores = []
      for strength in self._l2:
        w, b, scale, _ = self._fit(train.x[~held], train.y[~held], classes, strength)
        scores.append(np.mean(_ranks.top_k(
            logits(train.x[held], w, b, scale), train.y[held], 1)))
      l2 = self._l2[int(np.argmax(scores))]
    w, b, scale, steps = self._fit(train.x, train.y, classes, l2)
    found = logits(test.x, w, b, scale)
    best = _ranks.top_k(found, test.y, 1)
    out = {"top1": float(np.mean(best)), "mean_per_class": _ranks.mean_per_class(best, test.y)}
    if classes > 5:
      out["top5"] = float(np.mean(_ranks.top_k(found, test.y, 5)))
    seen = _ranks.top_k(logits(train.x, w, b, scale), train.y, 1)
    return out | {"train_top1": float(np.mean(seen)), "l2": float(l2), "steps": float(steps)}


def held_out(y: Int[np.ndarray, "n"], seed: int) -> np.ndarray:
  """A fifth of the images of each class, at least one where there are two (n,) bool."""
  out = np.zeros(len(y), bool)
  for c in np.unique(y):
    mine = np.random.default_rng([seed, c]).permutation(np.flatnonzero(y == c))
    if len(mine) > 1:
      out[mine[:max(1, round(_HELD_OUT * len(mine)))]] = True
  return out


def logits(x: Float[np.ndarray, "n d"], w: np.ndarray, b: np.ndarray, scale: tuple
           ) -> Float[np.ndarray, "n c"]:
  """Scores of features by a classifier of `fit`."""
  mean, std = scale
  return ((x - mean) / std).astype(np.float32) @ w + b


def fit(x: Float[np.ndarray, "n d"], y: Int[np.ndarray, "n"], classes: int, l2: float, *,
        max_steps: int, tolerance: float) -> tuple[np.ndarray, np.ndarray, tuple, int]:
  """Trains the classifier.

  Returns:
    weights (d, c) and bias (c,) for standardised features, their (mean, std), and the number of
    steps taken.
  """
  scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64) + 1e-5
  x = ((x - scale[0]) / scale[1]).astype(np.float32)
  # Each process does the same on a device of its own, whatever mesh the model lives on.
  alone = jax.make_mesh((1,), ("alone",), devices=jax.local_devices()[:1],
                        axis_types=(jax.sharding.AxisType.Auto,))
  with jax.set_mesh(alone):
    w, b, steps = _minimise(x, y.astype(np.int32), l2, tolerance, classes, max_steps)
    return np.asarray(w), np.asarray(b), scale, int(steps)


@functools.partial(jax.jit, static_argnames=("classes", "max_steps"))
def _minimise(x, y, l2, tolerance, classes, max_steps):
  def objective(params):
    w, b = params
    entropy = optax.softmax_cross_entropy_with_integer_labels(
        jnp.dot(x, w, precision="highest") + b, y)
    return entropy.mean() + 0.5 * l2 * jnp.sum(w * w)

  solver = optax.lbfgs(memory_size=10)
  value_and_grad = optax.value_and_grad_from_state(objective)

  def step(carry):
    params, state, _, count = carry
    value, grad = value_and_grad(params, state=state)
    updates, state = solver.update(
        grad, state, params, value=value, grad=grad, value_fn=objective)
    params = optax.apply_updates(params, updates)
    # The line search leaves the gradient at the new point in the state.
    grad = optax.tree_utils.tree_get(state, "grad")
    return params, state, optax.tree_utils.tree_max(jax.tree.map(jnp.abs, grad)), count + 1

  params = (jnp.zeros((x.shape[1], classes)), jnp.zeros(classes))
  carry = (params, solver.init(params), jnp.inf, 0)
  go_on = lambda carry: (carry[2] > tolerance) & (carry[3] < max_steps)
  (w, b), _, _, count = jax.lax.while_loop(go_on, step, carry)
  return w, b, count
