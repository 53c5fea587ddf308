"""How does a small convolutional network fill in what it does not see? FocusMIM's autoencoder.

Weiler et al. 2024 (arXiv 2404.08526): residual blocks of two 3 x 3 convolutions, no norms, halve an
image three times into a latent map of non-negative units ("V4"), and their transposed mirror makes
an image of it again. Nothing is dropped: hidden pixels are filled in before the network sees them.

Everything is as in the published model: padding of one pixel on both sides also where the stride is
two ("SAME" would pad one side only), PyTorch's initial values, and an upsampling 1 x 1 skip that
reaches every second row and column only, a checkerboard. The published model also registers a 1 x 1
skip in blocks that do not change the width, and never uses it: those have no parameters here, and
`convert/focusmim.py` counts them on reading and writing.

b batch, y x rows and columns, c channels.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.models import initial


class ConvAutoencoder(nn.Module):
  """Encoder and decoder. Images are in 0..1, any size that 2 ** len(widths) divides.

  Attributes:
    widths: channels of each stage; each halves the sides of the image.
    depth: blocks of a stage.
  """

  widths: tuple[int, ...] = (32, 64, 128)
  depth: int = 3
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    if not self.widths or min(self.widths) < 1 or self.depth < 1:
      raise ValueError(
        f"widths={self.widths}, depth={self.depth}: expected at least one stage, of at least one "
        "channel and one block."
      )
    if any(a == b for a, b in zip((3, *self.widths), self.widths)):
      raise ValueError(
        f"widths={self.widths}: a stage must differ in width from the one before (the image has 3 "
        "channels), as its first block has a skip that strides only where the width changes."
      )
    down, up = stages(self.widths, self.depth)
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.encoder = Stack(down, transposed=False, **types)
    self.decoder = Stack(up, transposed=True, **types)

  @property
  def factor(self) -> int:
    """How many times smaller a side of the latent map is than that of the image."""
    return 2 ** len(self.widths)

  def __call__(
    self, image: Float[Array, "b y x 3"]
  ) -> tuple[Float[Array, "b y x 3"], dict[str, Any]]:
    """The image as the decoder makes it, float32 in 0..1; out has `latent` (b, y/8, x/8, c)."""
    latent = self.encode(image)
    return self.decode(latent), {"latent": latent}

  def encode(self, image: Float[Array, "b y x 3"]) -> Float[Array, "b h w c"]:
    """The latent map, not negative, float32.

    Raises:
      ValueError: a side of the image is no multiple of `factor`.
    """
    if image.shape[1] % self.factor or image.shape[2] % self.factor:
      raise ValueError(
        f"an image of {image.shape[1]} x {image.shape[2]} pixels cannot be halved "
        f"{len(self.widths)} times: choose image_size as a multiple of {self.factor}."
      )
    return nn.relu(self.encoder(image)).astype(jnp.float32)

  def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b y x 3"]:
    """An image in 0..1, float32."""
    return nn.sigmoid(self.decoder(latent).astype(jnp.float32))


def stages(
  widths: Sequence[int], depth: int
) -> tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]]:
  """(channels in, channels out, stride) of each block of the encoder, and of the decoder."""
  down, at = [], 3
  for width in widths:
    down += [(at, width, 2), *[(width, width, 1)] * (depth - 1)]
    at = width
  up = [(after, before, stride) for before, after, stride in reversed(down)]
  return tuple(down), tuple(up)


class Stack(nn.Module):
  """Residual blocks one after another, ReLU between them and not after the last.

  Attributes:
    blocks: (channels in, channels out, stride) of each.
    transposed: whether a stride enlarges the image.
  """

  blocks: tuple[tuple[int, int, int], ...]
  transposed: bool
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w d"]:
    x = x.astype(self.dtype)
    for i, (_, width, stride) in enumerate(self.blocks):
      x = Block(width, stride, self.transposed, self.dtype, self.param_dtype, name=f"block_{i}")(
        nn.relu(x) if i else x
      )
    return x


class Block(nn.Module):
  """conv(relu(conv(x))) + skip(x); the skip is x itself where the width does not change."""

  width: int
  stride: int
  transposed: bool
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w d"]:
    types = dict(transposed=self.transposed, dtype=self.dtype, param_dtype=self.param_dtype)
    y = Conv(self.width, 3, self.stride, **types, name="conv1")(x)
    y = Conv(self.width, 3, 1, **types, name="conv2")(nn.relu(y))
    if x.shape[-1] != self.width:
      x = Conv(self.width, 1, self.stride, **types, name="skip")(x)
    return y + x


class Conv(nn.Module):
  """A convolution, or its transpose, as in PyTorch.

  The kernel is (y, x, in, out) and what is multiplied with an input window, also of a transposed
  convolution: PyTorch keeps that one turned by 180 degrees.

  Attributes:
    size: of the kernel, odd; the image is padded with size // 2 zeros on every side.
    stride: the image gets so many times smaller, or larger if transposed.
  """

  width: int
  size: int
  stride: int
  transposed: bool
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w d"]:
    shape = (self.size, self.size, x.shape[-1], self.width)
    # PyTorch takes the second axis of its weight for the inputs: the outputs, if transposed.
    fan = self.size**2 * (self.width if self.transposed else x.shape[-1])
    init = initial.pytorch(fan)
    kernel = self.param(
      "kernel", nn.with_logical_partitioning(init, (None, None, None, "conv")), shape,
      self.param_dtype)
    bias = self.param(
      "bias", nn.with_logical_partitioning(init, ("conv",)), (self.width,), self.param_dtype)
    pad = self.size // 2
    if self.transposed:
      # Zeros between pixels; as many more at the end as make the sides `stride` times as large.
      how = dict(window_strides=(1, 1), padding=[(pad, pad + self.stride - 1)] * 2,
                 lhs_dilation=(self.stride, self.stride))
    else:
      how = dict(window_strides=(self.stride, self.stride), padding=[(pad, pad)] * 2)
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype), kernel.astype(self.dtype),
      dimension_numbers=("NHWC", "HWIO", "NHWC"), **how)
    return y + bias.astype(self.dtype)
