"""What does rain look like that no network has been trained on?

A second renderer, ours, which shares nothing with that of `rain` but its signature: the unseen
rain of the study where no rain of other people's is at hand. Drops are anti-aliased straight
segments at several depths: near ones are few, long, thick and bright, far ones many and faint.
They lie over each other as the brightest of them, fade towards their upper end, and brightness is
absolute, not normalised by the strongest place of the picture.

Each image has a key, on which alone its rain depends. b batch, y x rows and columns, n segments.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

Interval = tuple[float, float]

# Segments that are drawn together: a few pictures of as many numbers in the cache at a time.
_TOGETHER = 8


@dataclasses.dataclass(frozen=True)
class Segments:
  """Intervals from which the rain of an image is drawn; a number of the image unless said.

  Attributes:
    density: segments per pixel.
    length: of a segment at depth 1, in pixels; of each segment.
    thickness: at depth 1, in pixels; of each segment.
    brightness: at depth 1, in [0, 1]; of each segment.
    angle: direction in degrees, 0 vertical, positive counter-clockwise.
    jitter: standard deviation of the segments' directions about it, in degrees.
    depths: how far the layers of rain are. Length and thickness go with 1 / depth, brightness with
      1 / sqrt(depth), the number of segments with depth^2.
  """

  density: Interval = (0.002, 0.006)
  length: Interval = (14, 44)
  thickness: Interval = (1.0, 3.0)
  brightness: Interval = (0.4, 0.9)
  angle: Interval = (-45, 45)
  jitter: float = 2.0
  depths: tuple[float, ...] = (1.0, 1.5, 2.2)

  def __post_init__(self):
    def ask(good, key, expected):
      if not good:
        raise ValueError(f"rain segments: {key}={getattr(self, key)!r}: expected {expected}.")

    for key, top in (("density", 0.1), ("length", 500), ("thickness", 50), ("brightness", 1)):
      low, high = getattr(self, key)
      ask(0 < low <= high <= top, key, f"0 < low <= high <= {top}")
    ask(self.angle[0] <= self.angle[1], "angle", "low <= high in degrees")
    ask(self.jitter >= 0, "jitter", "degrees >= 0")
    ask(self.depths and min(self.depths) > 0, "depths", "at least one number above 0")


class _Drops(NamedTuple):
  """Segments of an image: middle, half the length, half the thickness, direction, brightness."""

  y: Float[Array, "n"]
  x: Float[Array, "n"]
  half: Float[Array, "n"]
  radius: Float[Array, "n"]
  sin: Float[Array, "n"]
  cos: Float[Array, "n"]
  brightness: Float[Array, "n"]


def render(
  keys: Key[Array, "b"], height: int, width: int, config: Segments = Segments()
) -> Float[Array, "b y x"]:
  """A layer of rain for each key, in [0, 1], quantised to 1/255."""
  # Middles lie in a frame around the picture as well, so that the border is as wet as the rest.
  frame = config.length[1] / 2
  area = (height + 2 * frame) * (width + 2 * frame)
  count = math.ceil(config.density[1] * area / _TOGETHER) * _TOGETHER

  def one(key):
    drops = _draw(key, height, width, frame, area, count, config)
    blocks = jax.tree.map(lambda v: v.reshape(-1, _TOGETHER), drops)
    draw = lambda layer, block: (jnp.maximum(layer, _drawn(block, height, width)), None)
    return jax.lax.scan(draw, jnp.zeros((height, width)), blocks)[0]

  return jnp.round(jax.vmap(one)(keys) * 255.0) / 255.0


def _draw(key, height, width, frame, area, count, config):
  """`count` segments, those beyond the drawn number with a brightness of 0."""
  of_image, of_drops = jax.random.split(key)
  density, direction = jax.random.uniform(of_image, (2,))
  u = jax.random.uniform(of_drops, (8, count))
  share = jnp.asarray(config.depths) ** 2
  edges = jnp.cumsum(share / share.sum())[:-1]
  depth = jnp.asarray(config.depths)[jnp.sum(u[0][:, None] >= edges, axis=1)]
  # Box and Muller: a normal number of two uniform ones.
  normal = jnp.sqrt(-2 * jnp.log(1 - u[5])) * jnp.cos(2 * jnp.pi * u[6])
  angle = jnp.radians(_between(direction, config.angle) + config.jitter * normal)
  there = jnp.arange(count) < _between(density, config.density) * area
  return _Drops(
    y=u[1] * (height + 2 * frame) - frame,
    x=u[2] * (width + 2 * frame) - frame,
    half=_between(u[3], config.length) / depth / 2,
    radius=_between(u[7], config.thickness) / depth / 2,
    sin=jnp.sin(angle),
    cos=jnp.cos(angle),
    brightness=there * _between(u[4], config.brightness) / jnp.sqrt(depth),
  )


def _drawn(drops: _Drops, height: int, width: int) -> Float[Array, "y x"]:
  """The brightest of some segments at every pixel: the share of it that a segment covers."""
  y = (jnp.arange(height) + 0.5)[:, None, None] - drops.y
  x = (jnp.arange(width) + 0.5)[None, :, None] - drops.x
  along, across = x * drops.sin + y * drops.cos, x * drops.cos - y * drops.sin
  # A line thinner than a pixel is a fainter line of one pixel.
  wide = jnp.maximum(drops.radius, 0.5)
  over = jnp.clip(wide + 0.5 - jnp.abs(across), 0, 1) * drops.radius / wide
  inside = jnp.clip(drops.half + 0.5 - jnp.abs(along), 0, 1)
  # 1 at the lower end, 0.4 at the upper one: the drop moved while the shutter was open.
  fade = 0.7 + 0.3 * jnp.clip(along / drops.half, -1, 1)
  return jnp.max(over * inside * fade * drops.brightness, axis=-1)


def _between(u, interval: Interval):
  return interval[0] + u * (interval[1] - interval[0])
