"""What is a vector-quantised autoencoder made of? Convolutional blocks, and a book of codes.

The blocks are those that CodeFormer's published description names (Zhou et al. 2022, after VQGAN):
group norm over 32 groups and swish before every 3 x 3 convolution, one head of attention over all
places, sides halved by a strided convolution and doubled by repeating pixels.

b batch, y x rows and columns, h w those of a latent map, c channels, d width of a code, n codes.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from big_vision_ext.models import attention, blocks, initial, positions

_EXACT = jax.lax.Precision.HIGHEST


class Codes(NamedTuple):
  """Which codes stand for a latent map, and what they are.

  Attributes:
    index: numbers of the codes.
    vector: the codes themselves.
  """

  index: Int[Array, "b h w"]
  vector: Float[Array, "b h w d"]


def nearest(codebook: Float[Array, "n d"], latent: Float[Array, "b h w d"]) -> Codes:
  """The code nearest to each vector of a latent map; of equally near ones the first."""
  index = jnp.argmin(distances(codebook, latent), axis=-1).astype(jnp.int32)
  return Codes(index, take(codebook, index))


def take(codebook: Float[Array, "n d"], index: Int[Array, "*b"]) -> Float[Array, "*b d"]:
  """The codes of some numbers, float32."""
  return jnp.take(codebook.astype(jnp.float32), index, axis=0)


def distances(
  codebook: Float[Array, "n d"], latent: Float[Array, "*b d"]
) -> Float[Array, "*b n"]:
  """Squared distance of each vector to each code, float32.

  The square of the vector itself is in it: it cancels for whoever compares codes, but not for
  whoever reads the number.
  """
  book, latent = codebook.astype(jnp.float32), latent.astype(jnp.float32)
  products = jnp.einsum("...d,nd->...n", latent, book, precision=_EXACT)
  own = jnp.sum(latent**2, axis=-1, keepdims=True)
  return own - 2.0 * products + jnp.sum(book**2, axis=-1)


def straight_through(
  latent: Float[Array, "*b d"], vector: Float[Array, "*b d"]
) -> Float[Array, "*b d"]:
  """The codes, to the bit, whose gradient goes to the latent as if it had been passed on itself.

  van den Oord et al. 2017, sec. 3.2. Written as latent + (vector - latent) it would be the codes
  up to rounding only.
  """
  return jax.lax.stop_gradient(vector) + (latent - jax.lax.stop_gradient(latent))


class Block(nn.Module):
  """conv(swish(norm(conv(swish(norm(x)))))) + x; a 1 x 1 convolution where the width changes."""

  width: int
  groups: int = 32
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x e"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = nn.swish(norm(self.groups, "norm1", **types)(x))
    y = conv(self.width, "conv1", **types)(y)
    y = nn.swish(norm(self.groups, "norm2", **types)(y))
    y = conv(self.width, "conv2", **types)(y)
    if x.shape[-1] != self.width:
      x = conv(self.width, "skip", size=1, **types)(x)
    return x + y


class Attention(nn.Module):
  """x + out(attention(norm(x))) with one head over all places."""

  groups: int = 32
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
    b, rows, columns, c = x.shape
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    seen = norm(self.groups, "norm", **types)(x)
    q, k, v = (conv(c, name, size=1, **types)(seen).reshape(b, rows * columns, 1, c)
               for name in ("query", "key", "value"))
    y = attention.attend(q, k, v).reshape(b, rows, columns, c)
    return x + conv(c, "out", size=1, **types)(y)


class Down(nn.Module):
  """Halves the sides by a strided 3 x 3 convolution."""

  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w c"]:
    return conv(x.shape[-1], "conv", stride=2, dtype=self.dtype, param_dtype=self.param_dtype)(x)


class Up(nn.Module):
  """Doubles the sides by repeating pixels, and a 3 x 3 convolution."""

  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b y x c"]:
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
    return conv(c, "conv", dtype=self.dtype, param_dtype=self.param_dtype)(x)


class Fuse(nn.Module):
  """Features of the encoder let into those of the decoder: x + w * (x * scale + shift).

  After CodeFormer's controllable feature transformation (Zhou et al. 2022, sec. 3.3): scale and
  shift are computed from both. Its last convolutions begin as zero here, so that training begins
  from the pure prior whatever w is: ours.
  """

  groups: int = 32
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b y x c"], seen: Float[Array, "b y x c"], w: Float[Array, "#b"]
  ) -> Float[Array, "b y x c"]:
    """`x` of the decoder, `seen` of the encoder, `w` of each sample; w = 0 gives `x` to the bit."""
    c = x.shape[-1]
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    both = Block(c, self.groups, **types, name="block")(jnp.concatenate([seen, x], axis=-1))

    def head(name):
      y = nn.leaky_relu(conv(c, f"{name}1", **types)(both), 0.2)
      return conv(c, f"{name}2", kernel_init=nn.initializers.zeros_init(), **types)(y)

    change = x * head("scale") + head("shift")
    return x + w[:, None, None, None].astype(x.dtype) * change


class CodeTransformer(nn.Module):
  """Which code belongs at each place, given the whole latent map? Pre-norm blocks and a linear map.

  CodeFormer's has learned positions for one size; these are sines and cosines, for any: ours.

  Attributes:
    codes: how many there are.
  """

  codes: int
  width: int
  depth: int
  num_heads: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, latent: Float[Array, "b h w d"]) -> Float[Array, "b h w n"]:
    b, h, w, _ = latent.shape
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = latent.reshape(b, h * w, -1)
    x = blocks.Projection((self.width,), ("embed", "out"), **types, name="embed")(x)
    place = positions.waves(np.arange(max(h, w)), self.width // 2)
    table = np.concatenate([np.repeat(place[:h], w, axis=0), np.tile(place[:w], (h, 1))], axis=1)
    x = x + jnp.asarray(table, x.dtype)
    x, _ = blocks.Encoder(self.depth, 2 * self.width, self.num_heads, act="gelu", **types,
                          name="Encoder")(x)
    x = blocks.Projection((self.codes,), ("embed", "vocab"), **types, name="head")(x)
    return x.astype(jnp.float32).reshape(b, h, w, self.codes)


class Critic(nn.Module):
  """How real does each part of an image look? A PatchGAN (Isola et al. 2017), (b, h, w) scores.

  CodeFormer's has batch norms; these are group norms, of one image at a time: ours.

  Attributes:
    width: channels of the first layer; they double up to eight times as many.
    layers: that halve the sides.
  """

  width: int = 64
  layers: int = 3
  groups: int = 32
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Float[Array, "b y x 3"]) -> Float[Array, "b h w"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = (2.0 * image - 1.0).astype(self.dtype)
    for i in range(self.layers + 1):
      last = i == self.layers
      x = conv(self.width * min(2**i, 8), f"conv_{i}", size=4, stride=1 if last else 2, **types)(x)
      x = norm(self.groups, f"norm_{i}", **types)(x) if i else x
      x = nn.leaky_relu(x, 0.2)
    return conv(1, "conv_out", size=4, **types)(x)[..., 0].astype(jnp.float32)


def norm(groups: int, name: str, dtype: Any, param_dtype: Any) -> nn.GroupNorm:
  """Group norm with float32 statistics in two passes, as of layer norms elsewhere."""
  return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, param_dtype=param_dtype,
                      use_fast_variance=False, name=name)


def conv(
  width: int, name: str | None, *, size: int = 3, stride: int = 1, dtype: Any, param_dtype: Any,
  kernel_init: Any = None,
) -> nn.Conv:
  """A convolution whose kernel (y, x, in, out) names its axes, and begins as PyTorch's do."""
  init = kernel_init or initial.pytorch_kernel
  return nn.Conv(
    width, (size, size), strides=(stride, stride), dtype=dtype, param_dtype=param_dtype, name=name,
    kernel_init=nn.with_logical_partitioning(init, (None, None, None, "conv")))
