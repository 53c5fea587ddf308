"""Which pixels does a model not see, and what stands in their place?

The masks of Weiler et al. 2024 (FocusMIM) for networks that take whole images, convolutional ones.
(Those of transformers, which leave hidden patches out, are in `masks.py`.) A mask is a map, 1 where
a pixel is hidden and counts in the loss. Every sample has a key of its own, and its mask depends
on that key and on its image alone.

b batch, y x rows and columns, c channels. Points are (y, x) in pixels; whole numbers are centres.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from big_vision_ext.objectives import foveation

Size = tuple[int, int]
# What a blurred fill is blurred by; so wide that it is next to a square of equal weights.
_BLUR_TAPS, _BLUR_SIGMA = 33, 100.0


@dataclasses.dataclass(frozen=True)
class PixelMask:
  """How images are masked.

  Attributes:
    family: "random_patches", squares on a grid are hidden; "periphery", all but a disc around the
      fixation; "foveate", nothing is hidden, but resolution falls with the distance from the
      fixation and what is not at full resolution is to be predicted; "none", nothing is hidden and
      everything is to be predicted: a plain autoencoder.
    ratio: of random_patches and periphery, the share of pixels that is hidden: rounded down to
      whole patches; of the disc's radius see `radius`.
    patch: side of a square of random_patches.
    fill: what hidden pixels show: "mean", the image's own mean colour, those of hidden pixels
      included, three numbers that leak by design; "blur", the image, strongly blurred; "zero",
      black, which tells nothing; "blur_as_released", what the released code does when it is asked
      to blur: the mean again, but of an image whose hidden part has been blurred.
    radius: of the disc: "reference", a whole number of pixels, rounded down, so that a little more
      than `ratio` is hidden; "exact", as it comes.
    fixation: where the gaze is: at the "centre", pixel (y // 2, x // 2), as published, or at a
      "random" pixel.
    attention: of periphery: a second disc of the same size is seen too, around a "random" pixel or
      around one of those with the largest "foreground" weight; "none" for no such disc.
    blend: of foveate, see `foveation`.
  """

  family: Literal["random_patches", "periphery", "foveate", "none"] = "random_patches"
  ratio: float = 0.6
  patch: int = 8
  fill: Literal["mean", "blur", "zero", "blur_as_released"] = "mean"
  radius: Literal["reference", "exact"] = "reference"
  fixation: Literal["centre", "random"] = "centre"
  attention: Literal["none", "random", "foreground"] = "none"
  blend: Literal["reference", "clamped"] = "reference"

  def check(self, size: Size) -> None:
    """Raises ValueError, naming the field, if images of this size cannot be masked so."""
    if self.family == "random_patches":
      patches_hidden(size, self.ratio, self.patch)
    if self.family == "periphery":
      disc_radius(size, self.ratio, self.radius)
    if self.attention != "none" and self.family != "periphery":
      raise ValueError(
        f"attention={self.attention!r} with family={self.family!r}: a second disc can be seen "
        "beside the first one of the family 'periphery' only; set attention='none'.")

  def apply(
    self,
    keys: Key[Array, "b"],
    image: Float[Array, "b y x c"],
    foreground: Float[Array, "b y x"] | None = None,
  ) -> tuple[Float[Array, "b y x c"], Float[Array, "b y x"]]:
    """What is seen of images in 0..1, and which pixels are to be predicted (1) or not (0).

    Args:
      keys: one for each sample.
      image: float.
      foreground: weights of pixels; of use to attention="foreground" only.

    Raises:
      ValueError: the images cannot be masked so, or foreground is needed and not there.
    """
    b, *size, _ = image.shape
    self.check(tuple(size))
    if self.family == "none":
      return image, jnp.ones((b, *size), jnp.float32)
    if self.family == "foveate":
      return foveation.foveate(image, self.gaze(keys, tuple(size)), self.blend)
    hidden = self.hidden(keys, tuple(size), foreground)
    return fill_in(image, hidden, self.fill), hidden

  def hidden(
    self, keys: Key[Array, "b"], size: Size, foreground: Float[Array, "b y x"] | None = None
  ) -> Float[Array, "b y x"]:
    """The mask alone, of random_patches and periphery."""
    if self.family == "random_patches":
      draw = functools.partial(random_patches, size=size, ratio=self.ratio, patch=self.patch)
      return jax.vmap(draw)(keys)
    radius = disc_radius(size, self.ratio, self.radius)
    out = outside_disc(size, self.gaze(keys, size), radius)
    if self.attention == "none":
      return out
    if self.attention == "random":
      second = jax.vmap(functools.partial(random_pixel, size=size))(_other(keys, 2))
    elif foreground is None:
      raise ValueError("attention='foreground': the batch has no foreground weights.")
    else:
      second = jax.vmap(pixel_of_largest)(_other(keys, 2), foreground)
    return out * outside_disc(size, second, radius)

  def gaze(self, keys: Key[Array, "b"], size: Size) -> Float[Array, "b 2"]:
    """The fixation of each sample."""
    if self.fixation == "centre":
      centre = jnp.asarray([n // 2 for n in size], jnp.float32)
      return jnp.broadcast_to(centre, (keys.shape[0], 2))
    return jax.vmap(functools.partial(random_pixel, size=size))(_other(keys, 1))


def patches_hidden(size: Size, ratio: float, patch: int) -> int:
  """How many squares of the grid are hidden: the share `ratio` of them, rounded down."""
  if patch < 1 or size[0] % patch or size[1] % patch:
    raise ValueError(f"patch={patch} does not divide an image of {size[0]} x {size[1]} pixels.")
  total = (size[0] // patch) * (size[1] // patch)
  count = int(total * ratio)
  if not 0 < count <= total or not 0 < ratio <= 1:
    raise ValueError(f"ratio={ratio}: hides {count} of {total} patches; expected at least one.")
  return count


def disc_radius(size: Size, ratio: float, how: str = "reference") -> float:
  """Radius in pixels of a disc that covers the share 1 - ratio of the image."""
  if not 0 < ratio < 1:
    raise ValueError(f"ratio={ratio}: expected a share between 0 and 1 of the image.")
  radius = math.sqrt(size[0] * size[1] * (1 - ratio) / math.pi)
  return float(int(radius)) if how == "reference" else radius


def random_patches(
  key: Key[Array, ""], size: Size, ratio: float, patch: int = 8
) -> Float[Array, "y x"]:
  """Squares on a grid, drawn at random, are hidden."""
  count = patches_hidden(size, ratio, patch)
  grid = (size[0] // patch, size[1] // patch)
  order = jax.random.permutation(key, grid[0] * grid[1])
  hidden = (order < count).astype(jnp.float32).reshape(grid)
  return jnp.repeat(jnp.repeat(hidden, patch, axis=0), patch, axis=1)


def outside_disc(
  size: Size, centre: Float[Array, "b 2"], radius: float
) -> Float[Array, "b y x"]:
  """1 where a pixel is farther than `radius` from the centre."""
  y, x = (jnp.arange(n, dtype=jnp.float32) for n in size)
  at = jnp.asarray(centre, jnp.float32)[:, :, None, None]
  squared = (y[:, None] - at[:, 0]) ** 2 + (x[None, :] - at[:, 1]) ** 2
  return (squared > radius**2).astype(jnp.float32)


def random_pixel(key: Key[Array, ""], size: Size) -> Float[Array, "2"]:
  """A pixel, all equally likely."""
  return jax.random.randint(key, (2,), 0, jnp.asarray(size)).astype(jnp.float32)


def pixel_of_largest(key: Key[Array, ""], weight: Float[Array, "y x"]) -> Float[Array, "2"]:
  """One of the pixels of largest weight, all equally likely."""
  flat = weight.reshape(-1)
  noise = jax.random.uniform(key, flat.shape)
  index = jnp.argmax(jnp.where(flat == flat.max(), noise, -1.0))
  return jnp.stack(jnp.divmod(index, weight.shape[1])).astype(jnp.float32)


def fill_in(
  image: Float[Array, "b y x c"], hidden: Float[Array, "b y x"], fill: str
) -> Float[Array, "b y x c"]:
  """Images whose hidden pixels are replaced; see `PixelMask.fill`."""
  cover = hidden[..., None] > 0
  if fill == "zero":
    return jnp.where(cover, 0.0, image)
  if fill == "mean":
    return jnp.where(cover, jnp.mean(image, axis=(1, 2), keepdims=True), image)
  seen = jnp.where(cover, blur(image), image)
  if fill == "blur":
    return seen
  if fill != "blur_as_released":
    raise ValueError(f"fill={fill!r} is unknown; it is 'mean', 'blur', 'zero' or "
                     "'blur_as_released'.")
  return jnp.where(cover, jnp.mean(seen, axis=(1, 2), keepdims=True), image)


def blur(image: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
  """A 33 x 33 Gaussian of sigma 100, mirrored at the borders."""
  rows, columns = (jnp.asarray(_blur_operator(n)) for n in image.shape[1:3])
  return jnp.einsum("hy,wx,byxc->bhwc", rows, columns, image, precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=8)
def _blur_operator(size: int) -> Float[np.ndarray, "n n"]:
  """What the blur does to a line of pixels, as a matrix."""
  reach = _BLUR_TAPS // 2
  taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / _BLUR_SIGMA) ** 2)
  padded = np.pad(np.eye(size), ((reach, reach), (0, 0)), mode="reflect")
  return sum(t * padded[k:k + size] for k, t in enumerate(taps / taps.sum())).astype(np.float32)


def _other(keys, number: int):
  """Keys for another choice of the same samples."""
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
