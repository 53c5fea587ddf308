"""What is a transformer made of? Projections, blocks, the stack of them and the pooling head.

Dimensions: b batch, t tokens, d width, h heads, k head width, m mlp, L layers. Parameter names
and shapes are big_vision's (`models/vit.py` and `text_transformer.py` there), so that its
checkpoints load unchanged. Parameters are `param_dtype`; products run in `dtype`; norms and
softmax in float32.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from big_vision_ext.models import attention, remat
from big_vision_ext.models.activations import activation


def constrain(x: Array, last: str) -> Array:
  """Names the axes of activations (b, t, ..., last) for the sharding rules in force, if any."""
  middle = (None,) * (x.ndim - 3)
  return nn.with_logical_constraint(x, ("act_batch", "act_length", last, *middle))


def whole(table: Array, axes: tuple[str | None, ...]) -> Array:
  """A parameter that every device looks rows up in, whole; its gradient is cut as it is stored.

  Left to the partitioner, a table that is cut across the axis of the rows' depth makes every device
  look up its part of the depth for the batches of all.
  """
  stored = nn.with_logical_constraint(table, axes)
  return nn.with_logical_constraint(stored, (None,) * table.ndim)


def drop_path(y: Float[Array, "b t d"], rate: Any, key: Array) -> Float[Array, "b t d"]:
  """Leaves a residual branch out of a share `rate` of the samples and scales up what stays.

  Huang et al. 2016, sec. 3, with the scaling in training (timm): the expectation is `y`.
  """
  keep = jax.random.bernoulli(key, 1.0 - rate, (y.shape[0],) + (1,) * (y.ndim - 1))
  return jnp.where(keep, y / (1.0 - rate), 0.0).astype(y.dtype)


class Projection(nn.Module):
  """x @ kernel + bias over the last `contract` axes; kernel (*in, *features).

  Attributes:
    features: output axes.
    axes: logical names of the kernel's axes.
    contract: how many trailing axes of the input are summed over.
    use_bias: whether there is a bias.
    kernel_init: makes an initialiser, given in_axis and out_axis: all fans count flattened.
  """

  features: tuple[int, ...]
  axes: tuple[str | None, ...]
  contract: int = 1
  use_bias: bool = True
  kernel_init: Callable = nn.initializers.xavier_uniform
  bias_init: Callable = nn.initializers.zeros_init()
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    n = self.contract
    shape = (*x.shape[x.ndim - n :], *self.features)
    init = self.kernel_init(in_axis=tuple(range(n)), out_axis=tuple(range(n, len(shape))))
    init = nn.with_logical_partitioning(init, self.axes)
    kernel = self.param("kernel", init, shape, self.param_dtype)
    over = (tuple(range(x.ndim - n, x.ndim)), tuple(range(n)))
    # Cut as it is stored, and so is its gradient: devices send each other numbers of `dtype`, and
    # add up gradients into their own parts, instead of all into whole ones.
    kernel = nn.with_logical_constraint(kernel.astype(self.dtype), self.axes)
    y = jax.lax.dot_general(x.astype(self.dtype), kernel, (over, ((), ())))
    if not self.use_bias:
      return y
    bias_init = nn.with_logical_partitioning(self.bias_init, self.axes[n:])
    return y + self.param("bias", bias_init, self.features, self.param_dtype).astype(self.dtype)


def _xavier_fused(in_axis, out_axis):
  """Xavier's uniform bound of a matrix three times as wide: queries, keys and values as one."""
  del out_axis

  def init(key, shape, dtype=jnp.float32):
    fan_in = math.prod(shape[axis] for axis in in_axis)
    bound = math.sqrt(6 / (fan_in + 3 * math.prod(shape) / fan_in))
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


