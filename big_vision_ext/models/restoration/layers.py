"""What do all restoration networks share? How they are called, and PyTorch's convolutions.

b batch, y x rows and columns, c channels; everything is (b, y, x, c). Parameters are
`param_dtype`; trunks compute in `dtype`; the last convolution, the skip around the network and
what it gives are float32: in bfloat16 they would cost up to 0.1 dB, more than many effects.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.models import initial, remat


class Restorer(nn.Module):
  """A network from pictures to pictures; subclasses have `features` and `reconstruct`.

  Attributes:
    scale: how many times larger sides become.
    global_skip: add the picture (enlarged, if `scale` is above 1) to what the network gives: then
      doing nothing is the zero function, which the deraining study is about (lowlevel.md, sec. 5).
    remat_policy: what blocks keep for the backward pass; see `models.remat`.
  """

  scale: int = 1
  global_skip: bool = True
  remat_policy: str = "none"
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @classmethod
  def published(cls, name: str, scale: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the published network of a name, where they depend on it or on other fields."""
    del name, scale, fields
    return {}

  @classmethod
  def checked(cls, **fields: Any) -> "Restorer":
    """A network of these fields; raises ValueError if they make none."""
    net = cls(**fields)
    remat.policy(net.remat_policy)
    net.check()
    return net

  @property
  def multiple(self) -> int:
    """Sides of pictures must be multiples of it."""
    return 1

  def check(self) -> None:
    """Raises ValueError for fields that make no network."""
    raise NotImplementedError

  def features(
    self, x: Float[Array, "b y x 3"], train: bool = False
  ) -> Float[Array, "b y x c"]:
    """What the trunk makes of pictures, before they are enlarged."""
    raise NotImplementedError

  def reconstruct(
    self, features: Float[Array, "b y x c"], x: Float[Array, "b y x 3"]
  ) -> Float[Array, "b h w 3"]:
    """Pictures of `features` and the pictures `x` they are of, float32, not clipped."""
    raise NotImplementedError

  def __call__(
    self, x: Float[Array, "b y x 3"], train: bool = False
  ) -> tuple[Float[Array, "b h w 3"], dict[str, Any]]:
    """The restored pictures, float32, not clipped; out has `features` (b, y, x, c).

    Raises:
      ValueError: a side of the pictures does not divide by `multiple`.
    """
    features = self.features(x, train)
    return self.reconstruct(features, x), {"features": features}

  def fitting(self, x: Float[Array, "b y x 3"]) -> Float[Array, "b y x 3"]:
    """The pictures; raises ValueError if their sides or channels are not what is expected."""
    if x.ndim != 4 or x.shape[3] != 3:
      raise ValueError(f"pictures of shape {x.shape}: expected (batch, rows, columns, 3)")
    if x.shape[1] % self.multiple or x.shape[2] % self.multiple:
      raise ValueError(
        f"pictures of {x.shape[1]} x {x.shape[2]} pixels: {type(self).__name__} takes sides that "
        f"are multiples of {self.multiple}; pad them and crop what comes out."
      )
    return nn.with_logical_constraint(x, ("act_batch", None, None, None))

  def remembering(self, block: type[nn.Module]) -> type[nn.Module]:
    """A kind of block that keeps for its backward pass what `remat_policy` says."""
    keep = remat.policy(self.remat_policy)
    return block if keep is None else nn.remat(block, policy=keep)


class Conv(nn.Module):
  """A convolution as in PyTorch; the picture is padded with size // 2 zeros on every side.

  Attributes:
    width: channels that come out.
    size: of the kernel, odd.
    groups: that channels are taken in; `width` for one kernel a channel.
    gain: of He's initial values, biases zero; None for PyTorch's own initial values.
  """

  width: int
  size: int = 3
  stride: int = 1
  groups: int = 1
  use_bias: bool = True
  gain: float | None = None
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"]) -> Float[Array, "b h w d"]:
    shape = (self.size, self.size, x.shape[-1] // self.groups, self.width)
    init = initial.pytorch_kernel if self.gain is None else initial.kaiming(self.gain)
    kernel = self.param(
      "kernel", nn.with_logical_partitioning(init, (None, None, None, "conv")), shape,
      self.param_dtype)
    pad = self.size // 2
    y = jax.lax.conv_general_dilated(
      x.astype(self.dtype), kernel.astype(self.dtype), (self.stride, self.stride),
      [(pad, pad)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=self.groups)
    if not self.use_bias:
      return y
    init = nn.initializers.zeros_init()
    if self.gain is None:
      init = initial.pytorch(math.prod(shape[:3]))
    bias = self.param(
      "bias", nn.with_logical_partitioning(init, ("conv",)), (self.width,), self.param_dtype)
    return y + bias.astype(self.dtype)


class LayerNorm(nn.Module):
  """Over the channels of each pixel, computed in float32 and given in `dtype`.

  Attributes:
    use_bias: without, as Restormer's "bias-free" norm, nothing is subtracted either.
  """

  use_bias: bool = True
  eps: float = 1e-5
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    def param(name, init):
      init = nn.with_logical_partitioning(init, ("embed",))
      return self.param(name, init, (x.shape[-1],), self.param_dtype).astype(jnp.float32)

    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    spread = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + self.eps)
    y = (centred if self.use_bias else wide) * spread * param("scale", nn.initializers.ones_init())
    if self.use_bias:
      y = y + param("bias", nn.initializers.zeros_init())
    return y.astype(self.dtype)
