"""How does the transformers library keep SigLIP? `SiglipModel` and what is like it, both ways.

(And `ViTMAEForPreTraining` and `CLIPModel`, which `transformers_mae` and `clip_transformers` read
and write.)

Read are `SiglipModel`, `SiglipVisionModel` with and without `vision_model.` before its names (with
it until version 4, without since 5), the buffers that versions before 4.31 saved along, and
`Siglip2Model` (NaFlex), whose patches are rows of numbers. A NaFlex model is read as a model of
its own grid: there it computes the same; for other sizes its positions are resized bilinearly
there and bicubically here. Fixed-resolution SigLIP 2 models are `SiglipModel`s.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_vision_ext.convert import (
  Weights,
  clip_transformers,
  files,
  siglip,
  siglip_tokenizer,
  tables,
  transformers_mae,
)
from big_vision_ext.convert.lazy import ConvertError, Tensors, of
from big_vision_ext.convert.tables import Rule

FORMAT = "transformers"
# What config.json leaves out is at its default there.
_TOWER = dict(
  hidden_size=768,
  intermediate_size=3072,
  num_hidden_layers=12,
  num_attention_heads=12,
  hidden_act="gelu_pytorch_tanh",
  layer_norm_eps=siglip.LN_EPS,
)
_TEXT = _TOWER | dict(vocab_size=32_000, max_position_embeddings=64)
_VISION = _TOWER | dict(patch_size=16, image_size=224, num_patches=256)
_ACTS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
_PAIRS, _VISIONS = ("siglip", "siglip2"), ("siglip_vision_model", "siglip2_vision_model")
# Kinds of models that modules of their own read and write, by our tasks.
_OTHERS = {"mae": transformers_mae, "clip": clip_transformers}
_TYPES = (*_PAIRS, *_VISIONS, *(module.MODEL_TYPE for module in _OTHERS.values()))
_BUFFERS = (r"(text|vision)_model\.embeddings\.position_ids",)
_PREFIX = "vision_model."


def _rows(mine: str, theirs: str) -> list[Rule]:
  """A patch embedding that is a dense layer: kernel (y, x, in, out) <-> (out, y * x * in)."""
  kernel = Rule(
    (f"{mine}/kernel",),
    (f"{theirs}.weight",),
    lambda xs: [xs[0].reshape(-1, xs[0].shape[-1]).transpose()],
    lambda ys, shapes: [ys[0].transpose().reshape(*shapes[0])],
  )
  return [kernel, tables.same(f"{mine}/bias", f"{theirs}.bias")]


def _encoder(mine: str, theirs: str, final: str) -> list[Rule]:
  block, layer = f"{mine}/encoderblock_{{}}", f"{theirs}.encoder.layers.{{}}"
  attention = f"{block}/{siglip.ATTENTION}"
  parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
  return [
    *tables.norm(f"{block}/LayerNorm_0", f"{layer}.layer_norm1"),
    *(
      rule
      for ours, name in parts.items()
      for rule in tables.heads_in(
        attention, (ours,), f"{layer}.self_attn.{name}.weight", f"{layer}.self_attn.{name}.bias"
      )
    ),
    *tables.heads_out(f"{attention}/out", f"{layer}.self_attn.out_proj"),
    *tables.norm(f"{block}/LayerNorm_1", f"{layer}.layer_norm2"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.fc1"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.fc2"),
    *tables.norm(f"{mine}/encoder_norm", f"{theirs}.{final}"),
  ]


def table(naflex: bool) -> list[Rule]:
  """The table of `SiglipModel`, or of `Siglip2Model`, whose patch embedding is a dense layer."""
  embedding, head = "vision_model.embeddings", "vision_model.head"
  pooling = f"img/MAPHead_0/{siglip.ATTENTION}"
  return [
    *(_rows if naflex else tables.conv)("img/embedding", f"{embedding}.patch_embedding"),
    tables.same("img/pos_embedding", f"{embedding}.position_embedding.weight", squeeze=1),
    *_encoder("img/Transformer", "vision_model", "post_layernorm"),
    tables.same("img/MAPHead_0/probe", f"{head}.probe"),
    *tables.heads_in(
      pooling,
      ("query", "key", "value"),
      f"{head}.attention.in_proj_weight",
      f"{head}.attention.in_proj_bias",
    ),
    *tables.heads_out(f"{pooling}/out", f"{head}.attention.out_proj"),
    *tables.norm("img/MAPHead_0/LayerNorm_0", f"{head}.layernorm"),
    *tables.linear("img/MAPHead_0/MlpBlock_0/Dense_0", f"{head}.mlp.fc1"),
    *tables.linear("img/MAPHead_0/MlpBlock_0/Dense_1", f"{head}.mlp.fc2"),
    tables.same("txt/Embed_0/embedding", "text_model.embeddings.token_embedding.weight"),
    tables.same("txt/pos_embedding", "text_model.embeddings.position_embedding.weight", squeeze=1),
    *_encoder("txt/Encoder_0", "text_model", "final_layer_norm"),
    *tables.linear("txt/head", "text_model.head"),
    tables.same("t", "logit_scale"),
    tables.same("b", "logit_bias"),
  ]


def detect(path: pathlib.Path) -> bool:
  """Whether a folder, or a file of weights in one, is transformers' SigLIP."""
  path = pathlib.Path(path)
  config = (path if path.is_dir() else path.parent) / "config.json"
  return config.is_file() and files.read_json(config).get("model_type") in _TYPES


