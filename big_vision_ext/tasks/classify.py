"""Supervised classification on top of a pretrained encoder: fine-tuning, and the linear probe.

The protocols are those of masked autoencoders (He et al. 2022, sec. A.1): fine-tuning with mixed
and erased images, label smoothing and stochastic depth, or a linear layer behind a BatchNorm on a
frozen encoder. Images are mixed on the device, within the global batch.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import flops, typed
from big_vision_ext.models import classifier, vit
from big_vision_ext.objectives import mixing
from big_vision_ext.tasks import _towers


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "classify".

  Attributes:
    image: fields of `models.classifier.Classifier`, with `variant` and `image_size` as shorthands;
      what is below is not repeated there.
    num_classes: as `input.num_classes`.
    feature: of which the head sees: the mean of the patches ("mean") or the class token ("cls").
    probe: train the head alone; `optim.freeze` must name the rest ("(?!head/).*").
    head_std: deviation of the head's initial kernel; None: 2e-5 to fine-tune, 0.01 to probe.
    label_smoothing: share of the target that is spread over all classes.
    mixup, cutmix: parameters of their Beta distributions; 0 for none.
    erasing: how often a part of an image is replaced by noise.
    mean, std: pixel normalisation, in units where white is 1.
  """

  image: dict[str, Any]
  num_classes: int
  feature: Literal["mean", "cls"] = "mean"
  probe: bool = False
  head_std: float | None = None
  label_smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0
  erasing: float = 0.0
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)

  def __post_init__(self):
    if self.num_classes < 2:
      raise typed.ConfigError(
          f"config.model.num_classes={self.num_classes}: expected at least 2, as many as the data "
          "has (and config.input.num_classes says)")
    for name in ("label_smoothing", "erasing"):
      if not 0 <= getattr(self, name) <= 1:
        raise typed.ConfigError(
            f"config.model.{name}={getattr(self, name)}: expected a share between 0 and 1")
    for name in ("mixup", "cutmix"):
      if not getattr(self, name) >= 0:
        raise typed.ConfigError(
            f"config.model.{name}={getattr(self, name)}: expected at least 0, which is none")


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  config = typed.build(Config, model_config, "config.model")
  return Task(config, _towers.image_size(config.image))


@dataclasses.dataclass(frozen=True)
class Task:
  """See the module's docstring. `image_size` is in pixels, square."""

  config: Config
  image_size: int

  # Fields of the model that no config may give: they follow from its other settings.
  follows = ("classes", "feature", "probe", "head_std", "final_norm")

  def __post_init__(self):
    c = self.config
    set_field = lambda name, value: object.__setattr__(self, name, value)
    std = (0.01 if c.probe else 2e-5) if c.head_std is None else c.head_std
    head = dict(classes=c.num_classes, feature=c.feature, probe=c.probe, head_std=std,
                final_norm=c.probe or c.feature == "cls")
    if given := sorted(set(self.follows) & c.image.keys()):
      raise typed.ConfigError(f"config.model.image.{given[0]}: is not to be given here; it follows "
                              "from config.model.{num_classes,feature,probe,head_std}")
    set_field("vision", vit.build(
        classifier.Classifier, _towers.plain(c.image) | head, "config.model.image"))
    set_field("outputs", {"image": self.embed_image, "logits": self.logits})

  @property
  def flops_per_example(self) -> int:
    """Model FLOPs of one training example; of a probe the encoder runs forward only."""
    if not self.config.probe:
      return flops.train(self.forward_flops())
    head = 2 * self.vision.width * self.config.num_classes
    return flops.train(head, frozen=self.forward_flops() - head)

  def forward_flops(self, selected: Sequence[int] = ()) -> int:
    """FLOPs of one image; nothing is selected here."""
    del selected
    v = self.vision
    return flops.vit(
        tokens=v.posemb_grid[0] * v.posemb_grid[1], width=v.width, depth=v.depth,
        mlp_dim=v.mlp_dim, patch_size=v.patch_size, pool_type=v.pool_type,
        num_classes=self.config.num_classes)

  def batch_spec(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch_size, self.image_size, self.image_size, 3)
    return {"image": jax.ShapeDtypeStruct(shape, np.uint8),
            "label": jax.ShapeDtypeStruct((batch_size,), np.int32)}

  def init(self, rng, batch):
    return self.vision.init(rng, self._normalise(batch["image"][:1]))["params"]

  def loss(self, params, batch, rng, train: bool):
    """Cross entropy; of a probe with `accuracy` on the batch."""
    c = self.config
    label = batch["label"]
    image, target = self._normalise(batch["image"]), jax.nn.one_hot(label, c.num_classes)
    rngs = {}
    if train:
      of_erasing, of_mixing, of_depth = jax.random.split(rng, 3)
      target = mixing.smoothed(label, c.num_classes, c.label_smoothing)
      if c.erasing:
        image = mixing.erase(of_erasing, image, c.erasing)
      if c.mixup or c.cutmix:
        draws = mixing.draw(of_mixing, len(image), image.shape[1:3], mixup=c.mixup,
                            cutmix=c.cutmix)
        image, target = mixing.mix(image, target, draws)
      rngs = {"dropout": of_depth}
    logits, out = self.vision.apply({"params": params}, image, train, rngs=rngs)
    loss = mixing.soft_cross_entropy(logits, target)
    # A number that is no class has a target of zeros, which would pass unnoticed.
    loss = jnp.where(jnp.all((label >= 0) & (label < c.num_classes)), loss, jnp.nan)
    statistics = out.get("statistics", {})
    metrics = {f"params/head_norm/{name}": x for name, x in statistics.items()}
    if c.probe:
      metrics["accuracy"] = jnp.mean((jnp.argmax(logits, axis=-1) == label).astype(jnp.float32))
    return loss, metrics

  def embed_image(self, params, batch):
    """(b, d): what the head sees of whole images, before the probe's norm."""
    _, out = self.vision.apply({"params": params}, self._normalise(batch["image"]))
    return out["feature"]

  def logits(self, params, batch):
    """(b, n), float32: scores of the classes, in the order of `input.classes`."""
    return self.vision.apply({"params": params}, self._normalise(batch["image"]))[0]

  def _normalise(self, image):
    _towers.check_image(image, self.image_size)
    c = self.config
    return (image.astype(jnp.float32) / 255.0 - np.float32(c.mean)) / np.float32(c.std)
