"""What does a frozen encoder say of pictures? The image tower of another task, without its text.

Its parameters are the image tower's under the names that they have there: `config.init.map` of a
pair of towers is `(("img/(.*)", r"encoder/\\1"),)`, with `allow_extra=("txt/.*", "t", "b")`; of a
classifier `(("(.*)", r"encoder/\\1"),)`. `optim.freeze` must name them, "encoder/.*".
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from big_vision_ext import tasks
from big_vision_ext.core import typed
from big_vision_ext.objectives import bicubic


@dataclasses.dataclass(frozen=True)
class Spec:
  """`config.model.encoder`.

  Attributes:
    task: whose image tower: "siglip", "clip" or "classify". (PS3's is a SigLIP's, at its lowest
      scale.)
    model: `config.model` of that task.
  """

  task: Literal["siglip", "clip", "classify"]
  model: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Encoder:
  """A tower that is never trained.

  Attributes:
    vision: its module.
    size: side of the images that it takes, in pixels.
    mean, std: its pixel normalisation, where white is 1.
    width: of the vectors.
  """

  vision: Any
  size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  width: int

  def init(self, rng: jax.Array) -> Any:
    """Random values; those that count come from weights."""
    return self.vision.init(rng, jnp.zeros((1, self.size, self.size, 3)))["params"]

  def __call__(self, params: Any, pixels: Float[Array, "b y x 3"], blocks: bool = False
               ) -> tuple[Float[Array, "b d"], Float[Array, "b t e"] | None]:
    """Pictures of any size, RGB in [0, 1], float32.

    They are resized until the shorter side is `size`, bicubically with antialiasing (as Pillow and
    CLIP's preprocessing), and the square in the middle is looked at.

    Args:
      params: the tower's.
      pixels: the pictures.
      blocks: give the patch tokens in the middle of the tower too.

    Returns:
      Unit vectors, float32, and tokens of the block at half the depth, rounded down, or the first.
    """
    x = (self.framed(pixels) - np.float32(self.mean)) / np.float32(self.std)
    found, out = self.vision.apply({"params": params}, x)
    vector = out.get("feature", found).astype(jnp.float32)
    # A vector of zeros, as of a head that was never trained, stays one and has a gradient.
    vector = vector * jax.lax.rsqrt(jnp.sum(vector**2, axis=-1, keepdims=True) + 1e-12)
    if not blocks:
      return vector, None
    first = self.vision.num_cls if self.vision.pool_type == "tok" else 0
    middle = max(self.vision.depth // 2 - 1, 0)
    return vector, out["blocks"][middle][:, first:].astype(jnp.float32)

  def framed(self, pixels: Float[Array, "b y x 3"]) -> Float[Array, "b s s 3"]:
    """The square in the middle at the tower's size."""
    (h, w), s = pixels.shape[1:3], self.size
    h, w = max(s, round(h * s / min(h, w))), max(s, round(w * s / min(h, w)))
    x = bicubic.resize(pixels, (h, w), "pillow")
    y0, x0 = (h - s) // 2, (w - s) // 2
    return x[:, y0:y0 + s, x0:x0 + s]


def make(spec: Spec, where: str) -> Encoder:
  """The image tower of a task.

  Raises:
    ConfigError: a tower without one vector for an image, or settings that its task refuses.
  """
  try:
    task = tasks.make(spec.task, spec.model)
  except ValueError as error:
    raise typed.ConfigError(
        f"{where}.model is read as a config.model of {spec.task!r}: {error}") from error
  vision = task.vision
  if spec.task != "classify" and vision.pool_type == "none":
    raise typed.ConfigError(f"{where}.model.image.pool_type='none': expected a tower that gives "
                            "one vector for an image")
  if getattr(vision, "pooled_only", False):
    # Of its only block, a shallow tower would have no tokens to compare; parameters are the same.
    vision = vision.clone(pooled_only=vision.depth > 1)
  image = jax.ShapeDtypeStruct((1, task.image_size, task.image_size, 3), np.float32)
  found, out = jax.eval_shape(
      lambda x: vision.init_with_output(jax.random.key(0), x)[0], image)
  return Encoder(vision, task.image_size, task.config.mean, task.config.std,
                 out.get("feature", found).shape[-1])
