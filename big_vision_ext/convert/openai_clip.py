"""How does OpenAI keep CLIP? One state dict, whose sizes are those of its arrays.

Read are files of `torch.save` and of `torch.jit.save` (OpenAI's own downloads), UniQA's weights,
which have the same names, what open_clip's training saves, and safetensors. They say nothing of
activation and heads: these are taken to be OpenAI's, QuickGELU and heads 64 wide.
"""

import pathlib
from typing import Any

from big_vision_ext.convert import Weights, clip, files, tokenizer_files
from big_vision_ext.convert.lazy import ConvertError

FORMAT = "openai_clip"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_CONFIGS = ("config.json", "open_clip_config.json")


def detect(path: pathlib.Path) -> bool:
  """Whether it is a file with OpenAI's names, or a folder with one and no library's config."""
  path = pathlib.Path(path)
  file = files.find(path, "model") if path.is_dir() else path
  if file is None or file.suffix not in _SUFFIXES or not file.is_file():
    return False
  if any((file.parent / name).is_file() for name in _CONFIGS):
    return False
  return "visual.conv1.weight" in files.read_tensors(file)


def read(path: pathlib.Path) -> Weights:
  """See `convert.read`. Half precision is kept; `meta["precision"]` says so."""
  path = pathlib.Path(path)
  file = files.find(path, "model") if path.is_dir() else path
  if file is None:
    raise ConvertError(f"{path}: has no model.safetensors")
  tensors = files.read_tensors(file)
  text = "text." if "text.token_embedding.weight" in tensors else ""
  model = clip.sizes_of(tensors, file, text)
  params = clip.load(clip.openai(text), tensors, model, file, FORMAT)
  return Weights(params=params, task="clip", model=model, input=clip.known_input(model),
                 meta=clip.precision(params))


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 0, progress: Any = None,
          final: Any = None) -> None:
  """Writes model.safetensors; see `convert.write`. It is one file, whatever `shard_bytes` is."""
  del shard_bytes, final
  clip.check(weights, FORMAT, own={"ln_eps": 1e-5}, acts=("quick_gelu",))
  clip.check_heads(weights, FORMAT)
  if (end := clip.end_of_text(weights.model["text"])) is not None:
    raise ConvertError(f"model.text.eot_id={end}: in the format {FORMAT!r} a text is read at its "
                       "largest id; export as transformers or npz")
  theirs = clip.export(clip.openai(), weights, FORMAT)
  files.write_safetensors(out / "model.safetensors", {n: theirs.lazy(n) for n in theirs},
                          progress=progress)
  tokenizer_files.keep(out, weights.input)


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  del weights
  return ("With openai/CLIP (which turns matrices into float16; `.float()` widens them again):\n\n"
          "```python\nimport clip.model, safetensors.torch\n"
          'state = safetensors.torch.load_file("E/model.safetensors")\n'
          "model = clip.model.build_model(state).float()\n```\n\n"
          "Programs that want a `.pt`, as UniQA's, take "
          '`torch.save(state, "clip.pt")`.')
