"""What can be measured of a picture's quality without knowing what it shows?"""

import dataclasses
import math

import cv2
import numpy as np
from jaxtyping import Float, UInt8

_LUMA = np.array([0.299, 0.587, 0.114])
# Takes flat areas, slopes and straight edges away; what is left is noise.
_NOISE_MASK = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)
_BLOCK = 8


@dataclasses.dataclass(frozen=True)
class Measures:
  """Measurements of the pixels, on their scale of 0 to 255.

  Attributes:
    sharpness: variance of the Laplacian of the luma.
    noise: standard deviation of the noise (Immerkaer 1996).
    luma: mean luma.
    contrast: standard deviation of the luma.
    colourfulness: of Hasler and Suesstrunk (2003).
    blockiness: mean step between rows and columns at multiples of 8, over that elsewhere; 1 for a
      picture that knows no blocks of JPEG.
  """

  sharpness: float
  noise: float
  luma: float
  contrast: float
  colourfulness: float
  blockiness: float


def measure(pixels: UInt8[np.ndarray, "y x 3"]) -> Measures:
  """Measures a picture of at least 3 x 3 pixels."""
  values = pixels.astype(np.float64)
  luma = values @ _LUMA
  inner = (slice(1, -1), slice(1, -1))
  laplacian = cv2.Laplacian(luma, cv2.CV_64F)[inner]
  residual = cv2.filter2D(luma, cv2.CV_64F, _NOISE_MASK)[inner]
  return Measures(
    sharpness=float(laplacian.var()),
    noise=float(math.sqrt(math.pi / 2) / 6 * np.abs(residual).mean()),
    luma=float(luma.mean()),
    contrast=float(luma.std()),
    colourfulness=colourfulness(values),
    blockiness=blockiness(luma),
  )


def colourfulness(values: Float[np.ndarray, "y x 3"]) -> float:
  """0 without colour; about 33 for moderately, 82 for highly colourful pictures."""
  red, green, blue = np.moveaxis(values, -1, 0)
  one, other = red - green, (red + green) / 2 - blue
  spread = math.hypot(one.std(), other.std())
  return float(spread + 0.3 * math.hypot(one.mean(), other.mean()))


def blockiness(luma: Float[np.ndarray, "y x"]) -> float:
  """How much larger steps are at the borders of blocks of 8 pixels than within them."""
  at, within = [], []
  for axis in (0, 1):
    steps = np.abs(np.diff(luma, axis=axis)).mean(axis=1 - axis)
    border = np.arange(1, len(steps) + 1) % _BLOCK == 0
    at.append(steps[border])
    within.append(steps[~border])
  borders, rest = np.concatenate(at), np.concatenate(within)
  # An even picture has no steps at all.
  return float((borders.mean() + 1e-6) / (rest.mean() + 1e-6)) if len(borders) else 1.0