def read(path: pathlib.Path) -> Weights:
  """Both towers, or the vision tower alone of a vision model; see `convert.read`."""
  path = pathlib.Path(path)
  folder = path if path.is_dir() else path.parent
  file = files.find(path, "model", "pytorch_model") if path.is_dir() else path
  if file is None:
    raise ConvertError(f"{path}: has no model.safetensors or pytorch_model.bin")
  config = files.read_json(folder / "config.json")
  kind = config.get("model_type")
  if kind not in _TYPES:
    raise ConvertError(f"{folder / 'config.json'}: its model_type is {kind!r}, expected one of "
                       f"{', '.join(_TYPES)}")
  for module in _OTHERS.values():
    if kind == module.MODEL_TYPE:
      return module.read(file, config)
  naflex, alone = kind.startswith("siglip2"), kind in _VISIONS
  vision = config if alone else _part(config, "vision_config", folder)
  model = {"image": _image(vision, naflex, folder / "config.json"), "text": None}
  tensors = files.read_tensors(file)
  if not alone:
    text_config = _part(config, "text_config", folder)
    model |= {"text": _text(text_config, folder / "config.json"), "bias_init": -10.0}
  elif not any(name.startswith(_PREFIX) for name in tensors):
    tensors = Tensors({_PREFIX + name: tensors.lazy(name) for name in tensors})
  params = tables.load(table(naflex), siglip.shapes(model), tensors, str(file), format=FORMAT,
                       ignore=_BUFFERS)
  found = _preprocessing(folder, model["image"]["image_size"])
  if not alone:
    found["text_len"] = model["text"]["text_len"]
    found |= siglip_tokenizer.find(folder, _TEXT | text_config)
  return Weights(params=params, task="siglip", model=model, input=found,
                 meta={"model_type": kind})


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 5e9, progress: Any = None,
          final: Any = None) -> None:
  """Writes config, weights, image processor and tokenizer, if it has one; see `convert.write`.

  What was read from a NaFlex model is written as one. A model without bias gets one of zero, and
  a text tower without head an identity: the library's always have them.
  """
  del final
  if weights.task in _OTHERS:
    _OTHERS[weights.task].write(out, weights, shard_bytes=shard_bytes, progress=progress)
    return
  siglip.check(weights, FORMAT)
  model, params = dict(weights.model), Tensors(weights.params)
  for name in ("image", "text"):
    _act(model[name], f"model.{name}")
  if model["image"].get("num_classes"):
    raise ConvertError(f"model.image.num_classes={model['image']['num_classes']}: SiglipModel has "
                       "no classes; export as timm or npz")
  naflex = weights.meta.get("model_type") == "siglip2"
  shapes = siglip.shapes(model)
  if "txt/head/kernel" not in shapes:
    dtype = params.lazy("txt/pos_embedding").dtype
    head = siglip.identity(model["text"]["width"], dtype)
    params = Tensors({n: params.lazy(n) for n in params} | head)
    shapes |= {n: x.shape for n, x in head.items()}
  theirs = tables.export(table(naflex), shapes, params, format=FORMAT)
  theirs = {name: theirs.lazy(name) for name in theirs}
  theirs.setdefault("logit_bias", of(np.zeros(1, np.float32)))
  files.write_sharded(out, "model", theirs, shard_bytes=shard_bytes, progress=progress)
  ids = siglip_tokenizer.write(out, weights.input)
  _write_json(out / "config.json", _config(model, shapes, naflex, ids))
  _write_json(out / "preprocessor_config.json", _processor(weights, naflex))


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  if weights.task in _OTHERS:
    return _OTHERS[weights.task].usage(weights)
  model = "Siglip2Model" if weights.meta.get("model_type") == "siglip2" else "SiglipModel"
  tokenizer, none = siglip_tokenizer.usage(
    weights.input,
    "from transformers import AutoTokenizer\n"
    'tokenizer = AutoTokenizer.from_pretrained("E")\n',
  )
  length = weights.model["text"]["text_len"]
  return (
    f"```python\nfrom transformers import AutoImageProcessor, {model}\n"
    f'model = {model}.from_pretrained("E")\n'
    f'processor = AutoImageProcessor.from_pretrained("E")\n{tokenizer}```\n\n'
    f"Give it no attention mask, and texts padded to {length} tokens: padding is attended to.\n"
  ) + none


def _part(config: Mapping[str, Any], name: str, folder: pathlib.Path) -> Mapping[str, Any]:
  if not isinstance(config.get(name), Mapping):
    raise ConvertError(f"{folder / 'config.json'}: {name} is {config.get(name)!r}, expected the "
                       "settings of a tower")
  return config[name]


