"""How does a model without looks encode images? One vector each, and a picture of its predictions.

`Embedder` serves every task with an output "image"; with an output "reconstruct" (masked models),
pictures show what was seen, what was predicted of the rest, and where the gaze went.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from big_vision_ext import draw, weights
from big_vision_ext.loaded_model import Features, LoadedModel

# Of an output, what is drawn and not written.
_DRAWN = ("input", "prediction", "hidden", "loss", "scanpath", "surprise")


class Embedder(LoadedModel):
  """A trained model of one vector per image, ready to encode.

  Example:
    ```
    from big_vision_ext.embedding import Embedder
    embedder = Embedder("runs/mae", pictures=False)
    photo = embedder.open("photo.jpg")
    print(embedder(photo)["pooled"].shape)
    ```

  Attributes: see `LoadedModel`.
  """

  def __init__(self, source: str | os.PathLike | weights.Loaded, *, step: int | None = None,
               batch_size: int = 1, seed: int = 0, pictures: bool = True):
    """Loads the weights; nothing is compiled yet.

    Args:
      source: a run's workdir, weights in any format of `convert`, or what was loaded of them.
      step: checkpoint of the workdir to take; default: the latest.
      batch_size: images encoded together.
      seed: of the masks that pictures are drawn with.
      pictures: whether outputs hold what `sheet` draws, where the task reconstructs.

    Raises:
      ValueError: there are no such weights, or their task has no embedding of images.
    """
    super().__init__(source, step, batch_size, pictures=pictures)
    outputs = self.task.outputs
    if "image" not in outputs:
      raise ValueError(f"{self.source} holds weights of task {self.task_name!r}, which has no "
                       f"output 'image', only {', '.join(outputs)}")
    self.sizes = [(self.task.image_size,) * 2]
    if "reconstruct" in outputs:
      self.preprocessing["eval_crop"] = 0.0  # Pictures show what is made of the whole.
    share = self.preprocessing["eval_crop"]
    self.settings = {"seed": seed}
    self.shape = {"aspect": f"middle {share:g}" if share else "squash"}
    self._encode = jax.jit(functools.partial(_encode, self.task))
    self._reconstruct = None
    self.has_pictures = pictures and "reconstruct" in outputs
    if self.has_pictures:
      self._reconstruct = jax.jit(functools.partial(outputs["reconstruct"], seed=seed))

  def __call__(self, pixels: np.ndarray) -> Features:
    """Encodes one uint8 image (h, w, 3)."""
    out = self.encode_prepared([self.prepare(pixels)])[0]
    return out | {"image_size": np.array(pixels.shape[:2], np.int32)}

  def encode_prepared(self, prepared: Sequence[np.ndarray],
                      prompts: Sequence[str | None] = ()) -> list[Features]:
    """Encodes at most `batch_size` images of the model's size."""
    if any(prompt is not None for prompt in prompts):
      raise ValueError(f"a prompt, {prompts[0]!r}, for a model of task {self.task_name!r}, which "
                       "does not look around; give none")
    rows = [*prepared, *[prepared[-1]] * (self.batch_size - len(prepared))]
    batch = {"image": np.stack(rows)}
    found = jax.device_get(self.run(self._encode, batch, (batch["image"].shape, False)))
    drawn = {}
    if self._reconstruct:
      # Each row with the mask that it would have alone.
      batch["index"] = np.zeros(len(rows), np.int32)
      drawn = jax.device_get(self.run(self._reconstruct, batch, (batch["image"].shape, "drawn")))
    size = np.array(prepared[0].shape[:2], np.int32)
    grid = found["last_hidden"].shape[1:3] if "last_hidden" in found else (0, 0)
    out = []
    for row in range(len(prepared)):
      one = {k: v[row] for k, v in found.items()}
      if "last_hidden" in one:
        one["last_hidden"] = one["last_hidden"].reshape(-1, one["last_hidden"].shape[-1])
      one |= {"scales": np.array([size[0]], np.int32), "grids": np.array([grid], np.int32),
              "input_size": size}
      out.append(one | {k: v[row] for k, v in drawn.items() if k in _DRAWN})
    return out

  def sheet(self, image: np.ndarray, arrays: Features, **about: Any) -> np.ndarray | None:
    """The picture of an output, and takes what it shows out of `arrays`; None if there is none."""
    drawn = {k: arrays.pop(k) for k in _DRAWN if k in arrays}
    if not drawn:
      return None
    return draw.reconstruction_sheet(image, drawn, name=about["name"])

  def summary(self, arrays: Features) -> str:
    """An output in some words."""
    return f"a vector of {arrays['pooled'].size} numbers"


def _encode(task, params, batch):
  out = {"pooled": task.outputs["image"](params, batch)}
  if "tokens" in task.outputs:
    out["last_hidden"] = task.outputs["tokens"](params, batch)
  return out
