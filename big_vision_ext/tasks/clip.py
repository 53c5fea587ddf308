"""CLIP: two towers, trained so that of all captions of a batch an image finds its own, and back.

Radford et al. 2021 (arXiv 2103.00020). The towers are those of the published models, whose weights
load (`convert`): a vision transformer with a class token and a norm before its first block, and a
text transformer in causal order, read where the text ends. The loss compares all images with all
texts of the global batch; `contrast.duplicates` says what becomes of captions that occur more than
once in it. The temperature `t` is kept as its logarithm, as in SigLIP and in CLIP's `logit_scale`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from big_vision_ext.core import typed
from big_vision_ext.models import vit
from big_vision_ext.objectives import contrastive
from big_vision_ext.tasks import _towers

# Published models: image tower, pixels, text tower, width of the shared space.
VARIANTS = {
  "B/32": ("B/32", 224, "M", 512),
  "B/16": ("B/16", 224, "M", 512),
  "L/14": ("L/14", 224, "B", 768),
  "L/14@336": ("L/14", 336, "B", 768),
}
# What their towers are, whatever their sizes.
IMAGE = dict(pool_type="tok", cls_posemb=True, pre_norm=True, patch_bias=False, head_bias=False,
             head_zeroinit=False, posemb_fit="stretch", pooled_only=True, act="quick_gelu",
             ln_eps=1e-5)  # fmt: skip
TEXT = dict(vocab_size=49_408, text_len=77, pool_type="eot", causal=True, head_bias=False,
            act="quick_gelu", ln_eps=1e-5)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "clip".

  Attributes:
    variant: sizes of both towers: one of `VARIANTS`, or "" for those given below.
    image: fields of `models.vit.ViT`, with `variant` and `image_size` as shorthands, that differ
      from the variant's and from CLIP's (`IMAGE`); `num_classes` is the width of the shared space.
    text: fields of `models.text.TextTransformer` likewise (`TEXT`).
    temperature_init: what similarities are multiplied with at first.
    bias_init: what is added to them at first, for the sigmoid loss; None for none.
    max_temperature: the temperature is held between 1 and this after each step; None: it is free.
    contrast: the loss, how it is computed, and what becomes of copies.
    mean, std: pixel normalisation, in units where white is 1.
  """

  variant: str = ""
  image: dict[str, Any] = dataclasses.field(default_factory=dict)
  text: dict[str, Any] = dataclasses.field(default_factory=dict)
  temperature_init: float = 1 / 0.07
  bias_init: float | None = None
  max_temperature: float | None = 100.0
  contrast: contrastive.Contrast = contrastive.Contrast("softmax")
  mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
  std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)


def make(model_config: Mapping[str, Any]) -> "Task":
  """The task of a `config.model`; raises ConfigError or ValueError naming the key that is wrong."""
  # The loss is CLIP's where only something else about it is said.
  given = dict(model_config)
  if isinstance(given.get("contrast"), Mapping):
    given["contrast"] = {"form": "softmax", **given["contrast"]}
  config = typed.build(Config, given, "config.model")
  image, text = sizes(config.variant)
  image, text = IMAGE | image | config.image, TEXT | text | config.text
  if not image.get("num_classes"):
    raise typed.ConfigError(
        f"config.model.image.num_classes={image.get('num_classes')!r}: expected the width of the "
        f"space of images and texts, or config.model.variant, one of {', '.join(VARIANTS)}")
  if config.max_temperature is not None and not config.max_temperature >= 1:
    raise typed.ConfigError(
        f"config.model.max_temperature={config.max_temperature}: expected at least 1, or None")
  config = dataclasses.replace(config, image=image, text=text)
  return Task(config, _towers.image_size(image))


def sizes(variant: str) -> tuple[dict[str, Any], dict[str, Any]]:
  """Settings of the image and of the text tower of a published model; none for ""."""
  if not variant:
    return {}, {}
  if variant not in VARIANTS:
    raise typed.ConfigError(typed.unknown_key(
        f"config.model.variant={variant!r}", variant, list(VARIANTS)))
  of_image, pixels, of_text, width = VARIANTS[variant]
  image = vit.variant(of_image) | dict(image_size=pixels, num_classes=width)
  return image, vit.variant(of_text)


@dataclasses.dataclass(frozen=True)
class Task(_towers.Pair):
  """See the module's docstring and `_towers.Pair`."""

  config: Config

  def __post_init__(self):
    super().__post_init__()
    self.outputs.update(image_features=self.image_features, text_features=self.text_features)

  def after_update(self, params, step):
    del step
    largest = self.config.max_temperature
    return params if largest is None else _towers.clamp_temperature(params, largest)

  def image_features(self, params, batch):
    """(b, d), float32: images in the shared space, as long as the tower makes them."""
    images = self.normalise(batch["image"])
    features = lambda towers: towers.img(images)[0].astype(jnp.float32)
    return self.towers.apply({"params": params}, method=features)

  def text_features(self, params, batch):
    """(b, d), float32: texts likewise."""
    features = lambda towers: towers.txt(batch["text"])[0].astype(jnp.float32)
    return self.towers.apply({"params": params}, method=features)
