"""How is a picture blurred: by which kernel?

Every image has a kernel of its own, of a static size; pictures are mirrored at the border.
Isotropic Gaussian of sigma 1 to 3 in windows of 7 to 21 pixels is MiOIR's, motion of
(radius, sigma) (10, 3), (15, 5), (15, 8) at any angle AgenticIR's; the other families are ours.
b batch, y x rows and columns, c channels, k side of a kernel.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.objectives import filters


def gaussian(
  sigma: Float[Array, "b 2"], angle: Float[Array, "b"], window: Float[Array, "b"], reach: int
) -> Float[Array, "b k k"]:
  """Gaussian kernels.

  Args:
    sigma: along and across, in pixels; equal for an isotropic one.
    angle: of the first in radians, 0 vertical, positive counter-clockwise.
    window: side of the square outside of which the kernel is 0, odd numbers of pixels.
    reach: pixels to each side of the middle that the array has; half the largest window.
  """
  along, across, y, x = _axes(angle, reach)
  s = sigma[:, :, None, None]
  kernel = jnp.exp(-0.5 * ((along / s[:, 0]) ** 2 + (across / s[:, 1]) ** 2))
  half = window[:, None, None] / 2
  return _normalised(jnp.where((jnp.abs(y) < half) & (jnp.abs(x) < half), kernel, 0.0))


def motion(
  radius: Float[Array, "b"], sigma: Float[Array, "b"], angle: Float[Array, "b"], reach: int
) -> Float[Array, "b k k"]:
  """Kernels of a point that moves off and fades: half a Gaussian along a line of one pixel.

  Args:
    radius: the line is 2 * radius + 1 pixels long.
    sigma: of the fading in pixels.
    angle: in radians, 0 downwards, positive counter-clockwise.
    reach: as of `gaussian`, at least 2 * radius + 1.
  """
  along, across, _, _ = _axes(angle, reach)
  s, r = sigma[:, None, None], radius[:, None, None]
  line = jnp.clip(along + 1, 0, 1) * jnp.clip(2 * r + 1 - along, 0, 1)
  fade = jnp.exp(-0.5 * (along / s) ** 2)
  return _normalised(line * fade * jnp.clip(1 - jnp.abs(across), 0, 1))


def defocus(radius: Float[Array, "b"], reach: int) -> Float[Array, "b k k"]:
  """Disks of some radius in pixels, their edge one pixel wide; `reach` at least radius + 1."""
  along, across, _, _ = _axes(jnp.zeros_like(radius), reach)
  distance = jnp.sqrt(along**2 + across**2)
  return _normalised(jnp.clip(radius[:, None, None] + 0.5 - distance, 0.0, 1.0))


def apply(x: Float[Array, "b y x c"], kernel: Float[Array, "b k k"]) -> Float[Array, "b y x c"]:
  """The blurred pictures, clipped to [0, 1]."""
  return jnp.clip(filters.convolve_channels(x, kernel), 0.0, 1.0)


def _axes(angle, reach):
  """Distances of every place of a kernel from its middle: along and across a direction, y, x."""
  offset = jnp.arange(-reach, reach + 1, dtype=jnp.float32)
  y, x = offset[:, None], offset[None, :]
  sin, cos = jnp.sin(angle)[:, None, None], jnp.cos(angle)[:, None, None]
  return x * sin + y * cos, x * cos - y * sin, y, x


def _normalised(kernel):
  return kernel / kernel.sum(axis=(1, 2), keepdims=True)
