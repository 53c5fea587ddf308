"""What may `config.model` of the task "content_prior" say, and what of it fits together?"""

import dataclasses
from typing import Any, Literal

from big_vision_ext.core import typed
from big_vision_ext.tasks import _encoder

_TRAINS_CODES = ("autoencoder", "scratch")


@dataclasses.dataclass(frozen=True)
class Revive:
  """Codes that are hardly used are replaced by latent vectors of the last batch: ours.

  Also at the first step, where that places the codes among the data.

  Attributes:
    steps: how often.
    threshold: in even shares; a code that is used less is dead.
    decay: of the running shares.
  """

  steps: int = 100
  threshold: float = 0.03
  decay: float = 0.99

  def __post_init__(self):
    if self.steps < 1 or not 0 <= self.threshold < 1 or not 0 <= self.decay < 1:
      raise typed.ConfigError(
          f"config.model.revive: steps={self.steps}, threshold={self.threshold}, "
          f"decay={self.decay}: expected at least one step, and two shares below 1")


@dataclasses.dataclass(frozen=True)
class Critic:
  """A critic that tells drawn images from real ones, trained along (hinge loss).

  Attributes:
    start: updates before it takes part. CodeFormer: 30,001.
    weight: of its term, on top of the balance with the pixels at the last layer.
    largest: bound of that balance.
    width, layers: see `models.vq_parts.Critic`.
  """

  start: int = 30_001
  weight: float = 0.8
  largest: float = 1e4
  width: int = 64
  layers: int = 3


@dataclasses.dataclass(frozen=True)
class Perceptual:
  """Features of a frozen encoder that the drawn image should share with the clean one.

  In place of LPIPS, whose weights are not at hand: mean absolute difference of the tokens in the
  middle of a tower of this codebase. Its parameters are under `eye`.

  Attributes:
    encoder: which tower; `config.init` is to bring its weights.
    weight: of the term.
  """

  encoder: _encoder.Spec
  weight: float


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "content_prior".

  Attributes:
    image: fields of `models.vq_autoencoder.VQAutoencoder`, and `image_size` of training.
    stage: see the module's docstring.
    degrade: what happens to the clean images, see `objectives.degradations.make`; None for the
      stage "autoencoder", and where batches carry pairs (`input.pairs`).
    beta: of the encoder's commitment to the codes.
    feature_weight, code_weight: of "adapt": squared distance to the clean image's codes, and cross
      entropy of which codes they are. CodeFormer's numbers.
    temperature: of the codes' likelihood where no transformer gives it.
    w: of the output "restore".
    fuse_w: of "fuse": w is drawn between these for each sample; equal, it is fixed.
    revive: of stages that train codes; None: dead codes stay dead.
    critic, perceptual: further terms of stages that train the decoder; None: pixels alone.
  """

  image: dict[str, Any]
  stage: Literal["autoencoder", "scratch", "adapt", "fuse"] = "autoencoder"
  degrade: dict[str, Any] | None = None
  beta: float = 0.25
  feature_weight: float = 1.0
  code_weight: float = 0.5
  temperature: float = 1.0
  w: float = 0.0
  fuse_w: tuple[float, float] = (0.0, 1.0)
  revive: Revive | None = None
  critic: Critic | None = None
  perceptual: Perceptual | None = None


def check(c: Config, net, image_size: int) -> None:
  """Raises ConfigError where settings do not fit each other."""
  def refuse(key, value, why):
    raise typed.ConfigError(f"config.model.{key}={value!r}: {why}")

  trains_codes = c.stage in _TRAINS_CODES
  if image_size % net.factor:
    refuse("image.image_size", image_size, f"is no multiple of {net.factor}, as "
           f"{len(net.mults) - 1} levels halve it")
  if c.stage == "autoencoder" and c.degrade is not None:
    refuse("degrade", c.degrade, "the stage 'autoencoder' sees clean images only: leave it None")
  if bool(net.fuse_levels) != (c.stage == "fuse"):
    refuse("image.fuse_levels", net.fuse_levels, f"of the stage {c.stage!r}: the stage 'fuse' "
           "trains a skip and needs its levels, e.g. (1, 2); the others have none")
  if trains_codes and net.code_layers:
    refuse("image.code_layers", net.code_layers, f"the stage {c.stage!r} takes the nearest codes; "
           "what predicts them comes with 'adapt'")
  if c.revive and not (trains_codes and net.quantize):
    refuse("revive", c.revive, "no codes are trained here: leave it None")
  for key in ("critic", "perceptual"):
    if getattr(c, key) and not trains_codes:
      refuse(key, getattr(c, key), f"the stage {c.stage!r} has none: leave it None")
  if c.perceptual and c.perceptual.weight <= 0:
    refuse("perceptual.weight", c.perceptual.weight, "expected more than 0; None for no such term")
  if c.critic and c.critic.width % net.groups:
    refuse("critic.width", c.critic.width, f"must divide by groups={net.groups} of the norms")
  if not 0 <= c.w <= 1 or c.w and c.stage != "fuse":
    refuse("w", c.w, "expected 0, or in the stage 'fuse' up to 1")
  if not 0 <= c.fuse_w[0] <= c.fuse_w[1] <= 1:
    refuse("fuse_w", c.fuse_w, "expected two numbers between 0 and 1, the lower first")
  for key in ("beta", "feature_weight", "code_weight"):
    if getattr(c, key) < 0:
      refuse(key, getattr(c, key), "expected at least 0")
  if c.temperature <= 0:
    refuse("temperature", c.temperature, "expected more than 0")
