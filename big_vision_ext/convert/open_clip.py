"""How does open_clip keep SigLIP? Its text tower and a vision transformer of timm, in one file.

A folder with `open_clip_config.json` and `open_clip_model.safetensors`. open_clip makes the vision
tower by the name of a timm architecture, which fixes size and activation. A model that is none of
timm's is described in a `config.json` of timm's kind beside it, and named by the folder.

(And CLIP, which has open_clip's own towers: `clip_open_clip` reads and writes it.)
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import (
  Weights,
  clip_open_clip,
  files,
  siglip,
  siglip_tokenizer,
  tables,
  timm,
)
from big_vision_ext.convert.lazy import ConvertError, Tensors

FORMAT = "open_clip"
_CONFIG = "open_clip_config.json"
_STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")
_LOCAL = "local-dir:"
_TRUNK = "visual.trunk."
# What open_clip takes where a config says nothing, and what our text tower can be.
_TEXT = dict(context_length=77, vocab_size=49_408, width=512, heads=8, layers=12, mlp_ratio=4.0)
_NEEDED = dict(
  no_causal_mask=(True,),
  pool_type=("last", "first"),
  embed_cls=(None, False),
  ls_init_value=(None,),
  hf_model_name=(None,),
  final_ln_after_pool=(None, False),
  qk_norm=(None, False),
  block_type=(None, "default"),
)


def _text_rules() -> list[tables.Rule]:
  block, layer = "txt/Encoder_0/encoderblock_{}", "text.transformer.resblocks.{}"
  attention = f"{block}/{siglip.ATTENTION}"
  return [
    tables.same("txt/Embed_0/embedding", "text.token_embedding.weight"),
    tables.same("txt/pos_embedding", "text.positional_embedding", squeeze=1),
    *tables.norm(f"{block}/LayerNorm_0", f"{layer}.ln_1"),
    *tables.heads_in(
      attention,
      ("query", "key", "value"),
      f"{layer}.attn.in_proj_weight",
      f"{layer}.attn.in_proj_bias",
    ),
    *tables.heads_out(f"{attention}/out", f"{layer}.attn.out_proj"),
    *tables.norm(f"{block}/LayerNorm_1", f"{layer}.ln_2"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_0", f"{layer}.mlp.c_fc"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_1", f"{layer}.mlp.c_proj"),
    *tables.norm("txt/Encoder_0/encoder_norm", "text.ln_final"),
    *tables.linear("txt/head", "text.text_projection"),
  ]


TABLE = [
  *timm.trunk_rules("img", _TRUNK),
  *_text_rules(),
  tables.same("t", "logit_scale", scalar=True),
  tables.same("b", "logit_bias", scalar=True),
]


def detect(path: pathlib.Path) -> bool:
  """Whether a folder, or a file of weights in one, is open_clip's."""
  path = pathlib.Path(path)
  return ((path if path.is_dir() else path.parent) / _CONFIG).is_file()


def read(path: pathlib.Path) -> Weights:
  """Both towers; see `convert.read`."""
  path = pathlib.Path(path)
  folder = path if path.is_dir() else path.parent
  file = files.find(path, *_STEMS) if path.is_dir() else path
  if file is None:
    raise ConvertError(f"{path}: has no open_clip_model.safetensors or open_clip_pytorch_model.bin")
  where = folder / _CONFIG
  config = files.read_json(where)
  settings = _part(config, "model_cfg", where)
  vision, text = (_part(settings, f"{name}_cfg", where) for name in ("vision", "text"))
  if "layers" in vision and not vision.get("timm_model_name"):
    return clip_open_clip.read(file, config)
  tensors = _scalars(files.read_tensors(file))
  image = _image(tensors, vision, folder, file)
  bias = "logit_bias" in tensors
  model = {"image": image, "text": _text(tensors, text, settings, where),
           "bias_init": -10.0 if bias else None}
  params = tables.load(TABLE, siglip.shapes(model), tensors, str(file), format=FORMAT)
  said = config.get("preprocess_cfg", {})
  found = {"image_size": image["image_size"], "text_len": model["text"]["text_len"]}
  found |= {key: said[key] for key in ("mean", "std") if said.get(key)}
  if said.get("interpolation") == "bicubic":
    found["resize"] = "bicubic"
  found |= siglip_tokenizer.find(folder, _TEXT | text)
  if text.get("hf_tokenizer_name"):
    found["tokenizer_name"] = text["hf_tokenizer_name"]
  return Weights(params=params, task="siglip", model=model, input=found,
                 meta={"architecture": str(vision.get("timm_model_name"))})


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 0, progress: Any = None,
          final: Any = None) -> None:
  """Writes config, weights and tokenizer, if it has one; see `convert.write`.

  open_clip reads one file of weights, so `shard_bytes` is not regarded.

  Args:
    out: folder to write into.
    weights: what to write.
    progress: see `convert.write`.
    final: the name that the folder will have, for models that timm has no name for.
  """
  del shard_bytes
  if weights.task == "clip":
    clip_open_clip.write(out, weights, progress=progress)
    return
  siglip.check(weights, FORMAT, text_pools=("last", "first"))
  if weights.model["image"].get("num_classes"):
    raise ConvertError("model.image.num_classes: open_clip's towers have no classes; export as "
                       "timm or npz")
  theirs = tables.export(TABLE, siglip.shapes(weights.model), weights.params, format=FORMAT)
  files.write_safetensors(out / "open_clip_model.safetensors",
                          {n: theirs.lazy(n) for n in theirs}, progress=progress)
  name = timm.architecture(weights.model["image"])
  if name is None:
    name = f"{_LOCAL}{final or out}"
    files.write_text(out / "config.json", json.dumps(timm.config(weights), indent=2) + "\n")
  siglip_tokenizer.write(out, weights.input)
  config = _config(weights, name, siglip_tokenizer.has_files(weights.input))
  files.write_text(out / _CONFIG, json.dumps(config, indent=2) + "\n")


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  if weights.task == "clip":
    return clip_open_clip.usage(weights)
  tokenizer, none = siglip_tokenizer.usage(
    weights.input, 'tokenizer = open_clip.get_tokenizer("local-dir:E")\n'
  )
  text = (
    "```python\nimport open_clip\n"
    'model, preprocess = open_clip.create_model_from_pretrained("local-dir:E")\n'
    f"{tokenizer}```\n{none}"
  )
  if timm.architecture(weights.model["image"]) is None:
    text += (
      "\nThe vision tower has no name in timm: `config.json` describes it, and `timm_model_name` "
      f"in `{_CONFIG}` is the path of this folder. Change it when the folder moves.\n"
    )
  return text


