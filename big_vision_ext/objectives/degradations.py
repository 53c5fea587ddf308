"""Which degradation does a config ask for, and what does it do to a batch of clean pictures?

`make` turns `{"kind": ..., **settings}` into a frozen, hashable object that is called with a key
per picture. Shapes are static, no picture depends on the others, and all is drawn on the device:
the same on any mesh. b batch, y x rows and columns.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from big_vision_ext.core import typed
from big_vision_ext.objectives import (
  bicubic,
  blur,
  haze,
  jpeg,
  noise,
  rain,
  rain_layers,
  rain_segments,
)

Interval = tuple[float, float]
Aux = dict[str, Array]


class Degradation:
  """What spoils pictures; the settings are the fields of a subclass.

  Attributes:
    scale: how many times smaller sides become.
  """

  scale = 1

  def __call__(
    self, keys: Key[Array, "b"], clean: Float[Array, "b y x 3"]
  ) -> tuple[Float[Array, "b y/scale x/scale 3"], Aux]:
    """Degraded pictures, in [0, 1] as the clean ones, and how they came about: `layer` (b, y, x)
    in [0, 1], before its brightness `beta`, where rain fell."""
    raise NotImplementedError


def make(
  config: Mapping[str, Any] | Degradation, where: str = "config.model.degrade"
) -> Degradation:
  """The degradation of a config.

  Args:
    config: `kind`, one of `KINDS`, and the fields of its class.
    where: the name of these settings in messages.

  Raises:
    typed.ConfigError: an unknown kind or setting, or one out of range.
  """
  if isinstance(config, Degradation):
    return config
  values = typed.plain(config)
  if not isinstance(values, dict) or "kind" not in values:
    raise typed.ConfigError(f"{where}={values!r}: expected a mapping with 'kind', one of "
                            f"{', '.join(KINDS)}")
  kind = values.pop("kind")
  if kind not in KINDS:
    raise typed.ConfigError(typed.unknown_key(f"{where}.kind={kind!r}", str(kind), list(KINDS)))
  if kind == "mixture" and isinstance(values.get("of"), tuple):
    values["of"] = tuple(make(c, f"{where}.of[{i}]") for i, c in enumerate(values["of"]))
  try:
    return typed.build(KINDS[kind], values, where)
  except typed.ConfigError:
    raise
  except ValueError as error:
    raise typed.ConfigError(f"{where}: {error}") from None


@dataclasses.dataclass(frozen=True)
class RainStreaks(Degradation):
  """Rain of `objectives.rain`, added and clipped.

  Attributes:
    range: names of `rain.RANGES`, or numbers of your own (fields of `rain.Rain`), or several of
      them, of which each picture takes one.
    geometry: "fixed" or "legacy", see `rain.streak_length`.
    beta: interval of how bright the rain is.
    probability: share of pictures on which it rains; a co-author's code trains with 0.9.
  """

  range: str | rain.Rain | tuple[str | rain.Rain, ...] = "medium"
  geometry: rain.Geometry = "fixed"
  beta: Interval = (1.0, 1.0)
  probability: float = 1.0

  def __post_init__(self):
    ranges = self.range if isinstance(self.range, tuple) else (self.range,)
    for name in ranges:
      if isinstance(name, str) and name not in rain.RANGES:
        raise ValueError(typed.unknown_key(f"range={name!r}", name, list(rain.RANGES)))
    ranges = tuple(rain.RANGES[r] if isinstance(r, str) else r for r in ranges)
    if not ranges:
      raise ValueError("range=(): expected at least one range of rain")
    object.__setattr__(self, "range", ranges)
    _check_interval("beta", self.beta, 0, 2)
    _check_share("probability", self.probability)

  def __call__(self, keys, clean):
    layer = rain.render(_fold(keys, 0), *clean.shape[1:3], self.range, self.geometry)
    return _rained(keys, clean, layer, self.beta, self.probability)


@dataclasses.dataclass(frozen=True)
class RainSegments(Degradation):
  """Rain of `objectives.rain_segments`: what no network has been trained on.

  Attributes:
    segments: fields of `rain_segments.Segments`.
    beta, probability: as of `RainStreaks`.
  """

  segments: rain_segments.Segments = rain_segments.Segments()
  beta: Interval = (1.0, 1.0)
  probability: float = 1.0

  def __post_init__(self):
    _check_interval("beta", self.beta, 0, 2)
    _check_share("probability", self.probability)

  def __call__(self, keys, clean):
    layer = rain_segments.render(_fold(keys, 0), *clean.shape[1:3], self.segments)
    return _rained(keys, clean, layer, self.beta, self.probability)


@dataclasses.dataclass(frozen=True)
class RainLayers(Degradation):
  """Rain that was recorded, of `objectives.rain_layers`.

  Attributes:
    file: of the layers.
    beta, probability: as of `RainStreaks`.
  """

  file: str
  beta: Interval = (1.0, 1.0)
  probability: float = 1.0

  def __post_init__(self):
    rain_layers.load(self.file)
    _check_interval("beta", self.beta, 0, 2)
    _check_share("probability", self.probability)

  def __call__(self, keys, clean):
    layer = rain_layers.draw(_fold(keys, 0), rain_layers.load(self.file), *clean.shape[1:3])
    return _rained(keys, clean, layer, self.beta, self.probability)


@dataclasses.dataclass(frozen=True)
class Noise(Degradation):
  """Noise of one family; see `objectives.noise`.

  Attributes:
    family: one of `noise.LEVELS`.
    level: interval of the level, in the family's unit; None for that of `noise.LEVELS`.
  """

  family: str = "gaussian"
  level: Interval | None = None

  def __post_init__(self):
    if self.family not in noise.LEVELS:
      raise ValueError(typed.unknown_key(f"family={self.family!r}", self.family,
                                         list(noise.LEVELS)))
    object.__setattr__(self, "level", self.level or noise.LEVELS[self.family])
    _check_interval("level", self.level, 0, 1 if self.family == "salt_pepper" else 1e4)

  def __call__(self, keys, clean):
    level = _between(_uniform(_fold(keys, 1), 1)[:, 0], self.level)
    return noise.add(_fold(keys, 0), clean, self.family, level), {}


@dataclasses.dataclass(frozen=True)
class Blur(Degradation):
  """Blur of one family; see `objectives.blur`.

  Attributes:
    family: "gaussian", "anisotropic", "motion" or "defocus".
    sigma: interval of the Gaussians, in pixels; of "anisotropic" both are drawn.
    window: interval of the side of their window; an odd number is drawn.
    motion: pairs (radius, sigma) in pixels, of which one is drawn.
    radius: interval of the disk of "defocus", in pixels.
  """

  family: Literal["gaussian", "anisotropic", "motion", "defocus"] = "gaussian"
  sigma: Interval = (1.0, 3.0)
  window: tuple[int, int] = (7, 21)
  motion: tuple[tuple[float, float], ...] = ((10, 3), (15, 5), (15, 8))
  radius: Interval = (1.0, 4.0)

  def __post_init__(self):
    _check_interval("sigma", self.sigma, 0.1, 100)
    _check_interval("window", self.window, 1, 255)
    if not self.window[0] % 2 or not self.window[1] % 2:
      raise ValueError(f"window={self.window!r}: expected odd numbers of pixels")
    _check_interval("radius", self.radius, 0, 100)
    if not self.motion or any(not 0 <= r <= 100 or not s > 0 for r, s in self.motion):
      raise ValueError(f"motion={self.motion!r}: expected pairs (radius, sigma) in pixels, radius "
                       "between 0 and 100, sigma above 0")

  def __call__(self, keys, clean):
    return blur.apply(clean, self.kernel(keys)), {}

  def kernel(self, keys: Key[Array, "b"]) -> Float[Array, "b k k"]:
    """The kernel of each picture."""
    u = _uniform(keys, 4)
    if self.family == "defocus":
      return blur.defocus(_between(u[:, 0], self.radius), int(self.radius[1]) + 2)
    if self.family == "motion":
      pairs = jnp.asarray(self.motion, jnp.float32)
      radius, sigma = pairs[_pick(u[:, 0], len(self.motion))].T
      reach = int(2 * max(r for r, _ in self.motion)) + 2
      return blur.motion(radius, sigma, 2 * jnp.pi * u[:, 1], reach)
    sigma = _between(u[:, :2], self.sigma)
    if self.family == "gaussian":
      sigma = jnp.stack([sigma[:, 0]] * 2, axis=1)
    window = self.window[0] + 2 * _pick(u[:, 2], (self.window[1] - self.window[0]) // 2 + 1)
    return blur.gaussian(sigma, jnp.pi * u[:, 3], window, self.window[1] // 2)


@dataclasses.dataclass(frozen=True)
class Jpeg(Degradation):
  """JPEG, see `objectives.jpeg`.

  Attributes:
    quality: interval of the quality, whole numbers, both ends included (ours).
    straight_through: whether rounding passes gradients.
  """

  quality: tuple[int, int] = (30, 95)
  straight_through: bool = False

  def __post_init__(self):
    _check_interval("quality", self.quality, 1, 100)

  def __call__(self, keys, clean):
    count = self.quality[1] - self.quality[0] + 1
    quality = self.quality[0] + _pick(_uniform(keys, 1)[:, 0], count)
    return jpeg.compress(clean, quality.astype(jnp.float32), self.straight_through), {}


@dataclasses.dataclass(frozen=True)
class Haze(Degradation):
  """Haze over a procedural depth, see `objectives.haze`.

  Attributes:
    beta: interval of the scattering over the whole depth; 0.6 to 1.8 in public code.
    airlight: interval of the haze's own brightness; 0.7 to 1 in public code.
  """

  beta: Interval = (0.6, 1.8)
  airlight: Interval = (0.7, 1.0)

  def __post_init__(self):
    _check_interval("beta", self.beta, 0, 100)
    _check_interval("airlight", self.airlight, 0, 1)

  def __call__(self, keys, clean):
    depth = haze.depth(_fold(keys, 0), *clean.shape[1:3])
    u = _uniform(_fold(keys, 1), 2)
    beta, airlight = _between(u[:, 0], self.beta), _between(u[:, 1], self.airlight)
    return haze.apply(clean, depth, beta, airlight), {}


@dataclasses.dataclass(frozen=True)
class Bicubic(Degradation):
  """A smaller picture, for networks that enlarge: MATLAB's `imresize`, see `objectives.bicubic`.

  Attributes:
    scale: how many times smaller, 2 or more.
  """

  scale: int

  def __post_init__(self):
    if self.scale < 2:
      raise ValueError(f"scale={self.scale}: expected at least 2, how many times smaller")

  def __call__(self, keys, clean):
    del keys
    return jnp.clip(bicubic.downsample(clean, self.scale), 0.0, 1.0), {}


@dataclasses.dataclass(frozen=True)
class Mixture(Degradation):
  """One of several degradations for each picture; all are computed.

  Attributes:
    of: configs of degradations.
    share: how often each is taken; equally often if empty.
  """

  of: tuple[Degradation, ...]
  share: tuple[float, ...] = ()

  def __post_init__(self):
    if not self.of:
      raise ValueError("of=(): expected at least one degradation")
    if self.share and (len(self.share) != len(self.of) or min(self.share) < 0
                       or not sum(self.share) > 0):
      raise ValueError(f"share={self.share!r}: expected {len(self.of)} numbers >= 0, one for each "
                       "degradation, not all 0")
    if len({d.scale for d in self.of}) > 1:
      raise ValueError("of: expected degradations that all leave pictures of one size, not by "
                       f"{', '.join(str(d.scale) for d in self.of)} times smaller ones")

  @property
  def scale(self) -> int:
    return self.of[0].scale

  def __call__(self, keys, clean):
    share = jnp.cumsum(jnp.asarray(self.share or (1.0,) * len(self.of)))
    edges = (share / share[-1])[:-1]
    which = jnp.sum(_uniform(_fold(keys, 0), 1) >= edges, axis=1)
    out = [d(_fold(keys, i + 1), clean) for i, d in enumerate(self.of)]
    names = sorted({name for _, aux in out for name in aux})
    parts = [{"": degraded} | {n: aux.get(n, jnp.zeros(clean.shape[:3])) for n in names}
             for degraded, aux in out]
    chosen = {name: _chosen(which, [part[name] for part in parts]) for name in parts[0]}
    return chosen.pop(""), chosen


KINDS: dict[str, type[Degradation]] = {
  "rain": RainStreaks, "segments": RainSegments, "layers": RainLayers, "noise": Noise,
  "blur": Blur, "jpeg": Jpeg, "haze": Haze, "bicubic": Bicubic, "mixture": Mixture,
}


def _rained(keys, clean, layer, beta, probability):
  u = _uniform(_fold(keys, 1), 2)
  layer = jnp.where((u[:, 0] < probability)[:, None, None], layer, 0.0)
  return rain.superpose(clean, layer, _between(u[:, 1], beta)), {"layer": layer}


def _chosen(which, options):
  out = options[0]
  for i, option in enumerate(options[1:], 1):
    out = jnp.where((which == i).reshape(-1, *[1] * (out.ndim - 1)), option, out)
  return out


def _fold(keys, number):
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def _uniform(keys, count):
  return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)


def _between(u, interval):
  return interval[0] + u * (interval[1] - interval[0])


def _pick(u, count):
  """One of 0..count-1, equally likely, of numbers in [0, 1)."""
  return jnp.minimum((u * count).astype(jnp.int32), count - 1)


def _check_interval(key, interval, low, high):
  if not low <= interval[0] <= interval[1] <= high:
    raise ValueError(f"{key}={interval!r}: expected {low} <= low <= high <= {high}")


def _check_share(key, value):
  if not 0 <= value <= 1:
    raise ValueError(f"{key}={value!r}: expected between 0 and 1")
