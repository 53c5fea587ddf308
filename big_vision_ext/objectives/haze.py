"""What does haze do to a picture, and where is it thick?

O = B t + A (1 - t), t = exp(-beta d) (Koschmieder's law). Haze of the literature takes depth from
data; ours is procedural: a tilted plane, far at the top, with hills of low frequency.
b batch, y x rows and columns.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# Cells of the coarse noise along a side.
_CELLS = 4


def depth(keys: Key[Array, "b"], height: int, width: int) -> Float[Array, "b y x"]:
  """Depth of every pixel, between 0 at the nearest and 1 at the farthest of each picture."""

  def one(key):
    tilt, hills = jax.random.split(key)
    tilt = jax.random.uniform(tilt, (2,), minval=-1.0)
    y = jnp.linspace(1.0, 0.0, height)[:, None]
    x = jnp.linspace(-0.5, 0.5, width)[None, :]
    plane = y * (1.0 + 0.5 * tilt[0]) + x * tilt[1]
    coarse = jax.random.normal(hills, (_CELLS, _CELLS))
    far = plane + 0.2 * jax.image.resize(coarse, (height, width), "cubic",
                                         precision=jax.lax.Precision.HIGHEST)
    return (far - far.min()) / jnp.maximum(far.max() - far.min(), 1e-6)

  return jax.vmap(one)(keys)


def apply(
  clean: Float[Array, "b y x 3"],
  depth: Float[Array, "b y x"],
  beta: Float[Array, "b"],
  airlight: Float[Array, "b"],
) -> Float[Array, "b y x 3"]:
  """The hazy pictures: `beta` of scattering over the whole depth, `airlight` gray, in [0, 1]."""
  t = jnp.exp(-beta[:, None, None] * depth)[..., None]
  return jnp.clip(clean * t + airlight[:, None, None, None] * (1.0 - t), 0.0, 1.0)
