"""How close is a restored picture to the true one, and how much of the rain is gone from it?

PSNR and SSIM as the low-level vision literature defines them, and the decoupled measures of
deraining: what was changed where there is rain, what was damaged where there is none. Everything
is per image, so that the mean over a set does not depend on how it was cut into batches or over
devices: sums and counts are added up, never means of shards.

Pictures are RGB in [0, 1]; they are clipped and rounded to 8 bits first, as they would be stored.
All in float32: whole numbers of up to 255 and their differences are exact in it.
b batch, y x rows and columns, c channels.
"""

from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Channel = Literal["rgb", "y", "y_rounded"]

# Studio luma of BT.601, range 16..235.
_LUMA = (65.481, 128.553, 24.966)
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
# Rain is where the layer exceeds 50 of 255 (a co-author's code); strictly, none is where it has
# at most 2 (ours): at 50 more than half of the visibly wet pixels count as background.
RAIN_ABOVE, DRY_UP_TO = 50, 2
# Flat is where the clean picture spans no more than this many levels around a pixel (ours).
FLAT_UP_TO, _FLAT_SIDE = 6, 5


def psnr(
  a: Float[Array, "b y x c"],
  b: Float[Array, "b y x c"],
  crop: int = 0,
  channel: Channel = "rgb",
  quantize: bool = True,
) -> Float[Array, "b"]:
  """10 log10(255^2 / MSE) in dB, over all pixels and channels of an image; inf where equal.

  The mean over a set is that of the images' PSNR, not the PSNR of the mean error; infinite values
  are to be counted apart.

  Args:
    a, b: RGB in [0, 1].
    crop: pixels left out along each border: the scale for super-resolution, 0 for deraining.
    channel: "rgb"; "y", luma in float, as BasicSR; "y_rounded", luma rounded to 8 bits, as MATLAB
      does, which costs 0.02 dB at 32 dB and 0.5 dB at 47 dB.
    quantize: rounds pixels to 8 bits first.

  Raises:
    ValueError: shapes that differ or are too small, or an unknown channel.
  """
  a, b = _prepared(a, b, crop, channel, quantize, smallest=1)
  mse = jnp.mean((a - b) ** 2, axis=(1, 2, 3))
  return 10.0 * jnp.log10(255.0**2 / mse)


def ssim(
  a: Float[Array, "b y x c"],
  b: Float[Array, "b y x c"],
  crop: int = 0,
  channel: Channel = "rgb",
  quantize: bool = True,
) -> Float[Array, "b"]:
  """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of sigma 1.5, only where it
  lies inside, population variances, the mean over places and channels.

  Args and errors are those of `psnr`.
  """
  a, b = _prepared(a, b, crop, channel, quantize, smallest=_WINDOW)
  # Variances do not change by a shift, and E[x^2] - E[x]^2 loses fewer digits near zero.
  shift = 127.5
  a, b = a - shift, b - shift
  mean_a, mean_b = _blurred(a), _blurred(b)
  var_a = _blurred(a * a) - mean_a**2
  var_b = _blurred(b * b) - mean_b**2
  cov = _blurred(a * b) - mean_a * mean_b
  mean_a, mean_b = mean_a + shift, mean_b + shift
  top = (2 * mean_a * mean_b + _C1) * (2 * cov + _C2)
  bottom = (mean_a**2 + mean_b**2 + _C1) * (var_a + var_b + _C2)
  return jnp.mean(top / bottom, axis=(1, 2, 3))


def rain_sums(
  restored: Float[Array, "b y x 3"],
  degraded: Float[Array, "b y x 3"],
  clean: Float[Array, "b y x 3"],
  layer: Float[Array, "b y x"],
  strict: bool = False,
  quantize: bool = True,
) -> dict[str, Float[Array, "b"]]:
  """Sums of squared differences, in 0..255, over rain and over background, and their counts.

  They may be added over images, devices and processes before `rain_measures` is asked.

  Args:
    restored, degraded, clean: RGB in [0, 1].
    layer: the rain before it was added, in [0, 1].
    strict: pixels of little rain, with 2 < R <= 50 of 255, count as neither; else as background.
    quantize: rounds pixels to 8 bits first.

  Returns:
    `changed`, `left` and `rain`: sums over rain of (restored - degraded)^2, (restored - clean)^2
    and (degraded - clean)^2; `damage`: over background of (restored - clean)^2; `rain_count` and
    `background_count`: numbers of values, three for each pixel.
  """
  _check_shapes(restored, degraded)
  _check_shapes(restored, clean)
  if layer.shape != restored.shape[:3]:
    raise ValueError(f"rain_sums: the rain layer has shape {layer.shape}; expected "
                     f"{restored.shape[:3]}, one number for each pixel.")
  restored, degraded, clean = (_levels(x, quantize) for x in (restored, degraded, clean))
  level = jnp.round(layer.astype(jnp.float32) * 255.0)[..., None]
  rain = level > RAIN_ABOVE
  background = level <= DRY_UP_TO if strict else ~rain

  def over(mask, values):
    return jnp.sum(jnp.where(mask, values, 0.0), axis=(1, 2, 3))

  ones = jnp.ones_like(restored)
  return {
    "changed": over(rain, (restored - degraded) ** 2),
    "left": over(rain, (restored - clean) ** 2),
    "rain": over(rain, (degraded - clean) ** 2),
    "rain_count": over(rain, ones),
    "damage": over(background, (restored - clean) ** 2),
    "background_count": over(background, ones),
  }


