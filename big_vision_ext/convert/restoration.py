"""How do BasicSR, SwinIR and Restormer keep a restoration network? State dicts, as `.pth` files.

Read are `.pth` and safetensors: state dicts as they are, or under `params_ema` or `params` (the
average first). Which network it is, and its sizes, names and shapes tell. Written is `model.pth`,
`{"params": ...}`, which `basicsr`, SwinIR's and Restormer's own scripts load strictly. Buffers that
SwinIR's modules register (masks of shifted windows, indices of offsets) follow from sizes: dropped
on reading, made for the size of pictures that the weights name on writing.

What their classes cannot compute is refused: other skips, scales that they have no names for.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_vision_ext.convert import (
  EXPORT_FILE,
  Weights,
  files,
  ours,
  restoration_nets,
  tables,
  torch_zip,
)
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors

FORMAT = "restoration"
FILE = "model.pth"
# What tells the networks apart.
_MARKS = {
  "msrresnet": ("conv_first.weight", "conv_hr.weight", "body.0.conv1.weight", "upconv1.weight"),
  "edsr": ("conv_first.weight", "conv_after_body.weight", "body.0.conv1.weight"),
  "swinir": ("conv_first.weight", "layers.0.residual_group.blocks.0.attn.qkv.weight"),
  "restormer": ("patch_embed.proj.weight", "encoder_level1.0.attn.temperature"),
}
_BUFFERS = (r"layers\.\d+\.residual_group\.blocks\.\d+\.(attn_mask|attn\.relative_position_index)",)
# Means of DIV2K's colours, which their EDSR and SwinIR take off.
MEAN = (0.4488, 0.4371, 0.4040)
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def detect(path: pathlib.Path) -> bool:
  """Whether it is a file with the names of one of the networks, or a folder with one."""
  file = _file(pathlib.Path(path))
  return file is not None and _kind(files.read_tensors(file)) is not None


def read(path: pathlib.Path) -> Weights:
  """See `convert.read`. Of EDSR, which does not say, BasicSR's mean and range are taken."""
  path = pathlib.Path(path)
  file = _file(path)
  if file is None:
    raise ConvertError(f"{path}: has no {FILE} and no model.safetensors")
  tensors = files.read_tensors(file)
  name = _kind(tensors)
  if name is None:
    raise ConvertError(f"{file}: its names are those of no known network ({', '.join(_MARKS)})")
  describe = {"msrresnet": _msrresnet, "edsr": _edsr, "swinir": _swinir, "restormer": _restormer}
  scale, fields = describe[name](tensors, file)
  if name == "edsr" and not (file.parent / EXPORT_FILE).is_file():
    fields |= {"mean": list(MEAN), "img_range": 255.0}
  net = {"name": name, "scale": scale, "fields": fields}
  model = {"net": net}
  params = tables.load(restoration_nets.rules(net), ours.shapes("restore", model), tensors,
                       str(file), format=FORMAT, ignore=_BUFFERS)
  return Weights(params=params, task="restore", model=model, input={}, meta={})


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 0, progress: Any = None,
          final: Any = None, member: int | None = None) -> Weights:
  """Writes model.pth; see `convert.write`. It is one file, whatever `shard_bytes` is.

  Args:
    member: of a population, which one, by its place in `config.model.seeds`.
  """
  del shard_bytes, final
  if weights.task != "restore":
    raise ConvertError(f"the format {FORMAT!r} holds networks of the task 'restore', and these "
                       f"weights are of the task {weights.task!r}")
  weights = one_member(weights, member)
  net = weights.model["net"]
  check(net)
  params = Tensors(weights.params)
  theirs = tables.export(restoration_nets.rules(net), ours.shapes("restore", weights.model),
                         params, format=FORMAT)
  found = {n: theirs.lazy(n) for n in theirs}
  if net["name"].startswith("swinir"):
    found |= buffers(net, int(weights.input.get("image_size") or 64))
  torch_zip.write(out / FILE, {"params": found})
  if progress:
    progress(sum(x.nbytes for x in found.values()), len(found))
  return weights


def one_member(weights: Weights, member: int | None) -> Weights:
  """One network of a population; the weights themselves if they are of one network.

  Raises:
    ConvertError: which one is not said, or there is no such one.
  """
  seeds = list(weights.model.get("seeds", (0,)))
  if len(seeds) == 1:
    if member:
      raise ConvertError(f"member={member}: these weights are of one network")
    return weights
  if member is None or not 0 <= member < len(seeds):
    raise ConvertError(
      f"member={member}: these weights are of {len(seeds)} networks, of the seeds "
      f"{', '.join(map(str, seeds))}, and the format {FORMAT!r} holds one: choose it with "
      f"--member 0 to {len(seeds) - 1}")
  params = Tensors(weights.params)
  params = Tensors({n: params.lazy(n).take(member) for n in params})
  model = dict(weights.model) | {"seeds": [seeds[member]]}
  return Weights(params, weights.task, model, weights.input, weights.meta)


