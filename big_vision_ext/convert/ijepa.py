"""How does facebookresearch/ijepa keep a model? Encoder, predictor and teacher in one file.

Read are its `.pth.tar` files, with the three state dicts under "encoder", "predictor" and
"target_encoder" (what the optimiser keeps there is not read), and safetensors with the same names
behind dots, which are written: one file of weights. transformers and timm have the encoder only.

The predictor's positions are stored there and computed here: they are written, and on reading must
be what they always are. A file does not tell the number of heads: those of published widths, the
predictor's as many. Weights published as I-JEPA are CC-BY-NC 4.0.
"""

import pathlib
from typing import Any

import numpy as np

from big_vision_ext.convert import (
  EXPORT_FILE,
  Weights,
  files,
  ours,
  siglip,
  tables,
  vit_mae,
  vit_tables,
)
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors, of

FORMAT = "ijepa"
_SUFFIXES = (".safetensors", ".tar", ".pth", ".pt", ".bin")
_PATCHES, _TABLE = "encoder.patch_embed.proj.weight", "predictor.predictor_pos_embed"


def detect(path: pathlib.Path) -> bool:
  """Whether it is a file with I-JEPA's names, or a folder with one."""
  path = pathlib.Path(path)
  file = files.find(path, "model") if path.is_dir() else path
  if file is None or file.suffix not in _SUFFIXES or not file.is_file():
    return False
  if (file.parent / "config.json").is_file():
    return False
  return _PATCHES in (found := files.read_tensors(file)) and _TABLE in found


def read(path: pathlib.Path) -> Weights:
  """See `convert.read`."""
  path = pathlib.Path(path)
  file = files.find(path, "model") if path.is_dir() else path
  if file is None:
    raise ConvertError(f"{path}: has no model.safetensors")
  note = file.parent / EXPORT_FILE
  known = files.read_json(note) if note.is_file() else {}
  tensors = files.read_tensors(file)
  model = known["model"] if known.get("format") == FORMAT else _model(tensors, file)
  if _TABLE in tensors:
    _check_positions(tensors.lazy(_TABLE), ours.grid(model["image"]), file)
  params = tables.load(table(), ours.shapes("ijepa", model), tensors, str(file), format=FORMAT,
                       ignore=(_TABLE,))
  found = {"image_size": model["image"]["image_size"], "mean": vit_mae.MEAN, "std": vit_mae.STD,
           "resize": "bicubic"}
  return Weights(params=params, task="ijepa", model=model, input=found, meta={})


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 0, progress: Any = None,
          final: Any = None) -> None:
  """Writes model.safetensors; see `convert.write`. It is one file, whatever `shard_bytes` is."""
  del shard_bytes, final
  if weights.task != "ijepa":
    raise ConvertError(f"the format {FORMAT!r} holds models of the task 'ijepa', and these weights "
                       f"are of the task {weights.task!r}")
  image = weights.model["image"]
  for key, plain in (("act", "gelu"), ("ln_eps", siglip.LN_EPS), ("posemb_type", "learn")):
    if image.get(key, plain) != plain:
      raise ConvertError(f"model.image.{key}={image[key]!r}: the format {FORMAT!r} has no such "
                         f"thing, only {plain!r}; export as npz")
  theirs = tables.export(table(), ours.shapes("ijepa", weights.model), Tensors(weights.params),
                         format=FORMAT)
  theirs = {n: theirs.lazy(n) for n in theirs}
  dtype = theirs["predictor.mask_token"].dtype
  positions = _positions(ours.grid(image), ours.predictor(weights.model)["width"])
  theirs[_TABLE] = of(positions.astype(dtype))
  files.write_safetensors(out / "model.safetensors", theirs, progress=progress)


