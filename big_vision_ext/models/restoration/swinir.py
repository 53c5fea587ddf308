"""How is a picture restored by attention within shifted windows? SwinIR.

Liang et al. 2021 (arXiv 2108.10257), layers and names after the published code
(JingyunLiang/SwinIR): groups of Swin blocks with a 3 x 3 convolution each, a skip around each and
around all. Three tails:

- "pixelshuffle": to 64 channels, enlarged in steps of two ("classical"). At scale 1 it enlarges
  nothing; so the deraining study's development code has SwinIR-light, 940,015 parameters, which
  has no skip around the network [C].
- "pixelshuffledirect": one convolution to scale * scale * 3 channels ("lightweight").
- "denoise": one convolution, and with `global_skip` the picture itself added, as published.

b batch, n windows, t tokens of a window, h heads, k head width, c channels.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from big_vision_ext.models import activations, blocks, remat
from big_vision_ext.models.restoration import resampling
from big_vision_ext.models.restoration.layers import Conv, LayerNorm, Restorer

TAILS = ("pixelshuffle", "pixelshuffledirect", "denoise")
# Added to scores of pairs that are neighbours only because the picture was rolled round.
_APART = -100.0


class SwinIR(Restorer):
  """See the module. Sides are multiples of `window`; without `global_skip` unless it is denoising.

  Attributes:
    width: channels of the trunk.
    depth: groups.
    blocks: in each group; every second one shifts its windows by half of one.
    heads: of attention.
    window: side of a window in pixels.
    mlp_ratio: how much wider the hidden layer of the MLPs is.
    tail: one of `TAILS`.
    tail_width: channels of the tail "pixelshuffle".
    drop_path: share of residual branches of the last block that are left out in training (fewer of
      earlier ones); draws from the rng "dropout".
    mean: of colours, taken off first and added last.
  """

  global_skip: bool = False
  width: int = 180
  depth: int = 6
  blocks: int = 6
  heads: int = 6
  window: int = 8
  mlp_ratio: float = 2.0
  tail: str = "pixelshuffle"
  tail_width: int = 64
  drop_path: float = 0.0
  mean: tuple[float, float, float] = (0.4488, 0.4371, 0.4040)

  @classmethod
  def published(cls, name, scale, fields):
    light = name == "swinir_light"
    out = {"width": 60, "depth": 4} if light else {}
    out["tail"] = "pixelshuffledirect" if light and scale > 1 else "pixelshuffle"
    return out | {"global_skip": fields.get("tail", out["tail"]) == "denoise"}

  @property
  def multiple(self):
    return self.window

  def check(self):
    if self.tail not in TAILS:
      raise ValueError(f"tail={self.tail!r} is unknown; it is one of {', '.join(TAILS)}.")
    if self.tail == "denoise":
      resampling.check_scale(self.scale, (1,), "SwinIR with tail='denoise'")
    resampling.check_scale(self.scale, who="SwinIR")
    if min(self.width, self.depth, self.blocks, self.heads, self.window) < 1:
      raise ValueError(f"width={self.width}, depth={self.depth}, blocks={self.blocks}, "
                       f"heads={self.heads}, window={self.window}: expected at least 1 of each.")
    if self.width % self.heads:
      raise ValueError(f"width={self.width} does not divide into heads={self.heads} equal heads.")
    if not 0 <= self.drop_path < 1:
      raise ValueError(f"drop_path={self.drop_path}: expected 0 <= drop_path < 1.")

  def setup(self):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    self.first = Conv(self.width, **types)
    self.embed_norm = LayerNorm(**types)
    rates = np.linspace(0, self.drop_path, self.depth * self.blocks).reshape(self.depth, -1)
    self.groups = [
      Group(self.remembering(SwinBlock), self.width, self.heads, self.window,
            int(self.width * self.mlp_ratio), tuple(map(float, of_group)), **types)
      for of_group in rates]
    self.norm = LayerNorm(**types)
    self.body_end = Conv(self.width, **types)
    if self.tail == "pixelshuffle":
      self.before_up = Conv(self.tail_width, **types)
      self.up = resampling.Upsampler(self.scale, **types)
    self.last = Conv(3 * self._direct**2, param_dtype=self.param_dtype)

  @property
  def _direct(self) -> int:
    """How many times the last convolution's shuffle enlarges."""
    return self.scale if self.tail == "pixelshuffledirect" else 1

  def features(self, x, train=False):
    x = self.fitting(x).astype(jnp.float32)
    start = self.first(x - jnp.asarray(self.mean, jnp.float32))
    y = self.embed_norm(start)
    key = self.make_rng("dropout") if train and self.drop_path else None
    for i, group in enumerate(self.groups):
      y = group(y, None if key is None else jax.random.fold_in(key, i))
    return start + self.body_end(self.norm(y))

  def reconstruct(self, features, x):
    y = features.astype(self.dtype)
    if self.tail == "pixelshuffle":
      y = self.up(nn.leaky_relu(self.before_up(y), 0.01))
    y = self.last(y)
    y = resampling.pixel_shuffle(y, self._direct) if self._direct > 1 else y
    if self.global_skip:
      return y + resampling.enlarge(x, self.scale)
    return y + jnp.asarray(self.mean, jnp.float32)


