"""Do whole images and their global captions find each other? (recall at 1, 5 and 10, both ways)

Images of the split that share a caption share its embedding: an image counts as found if the
caption it finds reads like its own, a caption if any of its images is found.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from big_vision_ext.evaluators import _common


class Evaluator:
  """Retrieval by cosine between the `image` and `text` outputs of the task.

  Args:
    ks: the ranks to report.
    batch_size: images at a time, over all processes.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, ks: Sequence[int] = (1, 5, 10),
               batch_size: int = 32):
    self._mesh, self._ks = mesh, tuple(ks)
    self._stream = functools.partial(
        _common.batches, input_config, "images", batch_size, batch_sharding)
    image, text = task.outputs["image"], task.outputs["text"]
    self._fn = jax.jit(
        lambda params, batch: {"zimg": image(params, batch), "ztxt": text(params, batch)})

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      rows = _common.collect(self._fn, params, self._stream())
    return recall_at(rows, self._ks)


def recall_at(rows: dict[str, np.ndarray], ks: Sequence[int]) -> dict[str, float]:
  """Recall at k from zimg (n, d), ztxt (n, d) and text ids (n, l), both directions."""
  captions, owner = np.unique(rows["text"], axis=0, return_inverse=True)
  owner = owner.reshape(-1)
  first = np.array([np.flatnonzero(owner == c)[0] for c in range(len(captions))])
  similarity = rows["zimg"] @ rows["ztxt"][first].T  # (images, captions)
  own = np.arange(len(captions))[None] == owner[:, None]

  def rank(scores, relevant):
    # The rank of the best relevant candidate, 0 for the first, along the last axis.
    best = np.where(relevant, scores, -np.inf).max(-1, keepdims=True)
    return (scores > best).sum(-1)

  to_text, to_image = rank(similarity, own), rank(similarity.T, own.T)
  out = {}
  for k in ks:
    out[f"image_to_text/recall_at_{k}"] = float(np.mean(to_text < k))
    out[f"text_to_image/recall_at_{k}"] = float(np.mean(to_image < k))
  out["chance/recall_at_1"] = 1.0 / len(captions)
  return out
