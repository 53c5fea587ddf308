"""What of a PS3 model does ps3-torch's config.json say, and what can it not?

It names a vision transformer of timm's for the trunk; every other setting is its own. A trunk that
timm has no name for, and scoring on an image of another size than 1512 px, which is fixed there,
take a few lines of Python beside the weights (`custom_module`).
"""

import math
from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import ours, timm_vits
from big_vision_ext.convert.lazy import ConvertError

# Its scores are computed on an image of this size, whatever its config.
SELECTION_SIZE = 1512
# Ours beyond the original, each with the value that means the original.
_ORIGINAL = {"low_antialias": False, "selection_antialias": False, "selection_maps": "first",
             "budget_rule": "split", "look_policy": False}
# The pooling head of a C-RADIO trunk, whatever the trunk.
RADIO_POOL = (1152, 16, 4304)


def write(model: Mapping[str, Any], *, timm_name: str | None = None,
          tokenizer_name: str | None = None) -> dict[str, Any]:
  """config.json of a model.

  Args:
    model: see `convert.Weights`.
    timm_name: the trunk's, if several have these sizes.
    tokenizer_name: that of a tokenizer on the Hugging Face hub.

  Raises:
    ConvertError: a setting has no counterpart; all such are named.
  """
  image, text = model["image"], model["text"]
  radio = bool(image.get("adapter_hidden", 0))
  _check(image, text, radio)
  sizes, name = trunk(image), timm_name
  found = timm_vits.sizes_of(name) if name else None
  if found is None or found._replace(image_size=0) != sizes._replace(image_size=0):
    name = timm_vits.find(sizes) or timm_vits.own_name(sizes)
    found = timm_vits.sizes_of(name)
  same_grid = found.image_size // found.patch_size == sizes.image_size // sizes.patch_size
  pool = ours.pool_size(image)[0]
  vision = {
      "model_type": "ps3_vision_model", "model_name": name, "hidden_size": image["width"],
      "pool": "map",
      "img_size": None if same_grid and not radio else sizes.image_size, "class_token": False,
      "pretrained": False, "dynamic_img_size": True, "ps3": True,
      "final_norm": radio and image.get("final_norm", True),
      "ps3_scales": list(image["scales"]),
      "select_based_on_layer": list(image.get("select_layers", (0, 9, 18, 26))),
      "max_select_num": image.get("max_select_num", 2560),
      "max_select_num_each_scale": _budget(image),
      "separate_pos_emb": True,
      "highres_selection_feature": image.get("highres_branch", True),
      "highres_selection_module_hidden_dim": image.get("selection_hidden", 512),
      "highres_selection_module_out_dim": image.get("selection_out", 512),
      "highres_selection_module_depth": image.get("selection_depth", 3),
      "highres_selection_module_kernel_size": image.get("selection_kernel", 28),
      "radio": radio, "patch_size": sizes.patch_size, "vision_tower_name": name,
      "image_size": image["scales"][-1]}
  if selection_size(image) != SELECTION_SIZE:
    vision["selection_size"] = selection_size(image)
  if radio:
    vision |= {
        "radio_adapter_mlp_version": "v2", "radio_adapter_mlp_input_dim": image["width"],
        "radio_adapter_mlp_hidden_dim": image["adapter_hidden"],
        "radio_adapter_mlp_output_dim": pool,
        "radio_adapter_mlp_num_inner": image.get("adapter_depth", 3)}
  words = {
      "model_type": "ps3_text_model", "output_dim": text.get("out_dim") or pool,
      "prompt_proj_dim": image["width"], "context_length": text["text_len"],
      "vocab_size": text["vocab_size"], "hf_tokenizer_name": tokenizer_name,
      "width": text["width"], "heads": text["num_heads"], "layers": text["depth"],
      "mlp_ratio": _ratio(text["width"], text["mlp_dim"]), "no_causal_mask": True,
      "pool_type": "last", "proj_bias": True,
      "act_kwargs": {"approximate": "tanh"} if text.get("act") == "gelu_tanh" else {},
      "norm_kwargs": {"eps": text.get("ln_eps", 1e-6)}}
  return {"architectures": ["PS3Model"], "model_type": "ps3", "vision_config": vision,
          "text_config": words}


def trunk(image: Mapping[str, Any]) -> timm_vits.Sizes:
  """The sizes of a model's trunk."""
  return timm_vits.Sizes(
      image["width"], image["depth"], image["num_heads"], image["mlp_dim"], image["patch_size"],
      ours.grid(image)[0] * image["patch_size"], image.get("act", "gelu"))


def selection_size(image: Mapping[str, Any]) -> int:
  """The side of the image that places are scored on; ps3-torch's if none is used."""
  used = image.get("highres_branch", True)
  return image.get("selection_size", SELECTION_SIZE) if used else SELECTION_SIZE


