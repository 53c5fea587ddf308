"""How well does a linear classifier do that has seen a few images of each class? In closed form.

The protocol of big_vision's few-shot evaluation: features are standardised with the mean and
deviation of the few training images, a constant feature of 100 stands for the bias (so large that
regularisation hardly touches it), targets are +1 for the class and -1 for the others, and the
weights minimise |X W - Y|^2 + l2 |W|^2. One eigendecomposition of the smaller Gram matrix, in
float64, serves every l2.

Which images are seen is drawn by class and seed from the images in record order; those of fewer
shots are among those of more. A tie is no find.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from big_vision_ext.evaluators import _labelled, _ranks

_BIAS = 100.0


class Evaluator(_labelled.Probe):
  """Accuracy for each number of shots and each l2: mean and standard deviation over seeds.

  Args:
    shots: training images of each class.
    l2: strengths of regularisation. None is chosen for you: each is reported.
    seeds: how many draws of the training images.
    **probe: see `_labelled.Probe`.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               shots: Sequence[int] = (1, 5, 10, 25), l2: Sequence[float] = (1024.0,),
               seeds: int = 3, train_split: str = "train", train_data: str | None = None,
               looks: int = 0, batch_size: int = 32):
    super().__init__(task=task, input_config=input_config, mesh=mesh,
                     batch_sharding=batch_sharding, train_split=train_split,
                     train_data=train_data, looks=looks, batch_size=batch_size)
    if not shots or min(shots) < 1 or not l2 or min(l2) <= 0 or seeds < 1:
      raise ValueError(f"fewshot: shots={list(shots)}, l2={list(l2)}, seeds={seeds}: expected "
                       "positive numbers")
    self._shots, self._l2, self._seeds = tuple(shots), tuple(l2), seeds

  def measure(self, train: _labelled.Split, test: _labelled.Split) -> dict[str, float]:
    count = np.bincount(train.y)
    least = int(np.argmin(count))
    if count[least] < max(self._shots):
      raise ValueError(
          f"fewshot: shots={max(self._shots)}, but class {train.classes[least]!r} has "
          f"{count[least]} training images; ask for fewer shots")
    out = {}
    for shots in self._shots:
      top1 = np.array([accuracies(train, test, draw(train.y, shots, seed), self._l2)
                       for seed in range(self._seeds)])
      for l2, values in zip(self._l2, top1.T):
        out[f"l2_{l2:g}/top1_{shots}shot"] = float(values.mean())
        out[f"l2_{l2:g}/top1_{shots}shot_std"] = float(values.std())
    return out


def draw(y: Int[np.ndarray, "n"], shots: int, seed: int) -> Int[np.ndarray, "m"]:
  """Indices of `shots` images of each class, class after class."""
  chosen = [np.random.default_rng([seed, c]).permutation(np.flatnonzero(y == c))[:shots]
            for c in range(y.max() + 1)]
  return np.concatenate(chosen)


def accuracies(train: _labelled.Split, test: _labelled.Split, chosen: np.ndarray,
               l2: Sequence[float]) -> list[float]:
  """Top-1 accuracy on the test images for each l2, having seen the chosen training images."""
  x = train.x[chosen].astype(np.float64)
  mean, std = x.mean(0), x.std(0) + 1e-5
  prepare = lambda x: np.pad((x - mean) / std, ((0, 0), (0, 1)), constant_values=_BIAS)
  targets = 2.0 * np.eye(len(train.classes))[train.y[chosen]] - 1.0
  scores = (prepare(test.x.astype(np.float64)) @ w for w in ridge(prepare(x), targets, l2))
  return [float(np.mean(_ranks.top_k(s, test.y, 1))) for s in scores]


def ridge(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n c"], l2: Sequence[float]
          ) -> list[Float[np.ndarray, "d c"]]:
  """The minimisers of |x w - y|^2 + l2 |w|^2, for each l2.

  (x'x + l2)^-1 x'y = x' (xx' + l2)^-1 y: the smaller of the two Gram matrices is decomposed.
  """
  if len(x) >= x.shape[1]:
    values, q = np.linalg.eigh(x.T @ x)
    left, right = q, q.T @ (x.T @ y)
  else:
    values, q = np.linalg.eigh(x @ x.T)
    left, right = x.T @ q, q.T @ y
  # Rounding may leave eigenvalues that should be zero slightly below it.
  values = np.maximum(values, 0.0)
  return [left @ (right / (values + strength)[:, None]) for strength in l2]
