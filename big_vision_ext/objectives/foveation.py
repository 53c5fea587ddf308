"""What does an eye see of an image: sharp where it looks, ever blurrier around it?

The filter of Weiler et al. 2024 (FocusMIM), after Perry and Geisler 2002: a pyramid of ever coarser
versions of the image, and at each pixel a mixture of two of its levels, chosen by the distance from
the point of fixation.

- Level 1 is the image; level i + 1 is level i smoothed by a 5 x 5 Gaussian of sigma 0.248 pixels
  (next to nothing) and halved, brought back to full size by repeated bilinear doubling.
- Resolution at an eccentricity of theta degrees is R = alpha / (theta + alpha), in (0, 1], with 3.5
  pixels a degree and alpha = 2.5 degrees, where it has fallen to a half.
- A pixel's level is the i with 2^-i <= R <= 2^(1-i), the larger one on a border; 5 at most.

Two ways to mix are offered. "reference" is the released code: its transfer functions are not
normalised as its thresholds are, so that weights leave 0..1 (level 2 has -0.36 to 0.77 of the
sharper image) and the result is cut to 0..1. "clamped" cuts the weights instead.

Everything is in [rows, columns] and fixations are (y, x). The released code transposes the map for
mixing and not for its mask, which shows off the centre or where an image is not square; at the
centre of a square image, the only place it was used at, its numbers are ours.

b batch, y x rows and columns, c channels.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLENDS = ("reference", "clamped")
# Levels that can occur: the coarsest of the six of the paper is never reached.
LEVELS = 5
_SIGMA = 0.248
_PIXELS_PER_DEGREE = 3.5
_ALPHA = 2.5

Size = tuple[int, int]


def foveate(
  image: Float[Array, "b y x c"], fixation: Float[Array, "b 2"], blend: str = "reference"
) -> tuple[Float[Array, "b y x c"], Float[Array, "b y x"]]:
  """Images as seen from a fixation.

  Args:
    image: in 0..1.
    fixation: (y, x) in pixels; whole numbers are centres of pixels.
    blend: one of `BLENDS`.

  Returns:
    The filtered images, float32 in 0..1, and where they are not at full resolution, 1 or 0.

  Raises:
    ValueError: an unknown blend.
  """
  if blend not in BLENDS:
    raise ValueError(f"blend={blend!r} is unknown; it is one of {BLENDS}.")
  image = image.astype(jnp.float32)
  size = image.shape[1:3]
  resolution = resolution_map(size, fixation)
  level = level_map(resolution)
  weights = jnp.stack(_weights(resolution, level, blend))
  total = weights[0][..., None] * image
  for i in range(1, _deepest(size)):
    total += weights[i][..., None] * _coarser(image, i)
  return jnp.clip(total, 0.0, 1.0), (level > 1).astype(jnp.float32)


def resolution_map(size: Size, fixation: Float[Array, "b 2"]) -> Float[Array, "b y x"]:
  """The relative resolution R of each pixel, in (0, 1]."""
  y, x = (jnp.arange(n, dtype=jnp.float32) for n in size)
  at = jnp.asarray(fixation, jnp.float32)[:, :, None, None]
  distance = jnp.sqrt((y[:, None] - at[:, 0]) ** 2 + (x[None, :] - at[:, 1]) ** 2)
  return _ALPHA / (distance / _PIXELS_PER_DEGREE + _ALPHA)


def level_map(resolution: Float[Array, "b y x"]) -> Int[Array, "b y x"]:
  """The level of the pyramid of each pixel: 1, full resolution, to `LEVELS`."""
  thresholds = 0.5 ** jnp.arange(LEVELS, dtype=jnp.float32)
  # Of two levels that meet at a threshold the coarser one has it.
  return jnp.sum(resolution[..., None] <= thresholds, axis=-1).astype(jnp.int32)


def _weights(resolution, level, blend):
  """How much of each level every pixel gets: `LEVELS` maps (b, y, x)."""
  transfer = [jnp.exp(-0.5 * (2.0 ** (i - 3) * resolution / _SIGMA) ** 2)
              for i in range(1, LEVELS + 1)]
  transfer.append(jnp.zeros_like(resolution))
  # Of level i, the share of the one above it; index 0 stands for level 1, which is not mixed.
  sharper = [(0.5 - transfer[i + 1]) / (transfer[i] - transfer[i + 1] + 1e-5)
             for i in range(LEVELS)]
  if blend == "clamped":
    sharper = [jnp.clip(b, 0.0, 1.0) for b in sharper]
  out = []
  for i in range(LEVELS):
    own = jnp.where(level == i + 1, 1.0 - sharper[i] if i else 1.0, 0.0)
    below = jnp.where(level == i + 2, sharper[i + 1], 0.0) if i + 1 < LEVELS else 0.0
    out.append(own + below)
  return out


def _deepest(size: Size) -> int:
  """How many levels an image of this size can have, wherever the fixation is in it."""
  least = _ALPHA / (math.hypot(*size) / _PIXELS_PER_DEGREE + _ALPHA)
  return min(LEVELS, sum(least <= 0.5**i for i in range(LEVELS)))


def _coarser(image, i: int):
  """Level i + 1 of the pyramid at full size; i halvings.

  Smoothing and resizing are linear and act on rows and columns apart, so a level is the image
  between two small matrices: nothing is filtered twice, and a matrix unit does it.
  """
  rows, columns = (jnp.asarray(_operator(n, i)) for n in image.shape[1:3])
  return jnp.einsum("hy,wx,byxc->bhwc", rows, columns, image,
                    precision=jax.lax.Precision.HIGHEST)


@functools.lru_cache(maxsize=32)
def _operator(size: int, halvings: int) -> Float[np.ndarray, "n n"]:
  """What `halvings` smoothings and halvings, and as many doublings, do to a line of pixels."""
  line = np.eye(size)
  for _ in range(halvings):
    line = _resize(_smooth(line), max(1, len(line) // 2))
  for i in range(halvings):
    line = _resize(line, 2 * len(line) if i < halvings - 1 else size)
  return line.astype(np.float32)


def _smooth(line: Float[np.ndarray, "n m"]) -> Float[np.ndarray, "n m"]:
  """Convolution along the first axis with five taps; the line is mirrored at its ends."""
  taps = np.exp(-0.5 * (np.arange(-2, 3) / _SIGMA) ** 2)
  padded = np.pad(line, ((2, 2), (0, 0)), mode="reflect")
  return sum(t * padded[k:k + len(line)] for k, t in enumerate(taps / taps.sum()))


def _resize(line: Float[np.ndarray, "n m"], size: int) -> Float[np.ndarray, "k m"]:
  """Bilinear along the first axis, not antialiased, as torch's `align_corners=False`."""
  at = np.clip((np.arange(size) + 0.5) * len(line) / size - 0.5, 0, len(line) - 1)
  low = np.floor(at).astype(int)
  high = np.minimum(low + 1, len(line) - 1)
  share = (at - low)[:, None]
  return (1 - share) * line[low] + share * line[high]