def check(net: Mapping[str, Any]) -> None:
  """Raises ConvertError for a network that the peers' classes do not compute as ours."""
  name, scale, f = net["name"], net.get("scale", 1), restoration_nets.fields(net)
  has = {"msrresnet": True, "edsr": False, "restormer": True}
  wanted = has.get(name, f.get("tail") == "denoise")
  # Networks of ours that differ from the published ones in nothing have no field for it.
  skip = f.get("global_skip", name == "edsr" or wanted)
  if name in (*has, "swinir", "swinir_light") and skip != wanted:
    raise ConvertError(f"model.net.fields.global_skip={skip}: {name} as published has "
                       f"{'a' if wanted else 'no'} skip around the network; export as npz")
  if name == "msrresnet" and scale not in (1, 2, 3, 4):
    raise ConvertError(f"model.net.scale={scale}: BasicSR's MSRResNet enlarges 2, 3 or 4 times "
                       "(and 1 in the deraining study); export as npz")
  if name.startswith("swinir") and not np.allclose(f.get("mean", MEAN), MEAN, atol=1e-9):
    raise ConvertError(f"model.net.fields.mean={list(f['mean'])}: SwinIR as published takes off "
                       f"{list(MEAN)}; export as npz")


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  net = weights.model["net"]
  f, scale = restoration_nets.fields(net), net.get("scale", 1)
  mean, spread = tuple(f.get("mean", (0, 0, 0))), f.get("img_range", 1)
  w = f["width"]
  if net["name"] == "msrresnet":
    make = ("from basicsr.archs.srresnet_arch import MSRResNet\n"
            f"net = MSRResNet(num_feat={w}, num_block={f['depth']}, upscale={scale})")
  elif net["name"] == "edsr":
    make = ("from basicsr.archs.edsr_arch import EDSR\n"
            f"net = EDSR(3, 3, num_feat={w}, num_block={f['depth']}, upscale={scale}, "
            f"img_range={spread!r},\n  rgb_mean={mean})")
  elif net["name"] == "restormer":
    norm = "WithBias" if f["norm_bias"] else "BiasFree"
    make = ("from basicsr.models.archs.restormer_arch import Restormer  # swz30/Restormer\n"
            f"net = Restormer(dim={w}, num_blocks={list(f['depth'])}, "
            f"num_refinement_blocks={f['refinement']},\n  heads={list(f['heads'])}, "
            f"ffn_expansion_factor={f['mlp_ratio']}, LayerNorm_type={norm!r})")
  else:
    side = mask_side(f["window"], int(weights.input.get("image_size") or 64))
    tail = "" if f["tail"] == "denoise" else f["tail"]
    make = ("from models.network_swinir import SwinIR  # JingyunLiang/SwinIR\n"
            f"net = SwinIR(upscale={scale}, img_size={side}, window_size={f['window']}, "
            f"embed_dim={w},\n  depths={[f['blocks']] * f['depth']}, "
            f"num_heads={[f['heads']] * f['depth']}, mlp_ratio={f['mlp_ratio']}, "
            f"upsampler={tail!r})")
  load = f'net.load_state_dict(torch.load("E/{FILE}")["params"])'
  return (f"```python\nimport torch\n{make}\n{load}\n```\n\n"
          "Pictures are RGB in 0..1, (b, 3, rows, columns).")


