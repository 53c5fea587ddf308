"""How does timm keep a vision transformer? Its vision tower only, with attention or mean pooling.

(And encoders of masked models and classifiers, which `timm_encoders` reads and writes.)

A folder as timm's hub has it, `config.json` and `model.safetensors`, or a file of weights alone.
What its activation is follows from the architecture's name: of timm's SigLIP models most have the
exact GELU, also where the weights were trained with its approximation. Read from here, a model
computes what it computes there.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

import numpy as np

from big_vision_ext.convert import Weights, encoders, files, siglip, tables, timm_vits
from big_vision_ext.convert.lazy import ConvertError, Tensors
from big_vision_ext.convert.tables import Rule

FORMAT = "timm"
_ACTS = ("gelu", "gelu_tanh")
# The entry point that arguments turn into a model without a name.
_BASE = "vit_base_patch16_siglip_224"
# What is in encoders and classifiers only, and what is in no model here.
_ENCODERS = {
  r"cls_token": "a class token (with a position of its own)",
  r"fc_norm\.weight": "a norm after pooling instead of before",
}
_FOREIGN = {
  r"reg_token": "register tokens",
  r"norm_pre\.weight": "a norm before the blocks",
  r"blocks\.0\.ls1\.gamma": "layer scale",
  r"blocks\.0\.attn\.q_norm\.weight": "normalised queries and keys",
  r"blocks\.0\.mlp\.fc1_g\.weight": "a gated MLP",
}


def trunk_rules(mine: str, theirs: str) -> list[Rule]:
  """The table of a vision transformer.

  Args:
    mine: our tower, without the slash.
    theirs: prefix on their side, with its dot.
  """
  block, blocks = f"{mine}/Transformer/encoderblock_{{}}", f"{theirs}blocks.{{}}"
  head, pooling = f"{mine}/MAPHead_0", f"{theirs}attn_pool"
  into = lambda ours, names, name: tables.heads_in(
    f"{ours}/{siglip.ATTENTION}", names, f"{name}.weight", f"{name}.bias"
  )
  return [
    *tables.conv(f"{mine}/embedding", f"{theirs}patch_embed.proj"),
    tables.same(f"{mine}/pos_embedding", f"{theirs}pos_embed"),
    *tables.norm(f"{block}/LayerNorm_0", f"{blocks}.norm1"),
    *into(block, ("query", "key", "value"), f"{blocks}.attn.qkv"),
    *tables.heads_out(f"{block}/{siglip.ATTENTION}/out", f"{blocks}.attn.proj"),
    *tables.norm(f"{block}/LayerNorm_1", f"{blocks}.norm2"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_0", f"{blocks}.mlp.fc1"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_1", f"{blocks}.mlp.fc2"),
    *tables.norm(f"{mine}/Transformer/encoder_norm", f"{theirs}norm"),
    tables.same(f"{head}/probe", f"{pooling}.latent"),
    *into(head, ("query",), f"{pooling}.q"),
    *into(head, ("key", "value"), f"{pooling}.kv"),
    *tables.heads_out(f"{head}/{siglip.ATTENTION}/out", f"{pooling}.proj"),
    *tables.norm(f"{head}/LayerNorm_0", f"{pooling}.norm"),
    *tables.linear(f"{head}/MlpBlock_0/Dense_0", f"{pooling}.mlp.fc1"),
    *tables.linear(f"{head}/MlpBlock_0/Dense_1", f"{pooling}.mlp.fc2"),
  ]


TABLE = [*trunk_rules("img", ""), *tables.linear("img/head", "head")]


def detect(path: pathlib.Path) -> bool:
  """Whether a folder, or a file of weights, is timm's."""
  path = pathlib.Path(path)
  if path.is_dir():
    config, other = path / "config.json", path / "open_clip_config.json"
    return (
      config.is_file() and not other.is_file() and "architecture" in files.read_json(config)
    )
  if path.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
    return False
  if (path.parent / "config.json").is_file():
    return detect(path.parent)
  return "patch_embed.proj.weight" in files.read_tensors(path)