def _tower(config: Mapping[str, Any], where: Any) -> dict[str, Any]:
  act = config["hidden_act"]
  if act not in _ACTS:
    raise ConvertError(f"{where}: its hidden_act is {act!r}, expected one of {', '.join(_ACTS)}")
  out = dict(
    width=config["hidden_size"],
    depth=config["num_hidden_layers"],
    mlp_dim=config["intermediate_size"],
    num_heads=config["num_attention_heads"],
    act=_ACTS[act],
  )
  eps = float(config["layer_norm_eps"])
  return out | ({"ln_eps": eps} if eps != siglip.LN_EPS else {})


def _image(config: Mapping[str, Any], naflex: bool, where: Any) -> dict[str, Any]:
  config = _VISION | config
  if config.get("num_channels", 3) != 3:
    raise ConvertError(f"{where}: images have {config['num_channels']} channels, expected 3")
  size, patch = config["image_size"], config["patch_size"]
  if naflex:
    size = round(config["num_patches"] ** 0.5) * patch
  sides = np.broadcast_to(size, 2).tolist() + np.broadcast_to(patch, 2).tolist()
  if sides[0] != sides[1] or sides[2] != sides[3]:
    raise ConvertError(f"{where}: image_size={size}, patch_size={patch}: expected squares")
  pool = "map" if config.get("vision_use_head", True) else "none"
  return _tower(config, where) | dict(
    patch_size=sides[2], image_size=sides[0], pool_type=pool
  )


def _text(config: Mapping[str, Any], where: Any) -> dict[str, Any]:
  config = _TEXT | config
  return _tower(config, where) | dict(
    vocab_size=config["vocab_size"],
    text_len=config["max_position_embeddings"],
    out_dim=config.get("projection_size") or config["hidden_size"],
    pool_type="last",
  )


def _config(model: Mapping[str, Any], shapes: Mapping[str, Any], naflex: bool,
            ids: Mapping[str, int]) -> dict[str, Any]:
  """config.json; `ids` are those of the tokenizer's special tokens that are known."""
  kind = "siglip2" if naflex else "siglip"
  image, text = model["image"], model["text"]
  patch, size = siglip.sides(image)
  grid = (size[0] // patch[0]) * (size[1] // patch[1])
  return {
    "architectures": ["Siglip2Model" if naflex else "SiglipModel"],
    "model_type": kind,
    "initializer_factor": 1.0,
    "text_config": {
      "model_type": f"{kind}_text_model",
      **_their_tower(text, "model.text"),
      "vocab_size": text["vocab_size"],
      "max_position_embeddings": text["text_len"],
      "projection_size": shapes["txt/head/bias"][0],
      "bos_token_id": None,
      "eos_token_id": None,
      "pad_token_id": None,
      **ids,
    },
    "vision_config": {
      "model_type": f"{kind}_vision_model",
      **_their_tower(image, "model.image"),
      "num_channels": 3,
      "patch_size": patch[0],
      "vision_use_head": True,
      **({"num_patches": grid} if naflex else {"image_size": size[0]}),
    },
  }


def _their_tower(spec: Mapping[str, Any], where: str) -> dict[str, Any]:
  return {
    "hidden_size": spec["width"],
    "intermediate_size": spec["mlp_dim"],
    "num_hidden_layers": spec["depth"],
    "num_attention_heads": spec["num_heads"],
    "hidden_act": _act(spec, where),
    "layer_norm_eps": spec.get("ln_eps", siglip.LN_EPS),
    "attention_dropout": 0.0,
  }


def _act(spec: Mapping[str, Any], where: str) -> str:
  act = spec.get("act", "gelu_tanh")
  found = next((theirs for theirs, mine in _ACTS.items() if mine == act), None)
  if found is None:
    raise ConvertError(f"{where}.act={act!r}: expected one of {', '.join(_ACTS.values())}")
  return found


def _processor(weights: Weights, naflex: bool) -> dict[str, Any]:
  """preprocessor_config.json."""
  patch, (height, width) = siglip.sides(weights.model["image"])
  found = siglip.statistics(weights)
  size = (
    {"patch_size": patch[0], "max_num_patches": (height // patch[0]) * (width // patch[0])}
    if naflex
    else {"size": {"height": height, "width": width}}
  )
  return {
    "image_processor_type": "Siglip2ImageProcessor" if naflex else "SiglipImageProcessor",
    "processor_class": "Siglip2Processor" if naflex else "SiglipProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": found["mean"],
    "image_std": found["std"],
    # 2 is bilinear, 3 bicubic.
    "resample": 2 if naflex else 3,
    **size,
  }


def _preprocessing(folder: pathlib.Path, image_size: int) -> dict[str, Any]:
  """What the folder's image processor says, as keys of `Weights.input`."""
  file, found = folder / "preprocessor_config.json", {"image_size": image_size}
  if not file.is_file():
    return found
  said = files.read_json(file)
  for key in ("mean", "std"):
    if said.get(f"image_{key}") is not None:
      found[key] = said[f"image_{key}"]
  return found | ({"resize": "bicubic"} if said.get("resample") == 3 else {})


def _write_json(path: pathlib.Path, value: Any) -> None:
  files.write_text(path, json.dumps(value, indent=2) + "\n")