class MultiHeadAttention(nn.Module):
  """Attention of queries `x` over `y`, with optional earlier keys and values in front.

  Attributes:
    fused_qkv_init: draw queries, keys and values as one matrix is drawn.
    causal: no token reads what stands behind it; for `y` being `x`.
  """

  num_heads: int
  fused_qkv_init: bool = False
  causal: bool = False
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, y, kv=None, mask=None, spans=None):
    d = x.shape[-1]
    if d % self.num_heads:
      raise ValueError(f"width={d} does not divide into num_heads={self.num_heads} equal heads.")
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    kernel_init = _xavier_fused if self.fused_qkv_init else nn.initializers.xavier_uniform
    into = functools.partial(
      Projection,
      (self.num_heads, d // self.num_heads),
      ("embed", "heads", "kv"),
      kernel_init=kernel_init,
      **types,
    )
    q = remat.name(constrain(into(name="query")(x), "act_heads"), "qkv")
    k = remat.name(constrain(into(name="key")(y), "act_heads"), "qkv")
    v = remat.name(constrain(into(name="value")(y), "act_heads"), "qkv")
    # Kept with the heads side by side: as the last axis, a narrow head fills up to 128 on a TPU.
    own = tuple(x.reshape(*x.shape[:2], d) for x in (k, v))
    if kv is not None:
      old = (x.reshape(*x.shape[:2], *k.shape[2:]).astype(k.dtype) for x in kv)
      k, v = (jnp.concatenate(pair, axis=1) for pair in zip(old, (k, v)))
    z = attention.attend(q, k, v, mask=mask, spans=spans, causal=self.causal)
    z = constrain(z, "act_heads")
    out = Projection((d,), ("heads", "kv", "embed"), contract=2, **types, name="out")
    return remat.name(out(z), "attention_out"), own


class MlpBlock(nn.Module):
  """Two projections with an activation between them."""

  mlp_dim: int
  act: str = "gelu_tanh"
  dropout: float = 0.0
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b t d"], deterministic: bool = True):
    make = functools.partial(
      Projection,
      bias_init=nn.initializers.normal(1e-6),
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    y = make((self.mlp_dim,), ("embed", "mlp"), name="Dense_0")(x)
    y = activation(self.act)(remat.name(constrain(y, "act_mlp"), "mlp_hidden"))
    y = nn.Dropout(self.dropout)(y, deterministic)
    return remat.name(make((x.shape[-1],), ("mlp", "embed"), name="Dense_1")(y), "mlp_out")


def layer_norm(name: str | None, eps: float, dtype: Any, param_dtype: Any) -> nn.LayerNorm:
  """LayerNorm with float32 statistics. The two-pass variance keeps digits of shifted inputs."""
  return nn.LayerNorm(
    epsilon=eps, dtype=dtype, param_dtype=param_dtype, use_fast_variance=False, name=name
  )


class EncoderBlock(nn.Module):
  """Pre-norm block: x + attention(norm(x)), then x + mlp(norm(x))."""

  num_heads: int
  mlp_dim: int
  act: str = "gelu_tanh"
  ln_eps: float = 1e-6
  dropout: float = 0.0
  fused_qkv_init: bool = False
  causal: bool = False
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "b t d"],
    kv=None,
    deterministic: bool = True,
    spans: attention.Spans | None = None,
    drop_rate: Any = None,
  ):
    """Returns the block's output and the keys and values of `x`, each (b, t, d).

    `spans` says which of all keys the tokens of `x` may read; see `attention.Spans`.
    Given a pair `kv` of other tokens, these stand in front of the keys and values of `x`; only `x`
    asks. Given the block's input of those tokens instead, their keys and values are made of it.
    With a `drop_rate`, each of the two branches is left out of that share of the samples.
    """
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    dropout = nn.Dropout(self.dropout)

    def drop(y, deterministic):
      y = dropout(y, deterministic)
      return y if drop_rate is None else drop_path(y, drop_rate, self.make_rng("dropout"))

    x = constrain(x, "act_embed")
    norm = layer_norm("LayerNorm_0", self.ln_eps, **types)
    asking = asked = norm(x)
    if kv is not None and not isinstance(kv, tuple):
      asked = jnp.concatenate([norm(constrain(kv, "act_embed")), asked], axis=1)
      kv = None
    mha = MultiHeadAttention(
      self.num_heads, self.fused_qkv_init, self.causal, **types,
      name="MultiHeadDotProductAttention_0",
    )  # fmt: skip
    y, own = mha(asking, asked, kv, spans=spans)
    x = constrain(x + drop(y, deterministic), "act_embed")
    y = layer_norm("LayerNorm_1", self.ln_eps, **types)(x)
    mlp = MlpBlock(self.mlp_dim, self.act, self.dropout, **types, name="MlpBlock_0")
    x = constrain(x + drop(mlp(y, deterministic), deterministic), "act_embed")
    return x, own


