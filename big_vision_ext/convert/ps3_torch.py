"""The folder that ps3-torch's `PS3Model.from_pretrained` loads: NVlabs/PS3 0.1.3 and later.

All six published layouts (on SigLIP, SigLIP 2 and C-RADIO v2, 1.5K and 4K) and any other size. The
outputs of `selection_feature_proj.fc2` and `prompt_proj_for_highres` that the released model never
uses are parameters of ours too, so nothing is lost or made up either way. `logit_scale` (a
logarithm) and `logit_bias` are in files of its trainer, not in those of `save_pretrained`: `t` and
`b` may be absent.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any

from big_vision_ext.convert import Weights, files, ours, ps3_config, tables, tokenizer_files
from big_vision_ext.convert.lazy import ConvertError, Tensors
from big_vision_ext.convert.tables import conv, conv1x1, heads_in, heads_out, linear, norm, same

CONFIG_FILE, PROCESSOR_FILE = "config.json", "preprocessor_config.json"
CUSTOM_MODULE = "ps3_custom"
_KINDS = ("ps3",)
_MHA = "MultiHeadDotProductAttention_0"
_CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
_CLIP_STD = [0.26862954, 0.26130258, 0.27577711]


def _blocks(block: str, theirs: str) -> list:
  return [*norm(f"{block}/LayerNorm_0", f"{theirs}.norm1"),
          *heads_in(f"{block}/{_MHA}", ("query", "key", "value"), f"{theirs}.attn.qkv.weight",
                    f"{theirs}.attn.qkv.bias"),
          *heads_out(f"{block}/{_MHA}/out", f"{theirs}.attn.proj"),
          *norm(f"{block}/LayerNorm_1", f"{theirs}.norm2"),
          *linear(f"{block}/MlpBlock_0/Dense_0", f"{theirs}.mlp.fc1"),
          *linear(f"{block}/MlpBlock_0/Dense_1", f"{theirs}.mlp.fc2")]


def _vision() -> list:
  v, trunk, head = "vision_model.", "vision_model.trunk.", "vision_model.trunk.attn_pool."
  branch = f"{v}highres_selection_feature_module."
  return [
      same("img/prior_prompt", f"{v}prior_prompt"),
      same("img/pos_embedding", f"{trunk}pos_embed"),
      *conv("img/embedding", f"{trunk}patch_embed.proj"),
      *_blocks("img/Transformer/encoderblock_{}", f"{trunk}blocks.{{}}"),
      *norm("img/Transformer/encoder_norm", f"{trunk}norm"),
      same("img/MAPHead_0/probe", f"{head}latent"),
      *heads_in(f"img/MAPHead_0/{_MHA}", ("query",), f"{head}q.weight", f"{head}q.bias"),
      *heads_in(f"img/MAPHead_0/{_MHA}", ("key", "value"), f"{head}kv.weight", f"{head}kv.bias"),
      *heads_out(f"img/MAPHead_0/{_MHA}/out", f"{head}proj"),
      *norm("img/MAPHead_0/LayerNorm_0", f"{head}norm"),
      *linear("img/MAPHead_0/MlpBlock_0/Dense_0", f"{head}mlp.fc1"),
      *linear("img/MAPHead_0/MlpBlock_0/Dense_1", f"{head}mlp.fc2"),
      *linear("img/pool_adapter/fc1", f"{trunk}siglip_proj.fc1"),
      *norm("img/pool_adapter/block_{}/norm", f"{trunk}siglip_proj.blocks.{{}}.0"),
      *linear("img/pool_adapter/block_{}/fc", f"{trunk}siglip_proj.blocks.{{}}.2"),
      *norm("img/pool_adapter/out_norm", f"{trunk}siglip_proj.final.0"),
      *linear("img/pool_adapter/fc2", f"{trunk}siglip_proj.final.2"),
      *linear("img/selection_feature_proj/fc1", f"{v}selection_feature_proj.fc1"),
      *norm("img/selection_feature_proj/norm", f"{v}selection_feature_proj.norm"),
      *linear("img/selection_feature_proj/fc2", f"{v}selection_feature_proj.fc2"),
      same("img/pos_emb_residual_{}", f"{v}pos_emb_residual.{{}}"),
      *conv("img/highres_selection/stem", f"{branch}stem.0"),
      *norm("img/highres_selection/stem_norm", f"{branch}stem.1"),
      *conv("img/highres_selection/block_{}/conv_dw", f"{branch}blocks.{{}}.conv_dw"),
      *norm("img/highres_selection/block_{}/norm", f"{branch}blocks.{{}}.norm"),
      *linear("img/highres_selection/block_{}/fc1", f"{branch}blocks.{{}}.mlp.fc1"),
      *linear("img/highres_selection/block_{}/fc2", f"{branch}blocks.{{}}.mlp.fc2"),
      same("img/highres_selection/block_{}/scale", f"{branch}blocks.{{}}.weight"),
      *conv1x1("img/highres_selection/out_proj", f"{branch}out_proj"),
      *linear("img/prompt_proj_for_highres", f"{v}prompt_proj_for_highres"),
  ]


def _text() -> list:
  block, theirs = "txt/Encoder_0/encoderblock_{}", "text_model.transformer.resblocks.{}"
  return [
      same("txt/Embed_0/embedding", "text_model.token_embedding.weight"),
      same("txt/pos_embedding", "text_model.positional_embedding", squeeze=1),
      *norm(f"{block}/LayerNorm_0", f"{theirs}.ln_1"),
      *heads_in(f"{block}/{_MHA}", ("query", "key", "value"), f"{theirs}.attn.in_proj_weight",
                f"{theirs}.attn.in_proj_bias"),
      *heads_out(f"{block}/{_MHA}/out", f"{theirs}.attn.out_proj"),
      *norm(f"{block}/LayerNorm_1", f"{theirs}.ln_2"),
      *linear(f"{block}/MlpBlock_0/Dense_0", f"{theirs}.mlp.c_fc"),
      *linear(f"{block}/MlpBlock_0/Dense_1", f"{theirs}.mlp.c_proj"),
      *norm("txt/Encoder_0/encoder_norm", "text_model.ln_final"),
      *linear("txt/head", "text_model.text_projection"),
      *linear("prompt_proj/fc1", "text_model.prompt_proj.fc1"),
      *norm("prompt_proj/norm", "text_model.prompt_proj.norm"),
      *linear("prompt_proj/fc2", "text_model.prompt_proj.fc2"),
      same("t", "logit_scale", scalar=True, optional=True),
      same("b", "logit_bias", scalar=True, optional=True),
  ]


TABLE = [*_vision(), *_text()]


def detect(path: pathlib.Path) -> bool:
  """Whether a folder, or the folder of a file, has ps3-torch's config."""
  config = _folder(path) / CONFIG_FILE
  return config.is_file() and files.read_json(config).get("model_type") in _KINDS


