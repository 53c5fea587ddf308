"""What the contrastive tasks share: towers from their configs, batch shapes, small checks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, typed
from big_vision_ext.models import text as text_lib
from big_vision_ext.models import vit


def plain(spec: Mapping[str, Any]) -> dict[str, Any]:
  """A tower's settings as keyword arguments: lists become tuples, as module fields must hash."""
  return {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}


def image_size(spec: Mapping[str, Any]) -> int:
  """The side of the images a tower is configured for, in pixels."""
  if not isinstance(spec.get("image_size"), int):
    raise typed.ConfigError(
        f"config.model.image.image_size={spec.get('image_size')!r}: expected a number of pixels")
  return spec["image_size"]


def text_tower(spec: Mapping[str, Any], out_dim: int):
  """The text tower of a config; its output is as wide as the image's unless it says otherwise."""
  return vit.build(text_lib.TextTransformer, {"out_dim": out_dim} | plain(spec),
                   "config.model.text")


def text_flops(text) -> int:
  """Forward FLOPs of a text tower on one text."""
  return flops.text(text_len=text.text_len, width=text.width, depth=text.depth,
                    mlp_dim=text.mlp_dim, out_dim=text.out_dim, pool_type=text.pool_type)


def batch_spec(batch_size: int, side: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of a training batch of (image, box, caption) samples."""
  shape = jax.ShapeDtypeStruct
  return {
      "image": shape((batch_size, side, side, 3), np.uint8),
      "text": shape((batch_size, length), np.int32),
      "box": shape((batch_size, 4), np.float32),
      "is_global": shape((batch_size,), np.bool_),
  }


def check_image(image, side: int) -> None:
  """Raises if images have not the size that the model is configured for."""
  if image.shape[1:] != (side, side, 3):
    raise typed.ConfigError(
        f"the input gives images of {image.shape[1:]}, the model takes ({side}, {side}, 3): set "
        f"config.input.image_size={side}")


def clamp_temperature(params, largest: float = 100.0):
  """Keeps the temperature exp(t) between 1 and `largest`, as CLIP, SigLIP's ports and PS3 do."""
  return {**params, "t": jnp.clip(params["t"], 0.0, np.log(largest))}
