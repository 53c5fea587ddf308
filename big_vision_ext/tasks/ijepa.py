"""I-JEPA: predict a teacher's features of hidden blocks (Assran et al. 2023).

The encoder's parameters lie at the top of the tree, with the names of a ViT; the `predictor` and
the `teacher` beside them. The teacher is frozen for the optimiser and follows the encoder after
each step: `optim.freeze` must have ("teacher/.*", "pos_embedding").
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, patches, typed
from big_vision_ext.models import ijepa, vit
from big_vision_ext.objectives import masks, multiblock
from big_vision_ext.tasks import _teacher, _towers

PREDICTOR = "predictor"


@dataclasses.dataclass(frozen=True)
class Blocks:
  """Which tokens are seen and predicted; see `objectives.multiblock.make`."""

  num_context: int
  block_size: int
  num_blocks: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "ijepa".

  Attributes:
    image: fields of `models.ijepa.Encoder`, with `variant` and `image_size` as shorthands.
    predictor: fields of `models.ijepa.Predictor` but those that follow from the encoder's.
    blocks: see `Blocks`.
    momentum: how much of itself the teacher keeps at the first step.
    momentum_steps: over so many steps that rises linearly to 1; 0: it stays. The run's length.
  """

  image: dict[str, Any]
  blocks: Blocks
  predictor: dict[str, Any] = dataclasses.field(default_factory=dict)
  momentum: float = 0.996
  momentum_steps: int = 0

  def __post_init__(self):
    _teacher.check(self.momentum, self.momentum_steps, ("momentum", "momentum_steps"))


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
    c = self.config
    set_field = lambda name, value: object.__setattr__(self, name, value)
    set_field("vision", vit.build(
        ijepa.Encoder, _towers.plain(c.image), "config.model.image"))
    v = self.vision
    if self.image_size % v.patch_size:
      raise typed.ConfigError(f"config.model.image.image_size={self.image_size} is no multiple of "
                              f"patch_size={v.patch_size}")
    follows = dict(out_dim=v.width, grid=tuple(v.posemb_grid), dtype=v.dtype, ln_eps=v.ln_eps,
                   param_dtype=v.param_dtype, scan=v.scan, remat_policy=v.remat_policy)
    set_field("predictor", vit.build(
        ijepa.Predictor, follows | _towers.plain(c.predictor), "config.model.predictor"))
    try:
      multiblock.check(v.posemb_grid, c.blocks.num_context, c.blocks.num_blocks,
                       c.blocks.block_size)
    except ValueError as error:
      raise typed.ConfigError(f"config.model.blocks: {error}") from error
    set_field("outputs", {"image": self.embed_image})

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example: encoder and predictor three times, the teacher once."""
    return flops.train(self._trained_flops(), frozen=self.forward_flops())

  def forward_flops(self, selected: Sequence[int] = ()) -> int:
    """FLOPs of the encoder on one whole image."""
    del selected
    v = self.vision
    return flops.vit(tokens=math.prod(v.posemb_grid), width=v.width, depth=v.depth,
                     mlp_dim=v.mlp_dim, patch_size=v.patch_size, pool_type="none")

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self.image_size, self.image_size, 3)
    return {"image": jax.ShapeDtypeStruct(shape, np.uint8)}

  def init(self, rng, batch):
    of_encoder, of_predictor = jax.random.split(rng)
    image = batch["image"][:1]
    encoder = self.vision.init(of_encoder, image)["params"]
    drawn = self._blocks(rng, 1)
    features = jnp.zeros((*drawn.context.shape, self.vision.width), self.vision.dtype)
    predictor = self.predictor.init(of_predictor, features, drawn.context, drawn.target)["params"]
    return {**encoder, PREDICTOR: predictor, _teacher.NAME: _teacher.of(encoder, encoder)}

  def loss(self, params, batch, rng, train: bool):
    """Smooth L1 distance (Huber's, of width 1) from the teacher's normed features."""
    del train
    image = batch["image"]
    _towers.check_image(image, self.image_size)
    return self.loss_under(params, image, self._blocks(rng, len(image)))

  def loss_under(self, params, image, drawn: multiblock.Blocks):
    """The loss with blocks that are given, and metrics."""
    predicted = self.predict(params, image, drawn)
    wanted = self.targets(params, image, drawn)
    error = jnp.abs(predicted - wanted)
    return jnp.mean(jnp.where(error < 1.0, 0.5 * error**2, error - 0.5)), {
        # Near 0 where features of different tokens have become the same.
        "teacher_deviation": jnp.mean(jnp.std(wanted, axis=(0, 1, 2)))}

  def predict(self, params, image, drawn: multiblock.Blocks):
    """(b, g, m, d): predicted features of the blocks, from the context alone."""
    seen = self.vision.apply({"params": self._encoder(params)}, image, drawn.context)
    return self.predictor.apply({"params": params[PREDICTOR]}, seen, drawn.context, drawn.target)

  def targets(self, params, image, drawn: multiblock.Blocks):
    """(b, g, m, d): the teacher's features of the blocks; nothing is learned through them."""
    whole = ijepa.normed(self.vision.apply({"params": params[_teacher.NAME]}, image))
    chosen = patches.take(whole, drawn.target.reshape(len(image), -1))
    return jax.lax.stop_gradient(chosen.reshape(*drawn.target.shape, -1))

  def after_update(self, params, step):
    """The teacher follows, see `_teacher`."""
    c = self.config
    return _teacher.follow(params, step, c.momentum, c.momentum_steps)

  def embed_image(self, params, batch):
    """(b, d): the mean of the teacher's tokens, whole images, as published evaluations take it."""
    tokens = self.vision.apply({"params": params[_teacher.NAME]}, batch["image"])
    return tokens.astype(jnp.float32).mean(axis=1)

  def _encoder(self, params):
    return {k: v for k, v in params.items() if k not in (PREDICTOR, _teacher.NAME)}

  def _blocks(self, rng, batch_size: int) -> multiblock.Blocks:
    c = self.config.blocks
    return multiblock.make(masks.sample_keys(rng, batch_size), tuple(self.vision.posemb_grid),
                           c.num_context, c.num_blocks, c.block_size)

  def _trained_flops(self) -> int:
    v, p, c = self.vision, self.predictor, self.config.blocks
    seen = flops.patches(c.num_context, v.width, v.patch_size)
    seen += v.depth * flops.block(c.num_context, v.width, v.mlp_dim)
    ends = 2 * (c.num_context + c.num_blocks * c.block_size) * v.width * p.width
    each = p.depth * flops.block(c.num_context + c.block_size, p.width, p.mlp_dim)
    return seen + ends + c.num_blocks * each
