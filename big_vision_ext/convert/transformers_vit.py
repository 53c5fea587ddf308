"""How does the transformers library keep encoders? `ViTForImageClassification`, `IJepaModel`, ...

A head on the class token is the only one that `ViTForImageClassification` has: classifiers on the
mean of the patches go to timm. `IJepaModel` has no class token and no head; of our I-JEPA it gets
the teacher. `ViTModel` is an encoder with class token; the pooling layer that it may have is of
some other training and is not read. `PixioModel` is one with several class tokens.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_vision_ext.convert import Weights, encoders, files, ours, siglip, tables, vit_tables
from big_vision_ext.convert.lazy import ConvertError, Tensors

MODEL_TYPES = ("vit", "ijepa", "pixio")
_ACTS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
# What config.json leaves out is at its default there; note the epsilon.
_DEFAULTS = dict(
  hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
  hidden_act="gelu", layer_norm_eps=1e-12, image_size=224, patch_size=16, num_channels=3,
  qkv_bias=True)
_PIXIO = _DEFAULTS | dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16,
                          mlp_ratio=4, layer_norm_eps=1e-6, image_size=256, n_cls_tokens=8)


def read(file: pathlib.Path, config: Mapping[str, Any], seen: Mapping[str, Any]) -> Weights:
  """The model in a file of weights; see `convert.read`.

  Args:
    file: of the arrays.
    config: the config.json beside it.
    seen: what its image processor says, as keys of `Weights.input`.

  Raises:
    ConvertError: settings that no model here has, or arrays that are not those of the model.
  """
  where, kind = file.parent / "config.json", config["model_type"]
  labels = config.get("id2label") or {}
  config = (_PIXIO if kind == "pixio" else _DEFAULTS) | dict(config)
  for key, wanted in (("num_channels", 3), ("qkv_bias", True)):
    if config[key] != wanted:
      raise ConvertError(f"{where}: its {key} is {config[key]!r}, expected {wanted!r}")
  if config["hidden_act"] not in _ACTS:
    raise ConvertError(f"{where}: its hidden_act is {config['hidden_act']!r}, expected one of "
                       f"{', '.join(_ACTS)}")
  image = dict(
    width=config["hidden_size"], depth=config["num_hidden_layers"],
    mlp_dim=config["intermediate_size"], num_heads=config["num_attention_heads"],
    patch_size=_side(config["patch_size"]), image_size=_side(config["image_size"]),
    pool_type="none" if kind == "ijepa" else "tok", act=_ACTS[config["hidden_act"]],
    ln_eps=float(config["layer_norm_eps"]))
  if kind == "pixio":
    image |= {"mlp_dim": int(config["hidden_size"] * config["mlp_ratio"]),
              "num_cls": config["n_cls_tokens"]}
  tensors = files.read_tensors(file)
  prefix = f"{kind}." if any(n.startswith(f"{kind}.") for n in tensors) else ""
  task, model, found = ours.ENCODER, {"image": image}, {**seen, "image_size": image["image_size"]}
  if "classifier.weight" in tensors:
    if kind != "vit":
      raise ConvertError(f"{file}: has a head that no model here has; save its encoder alone")
    task = "classify"
    model |= {"num_classes": siglip.size_of(tensors, "classifier.bias", 1, file)[0],
              "feature": "cls", **{key: seen[key] for key in ("mean", "std") if key in seen}}
    names = [labels.get(str(i)) for i in range(model["num_classes"])]
    if all(names) and names != _numbered(model["num_classes"]):
      found["classes"] = names
  old = any(".layer." in name for name in tensors)
  if kind == "pixio" and old:
    # Its files have other names for the norms of a block.
    named = lambda name: name.replace(".norm1.", ".layernorm_before.").replace(
      ".norm2.", ".layernorm_after.")
    tensors = Tensors({named(name): tensors.lazy(name) for name in tensors})
  params = tables.load(_table(kind, prefix, old), ours.shapes(task, model), tensors, str(file),
                       format="transformers", ignore=(rf"{prefix}pooler\..*",))
  return Weights(params=params, task=task, model=model, input=found, meta={"model_type": kind})


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float, progress: Any) -> Weights:
  """Writes config, weights and image processor; returns what of the weights they hold."""
  if weights.task == "classify" and (weights.model.get("feature", "mean") != "cls"
                                     and not weights.model.get("probe")):
    raise ConvertError(
      "model.feature='mean': ViTForImageClassification has its head on the class token, this "
      "classifier on the mean of the patches; export as timm or npz")
  weights = encoders.of(weights, "transformers")
  kind = _kind(weights.model["image"])
  prefix = "vit." if weights.task == "classify" else ""
  theirs = tables.export(
    _table(kind, prefix), ours.shapes(weights.task, weights.model), Tensors(weights.params),
    format="transformers")
  files.write_sharded(out, "model", {n: theirs.lazy(n) for n in theirs}, shard_bytes=shard_bytes,
                      progress=progress)
  _write_json(out / "config.json", _config(weights, kind))
  (height, width), found = siglip.sides(weights.model["image"])[1], encoders.statistics(weights)
  _write_json(out / "preprocessor_config.json", {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": found["mean"],
    "image_std": found["std"], "resample": 3, "size": {"height": height, "width": width}})
  return weights


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  name = _architecture(weights)
  bare = ", add_pooling_layer=False" if name == "ViTModel" else ""
  text = (f"```python\nfrom transformers import AutoImageProcessor, {name}\n"
          f'model = {name}.from_pretrained("E"{bare})\n'
          'processor = AutoImageProcessor.from_pretrained("E")\n```')
  if weights.input.get("eval_crop"):
    text += ("\n\nThe processor resizes whole images without keeping the aspect ratio; cut the "
             "square below out first.")
  return text


def _table(kind: str, prefix: str, old: bool = False) -> list[tables.Rule]:
  encoder = vit_tables.transformers(theirs=prefix, cls=kind != "ijepa", old=old)
  return [*encoder, *tables.linear("head", "classifier")]


def _kind(image: Mapping[str, Any]) -> str:
  if image["pool_type"] == "none":
    return "ijepa"
  return "vit" if image.get("num_cls", 1) == 1 else "pixio"


def _architecture(weights: Weights) -> str:
  if weights.task == "classify":
    return "ViTForImageClassification"
  return {"vit": "ViTModel", "ijepa": "IJepaModel", "pixio": "PixioModel"}[
    _kind(weights.model["image"])]


def _config(weights: Weights, kind: str) -> dict[str, Any]:
  image, classes = weights.model["image"], weights.model.get("num_classes", 0)
  patch, size = siglip.sides(image)
  act = image.get("act", "gelu")
  found = next((theirs for theirs, mine in _ACTS.items() if mine == act), None)
  if found is None:
    raise ConvertError(f"model.image.act={act!r}: expected one of "
                       f"{', '.join(sorted(set(_ACTS.values())))}")
  labels = {}
  if classes:
    names = encoders.class_names(weights) or _numbered(classes)
    labels = {"id2label": {str(i): name for i, name in enumerate(names)},
              "label2id": {name: i for i, name in enumerate(names)}}
  one = lambda pair: pair[0] if pair[0] == pair[1] else list(pair)
  mlp = {"intermediate_size": image["mlp_dim"]}
  if kind == "pixio":
    ratio, rest = divmod(image["mlp_dim"], image["width"])
    if len(set(size)) > 1 or len(set(patch)) > 1:
      raise ConvertError(f"image_size={list(size)}, patch_size={list(patch)}: PixioModel takes "
                         "squares only; export as npz")
    if rest:
      raise ConvertError(f"model.image.mlp_dim={image['mlp_dim']}: PixioModel's is a multiple of "
                         f"its width, {image['width']}; export as npz")
    mlp = {"mlp_ratio": ratio, "n_cls_tokens": image["num_cls"]}
  return {
    "architectures": [_architecture(weights)], "model_type": kind, "hidden_size": image["width"],
    "num_hidden_layers": image["depth"], "num_attention_heads": image["num_heads"],
    **mlp, "hidden_act": found,
    "layer_norm_eps": image.get("ln_eps", siglip.LN_EPS), "image_size": one(size),
    "patch_size": one(patch), "num_channels": 3, "qkv_bias": True, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, **labels}


def _numbered(classes: int) -> list[str]:
  return [f"LABEL_{i}" for i in range(classes)]


def _side(value: Any) -> int | tuple[int, int]:
  sides = tuple(int(n) for n in np.broadcast_to(value, 2))
  return sides[0] if sides[0] == sides[1] else sides


def _write_json(path: pathlib.Path, value: Any) -> None:
  files.write_text(path, json.dumps(value, indent=2) + "\n")
