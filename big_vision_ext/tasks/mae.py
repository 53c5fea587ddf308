"""Masked autoencoding: predict the patches that are hidden (MAE, Pixio, CrossMAE).

Each image is cut into patches, a few are encoded, and a decoder predicts the pixels of the others
(He et al. 2022). The mask of a sample is a function of the seed, the step and the sample's place
in the global batch: the same on any mesh, and after a resume.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, patches, typed
from big_vision_ext.models import mae, vit
from big_vision_ext.objectives import masks, mim, parts
from big_vision_ext.tasks import _towers


@dataclasses.dataclass(frozen=True)
class MaskConfig:
  """Which patches are seen.

  Attributes:
    family: one of `objectives.masks.FAMILIES`.
    num_visible: patches that are seen, of all.
    cell: see `masks.make`.
    num_target: hidden patches that are predicted, drawn at random; 0 for all of them.
  """

  num_visible: int
  family: str = "random"
  cell: int = 1
  num_target: int = 0


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "mae".

  Attributes:
    image: fields of `models.mae.MaskedAutoencoder`, with `variant` and `image_size` as shorthands.
    mask: see `MaskConfig`.
    norm_pix: whether each target patch is normalised by its own mean and deviation.
    pool: what evaluators take as the embedding of an image: the mean of its class tokens ("cls"),
      or of its patches ("mean").
    decoder_parts: in training the decoder takes the batch in so many parts, one after the other,
      each with its gradients, so that the results of one part are kept and not those of all; see
      `objectives.parts`. Divides the batch of every device.
  """

  image: dict[str, Any]
  mask: dict[str, Any]
  norm_pix: bool = True
  pool: Literal["cls", "mean"] = "cls"
  decoder_parts: int = 1


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  config = typed.build(Config, model_config, "config.model")
  return Task(config, _towers.image_size(config.image))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring. `image_size` is in pixels, square."""

  config: Config
  image_size: int

  def __post_init__(self):
    set_field = lambda name, value: object.__setattr__(self, name, value)
    image = _towers.plain(self.config.image)
    set_field("vision", vit.build(mae.MaskedAutoencoder, image, "config.model.image"))
    set_field("mask", typed.build(MaskConfig, self.config.mask, "config.model.mask"))
    if self.image_size % self.vision.patch_size:
      raise typed.ConfigError(
          f"config.model.image.image_size={self.image_size} is no multiple of patch_size="
          f"{self.vision.patch_size}")
    if self.config.decoder_parts < 1:
      raise typed.ConfigError(
          f"config.model.decoder_parts={self.config.decoder_parts}: expected at least 1")
    if not 0 <= self.mask.num_target <= self.num_patches - self.mask.num_visible:
      raise typed.ConfigError(
          f"config.model.mask.num_target={self.mask.num_target}: of {self.num_patches} patches "
          f"{self.num_patches - self.mask.num_visible} are hidden")
    # Now, not in the middle of a trace.
    jax.eval_shape(lambda: self._masks(jax.random.key(0), 1))
    set_field("outputs", {"image": self.embed_image, "tokens": self.tokens,
                          "reconstruct": self.reconstruct})

  @property
  def num_patches(self) -> int:
    return math.prod(self.vision.posemb_grid)

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example: three times the forward pass."""
    return flops.train(self.forward_flops())

  def forward_flops(self) -> int:
    """FLOPs of one image in training: the visible patches encoded, the hidden ones predicted."""
    v = self.vision
    targets = self.mask.num_target or self.num_patches - self.mask.num_visible
    return flops.mae(
        visible=self.mask.num_visible, targets=targets, num_cls=v.num_cls, width=v.width,
        depth=v.depth, mlp_dim=v.mlp_dim, patch_size=v.patch_size, decoder=v.decoder,
        decoder_width=v.decoder_width, decoder_depth=v.decoder_depth,
        decoder_mlp_dim=v.decoder_mlp_dim)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self.image_size, self.image_size, 3)
    return {"image": jax.ShapeDtypeStruct(shape, np.uint8)}

  def init(self, rng, batch):
    mask = self._masks(rng, 1)
    return self.vision.init(rng, batch["image"][:1], mask.visible, mask.target)["params"]

  def loss(self, params, batch, rng, train: bool):
    image = batch["image"]
    _towers.check_image(image, self.image_size)
    dropout = jax.random.fold_in(rng, 1) if train and self.vision.drop_path else None
    return self.loss_under(params, image, self._masks(rng, len(image)), dropout), {}

  def loss_under(self, params, image, mask: masks.Mask, dropout=None):
    """The loss with a mask that is given; `dropout` is the key of branches to leave out, if any."""
    drops = dropout is not None
    how = dict(train=drops, rngs={"dropout": dropout} if drops else None)
    n = self.config.decoder_parts
    if n == 1:
      pred, _ = self.vision.apply({"params": params}, image, mask.visible, mask.target, **how)
      return mim.masked_mse(pred, self._targets(image, mask.target), mask.weight)
    if len(image) % n:
      raise ValueError(f"config.model.decoder_parts={n} does not divide a batch of {len(image)}")
    seen, _ = self.vision.apply({"params": params}, image, mask.visible, method="see", **how)
    decoder = {name: p for name, p in params.items() if name in mae.DECODER_PARAMS}
    encoder = {name: p for name, p in params.items() if name not in decoder}
    error = parts.summed(self._error, n, decoder, encoder, seen, (image, mask))
    return error / mim.total_weight(mask.weight)

  def _error(self, decoder, encoder, seen, rows):
    """The sum of the weighted errors of some images, given what the encoder makes of them."""
    image, mask = rows
    pred = self.vision.apply({"params": encoder | decoder}, seen, mask.visible, mask.target,
                             method="predict")
    return mim.masked_error(pred, self._targets(image, mask.target), mask.weight)

  def embed_image(self, params, batch):
    """(b, d): whole images, nothing hidden."""
    _, out = self.vision.apply({"params": params}, batch["image"])
    return out["pooled"] if self.config.pool == "cls" else out["encoded"].mean(axis=1)

  def tokens(self, params, batch):
    """(b, gy, gx, d): the normed patch tokens of whole images, at their places."""
    _, out = self.vision.apply({"params": params}, batch["image"])
    encoded = out["encoded"]
    return encoded.reshape(len(encoded), *self.vision.posemb_grid, -1)

  def reconstruct(self, params, batch, seed: int = 0):
    """What the model makes of images whose masks are a function of `seed` and of each row's index.

    Args:
      params: the task's.
      batch: with `image` (b, y, x, 3) and optionally `index` (b,), which says what mask a row
        gets; by default its place in the batch.
      seed: of the masks.

    Returns:
      input (b, y, x, 3), the image with grey where it is hidden; hidden (b, gy, gx), 1 where a
      patch was predicted; loss (b,), of each image as in training; prediction (b, y, x, 3),
      predicted patches in the image's range 0..255, un-normalised with
      the true patch's own mean and deviation where the model predicts normalised ones, and the
      image itself elsewhere.
    """
    image = batch["image"]
    index = batch.get("index", jnp.arange(len(image)))
    key = jax.random.key(seed)
    mask = self._mask_of(jax.vmap(lambda i: jax.random.fold_in(key, i))(index))
    pred, _ = self.vision.apply({"params": params}, image, mask.visible, mask.target)
    error = jnp.mean((pred - self._targets(image, mask.target)) ** 2, axis=-1)
    raw = patches.patchify(self._normalise(image), self.vision.patch_size)
    if self.config.norm_pix:
      mean, std = mim.patch_stats(patches.take(raw, mask.target))
      pred = pred * std + mean
    v, rows = self.vision, jnp.arange(len(image))[:, None]

    def painted(values):
      filled = raw.at[rows, mask.target].set(values)
      whole = patches.unpatchify(filled, v.posemb_grid, v.patch_size)
      return (whole * np.float32(v.std) + np.float32(v.mean)) * 255.0

    grey = jnp.tile((0.5 - np.float32(v.mean)) / np.float32(v.std), v.patch_size**2)
    return {"input": painted(grey), "prediction": painted(pred),
            "hidden": masks.hidden_map(mask, self.vision.posemb_grid),
            "loss": jnp.sum(error * mask.weight, 1) / jnp.sum(mask.weight, 1)}

  def _masks(self, rng, batch_size: int) -> masks.Mask:
    return self._mask_of(masks.sample_keys(rng, batch_size))

  def _mask_of(self, keys) -> masks.Mask:
    c = self.mask
    mask = masks.make(c.family, keys, self.vision.posemb_grid, c.num_visible, cell=c.cell)
    return masks.subset(mask, keys, c.num_target) if c.num_target else mask

  def _targets(self, image, index):
    chosen = patches.take(patches.patchify(image, self.vision.patch_size), index,
                          self.vision.select)
    shape = chosen.shape
    chosen = self._normalise(chosen.reshape(*shape[:2], -1, 3)).reshape(shape)
    return mim.pixel_targets(chosen, self.config.norm_pix)

  def _normalise(self, pixels):
    v = self.vision
    return (pixels.astype(jnp.float32) / 255.0 - np.float32(v.mean)) / np.float32(v.std)
