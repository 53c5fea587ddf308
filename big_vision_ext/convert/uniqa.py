"""How does UniQA keep its adapter? `{"params": {...}}` in a file of torch.save, CLIP not with it.

    adapter.fc.0.weight (d / 2, d), adapter.fc.2.weight (d, d / 2), score_level (5,)

Read are its `.pt` files and safetensors with these names; both are written. The CLIP that an
adapter belongs to is a file of its own (format `openai_clip`); neither says anything of prompts.
"""

import pathlib
from typing import Any

from big_vision_ext.convert import Weights, files, tables, torch_zip
from big_vision_ext.convert.lazy import ConvertError, Tensors
from big_vision_ext.convert.tables import Rule

FORMAT = "uniqa"
FILES = ("adapter.pt", "adapter.safetensors")
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_FIRST, _LAST, _LEVELS = "adapter.fc.0.weight", "adapter.fc.2.weight", "score_level"


def _kernel(ours: str, theirs: str) -> Rule:
  """(in, out) <-> (out, in), without a bias."""
  return Rule((ours,), (theirs,), lambda xs: [xs[0].transpose()], lambda ys, _: [ys[0].transpose()])


RULES = [_kernel("adapter/fc_0/kernel", _FIRST), _kernel("adapter/fc_2/kernel", _LAST),
         tables.same("adapter/levels", _LEVELS)]


def shapes(width: int, reduction: int, levels: int) -> dict[str, tuple[int, ...]]:
  """The arrays of an adapter under our names, for features of `width` numbers."""
  middle = width // reduction
  return {"adapter/fc_0/kernel": (width, middle), "adapter/fc_2/kernel": (middle, width),
          "adapter/levels": (levels,)}


def detect(path: pathlib.Path) -> bool:
  """Whether it is a file with the names of UniQA's adapter, or a folder of our export."""
  file = _file(pathlib.Path(path))
  return file is not None and file.is_file() and file.suffix in _SUFFIXES and (
      _FIRST in files.read_tensors(file))


def read(path: pathlib.Path) -> Weights:
  """See `convert.read`. Sizes are those of the arrays."""
  file = _file(pathlib.Path(path))
  if file is None:
    raise ConvertError(f"{path}: has none of {', '.join(FILES)}")
  tensors = files.read_tensors(file)
  specs = tensors.specs()
  for name, axes in ((_FIRST, 2), (_LEVELS, 1)):
    found = specs.get(name, ((), None))[0]
    if len(found) != axes or 0 in found:
      there = list(found) if name in specs else "missing"
      raise ConvertError(f"{file}: {name} is {there}, expected an array of {axes} axes")
  middle, width = specs[_FIRST][0]
  if width % middle:
    raise ConvertError(f"{file}: {_FIRST} is [{middle}, {width}], expected a divisor of the width "
                       "first")
  model = {"width": width, "reduction": width // middle, "levels": specs[_LEVELS][0][0]}
  params = tables.load(RULES, shapes(**model), tensors, str(file), format=FORMAT)
  return Weights(params=params, task="quality", model=model)


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 0, progress: Any = None,
          final: Any = None) -> None:
  """Writes adapter.pt and adapter.safetensors; see `convert.write`. Towers are left out."""
  del shard_bytes, final
  theirs = export(weights)
  tensors = {n: theirs.lazy(n) for n in theirs}
  torch_zip.write(out / FILES[0], {"params": tensors})
  files.write_safetensors(out / FILES[1], tensors, progress=progress)


def export(weights: Weights) -> Tensors:
  """Our arrays under their names.

  Raises:
    ConvertError: these weights have no adapter, or one that was begun in another way.
  """
  if weights.task != "quality":
    raise ConvertError(f"the format {FORMAT!r} holds adapters (task 'quality'), and these weights "
                       f"are of the task {weights.task!r}")
  if weights.model.get("zero_init_last"):
    raise ConvertError("model.zero_init_last=True: such an adapter has no second ReLU, and the "
                       f"format {FORMAT!r} means one that has")
  own = Tensors({n: Tensors(weights.params).lazy(n) for n in weights.params
                 if n.startswith("adapter/")})
  if "adapter/levels" not in own or "adapter/fc_0/kernel" not in own:
    raise ConvertError("these weights have no adapter")
  width, middle = own.specs()["adapter/fc_0/kernel"][0]
  levels = own.specs()["adapter/levels"][0][0]
  return tables.export(RULES, shapes(width, width // middle, levels), own, format=FORMAT)


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  prompts = weights.model.get("prompts", "uniqa")
  towers = (weights.model.get("towers") or {}).get("path")
  of = f" (trained on those of `{towers}`)" if towers else ""
  return (f"An adapter for the features of a CLIP, which is not in this folder{of}. UniQA's code "
          "loads `adapter.pt`:\n\n"
          '```python\nimport torch\nstate = torch.load("E/adapter.pt")["params"]\n```\n\n'
          "In big_vision_ext: `python -m big_vision_ext.encode --task quality --weights CLIP "
          f"--adapter E ...`. Its prompts are `{prompts}`.")


def _file(path: pathlib.Path) -> pathlib.Path | None:
  if not path.is_dir():
    return path
  return next((path / name for name in FILES if (path / name).is_file()), None)
