"""How is a large picture restored by attention between channels? Restormer.

Zamir et al. 2022 (arXiv 2111.09881), layers after the published code (swz30/Restormer): four
levels of blocks, each of attention whose scores are between channels, not pixels, and of a gated
MLP with convolutions over each channel; pixel (un)shuffles between levels; the first level keeps
the doubled width on the way up.

b batch, y x rows and columns, h heads, c channels (of a head, in products).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from big_vision_ext.models import activations, remat
from big_vision_ext.models.restoration import resampling
from big_vision_ext.models.restoration.layers import Conv, LayerNorm, Restorer


class Restormer(Restorer):
  """See the module. Sides are multiples of 2 ** (levels - 1), 8 as published.

  Attributes:
    width: channels of the first level; each further one has twice as many.
    depth: blocks of each level, on the way down and on the way up; one number serves all levels.
    refinement: blocks at the end.
    heads: of each level.
    mlp_ratio: how much wider the hidden layer of the MLPs is.
    norm_bias: False for the published denoising models, whose norms subtract and add nothing.
  """

  width: int = 48
  depth: int | Sequence[int] = (4, 6, 6, 8)
  refinement: int = 4
  heads: Sequence[int] = (1, 2, 4, 8)
  mlp_ratio: float = 2.66
  norm_bias: bool = True

  @property
  def multiple(self):
    return 2 ** (len(self.heads) - 1)

  @property
  def depths(self) -> tuple[int, ...]:
    """Blocks of each level."""
    one = isinstance(self.depth, int)
    return (self.depth,) * len(self.heads) if one else tuple(self.depth)

  def check(self):
    resampling.check_scale(self.scale, (1,), "Restormer")
    if len(self.depths) != len(self.heads) or len(self.heads) < 2:
      raise ValueError(f"depth={self.depth}, heads={self.heads}: expected one number for each of "
                       "at least two levels.")
    if self.width < 1 or self.width % 2 or min(*self.depths, *self.heads) < 1:
      raise ValueError(f"width={self.width}, depth={self.depth}, heads={self.heads}: expected an "
                       "even width, and at least 1 of each.")
    for i, heads in enumerate(self.heads):
      if self.width * 2**i % heads:
        raise ValueError(f"heads={self.heads}: {self.width * 2**i} channels of level {i + 1} do "
                         f"not divide into {heads} equal heads.")

  def setup(self):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    bare = dict(use_bias=False, **types)
    block = self.remembering(Block)
    widths = [self.width * 2**i for i in range(len(self.heads))]

    def level(i, width, count):
      return [block(width, self.heads[i], int(width * self.mlp_ratio), self.norm_bias, **types)
              for _ in range(count)]

    # The first level is as wide on the way up as what it joins.
    above = [widths[1], *widths[1:-1]]
    self.first = Conv(widths[0], **bare)
    self.down = [level(i, w, self.depths[i]) for i, w in enumerate(widths)]
    self.halve = [Conv(w // 2, **bare) for w in widths[:-1]]
    self.double = [Conv(2 * w, **bare) for w in widths[1:]]
    self.join = [Conv(w, 1, **bare) for w in widths[1:-1]]
    self.up = [level(i, w, self.depths[i]) for i, w in enumerate(above)]
    self.refine = level(0, above[0], self.refinement)
    self.last = Conv(3, use_bias=False, param_dtype=self.param_dtype)

  def features(self, x, train=False):
    y, kept = self.first(self.fitting(x)), []
    for i, level in enumerate(self.down):
      if i:
        kept.append(y)
        y = resampling.pixel_unshuffle(self.halve[i - 1](y), 2)
      for block in level:
        y = block(y)
    for i in reversed(range(len(self.up))):
      y = resampling.pixel_shuffle(self.double[i](y), 2)
      y = jnp.concatenate([y, kept[i]], axis=-1)
      y = self.join[i - 1](y) if i else y
      for block in self.up[i]:
        y = block(y)
    for block in self.refine:
      y = block(y)
    return y

  def reconstruct(self, features, x):
    y = self.last(features)
    return y + x.astype(jnp.float32) if self.global_skip else y


class Block(nn.Module):
  """Attention between channels, then a gated MLP, both with a norm in front and a skip around."""

  width: int
  heads: int
  mlp_dim: int
  norm_bias: bool
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = LayerNorm(self.norm_bias, **types, name="norm1")(x)
    x = x + ChannelAttention(self.heads, **types, name="attention")(y)
    y = LayerNorm(self.norm_bias, **types, name="norm2")(x)
    return x + GatedMlp(self.mlp_dim, **types, name="mlp")(y)


class ChannelAttention(nn.Module):
  """Every channel becomes a mixture of its head's, by how alike their pictures are (sec. 3.1)."""

  heads: int
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    b, h, w, c = x.shape
    bare = dict(use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
    qkv = Conv(3 * c, 1, **bare, name="qkv")(x)
    qkv = remat.name(Conv(3 * c, groups=3 * c, **bare, name="qkv_local")(qkv), "qkv")
    qkv = qkv.reshape(b, h * w, 3, self.heads, c // self.heads)
    q, k, v = jnp.moveaxis(qkv, 2, 0)
    heat = self.param("temperature", nn.with_logical_partitioning(
      nn.initializers.ones_init(), ("heads",)), (self.heads,), self.param_dtype)
    scores = jnp.einsum("bthc,bthd->bhcd", _unit(q), _unit(k),
                        preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * heat.astype(jnp.float32)[:, None, None])
    y = jnp.einsum("bhcd,bthd->bthc", weights.astype(self.dtype), v).reshape(b, h, w, c)
    return remat.name(Conv(c, 1, **bare, name="out")(y), "attention_out")


class GatedMlp(nn.Module):
  """gelu(a) * b of two convolved halves (sec. 3.2)."""

  mlp_dim: int
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    bare = dict(use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype)
    y = Conv(2 * self.mlp_dim, 1, **bare, name="hidden")(x)
    y = Conv(2 * self.mlp_dim, groups=2 * self.mlp_dim, **bare, name="hidden_local")(y)
    a, gate = jnp.split(remat.name(y, "mlp_hidden"), 2, axis=-1)
    return Conv(x.shape[-1], 1, **bare, name="out")(activations.gelu(a) * gate)


def _unit(x):
  """Divided by the length over all pixels, in float32; PyTorch's smallest divisor is 1e-12."""
  wide = x.astype(jnp.float32)
  square = (wide * wide).sum(1, keepdims=True)
  return (wide * jax.lax.rsqrt(jnp.maximum(square, 1e-24))).astype(x.dtype)
