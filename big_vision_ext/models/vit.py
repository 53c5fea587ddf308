"""How does an image become tokens and one vector? The vision transformer, with big_vision's names.

Any aspect ratio: a position table learned on one grid is resized to the grid at hand. The parts
(`embed`, `posemb`, `embed_patches`, `encode`, `pool`) are methods, for models that build on it.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from big_vision_ext.models.blocks import Encoder, MAPHead, Projection, layer_norm

# width, depth, mlp_dim, num_heads (Zhai et al. 2022, Alabdulmohsin et al. 2023; big_vision).
_VARIANTS = {
  "mu": (32, 1, 128, 2),
  "Ti": (192, 12, 768, 3),
  "S": (384, 12, 1536, 6),
  "M": (512, 12, 2048, 8),
  "B": (768, 12, 3072, 12),
  "L": (1024, 24, 4096, 16),
  "So400m": (1152, 27, 4304, 16),
  "H": (1280, 32, 5120, 16),
  "g": (1408, 40, 6144, 16),
  "g-opt": (1536, 40, 6144, 16),
  "G": (1664, 48, 8192, 16),
  "G-opt": (1536, 48, 8192, 16),
  "e": (1792, 56, 15360, 16),
}
_POOLS = ("map", "gap", "tok", "none")
_POSEMBS = ("learn", "sincos2d")
_POSEMB_FITS = ("resize", "stretch", "crop")
_POSEMB_INITS = ("normal", "sincos2d_mae")


def variant(name: str) -> dict[str, int]:
  """Sizes of "B", or of "B/16" with patch_size, as keyword arguments of a tower."""
  size, slash, patch = name.partition("/")
  if size not in _VARIANTS or (slash and not (patch.isdecimal() and int(patch))):
    near = difflib.get_close_matches(size, _VARIANTS, 1, 0.0)[0]
    raise ValueError(
      f"Model variant {name!r} is unknown; the nearest is {near!r}. Expected one of "
      f"{', '.join(_VARIANTS)}, alone or followed by a slash and the patch size, as in 'B/16'."
    )
  out = dict(zip(("width", "depth", "mlp_dim", "num_heads"), _VARIANTS[size]))
  return out | ({"patch_size": int(patch)} if slash else {})


def build(cls: type[nn.Module], spec: Mapping[str, Any], what: str = "model") -> nn.Module:
  """A tower from a config: `cls(**spec)`, where `variant` stands for the sizes of that variant.

  `image_size` (pixels, one number or height and width) may stand for `posemb_grid`. Keys beside
  `variant` win over it.

  Raises:
    ValueError: a key is not a field of `cls`, or a field without default is missing.
  """
  spec = dict(spec)
  if "variant" in spec:
    spec = variant(spec.pop("variant")) | spec
  fields = {f.name: f for f in dataclasses.fields(cls) if f.name not in ("parent", "name")}
  if "image_size" in spec and "posemb_grid" in fields and "patch_size" in spec:
    sides = zip(_pair(spec.pop("image_size")), _pair(spec["patch_size"]))
    spec["posemb_grid"] = tuple(size // patch for size, patch in sides)
  for key in spec:
    if key not in fields:
      near = difflib.get_close_matches(key, [*fields, "variant", "image_size"], 1, 0.0)[0]
      raise ValueError(
        f"{what}.{key}={spec[key]!r}: {cls.__name__} has no such field; the nearest is {near!r}."
      )
  for name, field in fields.items():
    required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    if required and name not in spec:
      raise ValueError(f"{what}.{name} is missing: {cls.__name__} has no default for it.")
  return cls(**spec)


class ViT(nn.Module):
  """Vision transformer.

  Attributes:
    posemb_grid: rows and columns of the position table.
    patch_size: pixels, one number or height and width.
    pool_type: "map" (attention head), "gap" (mean), "tok" (class token) or "none".
    posemb_type: "learn" or "sincos2d".
    posemb_fit: what a learned table does for another grid: "resize" with its aspect ratio kept,
      "stretch" to the grid whatever its aspect ratio (CLIP), or "crop" to its upper left part
      (C-RADIO).
    posemb_init: what a learned table begins as: "normal", or "sincos2d_mae", MAE's fixed positions
      (which stay as they are if the optimiser freezes them).
    num_cls: class tokens in front, with `pool_type="tok"`, whose mean is the pooled vector.
    cls_posemb: class tokens have positions of their own, `cls_pos_embedding` (CLIP).
    pre_norm: a norm between the embedding and the first block (CLIP's `ln_pre`).
    pooled_only: with `pool_type="tok"`, the last block is computed for the class tokens alone: 7 %
      of a B/16 on 224 px less, and no `encoded`. Without effect under scan.
    patch_bias, head_bias: whether patch embedding and head have a bias (CLIP's have none).
    patch_init: kernel of the patch embedding: "lecun", or "xavier" over all of a patch (MAE).
    fused_qkv_init: draw queries, keys and values as one matrix: xavier's bound is then smaller by
      the root of two (MAE, timm).
    rep_size: width of a tanh layer between pooling and head; 0 for none, -1 for `width`.
    num_classes: outputs of a linear head; 0 for none.
    head_zeroinit: whether that head starts at zero.
    scan, remat_policy, drop_path: see `blocks.Encoder`.
    act: one of `activations.ACTIVATIONS`: "gelu_tanh" (big_vision), "gelu" (timm, PS3), ...
    dtype: type of computation. Parameters are `param_dtype` whatever it is.
  """

  width: int
  depth: int
  mlp_dim: int
  num_heads: int
  posemb_grid: tuple[int, int]
  patch_size: int | tuple[int, int] = 16
  pool_type: str = "map"
  posemb_type: str = "learn"
  posemb_fit: str = "resize"
  posemb_init: str = "normal"
  num_cls: int = 1
  cls_posemb: bool = False
  pre_norm: bool = False
  pooled_only: bool = False
  patch_bias: bool = True
  head_bias: bool = True
  patch_init: str = "lecun"
  fused_qkv_init: bool = False
  rep_size: int = 0
  num_classes: int = 0
  head_zeroinit: bool = True
  scan: bool = False
  remat_policy: str = "none"
  act: str = "gelu_tanh"
  ln_eps: float = 1e-6
  dropout: float = 0.0
  drop_path: float = 0.0
  final_norm: bool = True
  dtype: Any = "float32"
  param_dtype: Any = "float32"

  def setup(self):
    _one_of("pool_type", self.pool_type, _POOLS)
    _one_of("posemb_type", self.posemb_type, _POSEMBS)
    _one_of("posemb_fit", self.posemb_fit, _POSEMB_FITS)
    _one_of("posemb_init", self.posemb_init, _POSEMB_INITS)
    _one_of("patch_init", self.patch_init, ("lecun", "xavier"))
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    lecun = nn.initializers.lecun_normal
    # A convolution whose stride is its size is a product over the pixels of a patch.
    axes = (None, None, None, "embed")
    init = lecun if self.patch_init == "lecun" else nn.initializers.xavier_uniform
    self.embedding = Projection(
      (self.width,), axes, contract=3, use_bias=self.patch_bias, kernel_init=init, **types
    )
    if self.posemb_type == "learn":
      h, w = self.posemb_grid
      init = nn.initializers.normal(self.width**-0.5)
      if self.posemb_init == "sincos2d_mae":
        init = fixed_positions(h, w, self.width)
      self.pos_embedding = self._vectors("pos_embedding", h * w, init)
    if self.pool_type == "tok":
      self.cls = self._vectors("cls", self.num_cls, nn.initializers.zeros_init())
      if self.cls_posemb:
        init = nn.initializers.normal(self.width**-0.5)
        self.cls_pos_embedding = self._vectors("cls_pos_embedding", self.num_cls, init)
    if self.pre_norm:
      self.embedding_norm = layer_norm(None, self.ln_eps, **types)
    self.Transformer = Encoder(
      self.depth,
      self.mlp_dim,
      self.num_heads,
      scan=self.scan,
      remat_policy=self.remat_policy,
      act=self.act,
      ln_eps=self.ln_eps,
      dropout=self.dropout,
      drop_path=self.drop_path,
      final_norm=self.final_norm,
      fused_qkv_init=self.fused_qkv_init,
      **types,
    )
    self.drop = nn.Dropout(self.dropout)
    if self.pool_type == "map":
      self.MAPHead_0 = self.make_pool(**types)
    if self.rep_size:
      size = self.width if self.rep_size < 0 else self.rep_size
      self.pre_logits = Projection((size,), ("embed", "out"), kernel_init=lecun, **types)
    if self.num_classes:
      init = _zeros if self.head_zeroinit else lecun
      self.head = Projection(
        (self.num_classes,), ("embed", "out"), use_bias=self.head_bias, kernel_init=init, **types
      )

  def make_pool(self, **types) -> nn.Module:
    """The attention head of `pool_type="map"`; models whose head has other sizes override it."""
    return MAPHead(self.num_heads, self.mlp_dim, self.act, self.ln_eps, **types)

  def __call__(self, image: Float[Array, "b y x c"], deterministic: bool = True):
    """Image -> one vector.

    Returns:
      The pooled vector (b, d), or the representation or class logits if the model has those
      layers, or all tokens for `pool_type="none"`; and out: what `Encoder` gives, with
      `encoded` (b, t, d), `head_input` and, if they exist, `pre_logits` and `logits`.
    """
    alone = self.pooled_only and self.pool_type == "tok" and not self.scan
    only_first = self.num_cls if alone else None
    y, out = self.encode(self.embed(image), deterministic=deterministic, only_first=only_first)
    x = out["head_input"] = self.pool(y)
    if not alone:
      out["encoded"] = y[:, self.num_cls :] if self.pool_type == "tok" else y
    if self.rep_size:
      x = out["pre_logits"] = nn.tanh(self.pre_logits(x))
    if self.num_classes:
      x = out["logits"] = self.head(x)
    return x, out

  def embed(self, image: Float[Array, "b y x c"]) -> Float[Array, "b t d"]:
    """Tokens with positions, in raster order; a class token, if the model has one, in front.

    Rows and columns beyond a whole number of patches are left out, at the bottom and right: the
    published models with patch 14 and 384 pixels see 378.
    """
    (ph, pw), (b, h, w, c) = _pair(self.patch_size), image.shape
    gh, gw = h // ph, w // pw
    if not gh * gw:
      raise ValueError(f"An image of {h}x{w} pixels is smaller than one patch of {ph}x{pw}.")
    x = image[:, : gh * ph, : gw * pw].reshape(b, gh, ph, gw, pw, c)
    x = self.embed_patches(x.transpose(0, 1, 3, 2, 4, 5).reshape(b, gh * gw, ph, pw, c))
    x = x + self.posemb(gh, gw).astype(x.dtype)
    if self.pool_type == "tok":
      cls = self.cls + self.cls_pos_embedding if self.cls_posemb else self.cls
      cls = jnp.broadcast_to(cls.astype(x.dtype), (b, self.num_cls, self.width))
      x = jnp.concatenate([cls, x], axis=1)
    return self.embedding_norm(x) if self.pre_norm else x

  def embed_patches(self, patches: Float[Array, "b n p q c"]) -> Float[Array, "b n d"]:
    """Patches -> tokens without positions."""
    if patches.shape[2:4] != _pair(self.patch_size):
      raise ValueError(f"Got patches {patches.shape}, expected {_pair(self.patch_size)} pixels.")
    return self.embedding(patches)

  def posemb(self, gh: int, gw: int) -> Float[Array, "t d"]:
    """Positions for a grid of gh x gw tokens in raster order, float32.

    A learned table of another grid is resized as a whole, keeping its aspect ratio, until it
    covers the grid, and its upper left part is taken (antialiased bicubic, A=-0.5; timm's rule).
    With `posemb_fit="stretch"` it takes the grid's shape (likewise; open_clip's rule), with
    "crop" it is not resized.
    """
    if self.posemb_type == "sincos2d":
      return jnp.asarray(sincos2d(gh, gw, self.width))
    table = self.pos_embedding[0].astype(jnp.float32)
    h, w = self.posemb_grid
    if (gh, gw) == (h, w):
      return table
    if self.posemb_fit == "crop":
      if gh > h or gw > w:
        raise ValueError(
          f"posemb_fit='crop' cannot give {gh} x {gw} positions out of posemb_grid={(h, w)}."
        )
      return table.reshape(h, w, self.width)[:gh, :gw].reshape(gh * gw, self.width)
    scale = max(gh / h, gw / w)
    shape = (max(gh, round(h * scale)), max(gw, round(w * scale)), self.width)
    if self.posemb_fit == "stretch":
      shape = (gh, gw, self.width)
    table = table.reshape(h, w, self.width)
    table = jax.image.resize(table, shape, method="cubic", antialias=True)
    return table[:gh, :gw].reshape(gh * gw, self.width)

  def encode(
    self,
    tokens: Float[Array, "b t d"],
    kv=None,
    deterministic: bool = True,
    **kwargs,
  ):
    """The transformer: see `blocks.Encoder.__call__`."""
    return self.Transformer(self.drop(tokens, deterministic), kv, deterministic, **kwargs)

  def pool(
    self, y: Float[Array, "b t d"], mask: Bool[Array, "b t"] | None = None
  ) -> Float[Array, "..."]:
    """Normed tokens -> one vector (b, d), of the tokens where `mask` is true.

    A row without a true entry pools all its tokens. "none" gives the tokens back.
    """
    if self.pool_type == "map":
      return self.MAPHead_0(y, mask)
    if mask is not None and self.pool_type != "gap":
      raise ValueError(f"pool_type={self.pool_type!r} does not pool a choice of tokens.")
    if self.pool_type == "gap":
      mask = jnp.ones(y.shape[:2], bool) if mask is None else mask
      weight = (mask | ~mask.any(axis=1, keepdims=True)).astype(jnp.float32)
      weight = weight / weight.sum(axis=1, keepdims=True)
      return jnp.einsum("bt,btd->bd", weight, y.astype(jnp.float32)).astype(y.dtype)
    return y[:, : self.num_cls].mean(axis=1) if self.pool_type == "tok" else y

  def _vectors(self, name: str, count: int, init):
    init = nn.with_logical_partitioning(init, (None, None, "embed"))
    return self.param(name, init, (1, count, self.width), self.param_dtype)


def sincos2d(gh: int, gw: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
  """Fixed positions (gh*gw, width), float32: sine and cosine of x, then of y (MoCo v3).

  Raises:
    ValueError: the width is not a multiple of four, at least eight.
  """
  if width % 4 or width < 8:
    raise ValueError(f"sincos2d positions need a width that is 8, 12, 16, ...; got width={width}.")
  y, x = np.mgrid[:gh, :gw]
  omega = temperature ** -np.linspace(0.0, 1.0, width // 4)
  y, x = (np.outer(at.ravel(), omega) for at in (y, x))
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)


def sincos2d_mae(gh: int, gw: int, width: int) -> np.ndarray:
  """MAE's fixed positions (gh*gw, width), float32: columns in the first half, rows in the second.

  Each half is [sine | cosine] of place / 10000^(k / (width / 4)). Unlike `sincos2d`, the slowest
  wave does not quite reach the temperature. Computed in float64 (facebookresearch/mae).

  Raises:
    ValueError: the width is no multiple of four.
  """
  if width % 4:
    raise ValueError(f"sincos2d_mae positions need a width that is a multiple of 4; got {width}.")
  y, x = np.mgrid[:gh, :gw].astype(np.float64)
  omega = 10_000.0 ** -(np.arange(width // 4) / (width / 4))
  x, y = (np.outer(at.ravel(), omega) for at in (x, y))
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], 1).astype(np.float32)


def fixed_positions(gh: int, gw: int, width: int):
  """An initialiser of a table (1, gh*gw, width) that gives `sincos2d_mae`."""
  def init(key, shape, dtype=jnp.float32):
    del key
    return jnp.asarray(sincos2d_mae(gh, gw, width), dtype).reshape(shape)
  return init


def _pair(value) -> tuple[int, int]:
  return (value, value) if isinstance(value, int) else tuple(value)


def _one_of(field: str, value: str, choices: tuple[str, ...]):
  if value not in choices:
    raise ValueError(f"{field}={value!r} is unknown; it is one of {choices}.")


def _zeros(**_):
  return nn.initializers.zeros_init()
