"""How does open_clip keep CLIP? As its class `CLIP`, or `CustomTextCLIP`, without timm.

The arrays have OpenAI's names, in the second one with `text.` before those of the text tower.
Unlike OpenAI's files, the config says which activation and how many heads there are.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import Weights, clip, clip_tokenizer, files, siglip, timm
from big_vision_ext.convert.lazy import ConvertError, Tensors

FORMAT = "open_clip"
_CONFIG = "open_clip_config.json"
# What open_clip takes where a config says nothing.
_VISION = dict(layers=12, width=768, head_width=64, mlp_ratio=4.0, patch_size=16, image_size=224)
_TEXT = dict(context_length=77, vocab_size=49_408, width=512, heads=8, layers=12, mlp_ratio=4.0)
# Settings that would make another tower of it, with what they must be.
_NEEDED_VISION = dict(
  ls_init_value=(None,), attentional_pool=(None, False), no_ln_pre=(None, False),
  pool_type=(None, "tok"), final_ln_after_pool=(None, False), pos_embed_type=(None, "learnable"),
  output_tokens=(None, False), block_type=(None, "default"), qk_norm=(None, False),
  global_average_pool=(None, False), input_patchnorm=(None, False), act_kwargs=(None,),
  norm_kwargs=(None,),
)  # fmt: skip
_NEEDED_TEXT = dict(
  no_causal_mask=(None, False), pool_type=(None, "argmax"), embed_cls=(None, False),
  ls_init_value=(None,), hf_model_name=(None,), final_ln_after_pool=(None, False),
  proj_type=(None, "linear"), proj_bias=(None, False), qk_norm=(None, False),
  block_type=(None, "default"), act_kwargs=(None,), norm_kwargs=(None,),
)  # fmt: skip


def read(file: pathlib.Path, config: Mapping[str, Any]) -> Weights:
  """The model in a file of weights, given the config beside it; see `convert.read`."""
  where = file.parent / _CONFIG
  settings = config["model_cfg"]
  vision, text = dict(settings["vision_cfg"]), dict(settings["text_cfg"])
  for name, part, needed in (("vision_cfg", vision, _NEEDED_VISION),
                             ("text_cfg", text, _NEEDED_TEXT)):
    for key, allowed in needed.items():
      if part.get(key) not in allowed:
        raise ConvertError(f"{where}: {name}.{key} is {part.get(key)!r}, expected "
                           f"{' or '.join(map(repr, allowed))}: as in CLIP's published models")
  vision, text = _VISION | vision, _TEXT | text
  if isinstance(vision["layers"], list | tuple):
    raise ConvertError(f"{where}: its image tower is a ResNet (vision_cfg.layers="
                       f"{vision['layers']}); only vision transformers are read (as of ViT-B-16)")
  tensors = files.read_tensors(file)
  prefix = "text." if "text.token_embedding.weight" in tensors else ""
  act = {"act": "quick_gelu" if settings.get("quick_gelu") else "gelu"}
  tower = lambda part, heads: dict(
    width=part["width"], depth=part["layers"], mlp_dim=int(part["width"] * part["mlp_ratio"]),
    num_heads=heads)
  image = clip.IMAGE | act | tower(vision, vision["width"] // vision["head_width"]) | dict(
    patch_size=vision["patch_size"], image_size=vision["image_size"],
    num_classes=settings["embed_dim"])
  words = clip.TEXT | act | tower(text, text["heads"]) | dict(
    vocab_size=text["vocab_size"], text_len=text["context_length"], out_dim=settings["embed_dim"])
  model = {"image": image, "text": words,
           "bias_init": -10.0 if "logit_bias" in tensors else None}
  params = clip.load(clip.openai(prefix), _scalars(tensors), model, file, FORMAT)
  said = config.get("preprocess_cfg", {})
  found = clip.known_input(model) | {k: said[k] for k in ("mean", "std") if said.get(k)}
  return Weights(params=params, task="clip", model=model,
                 input=found | clip_tokenizer.find(file.parent), meta=clip.precision(params))


def write(out: pathlib.Path, weights: Weights, *, progress: Any) -> None:
  """Writes config, weights and vocabulary, if it has one; see `convert.write`."""
  clip.check(weights, FORMAT, square=False, own={"ln_eps": 1e-5})
  image, text = weights.model["image"], weights.model["text"]
  acts = [spec.get("act", "quick_gelu") for spec in (image, text)]
  if acts[0] != acts[1]:
    raise ConvertError(f"model.image.act={acts[0]!r}, model.text.act={acts[1]!r}: in the format "
                       f"{FORMAT!r} both towers have the same; export as transformers or npz")
  if (end := clip.end_of_text(text)) is not None:
    raise ConvertError(f"model.text.eot_id={end}: in the format {FORMAT!r} a text is read at its "
                       "largest id; export as transformers or npz")
  theirs = clip.export(clip.openai(), weights, FORMAT)
  files.write_safetensors(out / "open_clip_model.safetensors",
                          {n: theirs.lazy(n) for n in theirs}, progress=progress)
  config = {"model_cfg": _settings(weights, acts[0] == "quick_gelu"),
            "preprocess_cfg": {**siglip.statistics(weights, clip.MEAN, clip.STD),
                               "interpolation": "bicubic", "resize_mode": "shortest"}}
  files.write_text(out / _CONFIG, json.dumps(config, indent=2) + "\n")
  clip_tokenizer.write(out, weights.input)


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  _, none = clip_tokenizer.usage(weights.input, "")
  return ("```python\nimport open_clip\n"
          'model, preprocess = open_clip.create_model_from_pretrained("local-dir:E")\n'
          'tokenizer = open_clip.get_tokenizer("local-dir:E")  # CLIP\'s own\n```\n' + none)


def _settings(weights: Weights, quick: bool) -> dict[str, Any]:
  image, text = weights.model["image"], weights.model["text"]
  patch, size = siglip.sides(image)
  plain = lambda pair: pair[0] if pair[0] == pair[1] else list(pair)
  return {
    "embed_dim": image["num_classes"],
    "quick_gelu": quick,
    **({"init_logit_bias": -10} if weights.model.get("bias_init") is not None else {}),
    "vision_cfg": {
      "image_size": plain(size), "patch_size": plain(patch), "layers": image["depth"],
      "width": image["width"], "head_width": image["width"] // image["num_heads"],
      "mlp_ratio": timm.ratio(image["mlp_dim"], image["width"]),
    },
    "text_cfg": {
      "context_length": text["text_len"], "vocab_size": text["vocab_size"],
      "width": text["width"], "heads": text["num_heads"], "layers": text["depth"],
      "mlp_ratio": timm.ratio(text["mlp_dim"], text["width"]),
    },
  }  # fmt: skip


def _scalars(tensors: Tensors) -> Tensors:
  """Temperature and bias without axes: some versions keep them with one."""
  return Tensors({n: tensors.lazy(n).reshape() if n in ("logit_scale", "logit_bias")
                  else tensors.lazy(n) for n in tensors})
