"""How are features of hidden blocks predicted from what is seen? Encoder and predictor of I-JEPA.

Assran et al. 2023, "Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture". There is no decoder and no pixel: a narrow transformer predicts what a teacher, the
same encoder with averaged weights, makes of the whole image. b batch, k context tokens, g blocks, m
tokens of a block, d width, e width of the predictor.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from big_vision_ext.core import patches as patch_lib
from big_vision_ext.models import blocks, vit


class Encoder(vit.ViT):
  """A ViT without class tokens that can be shown some patches only. Fields are those of `vit.ViT`.

  Attributes:
    mean, std: pixel normalisation, in units where white is 1.
  """

  pool_type: str = "none"
  posemb_init: str = "sincos2d_mae"
  patch_init: str = "xavier"
  fused_qkv_init: bool = True
  act: str = "gelu"
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)

  def setup(self):
    super().setup()
    if self.pool_type != "none" or not isinstance(self.patch_size, int) or not self.final_norm:
      raise ValueError(
        f"pool_type={self.pool_type!r}, patch_size={self.patch_size}, final_norm="
        f"{self.final_norm}: this encoder has no pooling (pool_type='none'), square "
        "patches and a final norm."
      )

  def __call__(
    self, image: UInt8[Array, "b y x c"], visible: Int[Array, "b k"] | None = None
  ) -> Float[Array, "b k d"]:
    """Normed tokens of the patches `visible` (raster indices), or of all."""
    x = patch_lib.patchify(image, self.patch_size)
    table = self.posemb(*(side // self.patch_size for side in image.shape[1:3]))
    if visible is not None:
      x, table = patch_lib.take(x, visible), jnp.take(table, visible, axis=0)
    x = x.reshape(*x.shape[:2], self.patch_size, self.patch_size, -1).astype(jnp.float32)
    x = (x / 255.0 - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
    x = self.embed_patches(x) + table.astype(self.dtype)
    return self.encode(blocks.constrain(x, "act_embed"))[0]


class Predictor(nn.Module):
  """Predicts each target block for itself: context tokens and a mask token at each place of it.

  Attributes:
    out_dim: width of what is predicted, the encoder's.
    grid: rows and columns of tokens, for its fixed positions.
  """

  out_dim: int
  grid: tuple[int, int]
  width: int = 384
  depth: int = 12
  num_heads: int = 16
  mlp_dim: int = 1536
  scan: bool = False
  remat_policy: str = "none"
  act: str = "gelu"
  ln_eps: float = 1e-6
  dtype: Any = "float32"
  param_dtype: Any = "float32"

  @nn.compact
  def __call__(
    self,
    context: Float[Array, "b k d"],
    visible: Int[Array, "b k"],
    target: Int[Array, "b g m"],
  ) -> Float[Array, "b g m d"]:
    """Encoder tokens and their indices, indices of the blocks -> predicted features, float32."""
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    b, g, m = target.shape
    project = lambda width, name: blocks.Projection(
      (width,), ("embed", "out"), **types, name=name
    )
    table = jnp.asarray(vit.sincos2d_mae(*self.grid, self.width))
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed"))
    mask_token = self.param("mask_token", init, (1, 1, self.width), self.param_dtype)
    seen = project(self.width, "embed")(context)
    seen = seen + jnp.take(table, visible, axis=0).astype(seen.dtype)
    seen = jnp.repeat(seen, g, axis=0)
    asked = mask_token + jnp.take(table, target.reshape(b * g, m), axis=0)
    x = jnp.concatenate([seen, asked.astype(seen.dtype)], axis=1)
    x, _ = blocks.Encoder(
      self.depth, self.mlp_dim, self.num_heads, scan=self.scan, remat_policy=self.remat_policy,
      act=self.act, ln_eps=self.ln_eps, fused_qkv_init=True, **types, name="Transformer",
    )(blocks.constrain(x, "act_embed"))
    x = project(self.out_dim, "out")(x[:, -m:])
    return x.astype(jnp.float32).reshape(b, g, m, self.out_dim)


def normed(features: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
  """Each token's features to mean 0 and variance 1, float32 (eps 1e-5, PyTorch's)."""
  x = features.astype(jnp.float32)
  x = x - x.mean(axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + np.float32(1e-5))
