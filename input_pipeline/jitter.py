"""How do the colours of a training image vary? Brightness, contrast, saturation and hue, drawn.

torchvision's `ColorJitter` under a `RandomApply`, on pixels in 0..1: the four changes in a random
order, each by a factor of its own, and what leaves 0..1 is cut off after each. Everything is
computed in float32 and rounded to bytes once, at the end.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

# ITU-R 601, as torchvision writes them.
_GREY = np.float32([0.2989, 0.587, 0.114])
CHANGES = ("brightness", "contrast", "saturation", "hue")


@dataclasses.dataclass(frozen=True)
class ColorJitter:
  """Calling it draws from `rng` and gives the changed pixels.

  Attributes:
    brightness, contrast, saturation: factors are uniform in 1 - v to 1 + v, not below 0.
    hue: uniform in -v to v of a turn; up to 0.5.
    share: of the images that are changed at all.
  """

  brightness: float
  contrast: float
  saturation: float
  hue: float
  share: float = 1.0

  def __call__(
    self, pixels: UInt8[np.ndarray, "y x 3"], rng: np.random.Generator
  ) -> UInt8[np.ndarray, "y x 3"]:
    if rng.random() >= self.share:
      return pixels
    x = pixels.astype(np.float32) / np.float32(255.0)
    factors = {name: self._factor(name, rng) for name in CHANGES}
    for i in rng.permutation(len(CHANGES)):
      if getattr(self, CHANGES[i]):
        x = change(CHANGES[i], x, factors[CHANGES[i]])
    return np.rint(x * np.float32(255.0)).astype(np.uint8)

  def _factor(self, name: str, rng: np.random.Generator) -> float:
    width = getattr(self, name)
    if name == "hue":
      return float(rng.uniform(-width, width))
    return float(rng.uniform(max(0.0, 1.0 - width), 1.0 + width))


def change(
  name: str, x: Float32[np.ndarray, "y x 3"], factor: float
) -> Float32[np.ndarray, "y x 3"]:
  """One of `CHANGES`, on pixels in 0..1.

  Args:
    name: "brightness" mixes with black, "contrast" with the image's mean grey, "saturation" each
      pixel with its own grey; "hue" turns the colour circle.
    x: the pixels.
    factor: share of the image in the mixture; of hue, a share of a turn.
  """
  return _CHANGES[name](x, np.float32(factor))


def _brightness(x, factor):
  return np.clip(factor * x, 0, 1)


def _contrast(x, factor):
  # Of so many numbers the mean needs more digits than they have.
  mean = np.float32(np.mean(x @ _GREY, dtype=np.float64))
  return np.clip(factor * x + (1 - factor) * mean, 0, 1)


def _saturation(x, factor):
  return np.clip(factor * x + (1 - factor) * (x @ _GREY)[..., None], 0, 1)


def _hue(x, factor):
  # Degrees, and shares in 0..1.
  hsv = cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2HSV)
  hsv[..., 0] = (hsv[..., 0] + 360 * factor) % 360
  return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1)


_CHANGES: dict[str, Callable] = {
  "brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}
