"""What does storing a picture as a JPEG of some quality do to it?

The lossy part of baseline JPEG (ITU-T T.81) as libjpeg does it by default: YCbCr, chroma at half
the resolution (4:2:0), 8 x 8 DCT, the standard tables scaled by the quality, rounding; entropy
coding loses nothing and is left out. Each image has a quality of its own.
b batch, y x rows and columns.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_EXACT = jax.lax.Precision.HIGHEST
# T.81, tables K.1 (luminance) and K.2 (chrominance), rows of increasing vertical frequency.
_LUMINANCE = np.array([
  [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
  [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
  [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
  [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]])
_CHROMINANCE = np.full((8, 8), 99)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCC = np.array([[0.299, 0.587, 0.114],
                    [-0.168735892, -0.331264108, 0.5],
                    [0.5, -0.418687589, -0.081312411]])


def compress(
  x: Float[Array, "b y x 3"], quality: Float[Array, "b"], straight_through: bool = False
) -> Float[Array, "b y x 3"]:
  """The pictures after a round trip, RGB in [0, 1], of any size.

  Args:
    x: RGB in [0, 1].
    quality: 1 to 100, whole numbers.
    straight_through: rounding passes gradients as if it did nothing; else they are 0.
  """
  rounded = _straight_round if straight_through else jnp.round
  b, h, w, _ = x.shape
  pixels = rounded(jnp.clip(x.astype(jnp.float32), 0.0, 1.0) * 255.0)
  # Blocks of 16, the last pixel repeated, as libjpeg fills them.
  pixels = jnp.pad(pixels, ((0, 0), (0, -h % 16), (0, -w % 16), (0, 0)), mode="edge")
  # Levels about 0 from here on.
  ycc = jnp.einsum("byxc,dc->bdyx", pixels, jnp.asarray(_TO_YCC, jnp.float32), precision=_EXACT)
  ycc = rounded(ycc - jnp.asarray([128.0, 0.0, 0.0]).reshape(3, 1, 1))
  luma, chroma = ycc[:, :1], ycc[:, 1:]
  chroma = chroma.reshape(b, 2, ycc.shape[2] // 2, 2, ycc.shape[3] // 2, 2).mean((3, 5))
  # As libjpeg does it, halves are rounded down in even columns and up in odd ones.
  chroma = rounded(chroma + jnp.where(jnp.arange(chroma.shape[3]) % 2, 0.125, -0.125))
  luma = _coded(luma, _table(_LUMINANCE, quality), rounded)
  chroma = _doubled(_coded(chroma, _table(_CHROMINANCE, quality), rounded))
  ycc = jnp.concatenate([luma + 128.0, chroma], axis=1)
  back = jnp.asarray(np.linalg.inv(_TO_YCC), jnp.float32)
  rgb = jnp.einsum("bdyx,cd->byxc", ycc, back, precision=_EXACT)[:, :h, :w]
  return jnp.clip(rounded(rgb), 0.0, 255.0) / 255.0


def _table(base: np.ndarray, quality: Float[Array, "b"]) -> Float[Array, "b 8 8"]:
  """The steps of quantisation at a quality, as libjpeg scales them: 50 is the table itself."""
  q = jnp.clip(quality, 1.0, 100.0)[:, None, None]
  percent = jnp.where(q < 50, jnp.floor(5000.0 / q), 200.0 - 2.0 * q)
  return jnp.clip(jnp.floor((base * percent + 50.0) / 100.0), 1.0, 255.0)


def _coded(x: Float[Array, "b c y x"], table: Float[Array, "b 8 8"], rounded):
  """Planes after DCT, quantisation and back, clipped to 8 bits."""
  b, c, h, w = x.shape
  dct = jnp.asarray(_dct(), jnp.float32)
  blocks = x.reshape(b, c, h // 8, 8, w // 8, 8)
  freq = jnp.einsum("uy,bcrysx,vx->bcrusv", dct, blocks, dct, precision=_EXACT)
  step = table[:, None, None, :, None, :]
  # Halves go away from zero; means of blocks often are halves of a step.
  freq = rounded(freq / step * (1 + 1e-5)) * step
  blocks = jnp.einsum("uy,bcrusv,vx->bcrysx", dct, freq, dct, precision=_EXACT)
  return jnp.clip(rounded(blocks.reshape(b, c, h, w)), -128.0, 127.0)


@functools.cache
def _dct() -> np.ndarray:
  """The orthonormal DCT-II of 8 numbers: rows are frequencies."""
  u, y = np.arange(8)[:, None], np.arange(8)[None, :]
  return np.where(u == 0, np.sqrt(0.5), 1.0) * np.cos(np.pi * u * (2 * y + 1) / 16) / 2


def _doubled(x: Float[Array, "b c y x"]) -> Float[Array, "b c 2y 2x"]:
  """Twice the resolution: 3/4 of the nearest and 1/4 of the next one, the border repeated."""
  for axis in (2, 3):
    n = x.shape[axis]
    before = jnp.concatenate([_cut(x, axis, 0, 1), _cut(x, axis, 0, n - 1)], axis)
    after = jnp.concatenate([_cut(x, axis, 1, n), _cut(x, axis, n - 1, n)], axis)
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    x = pair.reshape(*x.shape[:axis], 2 * n, *x.shape[axis + 1:])
  return x


def _cut(x, axis, start, stop):
  return jax.lax.slice_in_dim(x, start, stop, axis=axis)


def _straight_round(x):
  return x + jax.lax.stop_gradient(jnp.round(x) - x)
