"""PS3 without boxes: bottom-up selection is taught by surprise, and images by their captions alone.

Ours. Batches carry images and their captions, no regions: what is looked at is what the bottom-up
score puts first, nothing is forced, all that was selected is pooled, and contrasted with the
captions, as is the low-resolution pass. The score is taught to find the cells whose detail the
low-resolution view foretells worst (`objectives.surprise`). Top-down selection is not taught.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.core import typed
from big_vision_ext.models import selection_head
from big_vision_ext.models import surprise as details
from big_vision_ext.objectives import contrastive
from big_vision_ext.objectives import surprise as surprises

PARAMS = "surprise"


@dataclasses.dataclass(frozen=True)
class Surprise:
  """`config.model.surprise` of the task "ps3".

  Attributes:
    hidden: width of the network that foretells detail from the low-resolution view; 0: there is
      none, and no detail is foretold, which is of the image alone and cheap.
    side: of a cell in pixels, at the resolution of the detail.
    share: of the cells of an image that its score is to find.
  """

  hidden: int = 128
  side: int = 32
  share: float = 0.1

  def __post_init__(self):
    if self.hidden < 0 or self.side < 1 or not 0 < self.share < 1:
      raise typed.ConfigError(
          f"config.model.surprise: hidden={self.hidden}, side={self.side}, share={self.share}: "
          "expected a width or 0, a number of pixels, and a share between 0 and 1")


def check(config, vision) -> None:
  """Raises ConfigError for settings of the task that need boxes."""
  for name, plain in (("captions_per_image", 1), ("tiles", 0), ("max_boxes", 0)):
    if (value := getattr(config, name)) != plain:
      raise typed.ConfigError(
          f"config.model.{name}={value} with surprise: it is about regions, and none is read; "
          f"expected {plain} (and as much of config.input.{name})")
  if vision.look_policy:
    raise typed.ConfigError("config.model.image.look_policy=True with surprise: what later looks "
                            "should find is taught by boxes; expected False")


def init(config: Surprise, rng, vision) -> dict:
  """Parameters of the network that foretells, if there is one."""
  if not config.hidden:
    return {}
  view = jnp.zeros((1, *vision.cells, 3 * vision.patch_size**2))
  return {PARAMS: _network(config).init(rng, view)["params"]}


def surprise_of(config: Surprise, params, image, vision
                ) -> tuple[Float[Array, "b y x"], Float[Array, ""] | None]:
  """The surprise of each cell, and the loss of what foretold it, None without a network."""
  view, detail = details.views(image, vision.cells[0], vision.scales[0], config.side)
  if not config.hidden:
    return surprises.surprise(detail, jnp.zeros_like(detail)), None
  foretold = _network(config).apply({"params": params[PARAMS]}, view)
  return surprises.surprise(detail, foretold), jnp.mean((detail - foretold) ** 2)


def _network(config: Surprise) -> details.DetailPredictor:
  return details.DetailPredictor(config.hidden, 3 * config.side**2)


def loss(task, params, batch):
  """The training loss and its metrics; of `batch`, "image" and "text" are read."""
  c, image = task.config, batch["image"]
  ztxt = task.embed_text(params, batch)
  _, out = task.vision.apply({"params": params["img"]}, image)
  scale = jnp.exp(params["t"])[0], params["b"][0]
  contrasts = {name: contrastive.contrastive_loss(
      selection_head.l2_normalize(out[f"pooled_{name}"]), ztxt, *scale, c.contrast)
      for name in ("low", "high")}
  contrast = 0.5 * (contrasts["low"][0] + contrasts["high"][0])
  value, foretelling = surprise_of(c.surprise, params, image, task.vision)
  count = max(1, round(c.surprise.share * value[0].size))
  where, terms = surprises.teach(out["bottomup"]["score"], value, count,
                                 task.vision.grids(image.shape[1:3]), c.selection_loss)
  total = contrast + c.selection_weight * where
  metrics = contrasts["high"][1] | terms | {
      "loss_contrastive": contrast, "loss_contrastive_low": contrasts["low"][0],
      "loss_selection": where}
  if foretelling is not None:
    total += foretelling
    metrics["loss_foretelling"] = foretelling
  return total, metrics


def flops(config: Surprise, vision) -> int:
  """FLOPs of the network that foretells on one image, forward."""
  seen, foretold = 9 * 3 * vision.patch_size**2, 3 * config.side**2
  return 2 * vision.cells[0] * vision.cells[1] * config.hidden * (seen + foretold)
