"""How does RobinWeiler/FocusMIM keep a model? The state dict of its convolutional autoencoder.

Read are its `.pt` files and safetensors with its names. Blocks are at even places of two
`Sequential`s, ReLUs between them: `encoder.0.conv1`, `decoder.4.upconv2`. Every block registers a
1 x 1 skip, `match_dim`, and those that do not change the width never use it: on reading such a skip
must be there, as in every file of that code, and is dropped; zeros are written for it, so that a
strict load succeeds and computes the same.

Kernels of transposed convolutions are (in, out, y, x) there and turned by 180 degrees.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from big_vision_ext.convert import Weights, files, ours, tables
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors

FORMAT = "focusmim"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_MARKS = ("encoder.0.conv1.weight", "decoder.0.upconv1.weight")


def detect(path: pathlib.Path) -> bool:
  """Whether it is a file with FocusMIM's names, or a folder with one."""
  path = pathlib.Path(path)
  file = files.find(path, "model") if path.is_dir() else path
  if file is None or file.suffix not in _SUFFIXES or not file.is_file():
    return False
  if (file.parent / "config.json").is_file():
    return False
  found = files.read_tensors(file)
  return all(name in found for name in _MARKS)


def read(path: pathlib.Path) -> Weights:
  """See `convert.read`. The size of the images, which the file does not say, is taken as 96."""
  path = pathlib.Path(path)
  file = files.find(path, "model") if path.is_dir() else path
  if file is None:
    raise ConvertError(f"{path}: has no model.safetensors")
  tensors = files.read_tensors(file)
  model = {"image": _sizes(tensors, file) | {"image_size": 96}}
  params = tables.load(_rules(model["image"]), ours.shapes("focusmim", model), tensors, str(file),
                       format=FORMAT)
  found = {"image_size": 96, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "resize": "fast"}
  return Weights(params=params, task="focusmim", model=model, input=found, meta={})


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 0, progress: Any = None,
          final: Any = None) -> None:
  """Writes model.safetensors; see `convert.write`. It is one file, whatever `shard_bytes` is."""
  del shard_bytes, final
  if weights.task != "focusmim":
    raise ConvertError(f"the format {FORMAT!r} holds models of the task 'focusmim', and these "
                       f"weights are of the task {weights.task!r}")
  theirs = export(Tensors(weights.params), weights.model)
  files.write_safetensors(out / "model.safetensors", {n: theirs.lazy(n) for n in theirs},
                          progress=progress)


def export(params: Tensors, model: Mapping[str, Any]) -> Tensors:
  """Our arrays under their names."""
  return tables.export(_rules(model["image"]), ours.shapes("focusmim", model), params,
                       format=FORMAT)


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  text = ("With RobinWeiler/FocusMIM on the path:\n\n```python\nimport safetensors.torch\n"
          "from models.models_MAE import CNN_MAE\n"
          "model = CNN_MAE()\n"
          'model.load_state_dict(safetensors.torch.load_file("E/model.safetensors"))\n```')
  widths, depth = ours.stages(weights.model["image"])
  if (tuple(widths), depth) != ((32, 64, 128), 3):
    text += (f"\n\nThat class has the published sizes; this model has stages of {list(widths)} "
             f"channels with {depth} blocks each, and needs the class changed accordingly.")
  return text


def _sizes(tensors: Tensors, where: Any) -> dict[str, Any]:
  """Widths of the stages and blocks in each, told from the encoder's shapes."""
  blocks = []
  while (name := f"encoder.{2 * len(blocks)}.conv1.weight") in tensors:
    shape = tensors.lazy(name).shape
    if len(shape) != 4:
      raise ConvertError(f"{where}: {name} is {list(shape)}, expected four axes")
    blocks.append(shape[0])
  # Every stage has another width than the one before, or its skip could not stride.
  widths = [w for i, w in enumerate(blocks) if not i or w != blocks[i - 1]]
  if len(blocks) % len(widths):
    raise ConvertError(f"{where}: {len(blocks)} blocks of {blocks} channels are no stages of as "
                       "many blocks each")
  return {"widths": widths, "depth": len(blocks) // len(widths)}


def _rules(image: Mapping[str, Any]) -> list[tables.Rule]:
  """The table of a model; places in a `Sequential` are twice the block's number."""
  out = []
  for mine, names, transposed in (("encoder", ("conv1", "conv2"), False),
                                  ("decoder", ("upconv1", "upconv2"), True)):
    for i, (c, d, _) in enumerate(ours.conv_blocks(image)[transposed]):
      block, theirs = f"{mine}/block_{i}", f"{mine}.{2 * i}"
      out += _conv(f"{block}/conv1", f"{theirs}.{names[0]}", transposed)
      second = _conv(f"{block}/conv2", f"{theirs}.{names[1]}", transposed)
      out += second if c != d else [second[0], _with_unused_skip(second[1], theirs, c)]
      if c != d:
        out += _conv(f"{block}/skip", f"{theirs}.match_dim", transposed)
  return out


def _conv(ours_: str, theirs: str, transposed: bool) -> list[tables.Rule]:
  if not transposed:
    return tables.conv(ours_, theirs)
  kernel = tables.Rule((f"{ours_}/kernel",), (f"{theirs}.weight",),
                       lambda xs: [_turned(xs[0]).transpose(2, 3, 0, 1)],
                       lambda ys, _: [_turned(ys[0].transpose(2, 3, 0, 1))])
  return [kernel, tables.same(f"{ours_}/bias", f"{theirs}.bias")]


def _turned(x: Lazy) -> Lazy:
  """By 180 degrees in the first two axes."""
  return Lazy(x.shape, x.dtype, lambda: x.read()[::-1, ::-1])


def _with_unused_skip(rule: tables.Rule, theirs: str, width: int) -> tables.Rule:
  """The rule with a skip on their side that nothing of ours corresponds to: zeros, and ignored."""

  def export(xs):
    zeros = lambda *shape: Lazy(shape, xs[0].dtype, lambda: np.zeros(shape, xs[0].dtype))
    return [*rule.export(xs), zeros(width, width, 1, 1), zeros(width)]

  names = (*rule.theirs, f"{theirs}.match_dim.weight", f"{theirs}.match_dim.bias")
  return tables.Rule(rule.ours, names, export, lambda ys, shapes: rule.load(ys[:1], shapes))
