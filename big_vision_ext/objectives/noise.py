"""How is a picture spoilt by noise, of which family and how strongly?

Denoisers are trained on one family and asked for another. Pictures are in [0, 1]; every image has
a key and a level, and nothing depends on the other images. Gaussian of 15 to 50 / 255 and Poisson
of scale 1 to 3 are the ranges of the group's public code; the other families and all their ranges
are ours. b batch, y x rows and columns, c channels.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from big_vision_ext.objectives import filters

# Family -> the interval from which the level of an image is drawn, unless another is given.
LEVELS: dict[str, tuple[float, float]] = {
  "gaussian": (15, 50),  # Standard deviation, of 255.
  "poisson": (1, 3),  # How many times that of photons counted in 256 steps.
  "speckle": (0.1, 0.4),  # Standard deviation over the pixel's value.
  "salt_pepper": (0.02, 0.15),  # Share of the pixels that are replaced.
  "correlated": (15, 50),  # Standard deviation, of 255.
  "mixture": (0.3, 0.7),  # Share of the middle levels of Gaussian, speckle and salt and pepper.
}

# Of "correlated": sigma in pixels of the window that white noise is smoothed with.
_CORRELATION = 1.5


def add(
  keys: Key[Array, "b"],
  clean: Float[Array, "b y x c"],
  family: str,
  level: Float[Array, "b"],
) -> Float[Array, "b y x c"]:
  """The noisy pictures, clipped to [0, 1].

  "gaussian": white. "poisson": x + scale * (Poisson(256 x) / 256 - x). "speckle": x + x * white.
  "salt_pepper": all channels of a pixel become 0 or 1, equally likely. "correlated": white noise
  smoothed over neighbours, each channel for itself, at the standard deviation of the level.
  "mixture": Gaussian, speckle, then salt and pepper, each at the level's share of the middle of
  its interval.

  Raises:
    ValueError: an unknown family.
  """
  if family not in LEVELS:
    raise ValueError(f"family={family!r} of noise is unknown; it is one of {', '.join(LEVELS)}.")
  level = level.astype(jnp.float32)[:, None, None, None]
  if family == "mixture":
    noisy = clean
    for i, part in enumerate(("gaussian", "speckle", "salt_pepper")):
      each = jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys)
      noisy = _FAMILIES[part](each, noisy, level * sum(LEVELS[part]) / 2)
  else:
    noisy = _FAMILIES[family](keys, clean, level)
  return jnp.clip(noisy, 0.0, 1.0)


def _gaussian(keys, x, level):
  return x + level / 255.0 * _white(keys, x.shape[1:])


def _poisson(keys, x, level):
  mean = 256.0 * jnp.clip(x, 0.0, 1.0)
  return x + level * (jax.vmap(jax.random.poisson)(keys, mean) - mean) / 256.0


def _speckle(keys, x, level):
  return x + level * x * _white(keys, x.shape[1:])


def _salt_pepper(keys, x, level):
  u = jax.vmap(lambda key: jax.random.uniform(key, (*x.shape[1:3], 1)))(keys)
  return jnp.where(u < level / 2, 0.0, jnp.where(u > 1 - level / 2, 1.0, x))


def _correlated(keys, x, level):
  radius = math.ceil(3 * _CORRELATION)
  tap = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / _CORRELATION) ** 2)
  window = tap[:, None] * tap
  # The sum of squared weights is the variance that is left of white noise.
  window = jnp.broadcast_to(window / jnp.sqrt(jnp.sum(window**2)), (len(x), *window.shape))
  # Noise of the frame around the picture too: mirrored noise would be stronger at the border.
  shape = (x.shape[1] + 2 * radius, x.shape[2] + 2 * radius, x.shape[3])
  smooth = filters.convolve_channels(_white(keys, shape), window)
  return x + level / 255.0 * smooth[:, radius:-radius, radius:-radius]


def _white(keys, shape):
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


_FAMILIES = {
  "gaussian": _gaussian,
  "poisson": _poisson,
  "speckle": _speckle,
  "salt_pepper": _salt_pepper,
  "correlated": _correlated,
}
