"""Which arrays has a restoration network, and what are their names in PyTorch? Both without it.

Networks are described as `config.model.net` of the task "restore": a name, a scale and fields; what
has a default in `models/restoration` has the same here, and tests hold the two together.

Their names are those of BasicSR (MSRResNet, EDSR), JingyunLiang/SwinIR and swz30/Restormer. The
UNet is ours alone and has none.
"""

from collections.abc import Mapping
from typing import Any

from big_vision_ext.convert import tables
from big_vision_ext.convert.lazy import ConvertError

Shapes = dict[str, tuple[int, ...]]
Rules = list[tables.Rule]

_DEFAULTS: dict[str, dict[str, Any]] = {
  "msrresnet": {"width": 64, "depth": 16},
  "edsr": {"width": 64, "depth": 16},
  "swinir": {"width": 180, "depth": 6, "blocks": 6, "heads": 6, "window": 8, "mlp_ratio": 2.0,
             "tail_width": 64},
  "unet": {"width": 32, "levels": 4, "depth": 2},
  "restormer": {"width": 48, "depth": (4, 6, 6, 8), "refinement": 4, "heads": (1, 2, 4, 8),
                "mlp_ratio": 2.66, "norm_bias": True},
}
_DEFAULTS["swinir_light"] = _DEFAULTS["swinir"] | {"width": 60, "depth": 4}


def fields(net: Mapping[str, Any]) -> dict[str, Any]:
  """Scale and all fields that decide on arrays, with their defaults.

  Raises:
    ConvertError: there is no such network.
  """
  name = net.get("name")
  if name not in _DEFAULTS:
    raise ConvertError(f"model.net.name={name!r}: expected one of {', '.join(_DEFAULTS)}")
  out = _DEFAULTS[name] | {"scale": net.get("scale", 1)} | dict(net.get("fields") or {})
  if name.startswith("swinir"):
    direct = name == "swinir_light" and out["scale"] > 1
    out.setdefault("tail", "pixelshuffledirect" if direct else "pixelshuffle")
  if name == "restormer" and isinstance(out["depth"], int):
    out["depth"] = (out["depth"],) * len(out["heads"])
  return out


def shapes(net: Mapping[str, Any]) -> Shapes:
  """All arrays of a network, {our name: shape}."""
  build = {"msrresnet": _residual, "edsr": _residual, "unet": _unet, "restormer": _restormer}
  return build.get(net.get("name"), _swinir)(fields(net), net.get("name") == "edsr")


def rules(net: Mapping[str, Any]) -> Rules:
  """The table of a network.

  Raises:
    ConvertError: it is known to nobody but us.
  """
  f, name = fields(net), net["name"]
  if name == "unet":
    raise ConvertError("model.net.name='unet': is a network of this code base alone, which no "
                       "PyTorch layout has; export as npz")
  build = {"msrresnet": _msrresnet_rules, "edsr": _edsr_rules, "restormer": _restormer_rules}
  return build.get(name, _swinir_rules)(f)


def factors(scale: int, at_one: bool = False) -> tuple[int, ...]:
  """By how much each convolution that enlarges does so."""
  if scale == 1:
    return (1,) if at_one else ()
  return (3,) if scale == 3 else (2,) * (scale.bit_length() - 1)


def _conv(name: str, c: int, d: int, size: int = 3, bias: bool = True) -> Shapes:
  return {f"{name}/kernel": (size, size, c, d)} | ({f"{name}/bias": (d,)} if bias else {})


def _norm(name: str, d: int, bias: bool = True) -> Shapes:
  return {f"{name}/scale": (d,)} | ({f"{name}/bias": (d,)} if bias else {})


def _enlarging(width: int, steps: tuple[int, ...]) -> Shapes:
  out = {}
  for i, r in enumerate(steps):
    out |= _conv(f"up/conv_{i}", width, width * r * r)
  return out


def _residual(f: Mapping[str, Any], edsr: bool) -> Shapes:
  w = f["width"]
  out = _conv("first", 3, w) | _enlarging(w, factors(f["scale"], not edsr))
  for i in range(f["depth"]):
    out |= _conv(f"blocks_{i}/conv1", w, w) | _conv(f"blocks_{i}/conv2", w, w)
  return out | _conv("body_end" if edsr else "late", w, w) | _conv("last", w, 3)


def _msrresnet_rules(f: Mapping[str, Any]) -> Rules:
  out = tables.conv("first", "conv_first") + tables.conv("late", "conv_hr")
  out += tables.conv("last", "conv_last") + _blocks(f)
  for i in range(len(factors(f["scale"], at_one=True))):
    out += tables.conv(f"up/conv_{i}", f"upconv{i + 1}")
  return out


