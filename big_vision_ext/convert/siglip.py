"""What do the formats of plain vision and text towers share? Checks, sizes, small parts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_ext.convert import ours
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors

MEAN = STD = (0.5, 0.5, 0.5)
LN_EPS = 1e-6
ATTENTION = "MultiHeadDotProductAttention_0"
# Settings of a tower that change what it computes and that no other library's towers have.
_OWN = {
  "posemb_type": "learn",
  "posemb_fit": "resize",
  "rep_size": 0,
  "final_norm": True,
  "cls_posemb": False,
  "pre_norm": False,
  "patch_bias": True,
  "head_bias": True,
  "causal": False,
  "adapter_hidden": 0,
  "pool_width": 0,
  "pool_heads": 0,
  "pool_mlp_dim": 0,
}
# Heads of the published vision transformers (Ti, S, M, B, L, So400m, H, g, g-opt, G, e) by width.
_HEADS = {192: 3, 384: 6, 512: 8, 768: 12} | dict.fromkeys(
  (1024, 1152, 1280, 1408, 1536, 1664, 1792), 16
)


def shapes(model: Mapping[str, Any]) -> ours.Shapes:
  """All arrays of a pair of towers, or of a vision tower alone if `text` is None."""
  if model.get("text") is not None:
    return ours.shapes("siglip", model)
  return {f"img/{n}": s for n, s in ours.image_tower(model["image"]).items()}


def check(weights: Any, format: str, *, image_pools: tuple[str, ...] = ("map",),
          text_pools: tuple[str, ...] = ("last",), square: bool = True) -> None:
  """Raises ConvertError if a format cannot compute what these weights are for.

  Args:
    weights: a `Weights`.
    format: its name, for messages.
    image_pools, text_pools: the poolings it has; no text tower is needed if there are none.
    square: whether it knows square images and patches only.
  """
  if weights.task != "siglip":
    instead = "npz or ps3_torch" if weights.task == "ps3" else "npz"
    raise ConvertError(
      f"the format {format!r} holds plain towers (task 'siglip') and these weights are of the "
      f"task {weights.task!r}; export them as {instead}"
    )
  parts = {"image": image_pools, **({"text": text_pools} if text_pools else {})}
  for name, pools in parts.items():
    spec = weights.model.get(name)
    if not isinstance(spec, Mapping):
      raise ConvertError(
        f"the format {format!r} needs both towers; these weights have no {name} tower"
      )
    pool = spec.get("pool_type", "map" if name == "image" else "last")
    if pool not in pools:
      raise ConvertError(
        f"model.{name}.pool_type={pool!r}: the format {format!r} has {' and '.join(pools)}"
      )
    for key, plain in _OWN.items():
      if spec.get(key) is not None and spec[key] != plain:
        raise ConvertError(
          f"model.{name}.{key}={spec[key]!r}: the format {format!r} has no such thing, only "
          f"{plain!r}"
        )
  patch, size = sides(weights.model["image"])
  if square and (patch[0] != patch[1] or size[0] != size[1]):
    raise ConvertError(
      f"the format {format!r} has square images and patches only; this model has images of "
      f"{size[0]}x{size[1]} pixels in patches of {patch[0]}x{patch[1]}"
    )


def sides(image: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, int]]:
  """Height and width in pixels of a patch, and of the image the position table was made for."""
  patch = _pair(image["patch_size"])
  if image.get("image_size") is not None:
    return patch, _pair(image["image_size"])
  return patch, tuple(g * p for g, p in zip(ours.grid(image), patch))


def only_image(params: Mapping[str, Any]) -> Tensors:
  """The arrays of the vision tower."""
  every = Tensors(params)
  return Tensors({n: every.lazy(n) for n in every if n.startswith("img/")})


def identity(width: int, dtype: Any) -> dict[str, Lazy]:
  """Our text head that changes nothing, for formats whose text tower always has one."""
  return {
    "txt/head/kernel": Lazy((width, width), dtype, lambda: np.eye(width).astype(dtype)),
    "txt/head/bias": Lazy((width,), dtype, lambda: np.zeros(width, dtype)),
  }


def statistics(weights: Any, mean: Sequence[float] = MEAN,
               std: Sequence[float] = STD) -> dict[str, list[float]]:
  """Mean and standard deviation that images are normalised with, by channel, for pixels in 0..1.

  Args:
    weights: a `Weights`.
    mean, std: what they are where it does not say.
  """
  out = {}
  for key, default in (("mean", mean), ("std", std)):
    found = weights.input.get(key) or weights.model.get(key) or default
    out[key] = [float(x) for x in (found if np.ndim(found) else [found] * 3)]
  return out


def num_heads(width: int, where: Any) -> int:
  """The number of heads of a published vision transformer of this width.

  Raises:
    ConvertError: it would be a guess.
  """
  if width not in _HEADS:
    raise ConvertError(
      f"{where}: does not say how many heads a tower {width} wide has, and arrays do not tell; "
      'expected "num_heads" in its model_args'
    )
  return _HEADS[width]


def size_of(tensors: Tensors, name: str, axes: int, where: Any) -> tuple[int, ...]:
  """The shape of an array that tells a size.

  Raises:
    ConvertError: it is missing or has another number of axes.
  """
  if name not in tensors:
    near = f"; it has {', '.join(list(tensors)[:3])}, ..." if len(tensors) else ""
    raise ConvertError(f"{where}: has no array {name!r}, which every model of this kind has{near}")
  shape = tensors.lazy(name).shape
  if len(shape) != axes:
    raise ConvertError(f"{where}: {name} has the shape {list(shape)}, expected {axes} axes")
  return shape


def count(tensors: Tensors, name: str) -> int:
  """How many arrays there are under a name with `{}` for 0, 1, 2, ..."""
  n = 0
  while name.format(n) in tensors:
    n += 1
  return n


def _pair(value: Any) -> tuple[int, int]:
  h, w = (value, value) if np.ndim(value) == 0 else value
  return int(h), int(w)
