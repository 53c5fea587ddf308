"""SigLIP: two towers, trained so that an image and its caption agree (Zhai et al. 2023).

With `pool="region"` the image tower pools only the tokens on the sample's box, which makes it the
low-resolution counterpart of PS3: it is told the same, and sees the region in fewer pixels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import flax
import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import boxes, flops, typed
from big_vision_ext.models import two_towers, vit
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
class Task:
  """See the module's docstring. `image_size` is in pixels, square."""

  config: Config
  image_size: int

  def __post_init__(self):
    c = self.config
    if c.captions_per_image < 1 or c.captions_per_image > 1 and c.pool != "region":
      raise typed.ConfigError(
          f"config.model.captions_per_image={c.captions_per_image} with pool={c.pool!r}: expected "
          "1 or more captions, and only one where each image has one vector; set pool='region'")
    image, text = _towers.plain(c.image), _towers.plain(c.text)
    towers = two_towers.TwoTowers(
        flax.core.freeze(image), flax.core.freeze(text), c.temperature_init, c.bias_init)
    set_field = lambda name, value: object.__setattr__(self, name, value)
    set_field("towers", towers)
    # The same towers outside of the pair: their sizes are known before anything is initialised.
    set_field("vision", vit.build(vit.ViT, image, "config.model.image"))
    set_field("text", _towers.text_tower(text, out_dim=self.vision.width))
    set_field("outputs", {
        "image": self.embed_image, "text": self.embed_text, "region": self.embed_region})

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example: three times the forward pass."""
    captions = self.config.captions_per_image
    return flops.train(self.forward_flops() + (captions - 1) * _towers.text_flops(self.text))

  def forward_flops(self, selected: Sequence[int] = ()) -> int:
    """FLOPs of one image and one text; nothing is selected here."""
    del selected
    v = self.vision
    vision = flops.vit(
        tokens=v.posemb_grid[0] * v.posemb_grid[1], width=v.width, depth=v.depth,
        mlp_dim=v.mlp_dim, patch_size=v.patch_size, pool_type=v.pool_type)
    return vision + _towers.text_flops(self.text)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    return _towers.batch_spec(
        batch_size, self.image_size, self.text.text_len, self.config.captions_per_image)

  def init(self, rng, batch):
    one = _towers.by_caption(batch, self.config.captions_per_image)
    images = self._normalise(one["image"][:1])
    return self.towers.init(rng, images, one["text"][:1])["params"]

  def loss(self, params, batch, rng, train: bool):
    del rng, train  # Nothing here is random.
    zimg, ztxt = self._embed_pair(
        params, _towers.by_caption(batch, self.config.captions_per_image))
    bias = params["b"][0] if "b" in params else 0.0
    return contrastive.contrastive_loss(
        zimg, ztxt, jnp.exp(params["t"])[0], bias, self.config.contrast)

  def embed_image(self, params, batch):
    """(b, d): whole images, whatever `pool` is."""
    zimg, _, _ = self.towers.apply({"params": params}, self._normalise(batch["image"]))
    return zimg

  def embed_text(self, params, batch):
    """(b, d)."""
    _, ztxt, _ = self.towers.apply({"params": params}, None, batch["text"])
    return ztxt

  def embed_region(self, params, batch, selection: str = "low"):
    """zimg, ztxt (b, d) of the region: the tokens on its box, if the task pools those."""
    if selection != "low":
      raise ValueError(f"selection={selection!r}: this model has one scale and selects nothing; "
                       "expected 'low'")
    zimg, ztxt = self._embed_pair(params, batch)
    return {"zimg": zimg, "ztxt": ztxt}

  def _embed_pair(self, params, batch):
    """zimg, ztxt (n, d), pooled as the config says, for n / b captions of each of b images."""
    images = self._normalise(batch["image"])
    if self.config.pool == "image":
      return self.towers.apply({"params": params}, images, batch["text"])[:2]

    def region(towers, mask):
      y, _ = towers.img.encode(towers.img.embed(images))
      y = jnp.repeat(y, mask.shape[0] // y.shape[0], axis=0)
      z, _ = towers.txt(batch["text"])
      return two_towers.normalize(towers.img.pool(y, mask)), two_towers.normalize(z)

    return self.towers.apply({"params": params}, self._mask(batch), method=region)

  def _normalise(self, image):
    _towers.check_image(image, self.image_size)
    mean, std = np.float32(self.config.mean), np.float32(self.config.std)
    return (image.astype(jnp.float32) / 255.0 - mean) / std

  def _mask(self, batch):
    """Tokens on the sample's box (b, t)."""
    size = (self.image_size, self.image_size)
    hits = boxes.hit_map(batch["box"], size, self.vision.posemb_grid)
    return hits.reshape(hits.shape[0], -1)
