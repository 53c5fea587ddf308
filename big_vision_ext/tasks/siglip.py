"""SigLIP: two towers, trained so that an image and its caption agree (Zhai et al. 2023).

With `pool="region"` the image tower pools only the tokens on the sample's box, which makes it the
low-resolution counterpart of PS3: it is told the same, and sees the region in fewer pixels.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp

from big_vision_ext.core import boxes, typed
from big_vision_ext.models import two_towers
from big_vision_ext.objectives import contrastive
from big_vision_ext.tasks import _towers


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "siglip".

  Attributes:
    image: fields of `models.vit.ViT`, with `variant` and `image_size` as shorthands.
    text: fields of `models.text.TextTransformer`, with `variant` as a shorthand.
    pool: "image" pools all tokens, "region" those on the sample's box.
    captions_per_image: how many captions of each image the input ships
      (`input.captions_per_image`), each with its box; with `pool="region"` only, since captions
      that share their vector cannot be told apart.
    temperature_init, bias_init: of the loss; bias None for none.
    contrast: form of the loss and how it is computed.
  """

  image: dict[str, Any]
  text: dict[str, Any]
  pool: Literal["image", "region"] = "image"
  captions_per_image: int = 1
  temperature_init: float = 10.0
  bias_init: float | None = -10.0
  contrast: contrastive.Contrast = contrastive.Contrast()
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  config = typed.build(Config, model_config, "config.model")
  size = _towers.image_size(config.image)
  return Task(config, size)


@dataclasses.dataclass(frozen=True)
class Task(_towers.Pair):
  """See the module's docstring and `_towers.Pair`."""

  config: Config

  def __post_init__(self):
    c = self.config
    if c.captions_per_image < 1 or c.captions_per_image > 1 and c.pool != "region":
      raise typed.ConfigError(
          f"config.model.captions_per_image={c.captions_per_image} with pool={c.pool!r}: expected "
          "1 or more captions, and only one where each image has one vector; set pool='region'")
    super().__post_init__()
    self.outputs["region"] = self.embed_region

  def embed_region(self, params, batch, selection: str = "low"):
    """zimg, ztxt (b, d) of the region: the tokens on its box, if the task pools those."""
    if selection != "low":
      raise ValueError(f"selection={selection!r}: this model has one scale and selects nothing; "
                       "expected 'low'")
    zimg, ztxt = self.embed_pair(params, batch)
    return {"zimg": zimg, "ztxt": ztxt}

  def embed_pair(self, params, batch):
    """zimg, ztxt (n, d), pooled as the config says, for n / b captions of each of b images."""
    if self.config.pool == "image":
      return super().embed_pair(params, batch)
    images = self.normalise(batch["image"])

    def region(towers, mask):
      y, _ = towers.img.encode(towers.img.embed(images))
      y = jnp.repeat(y, mask.shape[0] // y.shape[0], axis=0)
      z, _ = towers.txt(batch["text"])
      return two_towers.normalize(towers.img.pool(y, mask)), two_towers.normalize(z)

    return self.towers.apply({"params": params}, self._mask(batch), method=region)

  def _mask(self, batch):
    """Tokens on the sample's box (b, t)."""
    size = (self.image_size, self.image_size)
    hits = boxes.hit_map(batch["box"], size, self.vision.posemb_grid)
    return hits.reshape(hits.shape[0], -1)
