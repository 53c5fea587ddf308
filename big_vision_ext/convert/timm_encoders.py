"""How does timm keep encoders with a class token, or without any pooling, and classifiers?

Masked autoencoders' (`vit_base_patch16_224.mae`), I-JEPA's (`vit_huge_patch14_gap_224`), and what
was fine-tuned from them: the mean of the patch tokens, a norm, a head (`global_pool="avg"`), or the
class token and a head. A classifier on the mean of normed tokens is read as the image tower of
`timm.py`, and so is a file without a config.json that has neither class token nor head.
"""

import json
import pathlib
from typing import Any

from big_vision_ext.convert import (
  Weights,
  encoders,
  files,
  ours,
  siglip,
  tables,
  timm,
  timm_vits,
  vit_tables,
)
from big_vision_ext.convert.lazy import ConvertError, Tensors

# The entry points that arguments turn into a model without a name, with a class token and without.
_BASES = {True: "vit_base_patch16_224", False: "vit_base_patch16_gap_224"}


def holds(tensors: Tensors, architecture: str) -> bool:
  """Whether arrays are of such a model; others are those of `timm.py`."""
  if "attn_pool.latent" in tensors:
    return False
  bare = architecture and "siglip" not in architecture and "head.bias" not in tensors
  return "cls_token" in tensors or "fc_norm.weight" in tensors or bool(bare)


def read(file: pathlib.Path, config: dict[str, Any], args: dict[str, Any],
         tensors: Tensors) -> Weights:
  """A model of a file of weights.

  Args:
    file: of the arrays, for messages.
    config: the config.json beside it, or {}.
    args: what the class of the model is given, of that.
    tensors: the arrays.

  Raises:
    ConvertError: its pooling is another, or the arrays are not those of such a model.
  """
  image = timm.image_spec(tensors, str(config.get("architecture", "")), args, "", file,
                          encoder=True)
  classes, cls, normed = image.pop("num_classes"), "cls_token" in tensors, "fc_norm.weight"
  image["pool_type"] = "tok" if cls else "none"
  feature = "mean" if normed in tensors else "cls"
  pool = args.get("global_pool") or {"mean": "avg", "cls": "token"}[feature]
  if classes and pool != {"mean": "avg", "cls": "token"}[feature]:
    raise ConvertError(
      f"{file}: pools by {pool!r} {'with' if feature == 'mean' else 'without'} a norm after it; "
      "expected 'avg' with, or 'token' without")
  if not classes and normed in tensors:
    raise ConvertError(f"{file}: has a norm after pooling and no head; expected both or neither")
  known = config.get("pretrained_cfg", {})
  found = {"image_size": image["image_size"]}
  found |= {key: known[key] for key in ("mean", "std") if key in known}
  task, model = ours.ENCODER, {"image": image}
  if classes:
    task, model = "classify", {**model, "num_classes": classes, "feature": feature}
    model |= {key: known[key] for key in ("mean", "std") if key in known}
    if names := config.get("label_names"):
      found["classes"] = list(names)
  params = tables.load(_table(image), ours.shapes(task, model), tensors, str(file), format="timm")
  return Weights(params=params, task=task, model=model, input=found)


def write(out: pathlib.Path, weights: Weights, *, progress: Any = None) -> Weights:
  """Writes config.json and model.safetensors; returns what of the weights they hold."""
  weights = encoders.of(weights, "timm")
  theirs = tables.export(
    _table(weights.model["image"]), ours.shapes(weights.task, weights.model),
    Tensors(weights.params), format="timm")
  files.write_safetensors(out / "model.safetensors", {n: theirs.lazy(n) for n in theirs},
                          progress=progress)
  files.write_text(out / "config.json", json.dumps(config(weights), indent=2) + "\n")
  return weights


def config(weights: Weights) -> dict[str, Any]:
  """The config.json, as timm's hub has it."""
  image, classes = weights.model["image"], weights.model.get("num_classes", 0)
  tok = image["pool_type"] == "tok"
  normed = bool(classes) and weights.model.get("feature", "mean") == "mean"
  pool = "token" if tok and not normed else "avg"
  patch, size = siglip.sides(image)
  name, act = architecture(image), timm.activation_of(image)
  args = {} if name else {
    "img_size": list(size), "patch_size": list(patch), "embed_dim": image["width"],
    "depth": image["depth"], "num_heads": image["num_heads"],
    "mlp_ratio": timm.ratio(image["mlp_dim"], image["width"]), "act_layer": act}
  # Of what has no class token the mean is taken, of normed tokens, unless there is another norm.
  args |= {"global_pool": pool} if tok and normed else {"fc_norm": True} if normed else {}
  names = encoders.class_names(weights)
  return {
    "architecture": name or _BASES[tok], "num_classes": classes, "num_features": image["width"],
    "global_pool": pool, **({"model_args": args} if args else {}),
    **({"label_names": names} if names else {}),
    "pretrained_cfg": timm.pretrained(weights, encoders.statistics(weights), classes)}


def architecture(image: dict[str, Any]) -> str | None:
  """timm's own name of exactly this encoder, None if it has none."""
  (patch, other), (height, width) = siglip.sides(image)
  if (patch, height) != (other, width):
    return None
  sizes = timm_vits.Sizes(image["width"], image["depth"], image["num_heads"], image["mlp_dim"],
                          patch, height, timm.activation_of(image))
  tok = image["pool_type"] == "tok"
  names = (name for name, known in timm_vits.VITS.items() if known == sizes
           and name.startswith("vit_") and "_siglip_" not in name and ("_gap_" in name) != tok)
  return next(names, None)


def _table(image: dict[str, Any]) -> list[tables.Rule]:
  return [*vit_tables.facebook(cls=image["pool_type"] == "tok"), *encoders.head()]


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  what = "The encoder only" if weights.task == ours.ENCODER else "The whole classifier"
  load = 'model = timm.create_model("local-dir:E", pretrained=True)'
  tokens = "tokens = model.forward_features(images)" if weights.task == ours.ENCODER else (
    "logits = model(images)")
  return f"```python\nimport timm\n{load}.eval()\n{tokens}\n```\n\n{what}.\n"
