"""How does a vector that says what a picture shows steer its super-resolution? CDASR's alignment.

Lu et al. 2025 (arXiv 2505.12391): a processed CLIP vector becomes a map, which a fusion convolution
joins with the features of a restoration network [S]. That these are the deep ones, before they are
enlarged, and that the convolution is 3 x 3 is ours [P], and so is what else is said to be, field by
field: [S] read in the paper, [P] our choice.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

SPATIALS = ("reshape", "tile", "film")
# A vector of 512 numbers is a map of 8 x 8 places with 8 channels [P].
_GRID = 8


class Alignment(nn.Module):
  """G_phi: features + fusion([features, map of the vector]).

  Three steps [S]: f_proc = relu(W2 relu(W1 f)), f_spatial = conv2(relu(conv1(f_proc))), and a
  fusion convolution of both, side by side. That the fusion adds to the features and begins at zero
  is ours [P]: training starts at the plain network, exactly.

  Attributes:
    hidden: h, width of W1 [S].
    semantic: s, width of W2 [S].
    width: channels of the map [P].
    spatial: how the vector becomes a map [P]: "reshape", to 8 x 8 places with s / 64 channels, two
      3 x 3 convolutions, and bilinearly to the features' size; "tile", the same vector at every
      place, whose convolutions are 1 x 1; "film", the features themselves, each channel scaled and
      shifted by what two layers make of the vector.
    dtype: of computation; what is added to the features has theirs.
  """

  hidden: int = 1024
  semantic: int = 512
  width: int = 64
  spatial: str = "reshape"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, vector: Float[Array, "b d"], features: Float[Array, "b y x c"]):
    """Unit vectors and deep features.

    Returns:
      The aligned features (b, y, x, c), and out: `processed` (b, s) and `spatial` (b, y, x, w).

    Raises:
      ValueError: no such `spatial`, or a vector that is no such map.
    """
    if self.spatial not in SPATIALS:
      raise ValueError(f"spatial={self.spatial!r}: expected one of {', '.join(SPATIALS)}")
    dense = lambda width, name: nn.Dense(width, dtype=self.dtype, name=name)
    x = nn.relu(dense(self.hidden, "proc_1")(vector))
    processed = nn.relu(dense(self.semantic, "proc_2")(x))
    if self.spatial == "film":
      spatial = self._modulated(processed, features, dense)
    else:
      spatial = self._map(processed, features.shape[1:3])
    both = jnp.concatenate([features, spatial.astype(features.dtype)], axis=-1)
    added = nn.Conv(features.shape[-1], (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros,
                    name="fusion")(both)
    return features + added.astype(features.dtype), {"processed": processed, "spatial": spatial}

  def _map(self, processed, size):
    """(b, s) -> (b, y, x, w)."""
    b, s = processed.shape
    kernel = (1, 1)
    if self.spatial == "reshape":
      if s % _GRID**2:
        raise ValueError(f"semantic={s} with spatial='reshape': expected a multiple of {_GRID**2}, "
                         f"for {_GRID} x {_GRID} places; or take spatial='tile'")
      x, kernel = processed.reshape(b, _GRID, _GRID, s // _GRID**2), (3, 3)
    else:
      x = processed[:, None, None]
    conv = lambda name: nn.Conv(self.width, kernel, dtype=self.dtype, name=name)
    x = conv("conv_2")(nn.relu(conv("conv_1")(x)))
    if self.spatial == "tile":
      return jnp.broadcast_to(x, (b, *size, self.width))
    return jax.image.resize(x, (b, *size, self.width), "bilinear", antialias=False)

  def _modulated(self, processed, features, dense):
    """scale * features + shift, of (b, 1, 1, c) each."""
    c = features.shape[-1]
    x = dense(2 * c, "conv_2")(nn.relu(dense(self.width, "conv_1")(processed)))[:, None, None]
    return x[..., :c] * features.astype(x.dtype) + x[..., c:]
