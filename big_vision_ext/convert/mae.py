"""How does facebookresearch/mae keep a model? Encoder and decoder, one state dict.

Read are its `.pth` files (a dict with the state under "model") and safetensors with its names, with
the decoder: those without one are the encoder alone or a classifier, which timm's format reads. A
file does not say whether its targets were normalised: we say they were (the `*_full` files), unless
our export beside it says otherwise; those called `visualize` predict plain pixels.
"""

import pathlib
from typing import Any

from big_vision_ext.convert import Weights, files, vit_mae
from big_vision_ext.convert.lazy import ConvertError

FORMAT = "mae"
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def detect(path: pathlib.Path) -> bool:
  """Whether it is a file with the names of facebook's masked autoencoder, or a folder with one."""
  path = pathlib.Path(path)
  file = files.find(path, "model") if path.is_dir() else path
  if file is None or file.suffix not in _SUFFIXES or not file.is_file():
    return False
  if (file.parent / "config.json").is_file():
    return False
  return "decoder_embed.weight" in files.read_tensors(file)


def read(path: pathlib.Path) -> Weights:
  """See `convert.read`."""
  path = pathlib.Path(path)
  file = files.find(path, "model") if path.is_dir() else path
  if file is None:
    raise ConvertError(f"{path}: has no model.safetensors")
  tensors = files.read_tensors(file)
  image = vit_mae.sizes_of(tensors, file)
  model = {"image": image, "mask": vit_mae.mask_for(image), "norm_pix": True}
  params = vit_mae.load(tensors, model, vit_mae.facebook(), file, FORMAT)
  found = {"image_size": image["image_size"], "mean": vit_mae.MEAN, "std": vit_mae.STD,
           "resize": "bicubic"}
  return Weights(params=params, task="mae", model=model, input=found, meta={})


def write(out: pathlib.Path, weights: Weights, *, shard_bytes: float = 0, progress: Any = None,
          final: Any = None) -> None:
  """Writes model.safetensors; see `convert.write`. It is one file, whatever `shard_bytes` is."""
  del shard_bytes, final
  theirs = vit_mae.export(weights, vit_mae.facebook(), FORMAT)
  files.write_safetensors(out / "model.safetensors", {n: theirs.lazy(n) for n in theirs},
                          progress=progress)


def usage(weights: Weights) -> str:
  """How to load an export, in Markdown."""
  norm = bool(weights.model.get("norm_pix", True))
  return ("With facebookresearch/mae on the path:\n\n"
          "```python\nimport models_mae, safetensors.torch\n"
          f"model = models_mae.mae_vit_base_patch16(norm_pix_loss={norm})  # or the size at hand\n"
          'model.load_state_dict(safetensors.torch.load_file("E/model.safetensors"))\n```')
