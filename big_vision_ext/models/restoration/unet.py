"""How does a plain U of convolutions restore? The deraining study's third network, by our sizes.

The paper names a UNet and no sizes that could be read; these are ours [P]: four levels of 32 to
256 channels, two 3 x 3 convolutions each, no norms, exact GELU, halved by convolutions of stride
two, doubled by repeating pixels and a convolution, the picture itself added.
"""

import flax.linen as nn
import jax.numpy as jnp

from big_vision_ext.models import activations
from big_vision_ext.models.restoration import resampling
from big_vision_ext.models.restoration.layers import Conv, Restorer


class UNet(Restorer):
  """See the module. Sides are multiples of 2 ** (levels - 1).

  Attributes:
    width: channels of the first level; each further one has twice as many.
    levels: sizes of pictures, the first included.
    depth: convolutions of a level, on either side.
  """

  width: int = 32
  levels: int = 4
  depth: int = 2

  @property
  def multiple(self):
    return 2 ** (self.levels - 1)

  def check(self):
    resampling.check_scale(self.scale, (1,), "UNet")
    if min(self.width, self.levels, self.depth) < 1:
      raise ValueError(f"width={self.width}, levels={self.levels}, depth={self.depth}: expected "
                       "at least 1 of each.")

  def setup(self):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    level = self.remembering(Level)
    widths = [self.width * 2**i for i in range(self.levels)]
    self.down = [level(w, self.depth, **types) for w in widths]
    self.halve = [Conv(w, stride=2, **types) for w in widths[1:]]
    self.double = [Conv(w, **types) for w in widths[:-1]]
    self.up = [level(w, self.depth, **types) for w in widths[:-1]]
    self.last = Conv(3, param_dtype=self.param_dtype)

  def features(self, x, train=False):
    y, kept = self.down[0](self.fitting(x)), []
    for halve, level in zip(self.halve, self.down[1:]):
      kept.append(y)
      y = level(activations.gelu(halve(y)))
    for i in reversed(range(self.levels - 1)):
      y = self.double[i](y.repeat(2, axis=1).repeat(2, axis=2))
      y = self.up[i](jnp.concatenate([y, kept[i]], axis=-1))
    return y

  def reconstruct(self, features, x):
    y = self.last(features)
    return y + x.astype(jnp.float32) if self.global_skip else y


class Level(nn.Module):
  """Convolutions of one size of pictures, each with a GELU."""

  width: int
  depth: int
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    for i in range(self.depth):
      x = Conv(self.width, dtype=self.dtype, param_dtype=self.param_dtype, name=f"conv_{i}")(x)
      x = activations.gelu(x)
    return x