class Encoder(nn.Module):
  """`depth` blocks and a norm.

  Attributes:
    scan: one block's program over stacked parameters (`encoderblock`, leading axis L) instead of
      L copies of it (`encoderblock_{i}`). Compiles L times less.
    remat_policy: what a block may keep for the backward pass: "none" switches rematerialisation
      off, "nothing_saveable" recomputes all; see `remat`.
    drop_path: how often the last block's branches are left out of a sample in training; it rises
      linearly from 0 at the first block.
    final_norm: whether there is an `encoder_norm`.
    causal: no token reads what stands behind it (CLIP's texts); without `kv` and `spans`.
  """

  depth: int
  mlp_dim: int
  num_heads: int
  scan: bool = False
  remat_policy: str = "none"
  act: str = "gelu_tanh"
  ln_eps: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  final_norm: bool = True
  fused_qkv_init: bool = False
  causal: bool = False
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  def setup(self):
    remat.policy(self.remat_policy)  # Raises where it would not be found.
    if not 0 <= self.drop_path < 1:
      raise ValueError(f"drop_path={self.drop_path}: expected a share of at least 0 and below 1.")
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    block = functools.partial(
      EncoderBlock,
      self.num_heads,
      self.mlp_dim,
      self.act,
      self.ln_eps,
      self.dropout,
      self.fused_qkv_init,
      self.causal,
      **types,
    )
    self.encoderblock = block() if self.scan else [block() for _ in range(self.depth)]
    if self.final_norm:
      self.encoder_norm = layer_norm(None, self.ln_eps, **types)

  def __call__(
    self,
    x: Float[Array, "b t d"],
    kv=None,
    deterministic: bool = True,
    layers: Sequence[int] | None = None,
    keep_inputs: bool = False,
    spans: attention.Spans | None = None,
    only_first: int | None = None,
  ):
    """Runs the blocks and the norm.

    Args:
      x: tokens.
      kv: `out["kv"]` of an earlier call on other tokens, to stand in front of this call's.
      deterministic: no dropout, and no branch left out.
      layers: the blocks, from 0 and ascending, whose outputs are asked for; None for all. Under
        scan, what was not asked for is not kept.
      keep_inputs: give the inputs of the blocks instead of keys and values, out of which the next
        call makes these again: half the memory for them and for their gradients.
      spans: which keys, those of `kv` first, each group of tokens may read; see `attention.Spans`.
      only_first: the last block gives the first so many tokens alone, computed from all, and `y`
        is as long; `kv` is None then. Not under scan, whose blocks are one program.

    Returns:
      y (b, t, d) after the norm, and out: `blocks`, the raw output of every block of `layers`,
      stacked (n, b, t, d) under scan and a list else; `last`, that of the last block; `kv`, unless
      this call was given some: per layer the keys and values of `x`, or the input of the block,
      (b, t, d) each, with a leading L under scan and in a list else.
    """

    rates = None
    if self.drop_path and not deterministic:
      rates = np.linspace(0.0, self.drop_path, self.depth, dtype=np.float32)

    def step(block, x, kv, rate):
      y, own = block(x, kv, deterministic, spans, rate)
      # Nobody asks for the keys of a look; kept, those of all layers weigh as much as its tokens.
      return y, None if kv is not None else x if keep_inputs else own

    if policy := remat.policy(self.remat_policy):
      # A scan's body cannot be merged with its own recomputation, unrolled blocks could be.
      step = nn.remat(step, policy=policy, prevent_cse=not self.scan)

    if only_first is not None and (self.scan or self.causal or kv is not None):
      raise ValueError(f"only_first={only_first}: expected the loop layout (scan=False), no causal "
                       "order and no keys and values of other tokens.")
    x = x.astype(self.dtype)
    if self.scan:
      x, blocks, new_kv = self._scanned(step, x, kv, rates, layers)
    else:
      if kv is not None and len(kv) != self.depth:
        raise ValueError(f"Got keys and values of {len(kv)} layers for depth={self.depth}.")
      blocks, new_kv = [], []
      for i, block in enumerate(self.encoderblock):
        rate = None if rates is None else rates[i]
        seen = None if kv is None else kv[i]
        if only_first is not None and i == self.depth - 1:
          # The inputs of the others, of which the block makes their keys.
          x, seen = x[:, :only_first], x[:, only_first:]
        x, own = step(block, x, seen, rate)
        blocks.append(x)
        new_kv.append(own)
      new_kv = new_kv if kv is None and only_first is None else None
      blocks = blocks if layers is None else [blocks[i] for i in layers]
    return self.norm(x), {"blocks": blocks, "last": x, "kv": new_kv}

  def _scanned(self, step, x, kv, rates, layers):
    """All blocks by one program: the last output, the outputs of `layers`, keys and values."""
    # Where a block's output goes among those asked for; beyond the last of them, if it was not.
    wanted = () if layers is None else tuple(layers)
    slots = np.full(self.depth, len(wanted))
    slots[list(wanted)] = np.arange(len(wanted))

    def keep(block, carry, given):
      x, kept = carry
      kv, slot, rate = given
      x, own = step(block, x, kv, rate)
      if wanted:
        kept = kept.at[slot].set(x, mode="drop")
      return (x, kept), (x if layers is None else None, own)

    run = nn.scan(
      keep,
      variable_axes={"params": 0},
      split_rngs={"params": True, "dropout": True},
      length=self.depth,
      metadata_params={nn.PARTITION_NAME: "layers"},
    )
    kept = jnp.zeros((len(wanted), *x.shape), x.dtype)
    given = kv, jnp.asarray(slots), rates
    (x, kept), (blocks, new_kv) = run(self.encoderblock, (x, kept), given)
    return x, kept if blocks is None else blocks, new_kv

  def norm(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """The final norm alone; the identity if there is none."""
    return self.encoder_norm(x) if self.final_norm else x


class MAPHead(nn.Module):
  """Multi-head attention pooling: a learned probe asks all tokens (Zhai et al. 2022)."""

  num_heads: int
  mlp_dim: int
  act: str = "gelu_tanh"
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t d"], mask: Bool[Array, "b t"] | None = None
  ) -> Float[Array, "b d"]:
    """Pools the tokens where `mask` is true; a row without a true entry pools all of them."""
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    b, _, d = x.shape
    init = nn.with_logical_partitioning(nn.initializers.xavier_uniform(), (None, None, "embed"))
    probe = self.param("probe", init, (1, 1, d), self.param_dtype)
    probe = jnp.broadcast_to(probe.astype(self.dtype), (b, 1, d))
    mha = MultiHeadAttention(self.num_heads, **types, name="MultiHeadDotProductAttention_0")
    x, _ = mha(probe, x, mask=mask)
    y = layer_norm("LayerNorm_0", self.ln_eps, **types)(x)
    mlp = MlpBlock(self.mlp_dim, self.act, **types, name="MlpBlock_0")
    return (x + mlp(y))[:, 0]