def rain_measures(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
  """The decoupled measures of `rain_sums`, which may be of one image, of many, or added up.

  Returns:
    `E_R`: root mean square of what was changed under rain, higher when more rain is removed, and
    0 when nothing is done. `E_B`: root mean square error of the background, lower is better (both
    as recalled of the paper). `E_R_gt`: the error under rain, lower is better, for E_R alone is
    won by painting the rain black (ours). `rho`: 1 - |restored - clean| / |degraded - clean| under
    rain: 1 perfect, 0 untouched, negative if worse than untouched (ours). E_* in 0..255; NaN where
    there is nothing to average.
  """
  total = {k: float(np.sum(np.asarray(v, np.float64))) for k, v in sums.items()}

  def rms(of, count):
    return (total[of] / total[count]) ** 0.5 if total[count] else float("nan")

  rho = 1 - (total["left"] / total["rain"]) ** 0.5 if total["rain"] else float("nan")
  return {"E_R": rms("changed", "rain_count"), "E_B": rms("damage", "background_count"),
          "E_R_gt": rms("left", "rain_count"), "rho": rho}


def flat_sums(
  restored: Float[Array, "b y x c"], clean: Float[Array, "b y x c"], quantize: bool = True
) -> dict[str, Float[Array, "b"]]:
  """Sums of what is left of noise where the clean picture is flat, to be added up.

  There, nothing of the picture hides noise, nor passes for it. Flat is a pixel around which no
  channel of the clean picture spans more than 6 of 255 levels, over 5 x 5 pixels.

  Args:
    restored, clean: in [0, 1].
    quantize: rounds pixels to 8 bits first.

  Returns:
    `sum` and `squares` of (restored - clean), in 0..255, and the `count` of values.
  """
  _check_shapes(restored, clean)
  restored, clean = (_levels(x, quantize) for x in (restored, clean))
  around = (1, _FLAT_SIDE, _FLAT_SIDE, 1)
  most = jax.lax.reduce_window(clean, -jnp.inf, jax.lax.max, around, (1, 1, 1, 1), "SAME")
  least = jax.lax.reduce_window(clean, jnp.inf, jax.lax.min, around, (1, 1, 1, 1), "SAME")
  flat = jnp.all(most - least <= FLAT_UP_TO, axis=-1, keepdims=True)
  left = jnp.where(flat, restored - clean, 0.0)
  return {"sum": jnp.sum(left, axis=(1, 2, 3)), "squares": jnp.sum(left**2, axis=(1, 2, 3)),
          "count": jnp.sum(flat, axis=(1, 2, 3)) * jnp.float32(clean.shape[3])}


def flat_noise(sums: Mapping[str, np.ndarray]) -> float:
  """Standard deviation, in 0..255, of what `flat_sums` added up; NaN if nothing is flat."""
  total = {k: float(np.sum(np.asarray(v, np.float64))) for k, v in sums.items()}
  if not total["count"]:
    return float("nan")
  mean = total["sum"] / total["count"]
  return max(total["squares"] / total["count"] - mean**2, 0.0) ** 0.5


def _prepared(a, b, crop, channel, quantize, smallest):
  """Both pictures in 0..255, cropped, in the channels that are asked for."""
  _check_shapes(a, b)
  h, w = a.shape[1:3]
  if crop < 0 or min(h, w) - 2 * crop < smallest:
    raise ValueError(f"pictures of {h} x {w} pixels with crop={crop} are too small to measure: "
                     f"expected crop >= 0 and at least {smallest} pixels on each side to remain.")
  if channel not in ("rgb", "y", "y_rounded"):
    raise ValueError(f"channel={channel!r} is unknown; it is 'rgb', 'y' or 'y_rounded'.")
  if channel != "rgb" and a.shape[3] != 3:
    raise ValueError(f"channel={channel!r} needs RGB; the pictures have {a.shape[3]} channels.")
  out = []
  for x in (a, b):
    x = _levels(x[:, crop:h - crop, crop:w - crop], quantize)
    if channel != "rgb":
      x = 16.0 + sum(x[..., i:i + 1] * (k / 255.0) for i, k in enumerate(_LUMA))
      x = jnp.round(x) if channel == "y_rounded" else x
    out.append(x)
  return out


def _levels(x, quantize):
  """[0, 1] to 0..255, clipped; rounded to whole numbers, half to even, if asked for."""
  x = jnp.clip(x.astype(jnp.float32), 0.0, 1.0) * 255.0
  return jnp.round(x) if quantize else x


def _blurred(x: Float[Array, "b y x c"]) -> Float[Array, "b y-10 x-10 c"]:
  """The Gaussian window where it lies inside; shifts and sums, so that no matmul rounds."""
  offset = np.arange(_WINDOW) - _WINDOW // 2
  weight = np.exp(-0.5 * (offset / _SIGMA) ** 2)
  weight = (weight / weight.sum()).astype(np.float32)
  for axis in (1, 2):
    n = x.shape[axis] - _WINDOW + 1
    cut = [(slice(None),) * axis + (slice(i, i + n),) for i in range(_WINDOW)]
    x = sum(w * x[at] for w, at in zip(weight, cut))
  return x


def _check_shapes(a, b):
  if a.shape != b.shape or a.ndim != 4:
    raise ValueError(f"pictures of shapes {a.shape} and {b.shape} cannot be compared; expected the "
                     "same (batch, rows, columns, channels) of both.")
