"""How does the transformers library keep CLIP? As `CLIPModel`, of any version.

Read are folders with either kind of GELU, the buffers that versions before 4.31 saved along, and
the settings that early configs keep in `text_config_dict` and `vision_config_dict`.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_vision_ext.convert import Weights, clip, clip_tokenizer, files, siglip
from big_vision_ext.convert.lazy import ConvertError

MODEL_TYPE = "clip"
# What config.json leaves out is at its default there.
_TOWER = dict(num_hidden_layers=12, hidden_act="quick_gelu", layer_norm_eps=1e-5)
_TEXT = _TOWER | dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8,
                      vocab_size=49_408, max_position_embeddings=77, eos_token_id=49_407)
_VISION = _TOWER | dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12,
                        image_size=224, patch_size=32, num_channels=3)
_ACTS = ("quick_gelu", "gelu")
# Says "the largest id" there: early configs had it, whose tokenizers ended texts with another one.
_LARGEST = 2
_VOCABULARY = 49_408


def read(file: pathlib.Path, config: Mapping[str, Any]) -> Weights:
  """The model in a file of weights, given the config.json beside it; see `convert.read`."""
  where = file.parent / "config.json"
  vision, text = (_part(config, name, defaults, where)
                  for name, defaults in (("vision", _VISION), ("text", _TEXT)))
  if vision["num_channels"] != 3:
    raise ConvertError(f"{where}: images have {vision['num_channels']} channels, expected 3")
  if np.ndim(vision["image_size"]) or np.ndim(vision["patch_size"]):
    raise ConvertError(f"{where}: image_size={vision['image_size']}, patch_size="
                       f"{vision['patch_size']}: expected squares")
  shared = config.get("projection_dim", 512)
  image = _tower(vision, clip.IMAGE, where) | dict(
    patch_size=vision["patch_size"], image_size=vision["image_size"], num_classes=shared)
  words = _tower(text, clip.TEXT, where) | dict(
    vocab_size=text["vocab_size"], text_len=text["max_position_embeddings"], out_dim=shared)
  if text["eos_token_id"] not in (_LARGEST, text["vocab_size"] - 1):
    words["eot_id"] = text["eos_token_id"]
  model = {"image": image, "text": words, "bias_init": None}
  tensors = files.read_tensors(file)
  params = clip.load(clip.transformers(), tensors, model, file, "transformers")
  found = clip.known_input(model) | _preprocessing(file.parent) | clip_tokenizer.find(file.parent)
  return Weights(params=params, task="clip", model=model, input=found,
                 meta={"model_type": MODEL_TYPE} | clip.precision(params))


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float, progress: Any) -> None:
  """Writes config, weights, image processor and tokenizer, if it has one; see `convert.write`."""
  clip.check(weights, "transformers")
  theirs = clip.export(clip.transformers(), weights, "transformers")
  files.write_sharded(out, "model", {n: theirs.lazy(n) for n in theirs}, shard_bytes=shard_bytes,
                      progress=progress)
  _write_json(out / "config.json", _config(weights))
  _write_json(out / "preprocessor_config.json", _processor(weights))
  clip_tokenizer.write(out, weights.input)


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  code, none = clip_tokenizer.usage(
    weights.input,
    "from transformers import AutoTokenizer\n"
    'tokenizer = AutoTokenizer.from_pretrained("E")\n',
  )
  return ("```python\nfrom transformers import AutoImageProcessor, CLIPModel\n"
          'model = CLIPModel.from_pretrained("E")\n'
          f'processor = AutoImageProcessor.from_pretrained("E")\n{code}```\n{none}')


def _part(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any],
          where: Any) -> dict[str, Any]:
  found = config.get(f"{name}_config")
  if not isinstance(found, Mapping):
    raise ConvertError(f"{where}: {name}_config is {found!r}, expected the settings of a tower")
  # There, what the second one says wins.
  return {**defaults, **found, **(config.get(f"{name}_config_dict") or {})}


def _tower(config: Mapping[str, Any], plain: Mapping[str, Any], where: Any) -> dict[str, Any]:
  if config["hidden_act"] not in _ACTS:
    raise ConvertError(f"{where}: its hidden_act is {config['hidden_act']!r}, expected one of "
                       f"{', '.join(_ACTS)}")
  return {**plain, "width": config["hidden_size"], "depth": config["num_hidden_layers"],
          "mlp_dim": config["intermediate_size"], "num_heads": config["num_attention_heads"],
          "act": config["hidden_act"], "ln_eps": float(config["layer_norm_eps"])}


def _config(weights: Weights) -> dict[str, Any]:
  image, text = weights.model["image"], weights.model["text"]
  patch, size = siglip.sides(image)
  shared = image["num_classes"]
  end = clip.end_of_text(text)
  if end is None:
    end = _VOCABULARY - 1 if text["vocab_size"] == _VOCABULARY else _LARGEST
  ids = {"bos_token_id": _VOCABULARY - 2, "eos_token_id": end, "pad_token_id": 1}
  ids["bos_token_id"] = min(ids["bos_token_id"], text["vocab_size"] - 1)

  def tower(spec, kind):
    return {
      "model_type": kind, "hidden_size": spec["width"], "intermediate_size": spec["mlp_dim"],
      "num_hidden_layers": spec["depth"], "num_attention_heads": spec["num_heads"],
      "hidden_act": spec["act"], "layer_norm_eps": spec["ln_eps"], "attention_dropout": 0.0,
      "projection_dim": shared,
    }  # fmt: skip

  return {
    "architectures": ["CLIPModel"],
    "model_type": MODEL_TYPE,
    "initializer_factor": 1.0,
    "logit_scale_init_value": 2.6592,
    "projection_dim": shared,
    "text_config": {**tower(text, "clip_text_model"), "vocab_size": text["vocab_size"],
                    "max_position_embeddings": text["text_len"], **ids},
    "vision_config": {**tower(image, "clip_vision_model"), "num_channels": 3,
                      "patch_size": patch[0], "image_size": size[0]},
  }


def _processor(weights: Weights) -> dict[str, Any]:
  """preprocessor_config.json."""
  _, (side, _) = siglip.sides(weights.model["image"])
  found = siglip.statistics(weights, clip.MEAN, clip.STD)
  return {
    "image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor",
    "do_convert_rgb": True, "do_resize": True, "size": {"shortest_edge": side},
    "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": found["mean"],
    "image_std": found["std"], "resample": 3,
  }  # fmt: skip


def _preprocessing(folder: pathlib.Path) -> dict[str, Any]:
  """What the folder's image processor says, as keys of `Weights.input`."""
  file = folder / "preprocessor_config.json"
  said = files.read_json(file) if file.is_file() else {}
  return {k: said[f"image_{k}"] for k in ("mean", "std") if said.get(f"image_{k}") is not None}


def _write_json(path: pathlib.Path, value: Any) -> None:
  files.write_text(path, json.dumps(value, indent=2) + "\n")
