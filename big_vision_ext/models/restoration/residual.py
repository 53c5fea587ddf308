"""How far do plain residual blocks without norms get? MSRResNet and EDSR-baseline.

Both are 16 blocks of 64 channels. MSRResNet is BasicSR's (XPixelGroup/BasicSR, `MSRResNet`); at
scale 1 one 64 -> 64 convolution stands where it enlarges, which is the ResNet of the deraining
study's development code [C]: 1,259,075 parameters. EDSR is Lim et al. 2017 (arXiv 1707.02921),
sec. 3 and 4, the small "baseline".
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from big_vision_ext.models.restoration.layers import Conv, Restorer
from big_vision_ext.models.restoration.resampling import (
  SCALES,
  Upsampler,
  check_scale,
  enlarge,
)

_leaky = functools.partial(nn.leaky_relu, negative_slope=0.1)


class ResidualBlock(nn.Module):
  """x + conv(relu(conv(x)))."""

  width: int
  gain: float | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    types = dict(gain=self.gain, dtype=self.dtype, param_dtype=self.param_dtype)
    y = nn.relu(Conv(self.width, **types, name="conv1")(x))
    return x + Conv(self.width, **types, name="conv2")(y)


class _Residual(Restorer):
  """What both have: a trunk of blocks.

  Attributes:
    width: channels.
    depth: blocks.
  """

  width: int = 64
  depth: int = 16

  def check(self):
    check_scale(self.scale, SCALES, type(self).__name__)
    if self.width < 1 or self.depth < 1:
      raise ValueError(f"width={self.width}, depth={self.depth}: expected at least one channel and "
                       "one block.")

  def _trunk(self, gain):
    block = self.remembering(ResidualBlock)
    return [block(self.width, gain, self.dtype, self.param_dtype) for _ in range(self.depth)]


class MSRResNet(_Residual):
  """The ResNet of the deraining study's development code and of MiOIR; see the module.

  With `global_skip`, a larger picture is the bilinear one plus what the network adds, as in
  BasicSR. Initial values are He's times 0.1, also outside the blocks (BasicSR).
  """

  def setup(self):
    types = dict(gain=0.1, dtype=self.dtype, param_dtype=self.param_dtype)
    self.first = Conv(self.width, **types)
    self.blocks = self._trunk(0.1)
    self.up = Upsampler(self.scale, _leaky, at_one=True, **types)
    self.late = Conv(self.width, **types)
    self.last = Conv(3, gain=0.1, param_dtype=self.param_dtype)

  def features(self, x, train=False):
    y = _leaky(self.first(self.fitting(x)))
    for block in self.blocks:
      y = block(y)
    return y

  def reconstruct(self, features, x):
    y = self.last(_leaky(self.late(self.up(features.astype(self.dtype)))))
    return y + enlarge(x, self.scale, "bilinear") if self.global_skip else y


class EDSR(_Residual):
  """EDSR-baseline: a skip around the trunk, and with `global_skip` the bicubic picture added.

  That global skip is ours [P]; EDSR as published has none, and the public weights of BasicSR are
  read with `global_skip=False`, `mean` and `img_range`.

  Attributes:
    mean: of colours, taken off first and added last.
    img_range: what 1 is inside the network.
  """

  mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
  img_range: float = 1.0

  def setup(self):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.first = Conv(self.width, **types)
    self.blocks = self._trunk(None)
    self.body_end = Conv(self.width, **types)
    self.up = Upsampler(self.scale, **types)
    self.last = Conv(3, param_dtype=self.param_dtype)

  def features(self, x, train=False):
    x = self.fitting(x).astype(jnp.float32)
    start = self.first((x - jnp.asarray(self.mean, jnp.float32)) * self.img_range)
    y = start
    for block in self.blocks:
      y = block(y)
    return start + self.body_end(y)

  def reconstruct(self, features, x):
    y = self.last(self.up(features.astype(self.dtype))) / self.img_range
    if self.global_skip:
      return y + enlarge(x, self.scale)
    return y + jnp.asarray(self.mean, jnp.float32)