def read(path: pathlib.Path) -> Weights:
  """See `convert.read`."""
  folder = _folder(path)
  config = files.read_json(folder / CONFIG_FILE)
  model = ps3_config.read(config, str(folder / CONFIG_FILE))
  processor = folder / PROCESSOR_FILE
  seen = files.read_json(processor) if processor.is_file() else {}
  size = seen.get("image_size", model["image"]["scales"][-1])
  image = {"image_size": size[0] if isinstance(size, (list, tuple)) else size,
           "mean": seen.get("mean") or _CLIP_MEAN, "std": seen.get("std") or _CLIP_STD,
           "resize": "bicubic"}
  model["image"] |= {"mean": image["mean"], "std": image["std"]}
  text = config["text_config"]
  image |= {"text_len": model["text"]["text_len"], "canonicalize": True,
            "tokenizer_name": text.get("hf_tokenizer_name")}
  file = files.find(folder, "model", "pytorch_model") if path.is_dir() else path
  if file is None:
    raise ConvertError(f"{folder}: has no model.safetensors, nor pytorch_model.bin")
  params = tables.load(TABLE, ours.shapes("ps3", model), _trained_names(files.read_tensors(file)),
                       str(file), format="ps3_torch")
  meta = {"timm_name": config["vision_config"].get("model_name")}
  return Weights(params, "ps3", model, image, meta)


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 5e9,
          progress: Callable | None = None, final: Any = None) -> None:
  """See `convert.write`. `final` is of no use here: the folder can be moved."""
  del final
  if weights.task != "ps3":
    raise ConvertError(f"the format 'ps3_torch' holds models of task 'ps3', not {weights.task!r}")
  config = ps3_config.write(weights.model, timm_name=weights.meta.get("timm_name"),
                            tokenizer_name=weights.input.get("tokenizer_name"))
  theirs = tables.export(TABLE, ours.shapes("ps3", weights.model), weights.params,
                         format="ps3_torch")
  dtypes = {str(dtype) for _, dtype in theirs.specs().values()}
  config["torch_dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
  files.write_text(out / CONFIG_FILE, json.dumps(config, indent=2) + "\n")
  image = weights.model["image"]
  processor = {
      "image_processor_type": "PS3ImageProcessor", "image_size": image["scales"][-1],
      "mean": _triple(image.get("mean", 0.5)), "std": _triple(image.get("std", 0.5)),
      "interpolation": "bicubic", "resize_mode": "squash"}
  files.write_text(out / PROCESSOR_FILE, json.dumps(processor, indent=2) + "\n")
  if custom := ps3_config.custom_module(weights.model):
    files.write_text(out / f"{CUSTOM_MODULE}.py", custom)
  tokenizer_files.keep(out, weights.input)
  has_tokenizer = (out / "tokenizer" / "tokenizer.json").is_file()
  name = weights.input.get("tokenizer_name") or (has_tokenizer and "tokenizer")
  if name:
    clean = "canonicalize" if weights.input.get("canonicalize", True) else "whitespace"
    files.write_text(out / "tokenizer_config.json", json.dumps({
        "tokenizer_name": name, "context_length": weights.model["text"]["text_len"],
        "clean": clean}, indent=2) + "\n")
  files.write_sharded(out, "model", {n: theirs.lazy(n) for n in theirs}, shard_bytes=shard_bytes,
                      progress=progress)


def usage(weights: Weights) -> str:
  """How to load an export, for its card."""
  first = ""
  if ps3_config.custom_module(weights.model):
    first = (f"import sys; sys.path.insert(0, \"E\"); import {CUSTOM_MODULE}"
             "  # what ps3-torch does not know of this model\n")
  lines = ("With `ps3-torch` and `timm==1.0.15`:\n\n```python\n" + first
           + "from ps3 import PS3ImageProcessor, PS3Model\n"
           "model, processor = PS3Model.from_pretrained(\"E\"), "
           "PS3ImageProcessor.from_pretrained(\"E\")\n"
           "features = model.encode_image(pixels, num_look_close=2).last_hidden_state\n```\n\n"
           "`PS3VisionModel` and `PS3TextModel` load the same folder, each its own part.")
  if weights.input.get("tokenizer", "").startswith("tokenizers:"):
    lines += (f" `PS3Tokenizer(\"E/tokenizer\", context_length={weights.model['text']['text_len']},"
              " clean=\"canonicalize\")` is the tokenizer it was trained with.")
  elif not weights.input.get("tokenizer_name"):
    lines += (f" No tokenizer is written: this model was trained with "
              f"{weights.input.get('tokenizer', 'an unknown one')!r}, which that library cannot "
              "hold; give the text model ids made by `input_pipeline.text`.")
  if weights.model["image"].get("smooth_selection_prob"):
    lines += "\n\nPass `smooth_selection_prob=True` to the vision model, as this one was made."
  return lines


def _trained_names(theirs: Tensors) -> Tensors:
  """Names of `save_pretrained` for those of a training checkpoint."""
  if not any(n.startswith("visual.") for n in theirs):
    return theirs
  swaps = (("visual.", "vision_model."), ("text.", "text_model."),
           ("prompt_proj.", "text_model.prompt_proj."))

  def rename(name):
    for old, new in swaps:
      if name.startswith(old):
        return new + name.removeprefix(old)
    return name
  return Tensors({rename(n): theirs.lazy(n) for n in theirs})


def _folder(path: pathlib.Path) -> pathlib.Path:
  return path if path.is_dir() else path.parent


def _triple(value: Any) -> list[float]:
  return [float(x) for x in value] if isinstance(value, (list, tuple)) else [float(value)] * 3