def read(path: pathlib.Path) -> Weights:
  """A vision tower; see `convert.read`. In its model, "text" is None."""
  from big_vision_ext.convert import timm_encoders

  path = pathlib.Path(path)
  file = files.find(path, "model", "pytorch_model") if path.is_dir() else path
  if file is None:
    raise ConvertError(f"{path}: has no model.safetensors or pytorch_model.bin")
  config_file = file.parent / "config.json"
  config = files.read_json(config_file) if config_file.is_file() else {}
  tensors = files.read_tensors(file)
  architecture_, args = str(config.get("architecture", "")), config.get("model_args", {})
  args = {**config, **args}
  if timm_encoders.holds(tensors, architecture_):
    weights = timm_encoders.read(file, config, args, tensors)
    return dataclasses.replace(weights, input=weights.input | _seen(config), meta=_about(config))
  image = image_spec(tensors, architecture_, args, "", file)
  model = {"image": image, "text": None}
  params = tables.load(TABLE, siglip.shapes(model), tensors, str(file), format=FORMAT)
  found = {"image_size": image["image_size"], **_seen(config)}
  return Weights(params=params, task="siglip", model=model, input=found, meta=_about(config))


def _seen(config: dict[str, Any]) -> dict[str, Any]:
  """What a config.json says of preprocessing."""
  known = config.get("pretrained_cfg", {})
  found = {key: known[key] for key in ("mean", "std") if key in known}
  if known.get("interpolation") == "bicubic":
    found["resize"] = "bicubic"
  if known.get("crop_mode") == "center" and known.get("crop_pct"):
    found["eval_crop"] = float(known["crop_pct"])
  return found


def _about(config: dict[str, Any]) -> dict[str, Any]:
  """What it says of the model and its terms."""
  meta = {"architecture": config["architecture"]} if "architecture" in config else {}
  if licence := config.get("pretrained_cfg", {}).get("license"):
    meta["licence"] = licence
  return meta


def image_spec(tensors: Tensors, architecture: str, args: dict[str, Any], prefix: str,
               where: Any, encoder: bool = False) -> dict[str, Any]:
  """`config.model.image` of a vision transformer, from arrays, its name and its arguments.

  Args:
    tensors: what the file holds.
    architecture: timm's name; "" if it is not known.
    args: arguments of timm's model class that were given.
    prefix: of the names of arrays, with its dot.
    where: the file, for messages.
    encoder: whether it may have what only the models of `timm_encoders` have.

  Raises:
    ConvertError: it is another kind of model, or its heads or activation are not known.
  """
  for name, what in (_FOREIGN if encoder else _ENCODERS | _FOREIGN).items():
    if any(re.fullmatch(re.escape(prefix) + name, n) for n in tensors):
      raise ConvertError(f"{where}: the vision transformer has {what}; expected a plain one")
  size = lambda name, axes: siglip.size_of(tensors, prefix + name, axes, where)
  width, _, *patch = size("patch_embed.proj.weight", 4)
  positions = size("pos_embed", 3)[1] - (f"{prefix}cls_token" in tensors)
  # Named models with mean pooling are those with attention pooling, but for that.
  named = timm_vits.sizes_of(architecture.replace("_siglip_gap_", "_siglip_"))
  pixels = args.get("img_size") or (named and named.image_size)
  h, w = (pixels, pixels) if np.ndim(pixels) == 0 else pixels
  if pixels is None or (h // patch[0]) * (w // patch[1]) != positions:
    side = round(positions**0.5)
    if side * side != positions:
      raise ConvertError(
        f"{where}: {prefix}pos_embed has {positions} positions, which are no square, and "
        f'"img_size" in model_args is {pixels}; expected the height and width they are for'
      )
    h, w = side * patch[0], side * patch[1]
  return dict(
    width=width,
    depth=siglip.count(tensors, prefix + "blocks.{}.norm1.weight"),
    mlp_dim=size("blocks.0.mlp.fc1.bias", 1)[0],
    num_heads=int(
      args.get("num_heads") or (named.num_heads if named else siglip.num_heads(width, where))
    ),
    patch_size=patch[0] if patch[0] == patch[1] else tuple(patch),
    image_size=h if h == w else (h, w),
    pool_type="map" if f"{prefix}attn_pool.latent" in tensors else "gap",
    act=_activation(args.get("act_layer") or (named.act if named else "gelu"), where),
    num_classes=size("head.bias", 1)[0] if f"{prefix}head.bias" in tensors else 0,
  )


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 0, progress: Any = None,
          final: Any = None) -> Weights | None:
  """Writes config.json and model.safetensors; see `convert.write`.

  timm reads one file of weights, so `shard_bytes` is not regarded.
  """
  from big_vision_ext.convert import timm_encoders

  del shard_bytes, final
  if weights.task in encoders.TASKS:
    return timm_encoders.write(out, weights, progress=progress)
  siglip.check(weights, FORMAT, image_pools=("map", "gap"), text_pools=(), square=False)
  model = {"image": weights.model["image"]}
  theirs = tables.export(TABLE, siglip.shapes(model), siglip.only_image(weights.params),
                         format=FORMAT)
  files.write_safetensors(out / "model.safetensors", {n: theirs.lazy(n) for n in theirs},
                          progress=progress)
  files.write_text(out / "config.json", json.dumps(config(weights), indent=2) + "\n")
  return None


