"""Do whole images and their captions find each other? (recall at 1, 5 and 10, both ways)

An image may have several captions, as in COCO and Flickr30k: it counts as found if any of them is
among the k best of all captions, and each caption looks for its image among all images. Captions
that read alike are one, which all their images own; where no two do, this is the protocol that
is usual for those data sets. A tie (cosines closer than 1e-6) is no find.

`chance/...` are the values that a random order has in expectation.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from big_vision_ext.evaluators import _common, _ranks
from input_pipeline import contents


class Evaluator:
  """Retrieval by cosine between the `image` and `text` outputs of the task.

  Args:
    ks: the ranks to report.
    batch_size: images at a time, over all processes.
    text_batch_size: captions at a time.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, ks: Sequence[int] = (1, 5, 10),
               batch_size: int = 32, text_batch_size: int = 256):
    self._mesh, self._ks, self._input = mesh, tuple(ks), input_config
    self._stream = functools.partial(
        _common.batches, input_config, "images", batch_size, batch_sharding)
    self._embed_texts = functools.partial(
        _common.embed_texts, jax.jit(task.outputs["text"]), input_config=input_config,
        batch_size=text_batch_size, batch_sharding=batch_sharding)
    image = task.outputs["image"]
    self._image = jax.jit(lambda params, batch: {"zimg": image(params, batch)})

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      rows = _common.collect(self._image, params, self._stream())
      entries = contents.of_config(self._input)
      captions = [entries[i].captions for i in rows["image_index"]]
      owner = np.repeat(np.arange(len(captions)), [len(c) for c in captions])
      ztxt, which = self._embed_texts(params, [text for c in captions for text in c])
    pairs = np.unique(np.stack([owner, which], axis=1), axis=0)
    return recall_at(rows["zimg"], ztxt, pairs, self._ks)


def recall_at(zimg: np.ndarray, ztxt: np.ndarray, pairs: np.ndarray, ks: Sequence[int]
              ) -> dict[str, float]:
  """Recall at k, both directions, with what chance gives.

  Args:
    zimg: (n, d), normalised.
    ztxt: (m, d) of different captions, normalised.
    pairs: (p, 2) of (image, caption) that belong together, each pair once.
    ks: the ranks.
  """
  to_text = _ranks.best_ranks(zimg, ztxt, pairs)
  to_image = _ranks.best_ranks(ztxt, zimg, pairs[:, ::-1])
  own_texts = np.bincount(pairs[:, 0], minlength=len(zimg))
  own_images = np.bincount(pairs[:, 1], minlength=len(ztxt))
  out = {}
  for k in ks:
    out[f"image_to_text/recall_at_{k}"] = _ranks.recall(to_text, k)
    out[f"text_to_image/recall_at_{k}"] = _ranks.recall(to_image, k)
    out[f"chance/image_to_text/recall_at_{k}"] = _ranks.chance(own_texts, len(ztxt), k)
    out[f"chance/text_to_image/recall_at_{k}"] = _ranks.chance(own_images, len(zimg), k)
  return out | {"images": float(len(zimg)), "captions": float(len(ztxt))}
