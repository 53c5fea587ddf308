"""What are the layers that score places in PS3? Projections and a small ConvNeXt branch.

Names and shapes follow ps3-torch, dead parts included: its head emits features for every
high-resolution scale but the published model uses those of the first scale only. The others are
kept as parameters, so that weights convert both ways, and are computed only for models with a score
map for each scale. Fresh parameters are drawn as PyTorch draws them, since published
hyper-parameters assume it.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.models import activations, blocks, initial

_torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def l2_normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """x / max(|x|, 1e-12) over the last axis, in float32."""
  x = x.astype(jnp.float32)
  # The maximum is taken before the root, so that the gradient at zero is zero and not NaN.
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))


def cosine(features: Float[Array, "b y x d"], prompt: Float[Array, "b d"]) -> Float[Array, "b y x"]:
  """Cosine of features that have unit length with prompts of any length, in float32."""
  exact = jax.lax.Precision.HIGHEST
  return jnp.einsum("byxd,bd->byx", features, l2_normalize(prompt), precision=exact)


class Linear(nn.Module):
  """A dense layer of which only the first `used` outputs are computed (all if None)."""

  features: int
  axes: tuple[str | None, str | None]
  used: int | None = None
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
    kernel_init = nn.with_logical_partitioning(_torch_kernel, self.axes)
    bias_init = nn.with_logical_partitioning(initial.pytorch(x.shape[-1]), self.axes[1:])
    kernel = self.param("kernel", kernel_init, (x.shape[-1], self.features), self.param_dtype)
    bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
    kernel, bias = kernel[:, : self.used].astype(self.dtype), bias[: self.used]
    return x.astype(self.dtype) @ kernel + bias.astype(self.dtype)


class NormedMlp(nn.Module):
  """fc1, exact GELU, LayerNorm (epsilon 1e-5), fc2.

  Attributes:
    hidden: width between the layers.
    features: outputs that have parameters.
    used: outputs that are computed, the first ones; all if None.
  """

  hidden: int
  features: int
  used: int | None = None
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = Linear(self.hidden, ("embed", "mlp"), **types, name="fc1")(x)
    x = blocks.layer_norm("norm", 1e-5, **types)(activations.gelu(x))
    return Linear(self.features, ("mlp", "out"), self.used, **types, name="fc2")(x)


class PromptProj(nn.Module):
  """A caption's unit-length embedding -> a prompt of the width of the vision model."""

  width: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.fc1 = Linear(self.width, ("embed", "mlp"), **types)
    self.norm = blocks.layer_norm(None, 1e-5, **types)
    self.fc2 = Linear(self.width, ("mlp", "out"), **types)

  def __call__(self, text: Float[Array, "b e"]) -> Float[Array, "b d"]:
    return self.fc2(self.norm(activations.gelu(self.fc1(text))))


def _padded(x: jax.Array) -> jax.Array:
  return jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))


@jax.custom_vjp
def depthwise(
  x: Float[Array, "b y x c"], kernel: Float[Array, "7 7 1 c"]
) -> Float[Array, "b y x c"]:
  """A 7 x 7 convolution of each channel by itself, with zero padding.

  Written as a sum of shifted products, which compile into one loop: XLA's grouped convolution
  takes ten times as long on a CPU. So does its gradient, with respect to the image as the same
  loop with the kernel turned round, and to the kernel one weight after another: left to
  differentiation, 49 padded copies of the image take four times as long.
  """
  height, width = x.shape[1:3]
  padded = _padded(x)
  out = 0.0
  for i in range(7):
    for j in range(7):
      out = out + padded[:, i : i + height, j : j + width] * kernel[i, j, 0]
  return out


def _depthwise_forward(x, kernel):
  return depthwise(x, kernel), (x, kernel)


def _depthwise_backward(saved, grad):
  x, kernel = saved
  padded = _padded(x)

  def weight(shift):
    seen = jax.lax.dynamic_slice(padded, (0, shift // 7, shift % 7, 0), grad.shape)
    return jnp.sum(seen * grad, axis=(1, 2))

  # Over a sharded batch the sum is taken last: one all-reduce, not one for each weight.
  weights = jax.lax.map(weight, jnp.arange(49)).sum(axis=1)
  return depthwise(grad, kernel[::-1, ::-1]), weights.reshape(kernel.shape)


depthwise.defvjp(_depthwise_forward, _depthwise_backward)


class Depthwise(nn.Module):
  """`depthwise` with a kernel and a bias; sums are float32."""

  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
    dim = x.shape[-1]
    init = nn.with_logical_partitioning(_torch_kernel, (None, None, None, "conv"))
    kernel = self.param("kernel", init, (7, 7, 1, dim), self.param_dtype)
    bias = self.param("bias", initial.pytorch(49), (dim,), self.param_dtype)
    kernel = kernel.astype(self.dtype).astype(jnp.float32)
    out = depthwise(x.astype(jnp.float32), kernel) + bias.astype(jnp.float32)
    return out.astype(self.dtype)


class ConvNeXtBlock(nn.Module):
  """Depthwise convolution, norm and MLP with a learned scale per channel, around a skip."""

  dim: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b y x c"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = Depthwise(**types, name="conv_dw")(x)
    y = blocks.layer_norm("norm", 1e-6, **types)(y)
    y = Linear(4 * self.dim, ("conv", "mlp"), **types, name="fc1")(y)
    y = Linear(self.dim, ("mlp", "conv"), **types, name="fc2")(activations.gelu(y))
    scale = self.param("scale", nn.initializers.constant(1e-6), (self.dim,), self.param_dtype)
    return x + y * scale.astype(self.dtype)


class HighResSelection(nn.Module):
  """Features of an image's patches at selection resolution: a stem and a few ConvNeXt blocks.

  The stem is a convolution whose stride is its size, which is a product over the pixels of a patch.
  As a convolution its gradient goes through copies of the image with the channels in front, two
  thirds of the branch's time on a CPU.

  Attributes:
    hidden, features: width inside, and of the output.
    depth: number of blocks.
    kernel: size and stride of the stem, in pixels.
  """

  hidden: int = 512
  features: int = 512
  depth: int = 3
  kernel: int = 28
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, patches: Float[Array, "b h w k"]) -> Float[Array, "b h w c"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    stem = blocks.Projection(
      (self.hidden,),
      (None, None, None, "conv"),
      contract=3,
      kernel_init=lambda **_: _torch_kernel,
      bias_init=initial.pytorch(patches.shape[-1]),
      **types,
      name="stem",
    )
    # Without the barrier XLA computes the pixels, resampled on the way here, patch by patch in an
    # order that takes longer.
    x = jax.lax.optimization_barrier(patches)
    x = stem(x.reshape(*x.shape[:3], self.kernel, self.kernel, -1))
    x = blocks.layer_norm("stem_norm", 1e-6, **types)(x)
    for i in range(self.depth):
      x = ConvNeXtBlock(self.hidden, **types, name=f"block_{i}")(x)
    return Linear(self.features, ("conv", "out"), **types, name="out_proj")(x)
