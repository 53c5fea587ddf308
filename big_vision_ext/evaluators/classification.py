"""How often is a classifier right about the class of an image?

For tasks with an output `logits`. Reported are the share of images whose class has the largest
score (*top1*) or one of the five largest (*top5*), the mean over classes of top1, and the mean
cross entropy (*loss*). A tie is no find.
"""

import functools

import jax
import numpy as np
from jaxtyping import Float, Int

from big_vision_ext.evaluators import _common, _ranks
from input_pipeline import contents, labels


class Evaluator:
  """See the module's docstring; the data set needs class labels, those of `input.classes`.

  Args:
    batch_size: images at a time, over all processes.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, batch_size: int = 256):
    if "logits" not in task.outputs:
      raise ValueError("classification: this task has no classifier (no output 'logits'); knn, "
                       "fewshot and linear_probe measure features")
    self._mesh, self._input = mesh, input_config
    logits = task.outputs["logits"]
    self._fn = jax.jit(lambda params, batch: {"logits": logits(params, batch)})
    self._stream = functools.partial(
        _common.batches, input_config, "labelled", batch_size, batch_sharding)

  def run(self, params) -> dict[str, float]:
    names = labels.classes(self._input)
    number = {name: i for i, name in enumerate(names)}
    entries = contents.of_config(self._input)
    if unknown := sorted({e.label for e in entries} - number.keys() - {None}):
      raise ValueError(f"classification: {self._input.data} [{self._input.split}] has images of "
                       f"{len(unknown)} classes that input.classes lacks, e.g. {unknown[0]!r}")
    with jax.set_mesh(self._mesh):
      rows = _common.collect(self._fn, params, self._stream())
    return measure(rows["logits"], np.array([number[entries[i].label]
                                             for i in rows["image_index"]]))


def measure(logits: Float[np.ndarray, "n c"], label: Int[np.ndarray, "n"]) -> dict[str, float]:
  """The evaluator's numbers from all scores and classes.

  Raises:
    ValueError: a class that there is no score for.
  """
  if label.max() >= logits.shape[1]:
    raise ValueError(f"classification: the data has class number {label.max()}, the model has "
                     f"{logits.shape[1]} classes; set config.model.num_classes to the data's")
  best = _ranks.top_k(logits, label, 1)
  out = {"top1": float(np.mean(best)), "mean_per_class": _ranks.mean_per_class(best, label)}
  if logits.shape[1] > 5:
    out["top5"] = float(np.mean(_ranks.top_k(logits, label, 5)))
  top = logits.max(axis=1, keepdims=True).astype(np.float64)
  log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
  own = np.take_along_axis(logits, label[:, None], axis=1)[:, 0]
  return out | {"loss": float(np.mean(log_sum - own)), "images": float(len(label))}