def custom_module(model: Mapping[str, Any]) -> str | None:
  """Python that makes ps3-torch able to hold a model, to be imported first; None if it is."""
  image = model["image"]
  parts = []
  if timm_vits.find(trunk(image)) is None:
    parts.append(timm_vits.registration(trunk(image)))
  if selection_size(image) != SELECTION_SIZE:
    parts.append(_SCORING)
  imports = sorted({line for part in parts for line in part.splitlines()
                    if line.startswith(("import ", "from "))})
  bodies = ["\n".join(line for line in part.splitlines() if line not in imports).strip("\n")
            for part in parts]
  doc = '"""What ps3-torch does not know of this model: import it before loading the weights."""'
  if not parts:
    return None
  return "\n\n".join([doc, "\n".join(imports), "\n" + "\n\n\n".join(bodies)]) + "\n"


# Its encoder resizes an image to 1512 px and hands it to the branch that scores. Here the branch is
# told the image beforehand, and resizes that to the size in the config.
_SCORING = """
from ps3 import modeling_ps3 as modeling
import torch.nn.functional as F

_encode, _features = modeling.PS3VisionEncoder.forward, modeling.ShallowConvNet.forward


def _encode_and_tell(self, x, *args, **kwargs):
  size = getattr(self.config, "selection_size", None)
  branch = self.highres_selection_feature_module if size else None
  if branch is not None:
    branch.source = (x, size)
  try:
    return _encode(self, x, *args, **kwargs)
  finally:
    if branch is not None:
      del branch.source


def _features_at_size(self, x):
  if hasattr(self, "source"):
    image, size = self.source
    x = F.interpolate(image.float(), size=size, mode="bicubic").to(x.dtype)
  return _features(self, x)


if not hasattr(modeling, "scores_at_config_size"):
  modeling.PS3VisionEncoder.forward = _encode_and_tell
  modeling.ShallowConvNet.forward = _features_at_size
  modeling.scores_at_config_size = True
"""


def _check(image: Mapping[str, Any], text: Mapping[str, Any], radio: bool) -> None:
  rows, columns = ours.grid(image)
  pool = ours.pool_size(image)
  wrong = [
      (rows != columns, f"image.posemb_grid={rows, columns}: it takes square position tables"),
      (not isinstance(image["patch_size"], int),
       f"image.patch_size={image['patch_size']!r}: it takes one number"),
      (image.get("posemb_type", "learn") != "learn", "image.posemb_type: it takes \"learn\""),
      (image.get("pool_type", "map") != "map", "image.pool_type: it takes \"map\""),
      (bool(image.get("rep_size") or image.get("num_classes")),
       "image.rep_size and num_classes: it has no layers after the pooling"),
      (image.get("ln_eps", 1e-6) != 1e-6, f"image.ln_eps={image.get('ln_eps')}: it takes 1e-6"),
      (not radio and not image.get("final_norm", True),
       "image.final_norm=False: it takes that with an adapter (adapter_hidden) only"),
      (not radio and pool != (image["width"], image["num_heads"], image["mlp_dim"]),
       "image.pool_width, pool_heads, pool_mlp_dim: without an adapter it takes the trunk's"),
      (radio and pool != RADIO_POOL,
       f"image.pool_width, pool_heads, pool_mlp_dim: with an adapter it takes {RADIO_POOL}"),
      ((image.get("posemb_fit", "resize") == "crop") != radio,
       "image.posemb_fit: it takes \"crop\" with an adapter and \"resize\" without"),
      *((image.get(name, value) != value,
         f"image.{name}={image.get(name)!r}: it has {value!r} only") for name, value in
        _ORIGINAL.items()),
      (text.get("pool_type", "last") != "last", "text.pool_type: it takes \"last\" here"),
      (text.get("out_dim", 1) == 0, "text.out_dim=0: it always has a projection"),
      (text.get("causal", False), "text.causal=True: it reads texts in both directions"),
      *((spec.get("act", "gelu") not in ("gelu", "gelu_tanh"),
         f"{name}.act={spec.get('act')!r}: it has \"gelu\" and \"gelu_tanh\"")
        for name, spec in (("image", image), ("text", text))),
  ]
  if lines := [line for bad, line in wrong if bad]:
    raise ConvertError("ps3-torch cannot hold this model:\n  "
                       + "\n  ".join(f"model.{line}" for line in lines))


