"""What the contrastive tasks share: a pair of towers, batch shapes, small checks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, typed
from big_vision_ext.models import text as text_lib
from big_vision_ext.models import two_towers, vit
from big_vision_ext.objectives import contrastive, copies

# What a training batch has for each caption of an image.
_OF_CAPTIONS = ("text", "box", "is_global")


@dataclasses.dataclass(frozen=True)
class Pair:
  """An image tower and a text tower: what is the same in every task that has just these.

  Attributes:
    config: has `image` and `text`, `temperature_init` and `bias_init`, `mean` and `std`, `contrast`
      and, where an image may have several, `captions_per_image`.
    image_size: in pixels, square.
  """

  config: Any
  image_size: int

  def __post_init__(self):
    c = self.config
    image, text = plain(c.image), plain(c.text)
    towers = two_towers.TwoTowers(
        flax.core.freeze(image), flax.core.freeze(text), c.temperature_init, c.bias_init)
    set_field = lambda name, value: object.__setattr__(self, name, value)
    set_field("towers", towers)
    # The same towers outside of the pair: their sizes are known before anything is initialised.
    set_field("vision", vit.build(vit.ViT, image, "config.model.image"))
    set_field("text", text_tower(text, out_dim=self.vision.num_classes or self.vision.width))
    set_field("outputs", {"image": self.embed_image, "text": self.embed_text})

  @property
  def captions(self) -> int:
    """Captions of each image of a training batch."""
    return getattr(self.config, "captions_per_image", 1)

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example: three times the forward pass."""
    return flops.train(self.forward_flops() + (self.captions - 1) * text_flops(self.text))

  def forward_flops(self, selected: Sequence[int] = ()) -> int:
    """FLOPs of one image and one text; nothing is selected here."""
    del selected
    v = self.vision
    vision = flops.vit(
        tokens=v.posemb_grid[0] * v.posemb_grid[1], width=v.width, depth=v.depth,
        mlp_dim=v.mlp_dim, patch_size=v.patch_size, pool_type=v.pool_type,
        num_classes=v.num_classes, pooled_only=v.pooled_only and not v.scan)
    return vision + text_flops(self.text)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return batch_spec(batch_size, self.image_size, self.text.text_len, self.captions)

  def init(self, rng, batch):
    one = by_caption(batch, self.captions)
    return self.towers.init(rng, self.normalise(one["image"][:1]), one["text"][:1])["params"]

  def loss(self, params, batch, rng, train: bool):
    del rng, train  # Nothing here is random.
    batch = by_caption(batch, self.captions)
    zimg, ztxt = self.embed_pair(params, batch)
    bias = params["b"][0] if "b" in params else 0.0
    how = self.config.contrast
    return contrastive.contrastive_loss(
        zimg, ztxt, jnp.exp(params["t"])[0], bias, how, keys_of(batch, how.duplicates))

  def embed_pair(self, params, batch):
    """zimg, ztxt (b, d): unit vectors of images and of their texts."""
    images = self.normalise(batch["image"])
    return self.towers.apply({"params": params}, images, batch["text"])[:2]

  def embed_image(self, params, batch):
    """(b, d): unit vectors of whole images."""
    return self.towers.apply({"params": params}, self.normalise(batch["image"]))[0]

  def embed_text(self, params, batch):
    """(b, d): unit vectors of texts."""
    return self.towers.apply({"params": params}, None, batch["text"])[1]

  def normalise(self, image):
    """Pixels as the image tower takes them, float32; raises ConfigError for another size."""
    check_image(image, self.image_size)
    mean, std = np.float32(self.config.mean), np.float32(self.config.std)
    return (image.astype(jnp.float32) / 255.0 - mean) / std


def keys_of(batch: Mapping[str, Any], duplicates: str) -> copies.Keys:
  """What tells copies among the rows of a batch, if it matters: texts, and `image_id` if given.

  `image_id` is a whole number for each row, or several (b, k), equal where the image is.
  """
  if duplicates == "negatives":
    return ()
  return copies.of_rows(*(batch[name] for name in ("text", "image_id") if name in batch))


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
  of_images = {"boxes", "num_boxes", "image_id"} & set(batch)
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
