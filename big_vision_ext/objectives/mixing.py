"""What does a classifier see and what is it asked for, when images are erased and mixed?

Mixup (Zhang et al. 2018), CutMix (Yun et al. 2019), random erasing (Zhong et al. 2020) and label
smoothing, with the distributions of timm, for whole global batches on the device. Everything is a
function of a key and of arrays: the same on any mesh.

Image i is mixed with image b - 1 - i of the global batch. Each has draws of its own, where timm
draws once for all images of a device: the distribution of one image is the same, and no batch is
of one kind. b batch, n classes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class Draws(NamedTuple):
  """How each image of a batch is mixed.

  Attributes:
    own: share of an image's own target; of CutMix the share of the area that stays its own.
    cut: whether it is CutMix; else Mixup.
    box: top, bottom, left, right of the pixels that are pasted in, the ends excluded.
  """

  own: Float[Array, "b"]
  cut: Bool[Array, "b"]
  box: Int[Array, "b 4"]


def smoothed(label: Int[Array, "b"], classes: int, smoothing: float) -> Float[Array, "b n"]:
  """One-hot targets of which a share `smoothing` is spread over all classes, the own included."""
  return jax.nn.one_hot(label, classes) * (1.0 - smoothing) + smoothing / classes


def soft_cross_entropy(
  logits: Float[Array, "b n"], target: Float[Array, "b n"]
) -> Float[Array, ""]:
  """Mean over the batch of -sum target log softmax(logits), float32."""
  log_p = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  return -jnp.mean(jnp.sum(target * log_p, axis=-1))


def draw(
  key: Key[Array, ""], batch: int, size: tuple[int, int], *, mixup: float, cutmix: float,
  switch: float = 0.5
) -> Draws:
  """Draws for a batch.

  Args:
    key: of all randomness.
    batch: images.
    size: their rows and columns.
    mixup: both parameters of the Beta distribution of Mixup's shares; 0 for no Mixup.
    cutmix: the same of CutMix.
    switch: how often it is CutMix, where there are both.

  Raises:
    ValueError: neither of them.
  """
  if mixup <= 0 and cutmix <= 0:
    raise ValueError(f"mixup={mixup}, cutmix={cutmix}: expected one of them above 0.")
  keys = jax.random.split(key, 5)
  cut = jnp.full((batch,), not mixup > 0)
  if mixup > 0 and cutmix > 0:
    cut = jax.random.uniform(keys[0], (batch,)) < switch

  def share(key, alpha):
    if alpha in (0, 1):
      # Uniform, without the loops of rejection that other numbers take.
      return jax.random.uniform(key, (batch,)) * alpha
    return jax.random.beta(key, alpha, alpha, (batch,))

  of_mixup, of_cutmix = share(keys[1], mixup), share(keys[2], cutmix)
  box = []
  side = jnp.sqrt(1.0 - of_cutmix)
  for key, length in zip(keys[3:], size):
    half = jnp.floor(length * side).astype(jnp.int32) // 2
    centre = jax.random.randint(key, (batch,), 0, length)
    box += [jnp.clip(centre - half, 0, length), jnp.clip(centre + half, 0, length)]
  box = jnp.stack(box, axis=1)
  # At a border the box is cut off: what counts is what is pasted.
  area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
  own = jnp.where(cut, 1.0 - area / math.prod(size), of_mixup)
  return Draws(own.astype(jnp.float32), cut, box)


def mix(
  image: Float[Array, "b y x c"], target: Float[Array, "b n"], draws: Draws
) -> tuple[Float[Array, "b y x c"], Float[Array, "b n"]]:
  """Images and targets, each mixed with that of the batch read backwards."""
  inside = _inside(draws.box, image.shape[1:3])
  weight = jnp.where(draws.cut[:, None, None], 1.0 - inside, draws.own[:, None, None])
  weight = weight[..., None].astype(image.dtype)
  own = draws.own[:, None]
  return (image * weight + image[::-1] * (1 - weight), target * own + target[::-1] * (1 - own))


def erase(
  key: Key[Array, ""], image: Float[Array, "b y x c"], probability: float
) -> Float[Array, "b y x c"]:
  """Puts normal noise into one rectangle of a share `probability` of the images.

  Its area is uniform in 2 to 33 % of the image's, its aspect log-uniform in 0.3 to 3.3; of ten
  draws the first that fits is taken (timm's `mode="pixel"`). The images should be normalised.
  """
  rows, cols = image.shape[1:3]
  keys = jax.random.split(key, 6)
  shape = (len(image), 10)
  area = jax.random.uniform(keys[0], shape, minval=0.02, maxval=1 / 3) * rows * cols
  aspect = jnp.exp(jax.random.uniform(keys[1], shape, minval=math.log(0.3), maxval=-math.log(0.3)))
  height = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
  width = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
  fits = (height < rows) & (width < cols)
  first = jnp.argmax(fits, axis=1)[:, None]
  height, width = (jnp.take_along_axis(x, first, axis=1)[:, 0] for x in (height, width))
  wanted = jax.random.uniform(keys[2], shape[:1]) < probability
  wanted &= jnp.any(fits, axis=1)
  top = jax.random.randint(keys[3], shape[:1], 0, jnp.maximum(rows - height, 0) + 1)
  left = jax.random.randint(keys[4], shape[:1], 0, jnp.maximum(cols - width, 0) + 1)
  box = jnp.stack([top, top + height, left, left + width], axis=1)
  hole = _inside(box, (rows, cols)) * wanted[:, None, None]
  noise = jax.random.normal(keys[5], image.shape, image.dtype)
  return jnp.where(hole[..., None] > 0, noise, image)


def _inside(box: Int[Array, "b 4"], size: tuple[int, int]) -> Float[Array, "b y x"]:
  """1 for the pixels in a box, 0 elsewhere."""
  top, bottom, left, right = (box[:, i, None] for i in range(4))
  y, x = (jnp.arange(n)[None] for n in size)
  rows, cols = (y >= top) & (y < bottom), (x >= left) & (x < right)
  return (rows[:, :, None] & cols[:, None, :]).astype(jnp.float32)