def mask_side(window: int, side: int) -> int:
  """The least side of whole windows that is `side` or more."""
  return -(-side // window) * window


def buffers(net: Mapping[str, Any], image_size: int) -> dict[str, Lazy]:
  """What SwinIR's modules register beside their parameters, for pictures of that side."""
  f = restoration_nets.fields(net)
  w = f["window"]
  at = np.stack(np.divmod(np.arange(w * w), w), -1)
  apart = at[:, None] - at[None] + w - 1
  index = (apart[..., 0] * (2 * w - 1) + apart[..., 1]).astype(np.int64)
  side = mask_side(w, image_size)
  place = np.arange(side)
  band = (place >= side - w).astype(int) + (place >= side - w // 2)
  region = (3 * band[:, None] + band).reshape(side // w, w, side // w, w).swapaxes(1, 2)
  region = region.reshape(-1, w * w)
  mask = np.where(region[:, None] != region[:, :, None], -100.0, 0.0).astype(np.float32)
  out = {}
  for i in range(f["depth"]):
    for j in range(f["blocks"]):
      at = f"layers.{i}.residual_group.blocks.{j}"
      out[f"{at}.attn.relative_position_index"] = Lazy(index.shape, index.dtype, lambda: index)
      if j % 2 and side > w:
        out[f"{at}.attn_mask"] = Lazy(mask.shape, mask.dtype, lambda: mask)
  return out


def _file(path: pathlib.Path) -> pathlib.Path | None:
  if path.is_dir():
    path = path / FILE if (path / FILE).is_file() else files.find(path, "model") or path
  good = path.is_file() and path.suffix in _SUFFIXES and not (path.parent / "config.json").is_file()
  return path if good else None


def _kind(tensors: Tensors) -> str | None:
  return next((k for k, marks in _MARKS.items() if all(n in tensors for n in marks)), None)


def _shape(tensors: Tensors, name: str, axes: int, where: Any) -> tuple[int, ...]:
  if name not in tensors or len(tensors.lazy(name).shape) != axes:
    found = f"is {list(tensors.lazy(name).shape)}" if name in tensors else "is missing"
    raise ConvertError(f"{where}: {name} {found}, expected an array of {axes} axes")
  return tensors.lazy(name).shape


def _count(tensors: Tensors, name: str) -> int:
  """How many numbers from 0 on there is an array of."""
  n = 0
  while name.format(n) in tensors:
    n += 1
  return n


def _enlarged(tensors: Tensors, name: str, step: int, where: Any, start: int = 0) -> int:
  """The scale, by the convolutions that enlarge, whose numbers are `start`, `start + step`, ..."""
  scale, i = 1, start
  while name.format(i) in tensors:
    out, width, *_ = _shape(tensors, name.format(i), 4, where)
    r = round((out / width) ** 0.5)
    scale, i = scale * r, i + step
  return scale


def _msrresnet(tensors, where):
  width = _shape(tensors, "conv_first.weight", 4, where)[0]
  return _enlarged(tensors, "upconv{}.weight", 1, where, start=1), {
    "width": width, "depth": _count(tensors, "body.{}.conv1.weight"), "global_skip": True}


def _edsr(tensors, where):
  width = _shape(tensors, "conv_first.weight", 4, where)[0]
  return _enlarged(tensors, "upsample.{}.weight", 2, where), {
    "width": width, "depth": _count(tensors, "body.{}.conv1.weight"), "global_skip": False}


def _swinir(tensors, where):
  block = "layers.0.residual_group.blocks.{}"
  first = block.format(0)
  rows, heads = _shape(tensors, f"{first}.attn.relative_position_bias_table", 2, where)
  width = _shape(tensors, "conv_first.weight", 4, where)[0]
  hidden = _shape(tensors, f"{first}.mlp.fc1.weight", 2, where)[0]
  groups = _count(tensors, "layers.{}.residual_group.blocks.0.norm1.weight")
  fields = {"width": width, "depth": groups,
            "blocks": _count(tensors, f"{block}.norm1.weight"), "heads": heads,
            "window": (round(rows**0.5) + 1) // 2, "mlp_ratio": _ratio({width: hidden}),
            "tail": "denoise", "global_skip": True}
  if "conv_before_upsample.0.weight" in tensors:
    fields |= {"tail": "pixelshuffle", "global_skip": False,
               "tail_width": _shape(tensors, "conv_before_upsample.0.weight", 4, where)[0]}
    return _enlarged(tensors, "upsample.{}.weight", 2, where), fields
  if "upsample.0.weight" in tensors:
    fields |= {"tail": "pixelshuffledirect", "global_skip": False}
    return round((_shape(tensors, "upsample.0.weight", 4, where)[0] / 3) ** 0.5), fields
  return 1, fields


def _restormer(tensors, where):
  levels = [*(f"encoder_level{i}" for i in (1, 2, 3)), "latent"]
  first = [f"{level}.0" for level in levels]
  widths = [_shape(tensors, f"{n}.ffn.project_out.weight", 4, where)[:2] for n in first]
  count = lambda name: _count(tensors, f"{name}.{{}}.norm1.body.weight")
  return 1, {
    "width": widths[0][0], "depth": [count(level) for level in levels],
    "refinement": count("refinement"),
    "heads": [_shape(tensors, f"{n}.attn.temperature", 3, where)[0] for n in first],
    "mlp_ratio": _ratio(dict(widths)), "norm_bias": f"{first[0]}.norm1.body.bias" in tensors,
    "global_skip": True}


def _ratio(hidden: Mapping[int, int]) -> float:
  """A ratio r with int(width * r) == hidden for all; the published one if it is one of them."""
  fits = lambda r: all(int(w * r) == m for w, m in hidden.items())
  low = max(m / w for w, m in hidden.items())
  high = min((m + 1) / w for w, m in hidden.items())
  return next((r for r in (2.66, 2.0, low, (low + high) / 2) if fits(r)), low)
