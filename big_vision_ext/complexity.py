"""How complex is a picture, and how complex a set of pictures, be they backgrounds or rain?

The argument of the deraining study is that a network learns whichever of content and rain is the
less complex. Which measure its authors order their data by is not known to us; these are ours, the
same for backgrounds and for layers of rain, and all are reported. Those of a picture say how much
there is in one; only those of a set grow with the number of distinct backgrounds and with the
width of a range of rain, which is what the argument needs.

On the host, in NumPy: files are compressed for it. n pictures, y x rows and columns, c channels.
"""

import io
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

PATCH = 16
# Sides that whole pictures are shrunk to.
_SIDE = 32
# Studio weights would leave an offset; these are of full-range luma.
_LUMA = np.array([0.299, 0.587, 0.114])


def measures(images: Sequence[np.ndarray] | np.ndarray, most: int = 512) -> dict[str, float]:
  """Every measure of a set: means over its pictures, and those of the set itself.

  Args:
    images: uint8, (y, x, 3) or (y, x), at least one, all of at least 16 x 16 pixels.
    most: measures of single pictures are of no more than so many, evenly spaced ones.

  Returns:
    Those of `bits_per_pixel`, `gradient_entropy`, `spectrum` and `components`.

  Raises:
    ValueError: no pictures, or one of another kind.
  """
  images = _checked(images)
  some = [images[i * len(images) // most] for i in range(most)] if len(images) > most else images
  each = [bits_per_pixel(x) | gradient_entropy(x) | spectrum(x) for x in some]
  out = {name: float(np.mean([m[name] for m in each])) for name in each[0]}
  return out | components(images)


def bits_per_pixel(image: np.ndarray) -> dict[str, float]:
  """How long the codes of a picture are, in bits per pixel.

  `png_bpp` and `zlib_bpp` lose nothing, the first predicts each pixel from its neighbours;
  `jpeg_bpp` is JPEG of quality 90. Headers are a part of each: 0.2 bits at 128 x 128.
  """
  pixels = image.shape[0] * image.shape[1]

  def saved(**how):
    file = io.BytesIO()
    Image.fromarray(image).save(file, **how)
    return 8.0 * file.tell() / pixels

  return {"png_bpp": saved(format="PNG", optimize=True),
          "zlib_bpp": 8.0 * len(zlib.compress(image.tobytes(), 9)) / pixels,
          "jpeg_bpp": saved(format="JPEG", quality=90)}


def gradient_entropy(image: np.ndarray, bins: int = 32) -> dict[str, float]:
  """Entropy, in bits, of the gradients of luma.

  `magnitude_entropy`: of 32 classes of magnitude up to 255, equally wide in its square root, for
  most gradients are weak; `orientation_entropy`: of 32 classes of direction over half a turn,
  weighted by magnitude; 0 where nothing changes.
  """
  gy, gx = np.gradient(_luma(image))
  magnitude = np.hypot(gy, gx)
  direction = np.arctan2(gy, gx) % np.pi
  count, _ = np.histogram(np.sqrt(magnitude), bins=bins, range=(0, np.sqrt(255)))
  # Directions are centred on their classes: that of an exactly upright edge is not split in two.
  at = np.round(direction / np.pi * bins).astype(int) % bins
  weight = np.bincount(at.ravel(), weights=magnitude.ravel(), minlength=bins)
  return {"magnitude_entropy": _entropy(count), "orientation_entropy": _entropy(weight)}


def spectrum(image: np.ndarray) -> dict[str, float]:
  """How the energy of luma lies over spatial frequencies.

  `spectrum_slope`: alpha of power ~ 1 / frequency^alpha, fitted to the mean power of rings between
  four cycles per picture and Nyquist, every octave counting the same; `high_frequencies`: share of
  the energy above a quarter of Nyquist, the mean left out. A Hann window keeps the borders out of
  both, and blurs what is lower. Both are 0 of a flat picture.
  """
  x = _luma(image)
  window = np.hanning(x.shape[0])[:, None] * np.hanning(x.shape[1])
  x = (x - np.average(x, weights=window)) * window
  power = np.abs(np.fft.fft2(x)) ** 2
  total = power.sum()
  if total < 1e-6 * x.size:
    return {"spectrum_slope": 0.0, "high_frequencies": 0.0}
  fy, fx = np.fft.fftfreq(x.shape[0])[:, None], np.fft.fftfreq(x.shape[1])
  radius = np.hypot(fy, fx)
  edges = np.geomspace(4 / min(x.shape), 0.5, 8)
  ring = np.digitize(radius, edges)
  means = [(np.sqrt(lo * hi), power[ring == i].mean())
           for i, (lo, hi) in enumerate(zip(edges, edges[1:]), 1) if (ring == i).any()]
  frequency, level = np.array(means).T
  slope = np.polyfit(np.log(frequency), np.log(np.maximum(level, 1e-12 * total)), 1)[0]
  return {"spectrum_slope": float(-slope),
          "high_frequencies": float(power[radius > 0.125].sum() / total)}


def components(images: Sequence[np.ndarray] | np.ndarray, share: float = 0.95) -> dict[str, float]:
  """Intrinsic dimension of a set: how many principal components have `share` of its variance.

  `patch_components`: of all 16 x 16 patches of luma side by side, each less its own mean, pooled
  over the pictures: at most 255. Without that, brightness is nearly all variance, and more
  photographs have fewer components. It grows with the range of rain, and with the number of
  backgrounds until it is that of their kind, for photographs at about a hundred crops.
  `picture_components`: of whole pictures, shrunk to 32 x 32: below their number, and the further
  below the more they have in common. Between whole numbers both are interpolated; they are 0 where
  all is the same.
  """
  images = _checked(images)
  count, total, outer, pictures = 0, 0.0, 0.0, []
  for image in images:
    x = _luma(image)
    rows, columns = x.shape[0] // PATCH, x.shape[1] // PATCH
    x = x[:rows * PATCH, :columns * PATCH].reshape(rows, PATCH, columns, PATCH)
    x = x.swapaxes(1, 2).reshape(-1, PATCH**2)
    x = x - x.mean(axis=1, keepdims=True)
    # Sums, for the patches of many pictures are more than fit into memory.
    count, total, outer = count + len(x), total + x.sum(axis=0), outer + x.T @ x
    small = Image.fromarray(image).convert("L").resize((_SIDE, _SIDE), Image.BOX)
    pictures.append(np.asarray(small, np.float32).ravel())
  mean = total / count
  small = np.stack(pictures)
  small = small - small.mean(axis=0)
  # Of fewer pictures than numbers in each, the products among pictures have the same variances.
  gram = small @ small.T if len(small) < small.shape[1] else small.T @ small
  return {"patch_components": _reached(outer / count - np.outer(mean, mean), share),
          "picture_components": _reached(gram / len(small), share)}


def _reached(covariance: np.ndarray, share: float) -> float:
  """How many of the largest eigenvalues have a share of their sum."""
  variance = np.maximum(np.linalg.eigvalsh(covariance)[::-1], 0)
  # A millionth of a level: what rounding leaves of what is all the same.
  if variance.sum() < 1e-6:
    return 0.0
  reached = np.concatenate([[0.0], np.cumsum(variance) / variance.sum()])
  above = int(np.argmax(reached >= share))
  return float(above - (reached[above] - share) / (reached[above] - reached[above - 1]))


def _checked(images):
  images = [np.asarray(x) for x in images]
  if not images:
    raise ValueError("the complexity of no pictures is not defined; expected at least one.")
  for i, x in enumerate(images):
    gray_or_rgb = x.ndim == 2 or (x.ndim == 3 and x.shape[2] == 3)
    if x.dtype != np.uint8 or not gray_or_rgb or min(x.shape[:2]) < PATCH:
      raise ValueError(f"picture {i} is {x.dtype} of shape {x.shape}; expected uint8, (y, x) or "
                       f"(y, x, 3), of at least {PATCH} x {PATCH} pixels.")
  return images


def _luma(image):
  return image.astype(np.float64) if image.ndim == 2 else image @ _LUMA


def _entropy(weight):
  p = weight[weight > 0] / max(weight.sum(), 1e-12)
  return float(-np.sum(p * np.log2(p)))