class Group(nn.Module):
  """x + conv(blocks(x)).

  Attributes:
    rates: of `drop_path`, one a block.
  """

  block: type[nn.Module]
  width: int
  heads: int
  window: int
  mlp_dim: int
  rates: tuple[float, ...]
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, key=None):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = x
    for i, rate in enumerate(self.rates):
      shift = self.window // 2 if i % 2 else 0
      y = self.block(self.heads, self.window, shift, self.mlp_dim, rate, **types,
                     name=f"block_{i}")(y, None if key is None else jax.random.fold_in(key, i))
    return x + Conv(self.width, **types, name="conv")(y)


class SwinBlock(nn.Module):
  """Attention within windows, then an MLP, both with a norm in front and a skip around."""

  heads: int
  window: int
  shift: int
  mlp_dim: int
  rate: float
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, "b y x c"], key=None):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = LayerNorm(**types, name="norm1")(x)
    y = jnp.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
    apart = _rolled_apart(*x.shape[1:3], self.window, self.shift) if self.shift else None
    y = windows(y, self.window)
    y = WindowAttention(self.heads, self.window, **types, name="attention")(y, apart)
    y = unwindows(y, self.window, x.shape[1:3])
    y = jnp.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y
    x = x + self._kept(y, key, 0)
    y = LayerNorm(**types, name="norm2")(x)
    y = _dense(self.mlp_dim, ("embed", "mlp"), "hidden", **types)(y)
    y = activations.gelu(remat.name(y, "mlp_hidden"))
    y = remat.name(_dense(x.shape[-1], ("mlp", "embed"), "out", **types)(y), "mlp_out")
    return x + self._kept(y, key, 1)

  def _kept(self, y, key, branch):
    if key is None:
      return y
    return blocks.drop_path(y, self.rate, jax.random.fold_in(key, branch))


class WindowAttention(nn.Module):
  """Attention of all tokens of a window to each other, with a learned bias for each offset."""

  heads: int
  window: int
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Float[Array, "b n t c"], apart=None) -> Float[Array, "b n t c"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    width = x.shape[-1] // self.heads
    qkv = blocks.Projection((3, self.heads, width), ("embed", None, "heads", "kv"),
                            kernel_init=_small, **types, name="qkv")(x)
    q, k, v = jnp.moveaxis(remat.name(qkv, "qkv"), 3, 0)
    table = self.param(
      "offset_bias", nn.with_logical_partitioning(_small(), (None, "heads")),
      ((2 * self.window - 1) ** 2, self.heads), self.param_dtype)
    bias = table.astype(jnp.float32)[offsets(self.window)].transpose(2, 0, 1)
    scores = jnp.einsum("bnthk,bnshk->bnhts", q * width**-0.5, k,
                        preferred_element_type=jnp.float32) + bias
    if apart is not None:
      scores = scores + np.where(apart, np.float32(_APART), np.float32(0))[:, None]
    weights = jax.nn.softmax(scores).astype(self.dtype)
    y = remat.name(jnp.einsum("bnhts,bnshk->bnthk", weights, v), "attention_out")
    return blocks.Projection(x.shape[-1:], ("heads", "kv", "embed"), contract=2,
                             kernel_init=_small, **types, name="out")(y)


def windows(x: Float[Array, "b y x c"], side: int) -> Float[Array, "b n t c"]:
  """Cuts pictures into square windows, in raster order, as their pixels in raster order."""
  b, y, w, c = x.shape
  x = x.reshape(b, y // side, side, w // side, side, c).swapaxes(2, 3)
  return x.reshape(b, -1, side * side, c)


def unwindows(
  x: Float[Array, "b n t c"], side: int, size: tuple[int, int]
) -> Float[Array, "b y x c"]:
  """The inverse of `windows`."""
  b, _, _, c = x.shape
  x = x.reshape(b, size[0] // side, size[1] // side, side, side, c).swapaxes(2, 3)
  return x.reshape(b, *size, c)


@functools.lru_cache(maxsize=16)
def offsets(side: int) -> np.ndarray:
  """Row of the bias table (t, t) for each pair of a window's pixels, query first."""
  at = np.stack(np.divmod(np.arange(side * side), side), -1)
  apart = at[:, None] - at[None] + side - 1
  return apart[..., 0] * (2 * side - 1) + apart[..., 1]


@functools.lru_cache(maxsize=32)
def _rolled_apart(height: int, width: int, side: int, shift: int) -> np.ndarray:
  """Which pairs of a window's pixels (n, t, t) lie apart, rolled together round the borders."""
  def band(size):
    at = np.arange(size)
    return (at >= size - side).astype(np.int32) + (at >= size - shift)

  region = 3 * band(height)[:, None] + band(width)
  cut = region.reshape(height // side, side, width // side, side).swapaxes(1, 2)
  cut = cut.reshape(-1, side * side)
  return cut[:, :, None] != cut[:, None, :]


def _dense(width, axes, name, **types):
  return blocks.Projection((width,), axes, kernel_init=_small, **types, name=name)


def _small(in_axis=None, out_axis=None):
  del in_axis, out_axis
  return nn.initializers.truncated_normal(0.02)