def _edsr_rules(f: Mapping[str, Any]) -> Rules:
  out = tables.conv("first", "conv_first") + tables.conv("body_end", "conv_after_body")
  return out + tables.conv("last", "conv_last") + _blocks(f) + _sequential(f)


def _blocks(f: Mapping[str, Any]) -> Rules:
  return [rule for i in range(f["depth"]) for conv in ("conv1", "conv2")
          for rule in tables.conv(f"blocks_{i}/{conv}", f"body.{i}.{conv}")]


def _sequential(f: Mapping[str, Any]) -> Rules:
  """Convolutions at the even places of a `Sequential`, shuffles between them."""
  return [rule for i in range(len(factors(f["scale"])))
          for rule in tables.conv(f"up/conv_{i}", f"upsample.{2 * i}")]


def _swinir(f: Mapping[str, Any], _: bool) -> Shapes:
  w, heads, hidden = f["width"], f["heads"], int(f["width"] * f["mlp_ratio"])
  k = w // heads
  block = _norm("norm1", w) | _norm("norm2", w) | {
    "attention/offset_bias": ((2 * f["window"] - 1) ** 2, heads),
    "attention/qkv/kernel": (w, 3, heads, k), "attention/qkv/bias": (3, heads, k),
    "attention/out/kernel": (heads, k, w), "attention/out/bias": (w,),
    "hidden/kernel": (w, hidden), "hidden/bias": (hidden,),
    "out/kernel": (hidden, w), "out/bias": (w,)}
  out = _conv("first", 3, w) | _norm("embed_norm", w) | _norm("norm", w) | _conv("body_end", w, w)
  for i in range(f["depth"]):
    out |= _conv(f"groups_{i}/conv", w, w)
    for j in range(f["blocks"]):
      out |= {f"groups_{i}/block_{j}/{n}": s for n, s in block.items()}
  if f["tail"] == "pixelshuffle":
    t = f["tail_width"]
    return out | _conv("before_up", w, t) | _enlarging(t, factors(f["scale"])) | _conv("last", t, 3)
  direct = f["scale"] if f["tail"] == "pixelshuffledirect" else 1
  return out | _conv("last", w, 3 * direct**2)


def _swinir_rules(f: Mapping[str, Any]) -> Rules:
  out = tables.conv("first", "conv_first") + tables.norm("embed_norm", "patch_embed.norm")
  out += tables.norm("norm", "norm") + tables.conv("body_end", "conv_after_body")
  for i in range(f["depth"]):
    out += tables.conv(f"groups_{i}/conv", f"layers.{i}.conv")
    for j in range(f["blocks"]):
      mine, theirs = f"groups_{i}/block_{j}", f"layers.{i}.residual_group.blocks.{j}"
      out += tables.norm(f"{mine}/norm1", f"{theirs}.norm1")
      out += tables.norm(f"{mine}/norm2", f"{theirs}.norm2")
      out += _qkv(f"{mine}/attention/qkv", f"{theirs}.attn.qkv")
      out += tables.heads_out(f"{mine}/attention/out", f"{theirs}.attn.proj")
      out += [tables.same(f"{mine}/attention/offset_bias",
                          f"{theirs}.attn.relative_position_bias_table")]
      out += tables.linear(f"{mine}/hidden", f"{theirs}.mlp.fc1")
      out += tables.linear(f"{mine}/out", f"{theirs}.mlp.fc2")
  if f["tail"] == "pixelshuffledirect":
    return out + tables.conv("last", "upsample.0")
  if f["tail"] == "pixelshuffle":
    out += tables.conv("before_up", "conv_before_upsample.0") + _sequential(f)
  return out + tables.conv("last", "conv_last")


def _qkv(ours: str, theirs: str) -> Rules:
  """Three projections into heads at once: kernel (d, 3, heads, k) <-> weight (3 * d, d)."""
  kernel = tables.Rule(
    (f"{ours}/kernel",), (f"{theirs}.weight",),
    lambda xs: [xs[0].reshape(xs[0].shape[0], -1).transpose()],
    lambda ys, shapes: [ys[0].transpose().reshape(*shapes[0])])
  bias = tables.Rule((f"{ours}/bias",), (f"{theirs}.bias",), lambda xs: [xs[0].reshape(-1)],
                     lambda ys, shapes: [ys[0].reshape(*shapes[0])])
  return [kernel, bias]


