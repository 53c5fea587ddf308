"""How does a program get features of crops and of texts from CLIP's towers, a batch at a time?"""

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8

from big_vision_ext import weights
from big_vision_ext.loaded_model import LoadedModel
from big_vision_ext.objectives import levels
from big_vision_ext.tasks import quality


class ClipTowers(LoadedModel):
  """Both towers of a CLIP, or of a run of the task "quality" that has them.

  Attributes: see `LoadedModel`; `size`, the side of crops in pixels; `width` of features.
  """

  def __init__(self, source: str | os.PathLike | weights.Loaded, *, step: int | None = None,
               batch_size: int = 32, tokenizer: str | None = None):
    """Loads the weights; nothing is compiled yet.

    Args:
      source: a run, weights in any format of `convert`, or what was loaded of them.
      step: checkpoint of a run; default: the latest.
      batch_size: crops that go through the image tower together.
      tokenizer: of the prompts, if the weights do not say.

    Raises:
      ValueError: there are no such weights, or they are of another task.
    """
    super().__init__(source, step, batch_size, tokenizer, pictures=False)
    # A run on images has the towers among its parameters.
    self.towers = getattr(self.task, "clip", None) or self.task
    if "text_features" not in self.towers.outputs:
      raise ValueError(
          f"{self.source}: holds weights of task {self.task_name!r} without CLIP's towers; "
          "expected a CLIP (OpenAI's, transformers', open_clip's, UniQA's or a run of ours)")
    self.size, self.width = self.towers.image_size, self.towers.vision.num_classes
    self.sizes = [(self.size,) * 2]
    self._image = jax.jit(self.towers.outputs["image_features"])
    self._text = jax.jit(self.towers.outputs["text_features"])

  @property
  def log_scale(self) -> float:
    """CLIP's logit scale, before the exponential."""
    return float(np.asarray(self.params["t"]).reshape(-1)[0])

  def image_features(self, crops: UInt8[np.ndarray, "n s s 3"]) -> Float[np.ndarray, "n d"]:
    """Features of crops of the model's size, not of unit length, float32."""
    return self._in_batches(self._image, "image", crops, self.batch_size)

  def text_features(self, ids: np.ndarray) -> Float[np.ndarray, "n d"]:
    """Features of texts (n, l) of ids, not of unit length, float32."""
    # A number that the devices of the image batches divide.
    return self._in_batches(self._text, "text", ids, self.batch_size)

  def prompts(self, readouts: Sequence[levels.Readout]) -> list[Float[np.ndarray, "g k v d"]]:
    """Embeddings of the prompts of readouts; raises ValueError if there is no tokenizer."""
    # A run of the task "quality" reads no captions: what it says of prompts is in its model.
    known = self.preprocessing if self.task is self.towers else dataclasses.asdict(self.task.config)
    if not known["tokenizer"]:
      raise ValueError(f"{self.source}: does not say how texts become tokens; give --tokenizer")
    return quality.embed(
        self.text_features, readouts, tower=self.towers.text, tokenizer=known["tokenizer"],
        canonicalize=known["canonicalize"])

  def _in_batches(self, jitted, name: str, rows: np.ndarray, size: int) -> np.ndarray:
    out = []
    for start in range(0, len(rows), size):
      part = rows[start:start + size]
      filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
      found = self.run(jitted, {name: filled}, (name, filled.shape))
      out.append(np.asarray(found, np.float32)[:len(part)])
    return np.concatenate(out) if out else np.zeros((0, self.width), np.float32)
