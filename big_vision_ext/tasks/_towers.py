"""What the contrastive tasks share: towers from their configs, batch shapes, small checks."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, typed
from big_vision_ext.models import text as text_lib
from big_vision_ext.models import vit

# What a training batch has for each caption of an image.
_OF_CAPTIONS = ("text", "box", "is_global")


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


def batch_spec(batch_size: int, side: int, length: int,
               captions: int = 1) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and types of a training batch: images, each with `captions` captions and their boxes."""
  shape = jax.ShapeDtypeStruct
  rows = (batch_size,) if captions == 1 else (batch_size, captions)
  return {
      "image": shape((batch_size, side, side, 3), np.uint8),
      "text": shape((*rows, length), np.int32),
      "box": shape((*rows, 4), np.float32),
      "is_global": shape(rows, np.bool_),
  }


def by_caption(batch: Mapping[str, Any], captions: int) -> dict[str, Any]:
  """A batch of `batch_spec` with a row for each caption in everything but the pictures."""
  if captions == 1:
    return dict(batch)
  flat = {k: batch[k].reshape(-1, *batch[k].shape[2:]) for k in _OF_CAPTIONS}
  of_images = {"boxes", "num_boxes"} & set(batch)
  shared = {k: jnp.repeat(batch[k], captions, axis=0) for k in of_images}
  return {**batch, **flat, **shared}


def check_image(image, side: int) -> None:
  """Raises if images have not the size that the model is configured for."""
  if image.shape[1:] != (side, side, 3):
    raise typed.ConfigError(
        f"the input gives images of {image.shape[1:]}, the model takes ({side}, {side}, 3): set "
        f"config.input.image_size={side}")


def clamp_temperature(params, largest: float = 100.0):
  """Keeps the temperature exp(t) between 1 and `largest`, as CLIP, SigLIP's ports and PS3 do."""
  return {**params, "t": jnp.clip(params["t"], 0.0, np.log(largest))}
