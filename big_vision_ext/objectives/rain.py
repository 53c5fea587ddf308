"""What does synthetic rain look like: the renderer of the deraining study, on the device.

Sparse seeds are smeared along one direction per image: O = clip(B + beta R, 0, 1). The layers R
have the statistics of the generator that the public code around the paper shares (seed pixels, a
streak kernel made by warping a diagonal line, per-image min-max to 0..255), but none of its code
and not its pixels: the kernel is a formula.

Each image has a key, and its rain depends on that key, on the size and on the ranges alone. Values
are quantised to 1/255; how a batch is cut can move a value across a rounding edge, by one level.
b batch, y x rows and columns.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from big_vision_ext.objectives import filters

Geometry = Literal["fixed", "legacy"]
Interval = tuple[float, float]

# The pre-filter of the seeds: 8 in the middle, 0.1 above, below, left and right.
_HALO = 0.1 / 8


@dataclasses.dataclass(frozen=True)
class Rain:
  """Intervals from which the rain of an image is drawn.

  Attributes:
    amount: share of pixels that are seeds. The customary "value" v is amount * 256 / 0.01.
    width: sides of the blur's window in pixels, odd; one of them is drawn.
    length: of streaks in pixels; a whole number is drawn, both ends included.
    angle: intervals of directions in degrees, 0 vertical, positive counter-clockwise; one interval
      is drawn, then a direction uniformly in it. Several can leave a gap to test on.
    width_share: how often each width is drawn; equally often if empty.
  """

  amount: Interval
  width: tuple[int, ...]
  length: tuple[int, int]
  angle: tuple[Interval, ...]
  width_share: tuple[float, ...] = ()

  def __post_init__(self):
    def ask(good, key, expected):
      if not good:
        raise ValueError(f"rain: {key}={getattr(self, key)!r}: expected {expected}.")

    ask(0 <= self.amount[0] <= self.amount[1] <= 1, "amount", "0 <= low <= high <= 1")
    ask(self.width and all(w > 0 and w % 2 for w in self.width), "width",
        "odd numbers of pixels, at least one")
    ask(1 <= self.length[0] <= self.length[1] <= 100, "length", "1 <= low <= high <= 100 pixels")
    ask(self.angle and all(lo <= hi for lo, hi in self.angle), "angle",
        "intervals (low, high) in degrees, at least one")
    ask(not self.width_share or (len(self.width_share) == len(self.width)
                                 and min(self.width_share) >= 0 and sum(self.width_share) > 0),
        "width_share", "one number >= 0 for each width, not all 0")


def _value(low: float, high: float) -> Interval:
  return low * 0.01 / 256, high * 0.01 / 256


_PAPER = {
  "small": Rain(_value(200, 300), (5,), (30, 31), ((-5, 5),)),
  "medium": Rain(_value(200, 300), (3, 5, 7), (20, 40), ((-30, 30),)),
  "large": Rain(_value(200, 300), (1, 3, 5, 7, 9), (5, 60), ((-70, 70),)),
}

# Ranges by name. Of the paper, as recalled and not confirmed (wider means more diverse, at one
# density): "small", "medium", "large", also with "paper_" before them. Of a co-author's
# development code (there small to large is how heavy it rains): "dev_*". Of public code of other
# co-authors: "mioir", "agenticir".
RANGES: dict[str, Rain] = {
  **_PAPER,
  **{f"paper_{name}": rain for name, rain in _PAPER.items()},
  "dev_small": Rain((0.002, 0.004), (1, 3), (25, 35), ((-10, 10),)),
  "dev_medium": Rain((0.005, 0.007), (3, 5, 7), (35, 45), ((-30, 30),), (0.25, 0.5, 0.25)),
  "dev_large": Rain((0.008, 0.010), (7, 9), (45, 55), ((-60, 60),)),
  "dev_random": Rain((0.002, 0.010), (1, 3, 5, 7, 9), (25, 55), ((-60, 60),)),
  "mioir": Rain(_value(50, 100), (3, 5, 7, 9, 11), (20, 40), ((-45, 45),)),
  "agenticir": Rain(_value(50, 100), (3,), (20, 39), ((-30, 30),)),
}


class Streaks(NamedTuple):
  """The rain of each image, as drawn.

  Attributes:
    amount: share of pixels that are seeds.
    variance: of the blur, in squared pixels; 0 for width 1.
    length: the nominal L in pixels, see `streak_length`.
    angle: in radians, 0 vertical, positive counter-clockwise.
  """

  amount: Float[Array, "b"]
  variance: Float[Array, "b"]
  length: Float[Array, "b"]
  angle: Float[Array, "b"]


def render(
  keys: Key[Array, "b"],
  height: int,
  width: int,
  rain: Rain | Sequence[Rain],
  geometry: Geometry = "fixed",
) -> Float[Array, "b y x"]:
  """A layer of rain for each key, in [0, 1], quantised to 1/255.

  Args:
    keys: one for each image.
    height, width: of the pictures. Brightness is normalised by the strongest place of the layer:
      rain rendered on a crop is brighter than a crop of rain rendered on the picture.
    rain: the ranges; of several, each image takes one at random.
    geometry: "fixed" or "legacy", see `streak_length`.

  Raises:
    ValueError: an unknown geometry or no ranges.
  """
  rains = (rain,) if isinstance(rain, Rain) else tuple(rain)
  if not rains:
    raise ValueError("rain: no ranges are given; expected at least one of "
                     f"{', '.join(sorted(RANGES))}, or numbers of your own.")
  reach = max(r.length[1] for r in rains)
  return streaks_layer(keys, draw(keys, rains), height, width, reach, geometry)


def superpose(
  clean: Float[Array, "b y x 3"],
  layer: Float[Array, "b y x"],
  beta: Float[Array, "b"] | float = 1.0,
) -> Float[Array, "b y x 3"]:
  """clip(clean + beta * layer, 0, 1), the same gray rain in every channel.

  Bright backgrounds clip, so that what is seen of the rain is less than the layer there. `beta`:
  how bright the rain is, a number or one for each image; 0.7 to 1 in a co-author's configs.
  """
  beta = jnp.asarray(beta, jnp.float32).reshape(-1, 1, 1, 1)
  return jnp.clip(clean + beta * layer[..., None], 0.0, 1.0)


def draw(keys: Key[Array, "b"], rains: Sequence[Rain]) -> Streaks:
  """The rain of each image: one of the ranges, equally likely, then numbers from it."""

  def one(key):
    # All numbers at once: every call of a generator costs its compilation.
    u = jax.random.uniform(jax.random.fold_in(key, 0), (6,))
    # Each range is given the same numbers: a choice of ranges changes no draw of any of them.
    drawn = [_drawn(u[1:], rain) for rain in rains]
    return jax.tree.map(lambda *values: jnp.stack(values)[_pick(u[0], len(rains))], *drawn)

  return jax.vmap(one)(keys)


def streaks_layer(
  keys: Key[Array, "b"],
  streaks: Streaks,
  height: int,
  width: int,
  reach: int,
  geometry: Geometry = "fixed",
) -> Float[Array, "b y x"]:
  """The layer of rain that was drawn; its seeds are of the keys. `reach`: no length exceeds it."""

  def seeds(key, amount):
    return jax.random.bernoulli(jax.random.fold_in(key, 1), amount, (height, width))

  kernel = _kernel(streaks, reach, geometry)
  layer = filters.convolve(jax.vmap(seeds)(keys, streaks.amount).astype(jnp.float32), kernel)
  low = layer.min(axis=(1, 2), keepdims=True)
  span = layer.max(axis=(1, 2), keepdims=True) - low
  # Without a seed all is zero but for rounding, which is not to be blown up to rain.
  scaled = jnp.where(span > 1e-4, (layer - low) / jnp.maximum(span, 1e-4), 0.0)
  return jnp.round(scaled * 255.0) / 255.0


def streak_length(
  length: Float[Array, "b"], angle: Float[Array, "b"], geometry: Geometry
) -> Float[Array, "b"]:
  """How long streaks of nominal length L are, in pixels; `angle` in radians.

  The generator turns the diagonal of an L x L matrix inside a window of the same size. "fixed" is
  that: min(L / max(|cos|, |sin|), sqrt(2) L). "legacy", in most public copies, shrinks the line by
  1 - L/100 as well: upright streaks of L = 30, 40, 50 and 60 have 29.7, 33.9, 35.4 and 33.9 pixels.
  """
  window = length / jnp.maximum(jnp.abs(jnp.cos(angle)), jnp.abs(jnp.sin(angle)))
  return jnp.minimum(window, math.sqrt(2.0) * length * _shrink(length, geometry))


def _shrink(length, geometry):
  if geometry not in ("fixed", "legacy"):
    raise ValueError(f"geometry={geometry!r} of rain is unknown; it is 'fixed' or 'legacy'.")
  return 1.0 - length / 100.0 if geometry == "legacy" else jnp.ones_like(length)


def _drawn(u: Float[Array, "5"], rain: Rain) -> Streaks:
  """Five uniform numbers to the rain of an image."""
  share = np.cumsum(rain.width_share or (1,) * len(rain.width), dtype=np.float64)
  # The last edge is left out: rounding is not to draw what lies beyond.
  which = jnp.sum(u[0] >= jnp.asarray(share[:-1] / share[-1], jnp.float32))
  variance = jnp.asarray([_window_variance(w) for w in rain.width], jnp.float32)[which]
  interval = jnp.asarray(rain.angle, jnp.float32)[_pick(u[1], len(rain.angle))]
  angle = interval[0] + u[2] * (interval[1] - interval[0])
  length = rain.length[0] + _pick(u[3], rain.length[1] - rain.length[0] + 1)
  amount = rain.amount[0] + u[4] * (rain.amount[1] - rain.amount[0])
  return Streaks(amount, variance, length.astype(jnp.float32), jnp.radians(angle))


def _pick(u: Float[Array, ""], count: int) -> Int[Array, ""]:
  """One of 0..count-1, equally likely, of a number in [0, 1)."""
  return jnp.minimum((u * count).astype(jnp.int32), count - 1)


def _window_variance(width: int) -> float:
  """Variance of the Gaussian of a w x w window as it is cut off by it; 0 for w = 1."""
  sigma = 0.3 * ((width - 1) / 2 - 1) + 0.8
  offset = np.arange(width) - width // 2
  weight = np.exp(-0.5 * (offset / sigma) ** 2)
  return float((weight * offset**2).sum() / weight.sum())


def _kernel(streaks: Streaks, reach: int, geometry: Geometry) -> Float[Array, "b k k"]:
  """What one seed becomes: a line of some length, Gaussian across; its scale is of no matter.

  The generator filters its seeds before the streaks; here that is done to the kernel.
  """
  radius = math.ceil(reach * math.sqrt(0.5)) + 1 if geometry == "fixed" else reach // 2 + 4
  offset = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
  sin, cos = jnp.sin(streaks.angle)[:, None, None], jnp.cos(streaks.angle)[:, None, None]
  y, x = offset[:, None], offset[None, :]
  along, across = x * sin + y * cos, x * cos - y * sin
  length = streak_length(streaks.length, streaks.angle, geometry)[:, None, None]
  # One pixel of fading, in the middle of which the line ends.
  line = jnp.clip(length / 2 - jnp.abs(along) + 0.5, 0.0, 1.0)
  # A row of pixels on the diagonal, interpolated linearly, has a variance of 1/6 across.
  variance = (streaks.variance + _shrink(streaks.length, geometry) ** 2 / 6)[:, None, None]
  kernel = jnp.pad(line * jnp.exp(-0.5 * across**2 / variance), ((0, 0), (1, 1), (1, 1)))
  around = sum(jnp.roll(kernel, shift, axis) for axis in (1, 2) for shift in (-1, 1))
  return kernel + _HALO * around
