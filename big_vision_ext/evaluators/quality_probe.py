"""How well are pictures rated by a straight line through the frozen features of a few of them?

Ridge regression of scores on standardised features, the mean over a picture's crops: what an
adapter has to be better than. A fifth of the pictures to learn from chooses the strength of
regularisation, by the error on them; then all are learned from. The pictures that are tested on
decide nothing.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from big_vision_ext.evaluators import _rated
from big_vision_ext.evaluators.fewshot import ridge

_HELD_OUT = 0.2


class Evaluator:
  """The measures of `quality` for a linear probe, the strength that was chosen, and `labels`.

  Args:
    task: with the output `image_features`.
    train_part: the pictures to learn from, e.g. "reference_1/train/50".
    l2: strengths of regularisation to choose from.
    seed: which pictures choose.
    crops, parameters, bootstrap, batch_size: see `quality`.

  Raises:
    ValueError: a task without features, or numbers that cannot be.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, train_part: str,
               l2: Sequence[float] = (1e-1, 1.0, 10.0, 100.0, 1e3, 1e4), seed: int = 0,
               crops: str = _rated.CROPS, parameters: int = 4, bootstrap: int = 1000,
               batch_size: int = 64):
    if "image_features" not in task.outputs:
      raise ValueError(f"quality_probe: this task has {', '.join(task.outputs)} and no "
                       "image_features")
    if not l2 or min(l2) <= 0:
      raise ValueError(f"quality_probe: l2={list(l2)}: expected positive numbers")
    image = task.outputs["image_features"]
    self._fn = jax.jit(lambda params, batch: {"z": image(params, batch)})
    self._test = _rated.with_crops(input_config, crops)
    self._train = dataclasses.replace(self._test, part=train_part)
    if self._train == self._test:
      raise ValueError(f"quality_probe: train_part={train_part!r} is what is tested on as well")
    self._l2, self._seed = sorted(l2, reverse=True), seed
    self._mesh, self._rows, self._batch_size = mesh, batch_sharding, batch_size
    self._how = dict(parameters=parameters, bootstrap=bootstrap)

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      train, test = (_rated.collect(self._fn, params, where, self._batch_size, self._rows)
                     for where in (self._train, self._test))
    x, l2 = probe(train.values["z"], train.score, test.values["z"], self._l2, self._seed)
    return _rated.measure(x, test, **self._how) | {"l2": l2, "labels": float(len(train.ratings))}


def probe(z: np.ndarray, y: np.ndarray, test: np.ndarray, l2: Sequence[float], seed: int
          ) -> tuple[np.ndarray, float]:
  """Scores of `test` (m, d) by the line through (z (n, d), y (n,)), and the l2 that was chosen."""
  strength = l2[0]
  count = round(_HELD_OUT * len(z))
  if len(l2) > 1 and count:
    order = np.random.default_rng(seed).permutation(len(z))
    held, rest = order[:count], order[count:]
    errors = [np.mean((guess - y[held]) ** 2) for guess in _fit(z[rest], y[rest], z[held], l2)]
    strength = l2[int(np.argmin(errors))]
  return _fit(z, y, test, (strength,))[0], float(strength)


def _fit(z, y, test, l2) -> list[np.ndarray]:
  mean, std = z.mean(0), z.std(0) + 1e-5
  unit = lambda x: (x - mean) / std
  return [unit(test) @ w[:, 0] + y.mean() for w in ridge(unit(z), (y - y.mean())[:, None], l2)]