def _config(weights: Weights, name: str, tokenizer: bool) -> dict[str, Any]:
  image, text = weights.model["image"], weights.model["text"]
  out_dim = text.get("out_dim", image["width"])
  act = _act(text)
  return {
    "model_cfg": {
      "embed_dim": out_dim or text["width"],
      **({} if _no_bias(weights) else {"init_logit_bias": -10}),
      "custom_text": True,
      "vision_cfg": {
        "image_size": siglip.sides(image)[1][0],
        "timm_model_name": name,
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
      },
      "text_cfg": {
        "context_length": text["text_len"],
        "vocab_size": text["vocab_size"],
        **_tokenizer(weights, tokenizer),
        "width": text["width"],
        "heads": text["num_heads"],
        "layers": text["depth"],
        "mlp_ratio": timm.ratio(text["mlp_dim"], text["width"]),
        "no_causal_mask": True,
        "proj_bias": True,
        **({} if out_dim else {"proj_type": "none"}),
        "pool_type": text.get("pool_type", "last"),
        "norm_kwargs": {"eps": text.get("ln_eps", siglip.LN_EPS)},
        **({"act_kwargs": {"approximate": "tanh"}} if act == "gelu_tanh" else {}),
      },
    },
    "preprocess_cfg": {
      **siglip.statistics(weights),
      "interpolation": "bicubic",
      "resize_mode": "squash",
    },
  }


def _tokenizer(weights: Weights, written: bool) -> dict[str, Any]:
  """Which tokenizer text_cfg names; of a local folder, open_clip takes the one that lies in it."""
  name = "local" if written else weights.input.get("tokenizer_name")
  if not name:
    return {}
  clean = "canonicalize" if weights.input.get("canonicalize", True) else "whitespace"
  return {"hf_tokenizer_name": name, "tokenizer_kwargs": {"clean": clean}}


def _image(tensors: Tensors, vision: Mapping[str, Any], folder: pathlib.Path,
           file: pathlib.Path) -> dict[str, Any]:
  name, args = str(vision.get("timm_model_name", "")), {}
  if not name:
    raise ConvertError(f"{folder / _CONFIG}: vision_cfg has no timm_model_name; expected a vision "
                       "transformer of timm, as SigLIP has")
  if name.startswith(_LOCAL):
    # The path may be that of another place: what it describes lies beside the weights.
    described = files.read_json(folder / "config.json")
    name, args = str(described.get("architecture", "")), dict(described.get("model_args", {}))
  return timm.image_spec(tensors, name, args, _TRUNK, file)


def _text(tensors: Tensors, config: Mapping[str, Any], settings: Mapping[str, Any],
          where: Any) -> dict[str, Any]:
  for key, allowed in _NEEDED.items():
    if config.get(key) not in allowed:
      raise ConvertError(
        f"{where}: text_cfg.{key} is {config.get(key)!r}, expected "
        f"{' or '.join(map(repr, allowed))}: our text tower is SigLIP's"
      )
  act = (config.get("act_kwargs") or {}).get("approximate", "none")
  if settings.get("quick_gelu") or act not in ("none", "tanh"):
    raise ConvertError(f"{where}: the text tower has an activation that is not known here; "
                       "expected GELU, exact or by tanh")
  config = _TEXT | config
  eps = float((config.get("norm_kwargs") or {}).get("eps", 1e-5))
  projection = "text.text_projection.weight"
  return dict(
    width=config["width"],
    depth=config["layers"],
    mlp_dim=int(config["width"] * config["mlp_ratio"]),
    num_heads=config["heads"],
    vocab_size=config["vocab_size"],
    text_len=config["context_length"],
    out_dim=tensors.lazy(projection).shape[0] if projection in tensors else 0,
    pool_type=config["pool_type"],
    act="gelu_tanh" if act == "tanh" else "gelu",
    **({"ln_eps": eps} if eps != siglip.LN_EPS else {}),
  )


def _scalars(tensors: Tensors) -> Tensors:
  """Temperature and bias without axes: some versions keep them with one."""
  change = lambda n: tensors.lazy(n).reshape() if n in ("logit_scale", "logit_bias") else (
    tensors.lazy(n))
  return Tensors({name: change(name) for name in tensors})


def _act(text: Mapping[str, Any]) -> str:
  act = text.get("act", "gelu_tanh")
  if act not in ("gelu_tanh", "gelu"):
    raise ConvertError(f"model.text.act={act!r}: expected 'gelu_tanh' or 'gelu'")
  return act


def _no_bias(weights: Weights) -> bool:
  return weights.model.get("bias_init", -10.0) is None


def _part(config: Mapping[str, Any], name: str, where: Any) -> Mapping[str, Any]:
  if not isinstance(config.get(name), Mapping):
    raise ConvertError(f"{where}: {name} is {config.get(name)!r}, expected a group of settings")
  return config[name]
