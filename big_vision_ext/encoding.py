"""How do images become features, in a program or a notebook?

`Encoder` holds a trained model and compiles it for the sizes it meets. What it returns is described
by `features.FEATURES`.
"""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from big_vision_ext import aspect as aspect_lib
from big_vision_ext import features, tasks, weights
from big_vision_ext.core import config, programs, sharding, trees, typed
from input_pipeline import images as pixel_ops
from input_pipeline import loader
from input_pipeline import text as text_lib

Features = dict[str, np.ndarray]


class Encoder:
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
    sizes: heights and widths in pixels that images are brought to.
    programs: compiled so far, by the shape of the images and whether they have prompts.
  """

  def __init__(self, source: str | os.PathLike, *, step: int | None = None,
               num_looks: int | Literal["all"] = 1, num_tokens: int | None = None,
               only_first_scales: int | None = None,
               aspect: aspect_lib.Aspect = "squash", distortion: float = 0.1,
               batch_size: int = 1, tokenizer: str | None = None):
    """Loads the weights; nothing is compiled yet.

    Args:
      source: a run's workdir, or weights in any format of `convert`.
      step: checkpoint of the workdir to take; default: the latest.
      num_looks: looks at high resolution, or "all" for nearly every patch; 0 for none.
      num_tokens: patches over all looks, instead of `num_looks`.
      only_first_scales: spend them on so many of the high-resolution scales first.
      aspect: "squash" brings every image to a square, as training, evaluation and the original
        do: one program for all. "keep" keeps flat and tall images flat and tall, whose patches are
        then fewer and undistorted; the low-resolution pass stays square.
      distortion: with "keep": how much an aspect ratio may be changed to share a size.
      batch_size: images encoded together; `batch` takes any number and fills up.
      tokenizer: "bytes", "sentencepiece:PATH" or "tokenizers:PATH", for weights that do not say.

    Raises:
      ValueError: there are no such weights, they are of another task than PS3, or a setting does
        not fit the model.
    """
    loaded = weights.load(source, step)
    self.step, self.source = loaded.step, str(source)
    self.task = tasks.make(loaded.task_name, loaded.model)
    if "encode" not in self.task.outputs:
      raise ValueError(
          f"{source} holds weights of task {loaded.task_name!r}, which has no high-resolution "
          "features; expected those of task 'ps3'")
    if batch_size < 1:
      raise ValueError(f"batch_size={batch_size}: expected at least 1")
    self.settings = budget(self.task, num_looks, num_tokens, only_first_scales)
    self.preprocessing = preprocessing(loaded, self.task, tokenizer)
    vision = self.task.vision
    self.sizes = aspect_lib.sizes(vision.scales, vision.patch_size, aspect, distortion)
    self.shape = {"aspect": aspect} | ({"distortion": distortion} if aspect == "keep" else {})
    self.batch_size = batch_size
    self._tokenizer = None
    # Every device takes the same share of the rows, so a batch may use fewer than there are.
    devices = jax.local_devices()[:math.gcd(batch_size, jax.local_device_count())]
    mesh = sharding.make_mesh(config.Mesh(), devices)
    self._rows = sharding.batch_sharding(mesh)
    self.params = jax.device_put(loaded.params, sharding.replicated(mesh))
    self._encode = jax.jit(functools.partial(self.task.outputs["encode"], **self.settings))
    self.programs: dict[tuple[tuple[int, ...], bool], jax.stages.Compiled] = {}

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

  def open(self, path: str | os.PathLike) -> np.ndarray:
    """The pixels (h, w, 3) of an image file, upright; raises ImageError or OSError."""
    with open(path, "rb") as file:
      return pixel_ops.decode_image(file.read(), str(path))

  def prepare(self, pixels: np.ndarray) -> np.ndarray:
    """The image at the size of `sizes` whose aspect ratio is nearest, uint8 (h, w, 3).

    Raises:
      ValueError: not an array of uint8 RGB pixels.
    """
    if getattr(pixels, "dtype", None) != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 \
        or not pixels.size:
      found = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {getattr(pixels, 'shape', '')}"
      raise ValueError(f"an image is {found}, expected a uint8 array (height, width, 3)")
    h, w = pixels.shape[:2]
    size = aspect_lib.nearest((h, w), self.sizes)
    if (h, w) == size:
      return pixels
    return pixel_ops.resize_region(pixels, (0, 0, w, h), size, self.preprocessing["resize"])

  def encode_prepared(self, prepared: Sequence[np.ndarray],
                      prompts: Sequence[str | None]) -> list[Features]:
    """Encodes at most `batch_size` images of one of `sizes`, all with prompts or all without."""
    short = self.batch_size - len(prepared)
    batch = {"image": np.stack([*prepared, *[prepared[-1]] * short])}
    if prompts[0] is not None:
      ids = [self._tokenize(prompt) for prompt in prompts]
      batch["text"] = np.stack([*ids, *[ids[-1]] * short])
    program = (batch["image"].shape, "text" in batch)
    batch = jax.device_put(batch, self._rows)
    if program not in self.programs:
      self.programs[program] = programs.compiled(self._encode, self.params, batch)
    out = self.programs[program](self.params, batch)
    wanted = (*features.TENSORS, "looks")
    out = jax.device_get({k: out[k] for k in wanted if out.get(k) is not None})
    size = program[0][1:3]
    return [self._features(out, row, size) for row in range(len(prepared))]

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hexadecimal digits that other weights would not have."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(trees.flatten(self.params).items()):
      value = np.ascontiguousarray(value)
      digest.update(f"{name} {value.dtype} {value.shape}".encode())
      digest.update(value.reshape(-1).view(np.uint8))
    return digest.hexdigest()

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


def preprocessing(loaded: Any, task: Any, tokenizer: str | None = None) -> dict[str, Any]:
  """How an image and a text become the model's input: resize, tokenizer, text_len, canonicalize.

  What the weights do not say is as in the published models, but for the tokenizer: None.
  """
  known = loaded.input
  if "data" in known:
    # A run's own settings, whose defaults it need not name.
    known = dataclasses.asdict(typed.build(loader.InputConfig, known, "config.input"))
  spec = tokenizer or known.get("tokenizer")
  if spec and ":" in spec and "?" not in spec and {"pad_id", "eos_id"} <= known.keys():
    # A tokenizer's file does not always tell the ids that the model was trained with.
    spec = f"{spec}?pad={known['pad_id']},eos={known['eos_id']}"
  return {
      "resize": known.get("resize", "bicubic"),
      "tokenizer": spec,
      "text_len": int(known.get("text_len") or task.text.text_len),
      "canonicalize": bool(known.get("canonicalize", True)),
  }