def table() -> list[tables.Rule]:
  """Our names and theirs."""
  return [
    *vit_tables.facebook(theirs="encoder.", cls=False),
    *vit_tables.facebook("teacher/", "target_encoder.", cls=False),
    *tables.linear("predictor/embed", "predictor.predictor_embed"),
    tables.same("predictor/mask_token", "predictor.mask_token"),
    *vit_tables.fused("predictor/Transformer", "predictor.predictor_blocks",
                      "predictor.predictor_norm"),
    *tables.linear("predictor/out", "predictor.predictor_proj"),
  ]


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  image, sizes = weights.model["image"], ours.predictor(weights.model)
  (patch, _), (side, _) = siglip.sides(image)
  return (
    "With facebookresearch/ijepa on the path:\n\n```python\nimport safetensors.torch\n"
    "from src.models.vision_transformer import VisionTransformer, vit_predictor\n"
    'state = safetensors.torch.load_file("E/model.safetensors")\n'
    'part = lambda p: {n[len(p):]: x for n, x in state.items() if n.startswith(p)}\n'
    f"encoder = VisionTransformer(img_size=[{side}], patch_size={patch}, "
    f"embed_dim={image['width']},\n  depth={image['depth']}, num_heads={image['num_heads']}, "
    f"mlp_ratio={image['mlp_dim'] / image['width']!r})\n"
    'encoder.load_state_dict(part("target_encoder."))  # or "encoder."\n'
    f"predictor = vit_predictor(num_patches={(side // patch) ** 2}, embed_dim={image['width']},\n"
    f"  predictor_embed_dim={sizes['width']}, depth={sizes['depth']}, "
    f"num_heads={sizes['num_heads']})\n"
    'predictor.load_state_dict(part("predictor."))\n```\n\n'
    "Norms have an epsilon of 1e-6: `norm_layer=partial(nn.LayerNorm, eps=1e-6)` of the encoder.")


def _model(tensors: Tensors, where: Any) -> dict[str, Any]:
  """`config.model` of arrays alone."""
  size = lambda name, axes: siglip.size_of(tensors, name, axes, where)
  width, _, patch, _ = size(_PATCHES, 4)
  positions = size("encoder.pos_embed", 3)[1]
  side = round(positions**0.5)
  if side * side != positions:
    raise ConvertError(f"{where}: encoder.pos_embed has {positions} positions, which are no square")
  heads = siglip.num_heads(width, where)
  image = dict(
    width=width, depth=siglip.count(tensors, "encoder.blocks.{}.norm1.weight"),
    mlp_dim=size("encoder.blocks.0.mlp.fc1.bias", 1)[0], num_heads=heads, patch_size=patch,
    image_size=side * patch, pool_type="none", act="gelu")
  blocks = "predictor.predictor_blocks.{}"
  predictor = dict(
    width=size("predictor.predictor_embed.bias", 1)[0], num_heads=heads,
    depth=siglip.count(tensors, f"{blocks}.norm1.weight"),
    mlp_dim=size(f"{blocks.format(0)}.mlp.fc1.bias", 1)[0])
  # The middle of the published 15 to 20 %, and what is then left for sure.
  block = max(1, round(0.175 * positions))
  return {"image": image, "predictor": predictor,
          "blocks": {"num_context": positions // 4, "num_blocks": 4, "block_size": block}}


def _positions(grid: tuple[int, int], width: int) -> np.ndarray:
  """What `models.vit.sincos2d_mae` gives, (1, n, width) float32; here, as jax is not needed."""
  omega = 10_000.0 ** -(np.arange(width // 4) / (width / 4))
  y, x = (np.outer(at.ravel(), omega) for at in np.mgrid[:grid[0], :grid[1]].astype(np.float64))
  waves = [np.sin(x), np.cos(x), np.sin(y), np.cos(y)]
  return np.concatenate(waves, axis=1).astype(np.float32)[None]


def _check_positions(found: Lazy, grid: tuple[int, int], where: Any) -> None:
  want = _positions(grid, found.shape[-1] if found.shape else 0)
  # Two roundings of numbers up to one: of the type they are stored in, and of the file's own.
  step = 2.0**-7 if found.dtype.itemsize == 2 else 1e-6
  if found.shape != want.shape or np.abs(np.float64(found.read()) - want).max() > step:
    raise ConvertError(f"{where}: {_TABLE} are not the fixed sines and cosines of a grid of {grid} "
                       "tokens, which the predictor here always has")