def read(config: Mapping[str, Any], where: str) -> dict[str, Any]:
  """`config.model` of the task "ps3" from config.json.

  Raises:
    ConvertError: it describes a model that ours cannot be; all reasons are named.
  """
  for part in ("vision_config", "text_config"):
    if not isinstance(config.get(part), dict):
      raise ConvertError(f"{where}: has no {part}")
  v = {**_VISION_DEFAULTS, **config["vision_config"]}
  t = {**_TEXT_DEFAULTS, **config["text_config"]}
  name = v["model_name"] or ""
  sizes = timm_vits.sizes_of(name)
  wrong = [
      (sizes is None, f"vision_config.model_name={name!r}: is not among the vision transformers "
       "that are known here (convert/timm_vits.py)"),
      (v["pool"] != "map", f"vision_config.pool={v['pool']!r}: expected \"map\""),
      (not v["separate_pos_emb"], "vision_config.separate_pos_emb=false: expected true"),
      (v["radio"] and v["radio_adapter_mlp_version"] != "v2",
       f"vision_config.radio_adapter_mlp_version={v['radio_adapter_mlp_version']!r}: expected v2"),
      (not t["no_causal_mask"], "text_config.no_causal_mask=false: expected true"),
      (t["pool_type"] != "last", f"text_config.pool_type={t['pool_type']!r}: expected \"last\""),
      (not t["proj_bias"], "text_config.proj_bias=false: expected true"),
      (bool(t["embed_cls"]), "text_config.embed_cls=true: expected false"),
      (t["ls_init_value"] is not None, "text_config.ls_init_value: expected null"),
  ]
  if lines := [text for bad, text in wrong if bad]:
    raise ConvertError(f"{where}: this model cannot be read:\n  " + "\n  ".join(lines))
  side = (v["img_size"] or sizes.image_size) // sizes.patch_size
  image = {
      "width": sizes.width, "depth": sizes.depth, "mlp_dim": sizes.mlp_dim,
      "num_heads": sizes.num_heads, "patch_size": sizes.patch_size, "act": sizes.act,
      "posemb_grid": [side, side], "scales": sorted(v["ps3_scales"]),
      "max_select_num": v["max_select_num"],
      "max_select_num_each_scale": v["max_select_num_each_scale"],
      "select_layers": v["select_based_on_layer"],
      "highres_branch": v["highres_selection_feature"], "selection_size": v["selection_size"],
      "selection_hidden": v["highres_selection_module_hidden_dim"],
      "selection_out": v["highres_selection_module_out_dim"],
      "selection_depth": v["highres_selection_module_depth"],
      "selection_kernel": v["highres_selection_module_kernel_size"]}
  if v["radio"]:
    pool = dict(zip(("pool_width", "pool_heads", "pool_mlp_dim"), RADIO_POOL))
    image |= pool | {
        "final_norm": bool(v["final_norm"]), "posemb_fit": "crop",
        "adapter_hidden": v["radio_adapter_mlp_hidden_dim"],
        "adapter_depth": v["radio_adapter_mlp_num_inner"]}
  text = {
      "width": t["width"], "depth": t["layers"], "num_heads": t["heads"],
      "mlp_dim": int(t["width"] * t["mlp_ratio"]), "vocab_size": t["vocab_size"],
      "text_len": t["context_length"], "out_dim": t["output_dim"],
      "act": "gelu_tanh" if t["act_kwargs"].get("approximate") == "tanh" else "gelu",
      "ln_eps": t["norm_kwargs"].get("eps", 1e-5)}
  return {"image": image, "text": text}


# What its config classes take for what a file leaves out.
_VISION_DEFAULTS = dict(
    model_name=None, pool="avg", ps3_scales=[378, 756, 1512], select_based_on_layer=[0, 9, 18, 26],
    max_select_num=1280, max_select_num_each_scale=None, separate_pos_emb=True,
    highres_selection_feature=True, highres_selection_module_hidden_dim=512,
    highres_selection_module_out_dim=512, highres_selection_module_depth=3,
    highres_selection_module_kernel_size=28, radio=False, radio_adapter_mlp_version=None,
    radio_adapter_mlp_hidden_dim=None, radio_adapter_mlp_num_inner=None, img_size=None,
    final_norm=False, selection_size=SELECTION_SIZE)
_TEXT_DEFAULTS = dict(
    output_dim=1152, context_length=77, vocab_size=49408, width=512, heads=8, layers=12,
    mlp_ratio=4.0, ls_init_value=None, embed_cls=False, no_causal_mask=False, pool_type="argmax",
    proj_bias=False, act_kwargs={}, norm_kwargs={})


def _ratio(width: int, mlp_dim: int) -> float:
  """The shortest r with int(width * r) == mlp_dim, as the text model computes it."""
  for digits in range(12):
    ratio = math.ceil(mlp_dim / width * 10**digits - 1e-9) / 10**digits
    if int(width * ratio) == mlp_dim:
      return ratio
  return (mlp_dim + 0.5) / width


def _budget(image: Mapping[str, Any]) -> list[int] | None:
  """Tokens per look and scale, where releases of ps3-torch would split them differently; or None.

  Up to 0.1.3 the shares of the area are rounded down and the rest is lost; later, and here, the
  last scale gets it. Written out, they mean the same to all.
  """
  if image.get("max_select_num_each_scale") is not None:
    return list(image["max_select_num_each_scale"])
  areas, total = [s**2 for s in image["scales"][1:]], image.get("max_select_num", 2560)
  split = [int(total * a / sum(areas)) for a in areas]
  rest = total - sum(split)
  return [*split[:-1], split[-1] + rest] if rest else None
