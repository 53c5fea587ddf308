"""Learning to predict what is out of focus: FocusMIM (Weiler et al. 2024, arXiv 2404.08526).

A convolutional autoencoder sees an image of which pixels are hidden and filled in, or blurred as
in the periphery of an eye, and predicts them. With crops drawn at random, a disc at the centre of a
crop is a random fixation on the image. The mask of a sample is a function of the seed, the step and
the sample's place in the global batch: the same on any mesh, and after a resume.

Pixels are in 0..1 and not normalised, for the encoder as well as for the loss.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, typed
from big_vision_ext.models import focusmim, vit
from big_vision_ext.objectives import masks, mim, pixel_masks
from big_vision_ext.tasks import _towers


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "focusmim".

  Attributes:
    image: fields of `models.focusmim.ConvAutoencoder`, and `image_size`.
    mask: what is hidden and how it is filled, see `objectives.pixel_masks.PixelMask`.
    foreground: training batches carry "foreground" (b, y, x), float32 in 0..1, cropped as the
      images are (`config.input.foreground`): the loss is weighted with it.
    pool: what evaluators take as the embedding of an image: the latent map as one vector
      ("flatten", as published) or its mean over places ("mean").
  """

  image: dict[str, Any]
  mask: pixel_masks.PixelMask = pixel_masks.PixelMask()
  foreground: bool = False
  pool: Literal["flatten", "mean"] = "flatten"


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  config = typed.build(Config, model_config, "config.model")
  return Task(config, _towers.image_size(config.image))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring. `image_size` is in pixels, square."""

  config: Config
  image_size: int

  # What is known of preprocessing, for exports.
  normalisation = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

  def __post_init__(self):
    c = self.config
    set_field = lambda name, value: object.__setattr__(self, name, value)
    image = {k: v for k, v in _towers.plain(c.image).items() if k != "image_size"}
    set_field("vision", vit.build(focusmim.ConvAutoencoder, image, "config.model.image"))
    if self.image_size % self.vision.factor:
      raise typed.ConfigError(
          f"config.model.image.image_size={self.image_size} is no multiple of "
          f"{self.vision.factor}: {len(self.vision.widths)} stages halve it")
    try:
      c.mask.check((self.image_size, self.image_size))
    except ValueError as error:
      raise typed.ConfigError(f"config.model.mask: {error}") from error
    if c.mask.attention == "foreground" and not c.foreground:
      raise typed.ConfigError("config.model.mask.attention='foreground' looks at the foreground "
                              "weights of the batch: set config.model.foreground=True, with an "
                              "input that carries them, or attention='random'")
    set_field("outputs", {"image": self.embed_image, "latent": self.latent,
                          "autoencode": self.autoencode, "reconstruct": self.reconstruct})

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example: three times the forward pass."""
    return flops.train(self.forward_flops())

  def forward_flops(self) -> int:
    """FLOPs of one image in training, encoded and decoded."""
    return sum(flops.conv_autoencoder(
        self.image_size, *focusmim.stages(self.vision.widths, self.vision.depth)))

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self.image_size, self.image_size)
    spec = {"image": jax.ShapeDtypeStruct((*shape, 3), np.uint8)}
    if self.config.foreground:
      spec["foreground"] = jax.ShapeDtypeStruct(shape, np.float32)
    return spec

  def init(self, rng, batch):
    return self.vision.init(rng, _unit(batch["image"][:1]))["params"]

  def loss(self, params, batch, rng, train: bool):
    del train
    image = batch["image"]
    _towers.check_image(image, self.image_size)
    target = _unit(image)
    if self.config.foreground and "foreground" not in batch:
      raise typed.ConfigError("config.model.foreground=True: the batch has no foreground weights; "
                              "set config.input.foreground='boxes' or 'mask'")
    seen, hidden = self._masked(masks.sample_keys(rng, len(image)), target, batch)
    pred, _ = self.vision.apply({"params": params}, seen)
    weight = self._weighted(hidden, batch)
    return mim.pixel_mse(pred, target, weight), {"hidden_share": jnp.mean(hidden)}

  def latent(self, params, batch):
    """(b, h, w, c), not negative: whole images, nothing hidden."""
    return self.vision.apply({"params": params}, _unit(batch["image"]), method="encode")

  def embed_image(self, params, batch):
    """(b, d): the latent map of whole images, as one vector or averaged over places."""
    latent = self.latent(params, batch)
    if self.config.pool == "mean":
      return latent.mean(axis=(1, 2))
    return latent.reshape(latent.shape[0], -1)

  def autoencode(self, params, batch):
    """(b, y, x, 3) in 0..1: what the decoder makes of whole images, nothing hidden."""
    return self.vision.apply({"params": params}, _unit(batch["image"]))[0]

  def reconstruct(self, params, batch, seed: int = 0):
    """What the model makes of images whose masks are a function of `seed` and of each row's index.

    Args:
      params: the task's.
      batch: with `image` (b, y, x, 3), optionally `foreground`, and optionally `index` (b,), which
        says what mask a row gets; by default its place in the batch.
      seed: of the masks.

    Returns:
      input (b, y, x, 3), what the model sees, 0..255; prediction (b, y, x, 3), 0..255, of the whole
      image; hidden (b, y, x), 1 where it is to be predicted; loss (b,), of each image as in
      training.
    """
    image = batch["image"]
    index = batch.get("index", jnp.arange(len(image)))
    key = jax.random.key(seed)
    target = _unit(image)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
    seen, hidden = self._masked(keys, target, batch)
    pred, _ = self.vision.apply({"params": params}, seen)
    weight = self._weighted(hidden, batch)
    loss = jax.vmap(lambda *one: mim.pixel_mse(*(x[None] for x in one)))(pred, target, weight)
    return {"input": 255.0 * seen, "prediction": 255.0 * pred, "hidden": hidden, "loss": loss}

  def _masked(self, keys, target, batch):
    return self.config.mask.apply(keys, target, batch.get("foreground"))

  def _weighted(self, hidden, batch):
    return hidden * batch["foreground"] if "foreground" in batch else hidden


def _unit(image):
  return image.astype(jnp.float32) / 255.0
