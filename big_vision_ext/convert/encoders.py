"""Which part of a masked model or of a classifier do libraries of vision transformers keep?

The encoder with its final norm, or a classifier's encoder with its head. Of a masked autoencoder
the decoder stays behind, of I-JEPA the predictor and the encoder that was trained: its teacher is
what evaluations look at, here and in the paper.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import Weights, ours, siglip, tables, vit_mae
from big_vision_ext.convert.lazy import ConvertError, Tensors
from big_vision_ext.convert.tables import Rule

TASKS = ("mae", "ijepa", "classify", ours.ENCODER)
# What an encoder is made of; a model has more, of its decoder and its training.
_KEYS = ("width", "depth", "mlp_dim", "num_heads", "patch_size", "image_size", "posemb_grid",
         "pool_type", "num_cls", "act", "ln_eps")
_TEACHER = "teacher/"


def of(weights: Weights, format: str) -> Weights:
  """The weights that such a format holds: of the task `ours.ENCODER` or "classify".

  Raises:
    ConvertError: the model is none of `TASKS`, or has what these libraries have not.
  """
  if weights.task not in TASKS:
    raise ConvertError(
      f"the format {format!r} holds encoders and classifiers of the tasks {', '.join(TASKS)}, and "
      f"these weights are of the task {weights.task!r}")
  image, params = dict(weights.model["image"]), Tensors(weights.params)
  if weights.task == "mae":
    image["pool_type"] = "tok"
  if weights.task == "ijepa":
    image["pool_type"] = "none"
    params = Tensors({n.removeprefix(_TEACHER): params.lazy(n) for n in params
                      if n.startswith(_TEACHER)})
  # The defaults of these models; that of towers is another activation.
  image = {"pool_type": "tok", "act": "gelu", **image}
  several = format == "transformers" and weights.task != "classify" and image["pool_type"] == "tok"
  for key, value in (("num_cls", 1), ("posemb_type", "learn")):
    if image.get(key, value) != value and not (key == "num_cls" and several):
      raise ConvertError(f"model.image.{key}={image[key]!r}: the format {format!r} has no such "
                         f"thing, only {value!r}; export as npz")
  if weights.model.get("probe"):
    raise ConvertError(f"model.probe=True: the format {format!r} has no head behind a BatchNorm; "
                       "export as npz")
  image = {key: image[key] for key in _KEYS if image.get(key) is not None}
  if weights.task == "classify":
    model = {**weights.model, "image": image}
    return dataclasses.replace(weights, model=model)
  names = ours.vit_encoder(image)
  params = Tensors({n: params.lazy(n) for n in names if n in params})
  known = {key: list(value) for key, value in zip(("mean", "std"), _statistics(weights))}
  return dataclasses.replace(weights, params=params, task=ours.ENCODER, model={"image": image},
                             input={**weights.input, **known})


def head() -> list[Rule]:
  """The rules of a classifier's head and the norm before it, as timm has them."""
  return [*tables.norm("fc_norm", "fc_norm"), *tables.linear("head", "head")]


def statistics(weights: Weights) -> dict[str, list[float]]:
  """Mean and standard deviation that images are normalised with; ImageNet's if none are known."""
  return siglip.statistics(weights, *_statistics(weights))


def class_names(weights: Weights) -> list[str] | None:
  """The names of the classes in their order, if they are known."""
  names = weights.input.get("classes")
  found = isinstance(names, (list, tuple)) and len(names) == weights.model.get("num_classes")
  return [str(name) for name in names] if found else None


def _statistics(weights: Weights) -> tuple[Any, Any]:
  image: Mapping[str, Any] = weights.model.get("image", {})
  known = lambda key, default: weights.input.get(key) or image.get(key) or default
  return known("mean", vit_mae.MEAN), known("std", vit_mae.STD)