def _unet(f: Mapping[str, Any], _: bool) -> Shapes:
  widths = [f["width"] * 2**i for i in range(f["levels"])]
  out, before = {}, 3
  for i, w in enumerate(widths):
    out |= _conv(f"halve_{i - 1}", before, w) if i else {}
    for j in range(f["depth"]):
      out |= _conv(f"down_{i}/conv_{j}", w if j or i else 3, w)
    before = w
  for i, w in enumerate(widths[:-1]):
    out |= _conv(f"double_{i}", 2 * w, w)
    for j in range(f["depth"]):
      out |= _conv(f"up_{i}/conv_{j}", w if j else 2 * w, w)
  return out | _conv("last", f["width"], 3)


def _restormer(f: Mapping[str, Any], _: bool) -> Shapes:
  widths = [f["width"] * 2**i for i in range(len(f["heads"]))]
  above = [widths[1], *widths[1:-1]]
  out = _conv("first", 3, widths[0], bias=False)

  def level(name, i, w, count):
    hidden, found = int(w * f["mlp_ratio"]), {}
    block = (_norm("norm1", w, f["norm_bias"]) | _norm("norm2", w, f["norm_bias"])
             | _conv("attention/qkv", w, 3 * w, 1, False)
             | {"attention/qkv_local/kernel": (3, 3, 1, 3 * w)}
             | {"attention/temperature": (f["heads"][i],)}
             | _conv("attention/out", w, w, 1, False) | _conv("mlp/hidden", w, 2 * hidden, 1, False)
             | {"mlp/hidden_local/kernel": (3, 3, 1, 2 * hidden)}
             | _conv("mlp/out", hidden, w, 1, False))
    for j in range(count):
      found |= {f"{name}_{j}/{n}": s for n, s in block.items()}
    return found

  for i, w in enumerate(widths):
    out |= level(f"down_{i}", i, w, f["depth"][i])
  for i, w in enumerate(above):
    out |= level(f"up_{i}", i, w, f["depth"][i])
    out |= _conv(f"halve_{i}", widths[i], widths[i] // 2, bias=False)
    out |= _conv(f"double_{i}", widths[i + 1], 2 * widths[i + 1], bias=False)
  for i, w in enumerate(widths[1:-1]):
    out |= _conv(f"join_{i}", 2 * w, w, 1, False)
  out |= level("refine", 0, above[0], f["refinement"])
  return out | _conv("last", above[0], 3, bias=False)


def _restormer_rules(f: Mapping[str, Any]) -> Rules:
  if len(f["heads"]) != 4:
    raise ConvertError(f"model.net.fields.heads={list(f['heads'])}: Restormer as published has "
                       "four levels, whose names are fixed; export as npz")
  out = _bare("first", "patch_embed.proj") + _bare("last", "output")
  for i in range(3):
    out += _bare(f"halve_{i}", f"down{i + 1}_{i + 2}.body.0")
    out += _bare(f"double_{i}", f"up{i + 2}_{i + 1}.body.0")
    out += _bare(f"join_{i}", f"reduce_chan_level{i + 2}") if i < 2 else []
  levels = {f"down_{i}": (f"encoder_level{i + 1}", f["depth"][i]) for i in range(3)}
  levels |= {f"up_{i}": (f"decoder_level{i + 1}", f["depth"][i]) for i in range(3)}
  levels |= {"down_3": ("latent", f["depth"][3]), "refine": ("refinement", f["refinement"])}
  for mine, (theirs, count) in levels.items():
    for j in range(count):
      out += _restormer_block(f"{mine}_{j}", f"{theirs}.{j}", f["norm_bias"])
  return out


def _restormer_block(mine: str, theirs: str, norm_bias: bool) -> Rules:
  out = [tables.Rule(
    (f"{mine}/attention/temperature",), (f"{theirs}.attn.temperature",),
    lambda xs: [xs[0].reshape(-1, 1, 1)], lambda ys, shapes: [ys[0].reshape(*shapes[0])])]
  for norm in ("norm1", "norm2"):
    out += tables.norm(f"{mine}/{norm}", f"{theirs}.{norm}.body")[: 1 + norm_bias]
  for a, b in (("attention/qkv", "attn.qkv"), ("attention/qkv_local", "attn.qkv_dwconv"),
               ("attention/out", "attn.project_out"), ("mlp/hidden", "ffn.project_in"),
               ("mlp/hidden_local", "ffn.dwconv"), ("mlp/out", "ffn.project_out")):
    out += _bare(f"{mine}/{a}", f"{theirs}.{b}")
  return out


def _bare(ours: str, theirs: str) -> Rules:
  """A convolution without bias."""
  return tables.conv(ours, theirs)[:1]
