"""How does a transformer learn from the patches it is not shown? Masked autoencoders.

He et al. 2022 (MAE): a ViT encodes the visible patches only, and a small decoder predicts the
pixels of the hidden ones. Pixio (arXiv 2512.15715) is the same with a deep decoder, several class
tokens and masks of whole cells. CrossMAE (arXiv 2401.14391) has a decoder whose queries attend to
the encoder alone, each of its blocks to a mixture of all encoder blocks' outputs.

Patches are selected as raw pixels, before anything is computed for them, and nothing is ever
unshuffled: a transformer does not mind the order of its tokens, so that positions are looked up
where a token came from. b batch, n patches, k visible, m targets, d width, e decoder width.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from big_vision_ext.core import patches as patch_lib
from big_vision_ext.models import blocks, remat, vit

DECODERS = ("self", "cross")


# Parameters that the decoder's half has, and the encoder's has not.
DECODER_PARAMS = ("Decoder", "decoder_embed", "decoder_pred", "decoder_pos_embedding",
                  "decoder_cls_pos_embedding", "mask_token")  # fmt: skip


class MaskedAutoencoder(vit.ViT):
  """Encoder and decoder. Fields of `vit.ViT` hold for the encoder; `pool_type` must be "tok".

  Images are uint8, or float in 0..255; only the selected patches are converted and normalised.

  Attributes:
    decoder: "self", blocks over all tokens (MAE, Pixio), or "cross", queries of the targets that
      attend to the visible tokens' features and not to each other (CrossMAE).
    decoder_width, decoder_depth, decoder_heads, decoder_mlp_dim: its sizes.
    select: how tokens are picked, "gather" or "onehot"; see `core.patches.take`.
    mean, std: pixel normalisation, in units where white is 1.
  """

  pool_type: str = "tok"
  posemb_init: str = "sincos2d_mae"
  patch_init: str = "xavier"
  fused_qkv_init: bool = True
  act: str = "gelu"
  decoder: str = "self"
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_heads: int = 16
  decoder_mlp_dim: int = 2048
  select: str = "gather"
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)

  def setup(self):
    super().setup()
    if self.pool_type != "tok" or not isinstance(self.patch_size, int):
      raise ValueError(
        f"pool_type={self.pool_type!r}, patch_size={self.patch_size}: a masked autoencoder has "
        "class tokens (pool_type='tok') and square patches."
      )
    if self.decoder not in DECODERS:
      raise ValueError(f"decoder={self.decoder!r} is unknown; it is one of {DECODERS}.")
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    xavier = nn.initializers.xavier_uniform
    width, (h, w) = self.decoder_width, self.posemb_grid
    self.cls_pos_embedding = self._vectors(
      "cls_pos_embedding", self.num_cls, nn.initializers.zeros_init()
    )
    normal = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed"))
    self.mask_token = self.param("mask_token", normal, (1, 1, width), self.param_dtype)
    table = nn.initializers.normal(0.02)
    if self.posemb_init == "sincos2d_mae":
      table = vit.fixed_positions(h, w, width)
    table = nn.with_logical_partitioning(table, (None, None, "embed"))
    self.decoder_pos_embedding = self.param(
      "decoder_pos_embedding", table, (1, h * w, width), self.param_dtype
    )
    sizes = dict(depth=self.decoder_depth, mlp_dim=self.decoder_mlp_dim)
    sizes |= dict(num_heads=self.decoder_heads, act=self.act, ln_eps=self.ln_eps)
    sizes |= dict(scan=self.scan, remat_policy=self.remat_policy)
    if self.decoder == "self":
      zeros = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None, None, "embed"))
      self.decoder_cls_pos_embedding = self.param(
        "decoder_cls_pos_embedding", zeros, (1, self.num_cls, width), self.param_dtype
      )
      self.decoder_embed = blocks.Projection(
        (width,), ("embed", "out"), kernel_init=xavier, **types
      )
      self.Decoder = blocks.Encoder(**sizes, fused_qkv_init=self.fused_qkv_init, **types)
    else:
      del sizes["scan"]
      self.Decoder = CrossDecoder(sources=self.depth + 1, **sizes, **types)
    self.decoder_pred = blocks.Projection(
      (self.patch_size**2 * 3,), ("embed", "out"), kernel_init=xavier, **types
    )

  def __call__(
    self,
    image: Num[Array, "b y x c"],
    visible: Int[Array, "b k"] | None = None,
    target: Int[Array, "b m"] | None = None,
    train: bool = False,
  ) -> tuple[Float[Array, "b m p"] | None, dict[str, Any]]:
    """Predicts the target patches from the visible ones.

    Args:
      image: uint8, or float in 0..255.
      visible: raster indices of the patches that are seen; all are, if None.
      target: raster indices of the patches to predict; none, if None.
      train: leave out branches of the encoder (`drop_path`), which needs a key "dropout".

    Returns:
      Predicted patches, float32, and out: what the encoder gives, with `encoded` (b, k, d), the
      normed tokens, and `pooled` (b, d), the mean of the normed class tokens.
    """
    seen, out = self.see(image, visible, train)
    if target is None:
      return None, out
    if visible is None:
      raise ValueError("To predict patches, name those that are visible.")
    grid = tuple(side // self.patch_size for side in image.shape[1:3])
    if grid != tuple(self.posemb_grid):
      raise ValueError(
        f"The decoder predicts patches of a grid of {tuple(self.posemb_grid)}, the image has "
        f"{grid}: set model.image.image_size to its size."
      )
    return self.predict(seen, visible, target), out

  def see(
    self, image: Num[Array, "b y x c"], visible: Int[Array, "b k"] | None, train: bool = False
  ) -> tuple[tuple[Float[Array, "b t d"], ...], dict[str, Any]]:
    """The encoder's half: what the decoder reads, and `out`; see `__call__`."""
    x = self.embed_visible(image, visible)
    y, out = self.encode(x, deterministic=not train)
    out["encoded"], out["pooled"] = y[:, self.num_cls :], self.pool(y)
    if self.decoder == "self":
      return (y,), out
    return (x, *(out["blocks"][i] for i in range(self.depth))), out

  def predict(
    self,
    seen: tuple[Float[Array, "b t d"], ...],
    visible: Int[Array, "b k"],
    target: Int[Array, "b m"],
    keep_visible: bool = False,
  ) -> Float[Array, "b m p"]:
    """The decoder's half: predicted patches, float32.

    Args:
      seen: of `see`.
      visible, target: raster indices of patches.
      keep_visible: what a "self" decoder makes of the visible patches comes after the targets.
    """
    if self.decoder == "self":
      pred = self._decode(*seen, visible, target, keep_visible)
    else:
      query = self.mask_token + self._rows(self.decoder_pos_embedding, target)
      pred = self.decoder_pred(self.Decoder(query, seen))
    return pred.astype(jnp.float32)

  def embed_visible(
    self, image: Num[Array, "b y x c"], visible: Int[Array, "b k"] | None
  ) -> Float[Array, "b t d"]:
    """Class tokens, then the tokens of the visible patches with the positions they are from."""
    x = patch_lib.patchify(image, self.patch_size)
    grid = (image.shape[1] // self.patch_size, image.shape[2] // self.patch_size)
    table = self.posemb(*grid)[None]
    if visible is not None:
      x = patch_lib.take(x, visible, self.select)
      table = self._rows(table, visible)
    b, n, _ = x.shape
    x = x.reshape(b, n, self.patch_size, self.patch_size, -1).astype(jnp.float32)
    x = (x / 255.0 - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
    x = self.embed_patches(x) + table.astype(self.dtype)
    cls = (self.cls + self.cls_pos_embedding).astype(x.dtype)
    cls = jnp.broadcast_to(cls, (b, self.num_cls, self.width))
    return blocks.constrain(jnp.concatenate([cls, x], axis=1), "act_embed")

  def _decode(self, y, visible, target, keep_visible):
    """Predictions of a "self" decoder for the target, and for the visible patches if asked."""
    x = self.decoder_embed(y)
    b, m = len(x), target.shape[1]
    hidden = jnp.broadcast_to(self.mask_token.astype(x.dtype), (b, m, self.decoder_width))
    cls = jnp.broadcast_to(self.decoder_cls_pos_embedding, (b, self.num_cls, self.decoder_width))
    rows = self._rows(self.decoder_pos_embedding, jnp.concatenate([target, visible], axis=1))
    x = jnp.concatenate([hidden, x[:, self.num_cls :], x[:, : self.num_cls]], axis=1)
    x = x + jnp.concatenate([rows, cls], axis=1).astype(x.dtype)
    # Of the last block only what is predicted matters.
    alone = None if self.scan or keep_visible else m
    x, _ = self.Decoder(blocks.constrain(x, "act_embed"), only_first=alone)
    wanted = m + visible.shape[1] if keep_visible else m
    return self.decoder_pred(x[:, :wanted])

  def _rows(self, table, index):
    """Rows of a table (1, n, d) for each sample, float32."""
    return jnp.take(table[0].astype(jnp.float32), index, axis=0)


class CrossDecoder(nn.Module):
  """Blocks of cross-attention only: each query reads the encoder, none reads another.

  Every block attends to its own learned mixture of all encoder outputs, normed (CrossMAE's
  inter-block attention).

  Attributes:
    sources: how many encoder outputs there are to mix.
  """

  sources: int
  depth: int
  mlp_dim: int
  num_heads: int
  remat_policy: str = "none"
  act: str = "gelu"
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b m e"], sources, spans=None) -> Float[Array, "b m e"]:
    """Queries and encoder outputs, each (b, k, d) -> normed tokens.

    `spans` says which tokens each group of queries may read; see `attention.Spans`.
    """
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    init = nn.initializers.normal(self.sources**-0.5)
    mix = self.param("mix", init, (self.sources, self.depth), self.param_dtype)
    block = CrossBlock
    if self.remat_policy != "none":
      # The spans are static.
      policy = remat.policy(self.remat_policy)
      block = nn.remat(CrossBlock, policy=policy, static_argnums=(3,))
    x = x.astype(self.dtype)
    for i in range(self.depth):
      weights = mix[:, i].astype(self.dtype)
      seen = sum(weight * source for weight, source in zip(weights, sources))
      seen = blocks.layer_norm(f"source_norm_{i}", self.ln_eps, **types)(seen)
      x = block(self.num_heads, self.mlp_dim, self.act, self.ln_eps, **types,
                name=f"block_{i}")(x, seen, spans)
    return blocks.layer_norm("norm", self.ln_eps, **types)(x)


class CrossBlock(nn.Module):
  """x + attention(norm(x), seen), then x + mlp(norm(x))."""

  num_heads: int
  mlp_dim: int
  act: str = "gelu"
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b m e"], seen: Float[Array, "b k d"], spans=None):
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    y = blocks.layer_norm("LayerNorm_0", self.ln_eps, **types)(x)
    mha = blocks.MultiHeadAttention(self.num_heads, **types, name="attention")
    x = x + mha(y, seen, spans=spans)[0]
    y = blocks.layer_norm("LayerNorm_1", self.ln_eps, **types)(x)
    mlp = blocks.MlpBlock(self.mlp_dim, self.act, **types, name="MlpBlock_0")
    return blocks.constrain(x + mlp(y), "act_embed")