def config(weights: Weights) -> dict[str, Any]:
  """The config.json of a vision tower, as timm's hub has it.

  An architecture of timm that is this model is named; else arguments turn one into it.
  """
  image = weights.model["image"]
  patch, size = siglip.sides(image)
  classes, pool = image.get("num_classes", 0), _pool(image)
  name = architecture(image)
  args = {} if name else {
    "img_size": list(size),
    "patch_size": list(patch),
    "embed_dim": image["width"],
    "depth": image["depth"],
    "num_heads": image["num_heads"],
    "mlp_ratio": ratio(image["mlp_dim"], image["width"]),
    "class_token": False,
    "global_pool": pool,
    "act_layer": activation_of(image),
  }
  if not name and pool == "avg":
    args["fc_norm"] = False
  return {
    "architecture": name or _BASE,
    "num_classes": classes,
    "num_features": image["width"],
    "global_pool": pool,
    **({"model_args": args} if args else {}),
    "pretrained_cfg": pretrained(weights, siglip.statistics(weights), classes),
  }


def pretrained(weights: Weights, statistics: dict[str, list[float]],
               classes: int) -> dict[str, Any]:
  """What of a config.json is about preprocessing and names of layers."""
  _, size = siglip.sides(weights.model["image"])
  middle = weights.input.get("eval_crop")
  return {
    "input_size": [3, *size],
    "fixed_input_size": True,
    "interpolation": "bicubic",
    "crop_pct": middle or 1.0,
    "crop_mode": "center" if middle else "squash",
    **statistics,
    "num_classes": classes,
    "pool_size": None,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
  }


def architecture(image: dict[str, Any]) -> str | None:
  """timm's own name of exactly this vision tower, None if it has none."""
  (patch, other), (height, width) = siglip.sides(image)
  sizes = timm_vits.Sizes(
    image["width"], image["depth"], image["num_heads"], image["mlp_dim"], patch, height,
    activation_of(image)
  )
  if _pool(image) != "map" or (patch, height) != (other, width):
    return None
  # Other architectures have a class token.
  names = (name for name, known in timm_vits.VITS.items() if known == sizes and "_siglip_" in name)
  return next(names, None)


def ratio(mlp_dim: int, width: int) -> float:
  """The `mlp_ratio` from which these libraries get an MLP's width: int(width * ratio).

  Raises:
    ConvertError: no floating number gives it.
  """
  found = mlp_dim / width
  for candidate in (found, np.nextafter(found, np.inf)):
    if int(width * candidate) == mlp_dim:
      return float(candidate)
  raise ConvertError(f"no mlp_ratio makes int({width} * mlp_ratio) the model's mlp_dim={mlp_dim}")


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  from big_vision_ext.convert import timm_encoders

  if weights.task in encoders.TASKS:
    return timm_encoders.usage(weights)
  load = 'model = timm.create_model("local-dir:E", pretrained=True)'
  return f"```python\nimport timm\n{load}\n```\n\nThe vision tower only.\n"


def activation_of(image: dict[str, Any]) -> str:
  """The name of a tower's activation; raises ConvertError if timm's towers have another."""
  act = image.get("act", "gelu_tanh")
  if act not in _ACTS:
    raise ConvertError(f"model.image.act={act!r}: expected one of {', '.join(_ACTS)}")
  if image.get("ln_eps", siglip.LN_EPS) != siglip.LN_EPS:
    raise ConvertError(f"model.image.ln_eps={image['ln_eps']}: timm's towers have {siglip.LN_EPS}")
  return act


def _pool(image: dict[str, Any]) -> str:
  return "map" if image.get("pool_type", "map") == "map" else "avg"


def _activation(act: str, where: Any) -> str:
  if act not in _ACTS:
    raise ConvertError(f"{where}: its activation is {act!r}, expected one of {', '.join(_ACTS)}")
  return act
