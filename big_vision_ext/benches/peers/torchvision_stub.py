"""Lets torchvision import beside a torch that its compiled part was not built for.

Package indexes pair a CPU torch with a CUDA torchvision, which cannot load its operators and then
fails as it describes them. Oracles use none of them. Import this before timm or transformers.
"""

import importlib.util
import pathlib

import torch


def _loads() -> bool:
  spec = importlib.util.find_spec("torchvision")
  try:
    for library in pathlib.Path(spec.origin).parent.glob("_C*.so"):
      torch.ops.load_library(library)
  except OSError:
    return False
  return hasattr(torch.ops.torchvision, "nms")


# Kept alive: operators disappear with the object that defined them.
_LIBRARY = None
if not _loads():
  _LIBRARY = torch.library.Library("torchvision", "DEF")
  for _name in ("nms", "qnms"):
    _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
