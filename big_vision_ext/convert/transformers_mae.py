"""How does the transformers library keep a masked autoencoder? As `ViTMAEForPreTraining`."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_vision_ext.convert import Weights, files, siglip, vit_mae
from big_vision_ext.convert.lazy import ConvertError

MODEL_TYPE = "vit_mae"
# What config.json leaves out is at its default there; note the epsilon.
_DEFAULTS = dict(
  hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
  hidden_act="gelu", layer_norm_eps=1e-12, image_size=224, patch_size=16, num_channels=3,
  qkv_bias=True, decoder_num_attention_heads=16, decoder_hidden_size=512,
  decoder_num_hidden_layers=8, decoder_intermediate_size=2048, mask_ratio=0.75,
  norm_pix_loss=False,
)


def read(file: pathlib.Path, config: Mapping[str, Any]) -> Weights:
  """The model in a file of weights, given the config.json beside it; see `convert.read`."""
  where = file.parent / "config.json"
  config = _DEFAULTS | dict(config)
  for key, wanted in (("hidden_act", "gelu"), ("num_channels", 3), ("qkv_bias", True)):
    if config[key] != wanted:
      raise ConvertError(f"{where}: its {key} is {config[key]!r}, expected {wanted!r}")
  if np.ndim(config["image_size"]) or np.ndim(config["patch_size"]):
    raise ConvertError(f"{where}: image_size={config['image_size']}, patch_size="
                       f"{config['patch_size']}: expected squares")
  image = dict(
    width=config["hidden_size"], depth=config["num_hidden_layers"],
    mlp_dim=config["intermediate_size"], num_heads=config["num_attention_heads"],
    patch_size=config["patch_size"], image_size=config["image_size"], pool_type="tok", act="gelu",
    ln_eps=float(config["layer_norm_eps"]), decoder_width=config["decoder_hidden_size"],
    decoder_depth=config["decoder_num_hidden_layers"],
    decoder_heads=config["decoder_num_attention_heads"],
    decoder_mlp_dim=config["decoder_intermediate_size"],
  )
  model = {"image": image, "mask": vit_mae.mask_for(image, config["mask_ratio"]),
           "norm_pix": bool(config["norm_pix_loss"])}
  tensors = files.read_tensors(file)
  old = any(name.startswith("vit.encoder.layer.") for name in tensors)
  saved_by_5 = any(name.startswith(vit_mae.OLD_DECODER) for name in tensors)
  table = vit_mae.transformers(old, *[vit_mae.OLD_DECODER] * saved_by_5)
  params = vit_mae.load(tensors, model, table, file, "transformers")
  found = {"image_size": image["image_size"], "mean": vit_mae.MEAN, "std": vit_mae.STD}
  return Weights(params=params, task="mae", model=model, input=found,
                 meta={"model_type": MODEL_TYPE})


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float, progress: Any) -> None:
  """Writes config, weights and image processor; see `convert.write`."""
  theirs = vit_mae.export(weights, vit_mae.transformers(), "transformers")
  files.write_sharded(out, "model", {n: theirs.lazy(n) for n in theirs}, shard_bytes=shard_bytes,
                      progress=progress)
  _write_json(out / "config.json", _config(weights))
  size, found = weights.model["image"]["image_size"], siglip.statistics(weights)
  _write_json(out / "preprocessor_config.json", {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True,
    "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": found["mean"],
    "image_std": found["std"], "resample": 3, "size": {"height": size, "width": size}})


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  del weights
  return ("```python\nfrom transformers import AutoImageProcessor, ViTMAEForPreTraining\n"
          'model = ViTMAEForPreTraining.from_pretrained("E")\n'
          'processor = AutoImageProcessor.from_pretrained("E")\n```')


def _config(weights: Weights) -> dict[str, Any]:
  image, mask = weights.model["image"], weights.model["mask"]
  total = (image["image_size"] // image["patch_size"]) ** 2
  return {
    "architectures": ["ViTMAEForPreTraining"], "model_type": MODEL_TYPE,
    "hidden_size": image["width"], "num_hidden_layers": image["depth"],
    "num_attention_heads": image["num_heads"], "intermediate_size": image["mlp_dim"],
    "hidden_act": "gelu", "layer_norm_eps": image.get("ln_eps", siglip.LN_EPS),
    "image_size": image["image_size"], "patch_size": image["patch_size"], "num_channels": 3,
    "qkv_bias": True, "decoder_hidden_size": image["decoder_width"],
    "decoder_num_hidden_layers": image["decoder_depth"],
    "decoder_num_attention_heads": image["decoder_heads"],
    "decoder_intermediate_size": image["decoder_mlp_dim"],
    # Half a token less hidden: the library rounds the number of visible ones down.
    "mask_ratio": 1 - (mask["num_visible"] + 0.5) / total,
    "norm_pix_loss": bool(weights.model.get("norm_pix", True)),
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.02,
  }


def _write_json(path: pathlib.Path, value: Any) -> None:
  files.write_text(path, json.dumps(value, indent=2) + "\n")
