"""What do all ways of encoding share? Weights on devices, and images at the model's sizes."""

import dataclasses
import functools
import hashlib
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from big_vision_ext import aspect, tasks, weights
from big_vision_ext.core import config, programs, sharding, trees, typed
from input_pipeline import images as pixel_ops
from input_pipeline import loader, transforms

Features = dict[str, np.ndarray]


class LoadedModel:
  """A trained model of any task, on the local devices. Subclasses say what is computed.

  Attributes:
    source, step: where the weights are from; the checkpoint's step, None for others.
    task: the model; `task_name` its name, `params` its parameters, on the device.
    preprocessing: how images and texts become input; see `preprocessing`.
    batch_size: images that go through a program together.
    has_pictures: whether a picture can be drawn of an output.
    sizes: heights and widths in pixels that images are brought to.
    programs: compiled so far.
  """

  sizes: list[tuple[int, int]]

  def __init__(self, source: str | os.PathLike | weights.Loaded, step: int | None,
               batch_size: int, tokenizer: str | None = None, pictures: bool = True):
    loaded = source if isinstance(source, weights.Loaded) else weights.load(source, step)
    if batch_size < 1:
      raise ValueError(f"batch_size={batch_size}: expected at least 1")
    self.step, self.source, self.task_name = loaded.step, loaded.source, loaded.task_name
    self.has_pictures = pictures
    self.task = tasks.make(loaded.task_name, loaded.model)
    self.preprocessing = preprocessing(loaded, self.task, tokenizer)
    self.batch_size = batch_size
    # Every device takes the same share of the rows, so a batch may use fewer than there are.
    devices = jax.local_devices()[:math.gcd(batch_size, jax.local_device_count())]
    mesh = sharding.make_mesh(config.Mesh(), devices=devices)
    self._rows = sharding.batch_sharding(mesh)
    self.params = jax.device_put(loaded.params, sharding.replicated(mesh))
    self.programs: dict[Any, jax.stages.Compiled] = {}

  def open(self, path: str | os.PathLike) -> np.ndarray:
    """The pixels (h, w, 3) of an image file, upright; raises ImageError or OSError."""
    with open(path, "rb") as file:
      return pixel_ops.decode_image(file.read(), str(path))

  def prepare(self, pixels: np.ndarray) -> np.ndarray:
    """The image at the size of `sizes` whose aspect ratio is nearest, uint8 (h, w, 3).

    Where the weights are evaluated on the square in the middle, it is that square.

    Raises:
      ValueError: not an array of uint8 RGB pixels.
    """
    if getattr(pixels, "dtype", None) != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 \
        or not pixels.size:
      found = f"{getattr(pixels, 'dtype', type(pixels).__name__)} {getattr(pixels, 'shape', '')}"
      raise ValueError(f"an image is {found}, expected a uint8 array (height, width, 3)")
    h, w = pixels.shape[:2]
    size = aspect.nearest((h, w), self.sizes)
    region, share = (0, 0, w, h), self.preprocessing["eval_crop"]
    if share and size[0] == size[1]:
      region, _ = transforms.middle_square(w, h, size[0], share)
    if region == (0, 0, w, h) and (h, w) == size:
      return pixels
    return pixel_ops.resize_region(pixels, region, size, self.preprocessing["resize"])

  def run(self, jitted: Callable, batch: dict[str, np.ndarray], key: Any) -> dict[str, Any]:
    """`jitted(params, batch)` by the program kept under `key`, which is compiled if need be."""
    batch = jax.device_put(batch, self._rows)
    if key not in self.programs:
      self.programs[key] = programs.compiled(jitted, self.params, batch)
    return self.programs[key](self.params, batch)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Hexadecimal digits that other weights would not have."""
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(trees.flatten(self.params).items()):
      value = np.ascontiguousarray(value)
      digest.update(f"{name} {value.dtype} {value.shape}".encode())
      digest.update(value.reshape(-1).view(np.uint8))
    return digest.hexdigest()


def preprocessing(loaded: weights.Loaded, task: Any,
                  tokenizer: str | None = None) -> dict[str, Any]:
  """How image and text become the input: resize, eval_crop, tokenizer, text_len, canonicalize.

  What the weights do not say is as in the published models, but for the tokenizer: None. CLIP sees
  the middle square of an image (`eval_crop` 1), others the whole.
  """
  known = loaded.input
  if "data" in known:
    # A run's own settings, whose defaults it need not name.
    known = dataclasses.asdict(typed.build(loader.InputConfig, known, "config.input"))
  spec = tokenizer or known.get("tokenizer")
  if spec and ":" in spec and "?" not in spec and {"pad_id", "eos_id"} <= known.keys():
    # A tokenizer's file does not always tell the ids that the model was trained with.
    spec = f"{spec}?pad={known['pad_id']},eos={known['eos_id']}"
  text = getattr(task, "text", None)
  return {
      "resize": known.get("resize", "bicubic"),
      "eval_crop": float(known.get("eval_crop") or loaded.task_name == "clip"),
      "tokenizer": spec,
      "text_len": int(known.get("text_len") or getattr(text, "text_len", 0)),
      "canonicalize": bool(known.get("canonicalize", True)),
  }
