"""How does a picture get smaller or larger, exactly as published super-resolution benchmarks do it?

Keys' cubic kernel with a = -0.5, stretched by the factor of a reduction so that it does not alias,
pixels with their centres at half-integers. Two conventions, which are equal in the interior and
differ along the borders, by up to 0.05 on noise in [0, 1]:

  matlab   `imresize`: the picture is continued by its mirror image. Published numbers use it.
  pillow   `Image.BICUBIC`, and `jax.image.resize`: taps outside are left out, the others scaled up.

Both are a matrix per axis, made while tracing (`core/bicubic.py`): two matmuls on the device.
b batch (any leading axes), y rows, x columns, c channels.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.core.bicubic import Convention, matrix

# The default of a TPU rounds both factors to bfloat16: 0.15 dB of a benchmark would be noise.
_EXACT = jax.lax.Precision.HIGHEST


def downsample(
  x: Float[Array, "*b y x c"], scale: int, convention: Convention = "matlab"
) -> Float[Array, "*b y/scale x/scale c"]:
  """The picture with sides `scale` times smaller.

  Raises:
    ValueError: `scale` is no whole number above 0 or does not divide the sides.
  """
  h, w = x.shape[-3:-1]
  _check_scale(scale)
  if h % scale or w % scale:
    raise ValueError(
      f"a picture of {h} x {w} pixels cannot be made {scale} times smaller: both sides must be "
      f"multiples of scale={scale}; cut it to {h - h % scale} x {w - w % scale}."
    )
  return resize(x, (h // scale, w // scale), convention)


def upsample(
  x: Float[Array, "*b y x c"], scale: int, convention: Convention = "matlab"
) -> Float[Array, "*b y*scale x*scale c"]:
  """The picture with sides `scale` times larger."""
  _check_scale(scale)
  return resize(x, (x.shape[-3] * scale, x.shape[-2] * scale), convention)


def resize(
  x: Float[Array, "*b y x c"], size: tuple[int, int], convention: Convention = "matlab"
) -> Float[Array, "*b y2 x2 c"]:
  """The picture at another size (rows, columns), float32; values may overshoot [0, 1].

  Raises:
    ValueError: an unknown convention, or a side of no pixels.
  """
  if convention not in ("matlab", "pillow"):
    raise ValueError(f"convention={convention!r} of bicubic resizing is unknown; it is 'matlab' or "
                     "'pillow'.")
  if min(size) < 1 or min(x.shape[-3:-1]) < 1:
    raise ValueError(f"a picture of {x.shape[-3]} x {x.shape[-2]} pixels cannot be resized to "
                     f"{size[0]} x {size[1]}: every side needs a pixel.")
  x = x.astype(jnp.float32)
  # The axis that shrinks most is resized first, which leaves less for the second.
  axes = [(x.shape[-3], size[0], "oy,...yxc->...oxc"), (x.shape[-2], size[1], "ox,...yxc->...yoc")]
  for n_in, n_out, formula in sorted(axes, key=lambda axis: axis[1] / axis[0]):
    if n_in != n_out:
      x = jnp.einsum(formula, jnp.asarray(matrix(n_in, n_out, convention)), x, precision=_EXACT)
  return x


def quantize(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
  """What remains after a round trip through 8 bits: clipped, rounded to 1/255, half to even.

  Low-resolution pictures are stored as PNGs, which is a part of the benchmarks.
  """
  return jnp.round(jnp.clip(x.astype(jnp.float32), 0.0, 1.0) * 255.0) / 255.0


def _check_scale(scale: int) -> None:
  if not isinstance(scale, int) or isinstance(scale, bool) or scale < 1:
    raise ValueError(f"scale={scale!r}: expected a whole number of at least 1, such as 2, 4 or 8.")
