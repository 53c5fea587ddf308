"""What happens to the colours and the shape of a training image? RandAugment, increasing variant.

Cubuk et al. 2020, with the operations and magnitudes of timm's `rand-m9-mstd0.5-inc1`, the policy
of MAE's and BEiT's fine-tuning: a number of operations drawn with replacement, each of them carried
out half of the time, at a magnitude drawn anew. In the "inc1" variant every operation changes the
image more, the larger its magnitude is. The arithmetic is Pillow's, as there.
"""

import dataclasses
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

# The scale of magnitudes: at 10 an operation is at its strongest.
LARGEST = 10.0
# What comes in from outside of the image: the mean colour of ImageNet.
FILL = (124, 116, 104)
_PROBABILITY = 0.5
_BLEND = {
  "color": ImageEnhance.Color,
  "contrast": ImageEnhance.Contrast,
  "brightness": ImageEnhance.Brightness,
  "sharpness": ImageEnhance.Sharpness,
}
_SPEC = re.compile(r"rand(-(m|n|mstd|inc)\d+(\.\d+)?|-bicubic)*")
_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


def _linear(most: float) -> Callable[[float], float]:
  return lambda magnitude: magnitude / LARGEST * most


# For each operation what its argument is at a magnitude of 0 to 10, and whether half of the time it
# is negative, or for a blend on the other side of 1.
ARGUMENTS: dict[str, tuple[Callable[[float], float] | None, bool]] = {
  "auto_contrast": (None, False),
  "equalize": (None, False),
  "invert": (None, False),
  "rotate": (_linear(30.0), True),  # degrees
  "posterize": (lambda m: 4 - int(m / LARGEST * 4), False),  # bits that are kept
  "solarize": (lambda m: 256 - int(m / LARGEST * 256), False),  # from where on it is inverted
  "solarize_add": (lambda m: int(m / LARGEST * 110), False),  # added to what is below 128
  "color": (_linear(0.9), True),
  "contrast": (_linear(0.9), True),
  "brightness": (_linear(0.9), True),
  "sharpness": (_linear(0.9), True),
  "shear_x": (_linear(0.3), True),
  "shear_y": (_linear(0.3), True),
  "translate_x": (_linear(0.45), True),  # share of the width
  "translate_y": (_linear(0.45), True),
}


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """A policy; calling it draws from `rng` and gives the changed pixels.

  Attributes:
    magnitude: mean of the magnitudes, 0 to 10.
    deviation: of the normal distribution that they are drawn from; what lies outside of 0 to 10 is
      0 or 10.
    count: operations that are drawn for an image.
    bicubic: operations that move pixels are bicubic; else bilinear or bicubic at random.
  """

  magnitude: float = 9.0
  deviation: float = 0.0
  count: int = 2
  bicubic: bool = False

  def __call__(
    self, pixels: UInt8[np.ndarray, "y x 3"], rng: np.random.Generator
  ) -> UInt8[np.ndarray, "y x 3"]:
    for number in rng.integers(len(ARGUMENTS), size=self.count):
      if rng.random() < _PROBABILITY:
        name = list(ARGUMENTS)[number]
        pixels = apply(name, pixels, self._argument(name, rng), self._filter(rng))
    return pixels

  def _argument(self, name: str, rng: np.random.Generator) -> float | None:
    of_magnitude, two_sided = ARGUMENTS[name]
    drawn = self.magnitude
    if self.deviation:
      drawn = float(np.clip(rng.normal(drawn, self.deviation), 0.0, LARGEST))
    if of_magnitude is None:
      return None
    value = of_magnitude(drawn)
    if two_sided and rng.random() < 0.5:
      value = -value
    return max(0.1, 1.0 + value) if name in _BLEND else value

  def _filter(self, rng: np.random.Generator) -> Image.Resampling:
    return _FILTERS[1] if self.bicubic else _FILTERS[rng.integers(2)]


def parse(spec: str) -> RandAugment:
  """A policy as timm spells it: "rand", then in any order behind hyphens

  mN magnitude, mstdN its deviation, nN operations an image (2), inc1 (which must be there); and,
  not in timm, bicubic.

  Raises:
    ValueError: anything else.
  """
  parts = spec.split("-")[1:]
  found = {re.match(r"[a-z]+", part)[0]: part for part in parts if re.match(r"[a-z]+", part)}
  number = lambda key, default: float(found[key][len(key):]) if key in found else default
  if not _SPEC.fullmatch(spec) or len(found) < len(parts) or found.get("inc") != "inc1":
    raise ValueError(
      f"input.augment is {spec!r}, expected RandAugment as in 'rand-m9-mstd0.5-inc1' (m magnitude, "
      "mstd its deviation, n operations, inc1 for the increasing variant, which is the only one; "
      "bicubic to move pixels so always), or '' for none."
    )
  policy = RandAugment(number("m", 10.0), number("mstd", 0.0), int(number("n", 2)),
                       "bicubic" in found)
  if policy.magnitude > LARGEST or number("n", 2) != policy.count or not policy.count:
    raise ValueError(f"input.augment is {spec!r}, expected a magnitude m of 0 to {LARGEST:g} and a "
                     "whole number n of operations above 0.")
  return policy


def apply(
  name: str,
  pixels: UInt8[np.ndarray, "y x 3"],
  argument: float | None = None,
  resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> UInt8[np.ndarray, "y x 3"]:
  """One operation of `ARGUMENTS`, with its argument."""
  image = Image.fromarray(pixels)
  if name in _BLEND:
    return np.asarray(_BLEND[name](image).enhance(argument))
  simple = {
    "auto_contrast": lambda: ImageOps.autocontrast(image),
    "equalize": lambda: ImageOps.equalize(image),
    "invert": lambda: ImageOps.invert(image),
    # Not Pillow's, which refuses to keep none: at a magnitude of 10 all is black.
    "posterize": lambda: pixels & np.uint8(256 - 2 ** (8 - int(argument))),
    "solarize": lambda: ImageOps.solarize(image, int(argument)),
    "solarize_add": lambda: image.point([min(255, v + argument) if v < 128 else v
                                         for v in range(256)] * 3),
    "rotate": lambda: image.rotate(argument, resample, fillcolor=FILL),
  }
  if name in simple:
    return np.asarray(simple[name]())
  # Where a pixel (x, y) of the result is read: (a x + b y + c, d x + e y + f).
  matrix = {
    "shear_x": lambda: (1, argument, 0, 0, 1, 0),
    "shear_y": lambda: (1, 0, 0, argument, 1, 0),
    "translate_x": lambda: (1, 0, argument * image.width, 0, 1, 0),
    "translate_y": lambda: (1, 0, 0, 0, 1, argument * image.height),
  }[name]()
  how = Image.Transform.AFFINE
  return np.asarray(image.transform(image.size, how, matrix, resample, fillcolor=FILL))
