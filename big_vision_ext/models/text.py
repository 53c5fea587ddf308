"""How does a text become one vector? A transformer with big_vision's names.

As a rule there is no mask: padding is attended to, as in SigLIP, so texts are padded to the full
length. CLIP's texts are read in causal order, and what stands behind the end of a text does not
matter.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from big_vision_ext.models.blocks import Encoder, MAPHead, Projection

_POOLS = ("last", "first", "mean", "max", "map", "eot")


class TextTransformer(nn.Module):
  """Text tower.

  Attributes:
    out_dim: width of the output `head`; 0 for none.
    text_len: number of tokens.
    pool_type: "last" (SigLIP), "first", "mean", "max", "map" or "eot" (CLIP), the token that ends
      the text.
    eot_id: which that is, at its first place; None: the largest id of the text.
    causal: no token reads what stands behind it.
    head_bias: whether the head has a bias.
    scan, remat_policy: see `blocks.Encoder`.
    act: one of `activations.ACTIVATIONS`: "gelu_tanh" (big_vision), "gelu" (PS3's with SigLIP), ...
    dtype: type of computation. Parameters are `param_dtype` whatever it is.
  """

  vocab_size: int
  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  out_dim: int = 0
  text_len: int = 64
  pool_type: str = "last"
  eot_id: int | None = None
  causal: bool = False
  head_bias: bool = True
  scan: bool = False
  remat_policy: str = "none"
  act: str = "gelu_tanh"
  ln_eps: float = 1e-6
  dropout: float = 0.0
  dtype: Any = "float32"
  param_dtype: Any = "float32"

  @nn.compact
  def __call__(self, text: Int[Array, "b t"], deterministic: bool = True):
    """Token ids -> vector.

    Returns:
      The vector (b, out_dim), or (b, width) without a head, and out: what `Encoder` gives, with
      `encoded` (b, t, d) and `pre_logits` (b, d), the pooled vector before the head.

    Raises:
      ValueError: another number of tokens than `text_len`, or ids that are not integers.
    """
    if self.pool_type not in _POOLS:
      raise ValueError(f"pool_type={self.pool_type!r} is unknown; it is one of {_POOLS}.")
    if (
      text.ndim != 2
      or text.shape[1] != self.text_len
      or not jnp.issubdtype(text.dtype, jnp.integer)
    ):
      raise ValueError(
        f"The text tower takes integer ids of shape (batch, {self.text_len}), got {text.dtype} "
        f"{text.shape}. Pad or cut texts to text_len."
      )
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = Embedding(self.vocab_size, self.width, **types, name="Embed_0")(text)
    init = nn.initializers.normal(self.width**-0.5)
    init = nn.with_logical_partitioning(init, (None, None, "embed"))
    shape = (1, self.text_len, self.width)
    x = x + self.param("pos_embedding", init, shape, self.param_dtype).astype(x.dtype)
    x, out = Encoder(
      self.depth,
      self.mlp_dim,
      self.num_heads,
      scan=self.scan,
      remat_policy=self.remat_policy,
      act=self.act,
      ln_eps=self.ln_eps,
      dropout=self.dropout,
      causal=self.causal,
      **types,
      name="Encoder_0",
    )(x, deterministic=deterministic)
    out["encoded"] = x
    if self.pool_type == "map":
      head = MAPHead(self.num_heads, self.mlp_dim, self.act, self.ln_eps, **types, name="MAPHead_0")
      x = head(x)
    elif self.pool_type == "mean":
      x = x.astype(jnp.float32).mean(axis=1).astype(x.dtype)
    elif self.pool_type == "max":
      x = x.max(axis=1)
    elif self.pool_type == "eot":
      # Of several equal ones argmax gives the first.
      at = jnp.argmax(text if self.eot_id is None else text == self.eot_id, axis=1)
      x = jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
    else:
      x = x[:, -1 if self.pool_type == "last" else 0]
    out["pre_logits"] = x
    if self.out_dim:
      head = Projection(
        (self.out_dim,), ("embed", "out"), use_bias=self.head_bias,
        kernel_init=nn.initializers.lecun_normal, **types, name="head",
      )  # fmt: skip
      x = head(x)
    return x, out


class Embedding(nn.Module):
  """A table of vectors (vocab, d), looked up by id. An id outside of the table gives NaN."""

  vocab_size: int
  width: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: Int[Array, "b t"]):
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    init = nn.with_logical_partitioning(init, ("vocab", "embed"))
    table = self.param("embedding", init, (self.vocab_size, self.width), self.param_dtype)
    # Negative ids would count from the end.
    ids = jnp.where(ids < 0, self.vocab_size, ids)
    return jnp.take(table, ids, axis=0, mode="fill", fill_value=jnp.nan).astype(self.dtype)
