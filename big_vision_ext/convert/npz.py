"""big_vision's own format: one npz file whose keys are slash paths.

Read: trees under `params/`, `opt/target/` or nothing; blocks one by one or stacked ("scan"), in
either tower; bfloat16; parts of a tree as `FILE.npz:img`; and older spellings (see `_modern`).
Written: `model.npz`, under `params/`, in either layout. The format says nothing but arrays: sizes
are told from shapes, and what shapes do not tell comes from the `export.json` of our exports.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

from big_vision_ext.convert import EXPORT_FILE, Weights, clip, files, ours, tables, tokenizer_files
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors, stack

FILE = "model.npz"
_ROOTS = ("params/", "opt/target/", "target/")
_BLOCK = re.compile(r"(.*/)?encoderblock_(\d+)/(.*)")
_NUMBERED = re.compile(r"([A-Z]\w*)_(\d+)")
LAYOUTS = ("loop", "scan")


def detect(path: pathlib.Path) -> bool:
  """Whether it is an npz file, a part of one, or a folder with `model.npz`."""
  return (path / FILE).is_file() if path.is_dir() else ".npz" in path.name


def read(path: pathlib.Path) -> Weights:
  """See `convert.read`. Other trees than pairs of towers have the task "" and are not checked."""
  path = pathlib.Path(path)
  path = path / FILE if path.is_dir() else path
  file, colon, part = str(path).partition(".npz:")
  file = pathlib.Path(f"{file}.npz" if colon else file)
  params = _modern(_rooted(files.read_tensors(file), part, str(path)))
  params = loop_layout(params, str(path))
  note = file.parent / EXPORT_FILE
  known = files.read_json(note) if note.is_file() and not part else {}
  if known.get("format") == "npz":
    task, model = known["task"], known["model"]
  elif "img/prior_prompt" in params:
    raise ConvertError(
        f"{path}: is a PS3 model, whose settings (scales, layers, budget) arrays do not tell; keep "
        f"the {EXPORT_FILE} of its export beside it")
  elif all(any(n.startswith(tower) for n in params) for tower in ("img/", "txt/")):
    task, model = "siglip", _infer(params, str(path))
    if "img/embedding_norm/scale" in params:
      # Activation and heads are OpenAI's.
      task = "clip"
      model["image"], model["text"] = model["image"] | clip.IMAGE, model["text"] | clip.TEXT
      if "img/head/kernel" in params:
        model["image"]["num_classes"] = params.lazy("img/head/kernel").shape[1]
        model["text"]["out_dim"] = params.lazy("txt/head/kernel").shape[1]
  else:
    return Weights(params, "", {})
  expected = ours.shapes(task, model) if task not in ours.LISTED else _listed(known, str(path))
  tables.check(params.specs(), [({n: s}, n in ours.OPTIONAL) for n, s in expected.items()],
               str(path))
  return Weights(params, task, model)


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 5e9,
          progress: Callable | None = None, final: Any = None,
          layout: str = "loop") -> Weights | None:
  """See `convert.write`; of a task of `ours.LISTED`, the weights with their list of arrays.

  Args:
    out: where to.
    weights: what.
    shard_bytes, final: of no use here; it is one file, which can be moved.
    progress: see `convert.write`.
    layout: "loop", one array per block, or "scan", blocks stacked.
  """
  del shard_bytes, final
  if layout not in LAYOUTS:
    raise ConvertError(f"layout {layout!r} is unknown; expected one of {', '.join(LAYOUTS)}")
  params = Tensors(weights.params)
  if weights.task in ours.LISTED:
    arrays = {n: list(shape) for n, (shape, _) in sorted(params.specs().items())}
    weights = dataclasses.replace(weights, meta={**weights.meta, "arrays": arrays})
  elif weights.task:
    tables.check(params.specs(), [({n: s}, n in ours.OPTIONAL)
                                  for n, s in ours.shapes(weights.task, weights.model).items()],
                 "the weights")
  params = scan_layout(params) if layout == "scan" else params
  tokenizer_files.keep(out, weights.input)
  files.write_npz(out / FILE, {f"params/{n}": params.lazy(n) for n in sorted(params)},
                  progress=progress)
  return weights


def usage(weights: Weights) -> str:
  """How to load an export, for its card."""
  init = json.dumps(f"E/{FILE}")
  if weights.task in ours.LISTED:
    return (f"In big_vision_ext: `--weights E`, and as a start `config.init = \"E\"`. With NumPy: "
            f"`dict(np.load({init}))`; `export.json` lists the arrays and the model's settings.")
  return ("With NumPy (bfloat16 comes back as two-byte voids: `.view(ml_dtypes.bfloat16)`):\n\n"
          f"```python\nimport numpy as np\nparams = dict(np.load({init}))\n```\n\n"
          f"As a start in big_vision: `config.model_init = {init}`; in big_vision_ext: "
          "`config.init = \"E\"`. open_clip's converter reads it too.")


def _listed(known: dict[str, Any], where: str) -> ours.Shapes:
  """Arrays that an export lists itself, {name: shape}."""
  arrays = known.get("meta", {}).get("arrays")
  if not isinstance(arrays, dict):
    raise ConvertError(f"{where}: its {EXPORT_FILE} has no list of arrays (meta.arrays); export it "
                       "anew")
  return {name: tuple(shape) for name, shape in arrays.items()}


def loop_layout(params: Tensors, where: str = "the weights") -> Tensors:
  """Stacked blocks taken apart; the rest as it is.

  Raises:
    ConvertError: the arrays of a stack have different numbers of blocks.
  """
  out, depths = {}, {}
  for name in params:
    prefix, found, leaf = name.rpartition("encoderblock/")
    if not found or (prefix and not prefix.endswith("/")):
      out[name] = params.lazy(name)
      continue
    x = params.lazy(name)
    depths.setdefault(prefix, {}).setdefault(x.shape[0] if x.shape else 0, []).append(name)
    for i in range(x.shape[0] if x.shape else 0):
      out[f"{prefix}encoderblock_{i}/{leaf}"] = x.take(i)
  for prefix, found in depths.items():
    if len(found) > 1:
      few = min(found.values(), key=len)
      raise ConvertError(f"{where}: {prefix}encoderblock stacks different numbers of blocks, "
                         f"{sorted(found)}; see {', '.join(few[:3])}")
  return Tensors(out)


def scan_layout(params: Tensors, only: Callable[[str], bool] = lambda prefix: True) -> Tensors:
  """Blocks stacked along a new first axis; the rest as it is.

  Args:
    params: names and arrays.
    only: given an encoder's path, whether to stack its blocks.

  Raises:
    ConvertError: block numbers have gaps, or blocks differ in their shapes.
  """
  out, stacks = {}, {}
  for name in params:
    if (found := _BLOCK.fullmatch(name)) and only(found[1] or ""):
      stacks.setdefault(f"{found[1] or ''}encoderblock/{found[3]}", {})[int(found[2])] = name
    else:
      out[name] = params.lazy(name)
  for name, blocks in stacks.items():
    if sorted(blocks) != list(range(len(blocks))):
      raise ConvertError(f"{name} is there for the blocks {sorted(blocks)}; expected numbers from "
                         "0 on without a gap")
    out[name] = stack([params.lazy(blocks[i]) for i in range(len(blocks))])
  return Tensors(out)


def _rooted(found: Tensors, part: str, where: str) -> Tensors:
  """The parameters alone, of the sub-tree `part` if one is named."""
  root = next((r for r in _ROOTS if any(n.startswith(r) for n in found)), "")
  out = {n.removeprefix(root): found.lazy(n) for n in found if n.startswith(root)}
  if part:
    out = {n.removeprefix(f"{part}/"): x for n, x in out.items() if n.startswith(f"{part}/")}
    if not out:
      raise ConvertError(f"{where}: has no arrays under {part}/")
  return Tensors(out)


def _modern(params: Tensors) -> Tensors:
  """Today's names and shapes for those of older big_vision files.

  In order: module numbers counted over all kinds of modules; position embeddings inside of the
  encoder; the pooling head not nested; the class token's position in the table; two position
  tables of a text tower, which add up; patch embeddings as a dense layer and position tables as a
  grid (SigLIP 2 NaFlex).
  """
  out = _renumbered({n: params.lazy(n) for n in params})
  for name in list(out):
    new = re.sub(r"Transformer/(posembed_input/)?pos_embedding$", "pos_embedding", name)
    if new != name:
      out[new] = out.pop(name)
  for name in [n for n in out if re.fullmatch(r"(.*/)?probe", n) and "MAPHead_0/" not in n]:
    prefix = name.removesuffix("probe")
    for old in list(out):
      if re.match(re.escape(prefix) + r"(probe$|MlpBlock_0/|MultiHead\w+_0/|LayerNorm_0/)", old):
        out[f"{prefix}MAPHead_0/{old.removeprefix(prefix)}"] = out.pop(old)
  for name in [n for n in out if n.endswith("Encoder_0/pos_embedding")]:
    table, inner = name.replace("Encoder_0/", ""), out.pop(name)
    out[table] = _sum(out[table], inner) if table in out else inner
  for name in [n for n in out if re.fullmatch(r"(.*/)?pos_embedding", n)]:
    x, cls = out[name], name.replace("pos_embedding", "cls")
    if len(x.shape) == 3 and x.shape[0] > 1:
      out[name] = x.reshape(1, x.shape[0] * x.shape[1], x.shape[2])
    elif cls in out and len(x.shape) == 3 and math.isqrt(x.shape[1] - 1) ** 2 == x.shape[1] - 1:
      out[cls] = _sum(out[cls], _rows(x, 0, 1))
      out[name] = _rows(x, 1, x.shape[1])
  for name in [n for n in out if re.fullmatch(r"(.*/)?embedding/kernel", n)]:
    x = out[name]
    if len(x.shape) == 2 and math.isqrt(x.shape[0] // 3) ** 2 * 3 == x.shape[0]:
      p = math.isqrt(x.shape[0] // 3)
      out[name] = x.reshape(p, p, 3, x.shape[1])
  return Tensors(out)


def _renumbered(flat: dict[str, Lazy]) -> dict[str, Lazy]:
  """Numbers modules within each kind: LayerNorm_0, Attention_1, LayerNorm_2 -> 0, 0, 1."""
  children: dict[str, set[str]] = {}
  for name in flat:
    parts = name.split("/")
    for i, part in enumerate(parts[:-1]):
      if _NUMBERED.fullmatch(part):
        children.setdefault("/".join(parts[:i]), set()).add(part)
  new: dict[tuple[str, str], str] = {}
  for parent, found in children.items():
    counts: dict[str, int] = {}
    for part in sorted(found, key=lambda p: int(_NUMBERED.fullmatch(p)[2])):
      kind = _NUMBERED.fullmatch(part)[1]
      new[parent, part] = f"{kind}_{counts.get(kind, 0)}"
      counts[kind] = counts.get(kind, 0) + 1

  def rename(name):
    parts = name.split("/")
    return "/".join([*(new.get(("/".join(parts[:i]), p), p) for i, p in enumerate(parts[:-1])),
                     parts[-1]])
  return {rename(name): x for name, x in flat.items()}


def _infer(params: Tensors, where: str) -> dict[str, Any]:
  """The settings of a pair of towers, told from shapes; heads and activations are big_vision's."""
  specs = params.specs()

  def shape(name):
    if name not in specs:
      raise ConvertError(f"{where}: {name} is missing in it, of which the sizes are read")
    return specs[name][0]

  def encoder(prefix):
    name = f"{prefix}/encoderblock_{{}}/"
    blocks = {int(m[2]) for n in specs if (m := _BLOCK.fullmatch(n)) and m[1] == f"{prefix}/"}
    if not blocks:
      raise ConvertError(f"{where}: has no blocks {name}...")
    first = name.format(min(blocks))
    d, heads, _ = shape(f"{first}MultiHeadDotProductAttention_0/query/kernel")
    return {"width": d, "depth": max(blocks) + 1, "num_heads": heads,
            "mlp_dim": shape(f"{first}MlpBlock_0/Dense_0/bias")[0], "act": "gelu_tanh"}

  image = encoder("img/Transformer")
  patch, tokens = shape("img/embedding/kernel")[0], shape("img/pos_embedding")[1]
  side = math.isqrt(tokens)
  image |= {"patch_size": patch, "image_size": side * patch,
            "pool_type": "map" if "img/MAPHead_0/probe" in specs else
                         "tok" if "img/cls" in specs else "gap"}
  if side * side != tokens:
    raise ConvertError(f"{where}: img/pos_embedding has {tokens} rows, which is no square grid")
  if "img/head/bias" in specs:
    image["num_classes"] = shape("img/head/bias")[0]
  text = encoder("txt/Encoder_0")
  text |= {"vocab_size": shape("txt/Embed_0/embedding")[0],
           "text_len": shape("txt/pos_embedding")[1],
           "pool_type": "map" if "txt/MAPHead_0/probe" in specs else "last",
           "out_dim": shape("txt/head/bias")[0] if "txt/head/bias" in specs else 0}
  return {"image": image, "text": text, "bias_init": -10.0 if "b" in specs else None}


def _sum(a: Lazy, b: Lazy) -> Lazy:
  return Lazy(a.shape, a.dtype, lambda: a.read() + b.read())


def _rows(x: Lazy, start: int, stop: int) -> Lazy:
  shape = (x.shape[0], stop - start, *x.shape[2:])
  return Lazy(shape, x.dtype, lambda: x.read()[:, start:stop])
