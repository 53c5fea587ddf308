"""How do images become features, in a program or a notebook?

`Encoder` holds a trained model and compiles it for the sizes it meets. What it returns is described
by `features.FEATURES`.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from big_vision_ext import aspect as aspect_lib
from big_vision_ext import draw, features, weights
from big_vision_ext.loaded_model import Features, LoadedModel
from input_pipeline import text as text_lib


class Encoder(LoadedModel):
  """A trained PS3, ready to encode images.

  Example:
    ```
    from big_vision_ext.encoding import Encoder
    encoder = Encoder("runs/demo", num_looks=2)
    photo = encoder.open("photo.jpg")
    features = encoder(photo, "a red tag")
    print(features["pooled"].shape, features["score_topdown"].max())
    ```

  Attributes:
    step: the checkpoint's step; None for weights that are no checkpoint.
    task: the model, a `tasks.ps3.Task`; `params` its parameters, on the device.
    settings: the budget, as keyword arguments of the task's `encode`; `shape` those of the sizes.
    programs: compiled so far, by the shape of the images and whether they have prompts.
    More: see `LoadedModel`.
  """

  def __init__(self, source: str | os.PathLike | weights.Loaded, *, step: int | None = None,
               num_looks: int | Literal["all"] = 1, num_tokens: int | None = None,
               only_first_scales: int | None = None,
               aspect: aspect_lib.Aspect = "squash", distortion: float = 0.1,
               batch_size: int = 1, tokenizer: str | None = None, pictures: bool = True):
    """Loads the weights; nothing is compiled yet.

    Args:
      source: a run's workdir, or weights in any format of `convert`, or what was loaded of them.
      step: checkpoint of the workdir to take; default: the latest.
      num_looks: looks at high resolution, or "all" for nearly every patch; 0 for none.
      num_tokens: patches over all looks, instead of `num_looks`.
      only_first_scales: spend them on so many of the high-resolution scales first.
      aspect: "squash" brings every image to a square, as training, evaluation and the original
        do: one program for all. "keep" keeps flat and tall images flat and tall, whose patches are
        then fewer and undistorted; the low-resolution pass stays square.
      distortion: with "keep": how much an aspect ratio may be changed to share a size.
      batch_size: images encoded together; `batch` takes any number and fills up.
      tokenizer: "bytes", "sentencepiece:PATH", "tokenizers:PATH" or "clip:PATH", for weights that
        do not say.
      pictures: whether a run over many images shall write pictures.

    Raises:
      ValueError: there are no such weights, they are of another task than PS3, or a setting does
        not fit the model.
    """
    super().__init__(source, step, batch_size, tokenizer, pictures)
    if "encode" not in self.task.outputs:
      raise ValueError(
          f"{self.source} holds weights of task {self.task_name!r}, which has no high-resolution "
          "features; expected those of task 'ps3'")
    self.settings = budget(self.task, num_looks, num_tokens, only_first_scales)
    vision = self.task.vision
    self.sizes = aspect_lib.sizes(vision.scales, vision.patch_size, aspect, distortion)
    self.shape = {"aspect": aspect} | ({"distortion": distortion} if aspect == "keep" else {})
    self._tokenizer = None
    self._encode = jax.jit(functools.partial(self.task.outputs["encode"], **self.settings))

  def __call__(self, pixels: np.ndarray, prompt: str | None = None) -> Features:
    """Encodes one uint8 image (h, w, 3); see `features.FEATURES` for what is returned."""
    return self.batch([pixels], [prompt])[0]

  def batch(self, pixels: Sequence[np.ndarray],
            prompts: Sequence[str | None] | str | None = None) -> list[Features]:
    """Encodes any number of uint8 images (h, w, 3) of any sizes.

    Args:
      pixels: the images.
      prompts: one for each image, or one for all; None looks where the model would.
    """
    if prompts is None or isinstance(prompts, str):
      prompts = [prompts] * len(pixels)
    if len(prompts) != len(pixels):
      raise ValueError(f"there are {len(pixels)} images and {len(prompts)} prompts; give a prompt "
                       "(or None) for each image, or one for all")
    prepared = [self.prepare(image) for image in pixels]
    groups: dict[Any, list[int]] = {}
    for i, (image, prompt) in enumerate(zip(prepared, prompts)):
      groups.setdefault((image.shape, prompt is None), []).append(i)
    results: list[Features] = [{}] * len(pixels)
    for members in groups.values():
      for start in range(0, len(members), self.batch_size):
        part = members[start : start + self.batch_size]
        found = self.encode_prepared([prepared[i] for i in part], [prompts[i] for i in part])
        for i, output in zip(part, found):
          results[i] = output | {"image_size": np.array(pixels[i].shape[:2], np.int32)}
    return results

  def encode_prepared(self, prepared: Sequence[np.ndarray],
                      prompts: Sequence[str | None]) -> list[Features]:
    """Encodes at most `batch_size` images of one of `sizes`, all with prompts or all without."""
    short = self.batch_size - len(prepared)
    batch = {"image": np.stack([*prepared, *[prepared[-1]] * short])}
    if prompts[0] is not None:
      ids = [self._tokenize(prompt) for prompt in prompts]
      batch["text"] = np.stack([*ids, *[ids[-1]] * short])
    out = self.run(self._encode, batch, (batch["image"].shape, "text" in batch))
    wanted = (*features.TENSORS, "looks")
    out = jax.device_get({k: out[k] for k in wanted if out.get(k) is not None})
    size = batch["image"].shape[1:3]
    return [self._features(out, row, size) for row in range(len(prepared))]

  def sheet(self, image: np.ndarray, arrays: Features, **about: Any) -> np.ndarray:
    """The picture of an output; see `draw.selection_sheet`."""
    return draw.selection_sheet(image, arrays, **about)

  def summary(self, arrays: Features) -> str:
    """An output in some words."""
    return f"{len(arrays['selected_index'])} patches selected"

  def _tokenize(self, prompt: str) -> np.ndarray:
    how = self.preprocessing
    if self._tokenizer is None:
      if how["tokenizer"] is None:
        raise ValueError(f"{self.source} does not say which tokenizer its texts had; give it as "
                         "tokenizer='sentencepiece:PATH' (--tokenizer), or give no prompts")
      self._tokenizer = text_lib.make_tokenizer(how["tokenizer"])
      if self._tokenizer.vocab_size > self.task.text.vocab_size:
        raise ValueError(
            f"the tokenizer {how['tokenizer']!r} has {self._tokenizer.vocab_size} ids, the text "
            f"tower {self.task.text.vocab_size}: it is not the one the model was trained with")
    prompt = text_lib.canonicalize(prompt) if how["canonicalize"] else prompt
    return self._tokenizer.tokenize(prompt, how["text_len"])

  def _features(self, out: dict[str, Any], row: int, size: tuple[int, int]) -> Features:
    vision = self.task.vision
    chosen = [(i, index[row]) for look in out["looks"] for i, index in enumerate(look)]
    none = np.zeros(0, np.int32)
    output = {
        "selected_scale": np.concatenate([none, *(np.full(x.shape, i, np.int32)
                                                  for i, x in chosen)]),
        "selected_index": np.concatenate([none, *(x for _, x in chosen)]),
        "scales": np.array(vision.scales, np.int32),
        "grids": np.array([vision.cells, *vision.grids(size)], np.int32),
        "input_size": np.array(size, np.int32),
    }
    return output | {k: v[row] for k, v in out.items() if k != "looks"}


def budget(task: Any, num_looks: int | str | None = 1, num_tokens: int | None = None,
           only_first_scales: int | None = None) -> dict[str, Any]:
  """Keyword arguments of the task's `encode`; raises ValueError for one that cannot be followed."""
  limits = dict(num_tokens=num_tokens) if num_tokens is not None else dict(num_looks=num_looks)
  if only_first_scales is not None:
    limits["only_first_n_scales"] = only_first_scales
  task.vision.plan((task.image_size,) * 2, **limits)
  return limits
