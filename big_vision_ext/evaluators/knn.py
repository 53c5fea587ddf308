"""Are images of a class near each other? k nearest neighbours by cosine.

Two votes: *plain*, each of the k nearest training images counts one, and *weighted*, it counts
exp(cosine / temperature) (Wu et al. 2018; DINO, Caron et al. 2021, takes 0.07). Of equally near
images the one that comes first in the training split is nearer; of classes with equal votes the
first by name wins, as in scikit-learn.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from big_vision_ext.evaluators import _labelled

# Similarities held at once.
_CHUNK = 2**25


class Evaluator(_labelled.Probe):
  """Top-1 accuracy of both votes for each k.

  Args:
    ks: numbers of neighbours.
    temperature: of the weighted vote.
    **probe: see `_labelled.Probe`.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, ks: Sequence[int] = (1, 10, 20),
               temperature: float = 0.07, train_split: str = "train",
               train_data: str | None = None, looks: int = 0, batch_size: int = 32):
    super().__init__(task=task, input_config=input_config, mesh=mesh,
                     batch_sharding=batch_sharding, train_split=train_split,
                     train_data=train_data, looks=looks, batch_size=batch_size)
    if not ks or min(ks) < 1 or temperature <= 0:
      raise ValueError(f"knn: ks={list(ks)}, temperature={temperature}: expected positive numbers")
    self._ks, self._temperature = tuple(ks), temperature

  def measure(self, train: _labelled.Split, test: _labelled.Split) -> dict[str, float]:
    if max(self._ks) > len(train.y):
      raise ValueError(f"knn: ks={list(self._ks)}, but there are {len(train.y)} training images")
    out = {}
    classes = len(train.classes)
    near, cosine = neighbours(train.x, test.x, max(self._ks))
    for k in self._ks:
      for name, weight in (("plain", np.ones_like(cosine[:, :k])),
                           ("weighted", np.exp(cosine[:, :k] / self._temperature))):
        guess = vote(train.y[near[:, :k]], weight, classes)
        out[f"{name}/top1_k{k}"] = float(np.mean(guess == test.y))
    return out


def neighbours(train: Float[np.ndarray, "n d"], test: Float[np.ndarray, "m d"], k: int
               ) -> tuple[Int[np.ndarray, "m k"], Float[np.ndarray, "m k"]]:
  """The k training rows nearest to each test row, nearest first, and their cosines (float64)."""
  def unit(x):
    x = x.astype(np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

  train, test = unit(train), unit(test)
  step = max(1, _CHUNK // len(train))
  near, cosine = [], []
  for start in range(0, len(test), step):
    similarity = test[start:start + step] @ train.T
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    near.append(order)
    cosine.append(np.take_along_axis(similarity, order, axis=1))
  return np.concatenate(near), np.concatenate(cosine)


def vote(label: Int[np.ndarray, "m k"], weight: Float[np.ndarray, "m k"], classes: int
         ) -> Int[np.ndarray, "m"]:
  """The class with the largest sum of weights; of equals the lowest number."""
  votes = np.zeros((len(label), classes))
  np.add.at(votes, (np.arange(len(label))[:, None], label), weight)
  return np.argmax(votes, axis=1)
