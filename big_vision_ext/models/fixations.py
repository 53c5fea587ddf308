"""How does a transformer learn from where the gaze goes? Masked modelling over several fixations.

An image is a pyramid of scales, coarse first. At each fixation the model sees a few tokens of each
scale, and predicts what the next fixation will show (specification of the task: `tasks.fixations`).
All looks are encoded in one pass: a token reads the looks before its own, and of its own look the
coarser scales and its own scale, the order in which PS3 encodes. Queries for the next look read the
looks up to theirs by cross-attention alone, as CrossMAE's do.

A sequence is, look by look: the *efference copy*, one token for the movement that led to the look
(retinal frame only, not before the first look); the tokens of each scale; class tokens in front of
those of the finest scale, whose mean after look t is the state after look t. Where all looks are
pooled (`causal=False`) there is one set of class tokens for all of them.
With one look at one scale this is `models.mae` with `decoder="cross"`, to the last parameter but
its tables of positions, which are fixed codes here.

b batch, k tokens of a look at a scale, m targets of a step, d width, e decoder width.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Num

from big_vision_ext.models import activations, blocks, mae, positions, resample, vit

FRAMES = ("scene", "retinal")

Grid = tuple[int, int]
# Raster positions of tokens at each scale; the same object as PS3's selection.
Look = Sequence[Int[Array, "b k"]]


class Order(NamedTuple):
  """How the tokens of some looks lie in a sequence; all static.

  Attributes:
    groups: lengths of groups; a token reads its own group and those before.
    where: for each look and scale, the first token and their number.
    classes: for each look, its first class token.
    ends: for each look, how much of the sequence has been seen after it. The efference copy of the
      next movement is not in: a query has its own, since queries may aim at other places.
  """

  groups: tuple[int, ...]
  where: tuple[tuple[tuple[int, int], ...], ...]
  classes: tuple[int, ...]
  ends: tuple[int, ...]

  @property
  def spans(self) -> tuple[tuple[int, int], ...]:
    """For `attention.attend`."""
    sums = [sum(self.groups[: i + 1]) for i in range(len(self.groups))]
    return tuple(zip(self.groups, sums))


class FixationModel(vit.ViT):
  """Encoder and predictor. Fields of `vit.ViT` hold for the encoder; `pool_type` must be "tok".

  Images are uint8, or float in 0..255; only the patches that are seen are resized and normalised.

  Attributes:
    scales: heights in pixels of the pyramid's images, coarse first; the last one is that of
      `posemb_grid`, which gives the shape. Empty: one scale.
    frame: "scene": tokens know their place in the image, and queries ask for a place in it.
      "retinal": tokens know their place around their gaze and queries that around the next one;
      where that is, only the efference copy tells.
    positions: of the scene frame, see `positions.scene`.
    causal: False: all tokens of all looks read each other, and only the rest can be predicted.
    efference: False leaves the movement out of the retinal frame: what is predicted then is the
      mean over all the places the gaze may have gone to.
    max_looks: length of the table that tells looks apart in the retinal frame.
    target_dim: numbers to predict for a token; 0: its pixels.
    surprise_hidden: width of the head that foretells errors from the coarsest scale; 0 for none.
    decoder_width, decoder_depth, decoder_heads, decoder_mlp_dim: sizes of the predictor.
    mean, std: pixel normalisation, in units where white is 1.
  """

  pool_type: str = "tok"
  posemb_type: str = "sincos2d"
  patch_init: str = "xavier"
  fused_qkv_init: bool = True
  act: str = "gelu"
  scales: tuple[int, ...] = ()
  frame: str = "scene"
  positions: str = "real"
  causal: bool = True
  efference: bool = True
  max_looks: int = 8
  target_dim: int = 0
  surprise_hidden: int = 0
  decoder_width: int = 512
  decoder_depth: int = 8
  decoder_heads: int = 16
  decoder_mlp_dim: int = 2048
  mean: tuple[float, ...] = (0.485, 0.456, 0.406)
  std: tuple[float, ...] = (0.229, 0.224, 0.225)

  @property
  def grids(self) -> tuple[Grid, ...]:
    """Rows and columns of tokens at each scale."""
    return pyramid(self.scales, self.patch_size, tuple(self.posemb_grid))

  @property
  def moves(self) -> bool:
    """Whether there are efference copies."""
    return self.frame == "retinal" and self.efference

  def setup(self):
    super().setup()
    if self.pool_type != "tok" or self.posemb_type != "sincos2d":
      raise ValueError(
        f"pool_type={self.pool_type!r}, posemb_type={self.posemb_type!r}: a model of fixations has "
        "class tokens (pool_type='tok') and fixed positions (posemb_type='sincos2d')."
      )
    for field, choices in (("frame", FRAMES), ("positions", positions.POSITIONS)):
      if getattr(self, field) not in choices:
        raise ValueError(f"{field}={getattr(self, field)!r} is unknown; it is one of {choices}.")
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    xavier, width, count = nn.initializers.xavier_uniform, self.decoder_width, len(self.grids)
    self.mask_token = self._table("mask_token", 1, width)
    if count > 1:
      self.scale_embedding = self._table("scale_embedding", count, self.width)
      self.decoder_scale_embedding = self._table("decoder_scale_embedding", count, width)
    if self.frame == "retinal":
      self.look_embedding = self._table("look_embedding", self.max_looks, self.width)
    if self.moves:
      into = lambda n: blocks.Projection((n,), ("embed", "out"), kernel_init=xavier, **types)
      self.efference_embed, self.decoder_efference_embed = into(self.width), into(width)
    self.Decoder = mae.CrossDecoder(
      sources=self.depth + 1, depth=self.decoder_depth, mlp_dim=self.decoder_mlp_dim,
      num_heads=self.decoder_heads, act=self.act, ln_eps=self.ln_eps,
      remat_policy=self.remat_policy, **types,
    )  # fmt: skip
    out = self.target_dim or self.patch_size**2 * 3
    self.decoder_pred = blocks.Projection((out,), ("embed", "out"), kernel_init=xavier, **types)
    if self.surprise_hidden:
      if count < 2:
        raise ValueError("surprise_hidden needs several scales: the coarsest foretells the errors "
                         "of the others.")
      self.surprise_head = SurpriseHead(self.surprise_hidden, count - 1, self.ln_eps, **types)

  def __call__(
    self,
    image: Num[Array, "b y x c"],
    looks: Sequence[Look],
    gaze: Float[Array, "b t 2"],
    targets: Sequence[Look] = (),
    aims: Sequence[Float[Array, "b #m 2"]] = (),
    after: Sequence[int] | None = None,
  ) -> tuple[list[Float[Array, "b m p"]], dict[str, Any]]:
    """Encodes looks and predicts targets.

    Args:
      image: uint8, or float in 0..255.
      looks: raster positions of what is seen, for each look and scale.
      gaze: (y, x) in 0..1 of each look; read in the retinal frame only.
      targets: raster positions of what is to be predicted, for each step and scale.
      aims: of each step, the fixation that would show its targets, of all of them or of each; read
        in the retinal frame only.
      after: how many looks each step has seen; 1, 2, ... if None.

    Returns:
      For each step the predictions, scale by scale, float32; and out: what the encoder gives, with
      `tokens` (b, n, d), its input, `seen`, the normed tokens (b, k, d) of each look and scale, and
      `state` (b, t, d), the mean of the normed class tokens of each look, and, if there is a head
      for it, `surprise` (b, t, s - 1, y, x): after each look the foretold logarithm of the error at
      each finer scale, for each cell of the coarsest grid.
    """
    order = self.order(looks)
    tokens = self.embed_looks(image, looks, gaze)
    y, out = self.encode(tokens, spans=order.spans)
    out["tokens"] = tokens
    out["seen"] = [[y[:, a : a + n] for a, n in look] for look in order.where]
    out["state"] = jnp.stack(
      [y[:, a : a + self.num_cls].mean(axis=1) for a in order.classes], axis=1)
    if self.surprise_hidden:
      foretold = [self._surprise(out["seen"], t) for t in range(len(looks))]
      out["surprise"] = jnp.stack(foretold, axis=1)
    if not targets:
      return [], out
    after = tuple(range(1, len(targets) + 1)) if after is None else tuple(after)
    return self._predict(out, order, gaze, targets, aims, after), out

  def order(self, looks: Sequence[Look]) -> Order:
    """How the tokens of these looks lie in the sequence."""
    counts = [[index.shape[1] for index in look] for look in looks]
    return order_of(counts, self.num_cls, self.moves, self.causal)

  def embed_looks(
    self, image: Num[Array, "b y x c"], looks: Sequence[Look], gaze: Float[Array, "b t 2"]
  ) -> Float[Array, "b n d"]:
    """The sequence that the encoder gets."""
    if self.frame == "retinal" and len(looks) > self.max_looks:
      raise ValueError(f"{len(looks)} looks, but max_looks={self.max_looks}.")
    by_scale = [self._embed_scale(image, looks, gaze, s) for s in range(len(self.grids))]
    b, parts = len(image), []
    for t, look in enumerate(looks):
      own = [by_scale[s][t] for s in range(len(look)) if look[s].shape[1]]
      cls = jnp.broadcast_to(self.cls.astype(own[0].dtype), (b, self.num_cls, self.width))
      if self.frame == "retinal":
        cls = cls + self.look_embedding[:, t : t + 1].astype(cls.dtype)
      if self.moves and t:
        step = positions.movement(gaze[:, t] - gaze[:, t - 1], self.grids, self.width)[:, None]
        moved = self.efference_embed(step) + self.look_embedding[:, t : t + 1].astype(self.dtype)
        parts.append(moved.astype(cls.dtype))
      parts += [*own[:-1], cls, own[-1]] if t == 0 or self.causal else own
    return blocks.constrain(jnp.concatenate(parts, axis=1), "act_embed")

  def _surprise(self, looks, look: int):
    """(b, s, y, x) of the latest look that has all coarsest tokens, up to `look`, from 0.

    The encoder is not taught by it.
    """
    rows, columns = self.grids[0]
    for seen in reversed(looks[: look + 1]):
      if seen[0].shape[1] == rows * columns:
        score = self.surprise_head(jax.lax.stop_gradient(seen[0]))
        return jnp.moveaxis(score, -1, 1).reshape(len(score), -1, rows, columns)
    raise ValueError(
      f"None of {look + 1} looks shows the whole coarsest grid of {rows} x {columns} tokens, from "
      "which surprise is foretold: make its window as large."
    )

  def _embed_scale(self, image, looks, gaze, s):
    """Tokens of one scale for each look: all cut out at once."""
    index = jnp.concatenate([look[s] for look in looks], axis=1)
    if not index.shape[1]:
      return [None] * len(looks)
    x = patches_at(image, self.grids[s], self.patch_size, index)
    x = (x / 255.0 - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
    counts = [look[s].shape[1] for look in looks]
    if self.frame == "scene":
      code = positions.scene(index, s, self.grids, self.width, self.positions)
    else:
      at = [jnp.repeat(gaze[:, t : t + 1], n, axis=1) for t, n in enumerate(counts)]
      code = positions.retinal(index, s, self.grids, self.width, jnp.concatenate(at, axis=1))
      of_look = [jnp.repeat(self.look_embedding[:, t : t + 1], n, 1) for t, n in enumerate(counts)]
      code = code + jnp.concatenate(of_look, axis=1)
    if len(self.grids) > 1:
      code = code + self.scale_embedding[:, s : s + 1]
    x = self.embed_patches(x) + code.astype(self.dtype)
    ends = [sum(counts[: t + 1]) for t in range(len(counts))]
    return [x[:, end - n : end] for end, n in zip(ends, counts)]

  def _predict(self, out, order, gaze, targets, aims, after):
    if not self.causal and set(after) != {len(order.ends)}:
      raise ValueError(
        f"causal=False: every token reads all {len(order.ends)} looks, so that nothing can be "
        f"predicted after {sorted(set(after))}: predict the rest, or set causal=True."
      )
    queries, spans = [], []
    for i, (step, t) in enumerate(zip(targets, after, strict=True)):
      for s, index in enumerate(step):
        if index.shape[1]:
          aim = None if self.frame == "scene" else _of_scale(aims[i], step, s)
          queries.append(self._query(index, s, gaze[:, t - 1 : t], aim))
      spans.append((sum(index.shape[1] for index in step), order.ends[t - 1]))
    sources = [out["tokens"], *(out["blocks"][i] for i in range(self.depth))]
    x = self.Decoder(jnp.concatenate(queries, axis=1), sources, tuple(spans))
    x = self.decoder_pred(x).astype(jnp.float32)
    ends = [sum(n for n, _ in spans[: i + 1]) for i in range(len(spans))]
    return [x[:, end - n : end] for end, (n, _) in zip(ends, spans)]

  def _query(self, index, s, gaze, aim):
    """Mask token, position and scale, and in the retinal frame the movement."""
    width = self.decoder_width
    if self.frame == "scene":
      x = self.mask_token + positions.scene(index, s, self.grids, width, self.positions)
    else:
      x = self.mask_token + positions.retinal(index, s, self.grids, width, aim)
    if len(self.grids) > 1:
      x = x + self.decoder_scale_embedding[:, s : s + 1]
    if self.moves:
      x = x + self.decoder_efference_embed(positions.movement(aim - gaze, self.grids, width))
    return x

  def _table(self, name, count, width):
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), (None, None, "embed"))
    return self.param(name, init, (1, count, width), self.param_dtype)


class SurpriseHead(nn.Module):
  """Norm and two layers: tokens -> one number for each of some scales, float32."""

  hidden: int
  outputs: int
  ln_eps: float = 1e-6
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "b k d"]) -> Float[Array, "b k s"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    into = lambda n, name: blocks.Projection((n,), ("embed", "out"), **types, name=name)
    x = blocks.layer_norm("norm", self.ln_eps, **types)(x)
    x = activations.gelu(into(self.hidden, "fc1")(x))
    return into(self.outputs, "fc2")(x).astype(jnp.float32)


def order_of(
  counts: Sequence[Sequence[int]], num_cls: int, moves: bool, causal: bool = True
) -> Order:
  """The order of looks with so many tokens at each scale; see the module's docstring."""
  groups, where, classes, ends, at = [], [], [], [], 0
  for t, look in enumerate(counts):
    if not sum(look):
      raise ValueError(f"look {t + 1} of {len(counts)} shows nothing at any scale.")
    if moves and t:
      groups.append(1)
      at += 1
    finest = max(s for s, n in enumerate(look) if n)
    places = []
    for s, n in enumerate(look):
      front = num_cls if s == finest and (t == 0 or causal) else 0
      if front:
        classes.append(at)
      places.append((at + front, n))
      if n:
        groups.append(front + n)
        at += front + n
    where.append(tuple(places))
    ends.append(at)
  if not causal:
    groups, classes, ends = [at], classes * len(counts), [at] * len(counts)
  return Order(tuple(groups), tuple(where), tuple(classes), tuple(ends))


def pyramid(scales: Sequence[int], patch: int, finest: Grid) -> tuple[Grid, ...]:
  """Grids of the scales whose heights in pixels are given; the last one must be `finest`.

  Raises:
    ValueError: scales that do not grow, or do not end at the image, or are no whole patches.
  """
  if not scales:
    return (finest,)
  rows, columns = finest
  grids = []
  for height in scales:
    if height % patch or (height // patch * columns) % rows:
      raise ValueError(f"scales={tuple(scales)}: an image of {height} pixels, shaped like a grid "
                       f"of {rows} x {columns}, is no whole number of patches of {patch}.")
    grids.append((height // patch, height // patch * columns // rows))
  if grids[-1] != finest or sorted(set(grids)) != grids:
    raise ValueError(f"scales={tuple(scales)} must grow and end at the image's height, "
                     f"{rows * patch} pixels.")
  return tuple(grids)


def patches_at(
  image: Num[Array, "b y x c"], grid: Grid, patch: int, index: Int[Array, "b k"]
) -> Float[Array, "b k p p c"]:
  """Patches of the images resized to a grid, float32; nothing else is resized."""
  size = (grid[0] * patch, grid[1] * patch)
  return jax.vmap(lambda x, at: resample.gather_patches(x, size, patch, at))(image, index)


def enlarged_at(
  image: Num[Array, "b y x c"], coarse: Grid, grid: Grid, patch: int, index: Int[Array, "b k"]
) -> Float[Array, "b k p p c"]:
  """The same patches as a coarser scale shows them, enlarged again."""
  small = resample.resize_cubic(image, (coarse[0] * patch, coarse[1] * patch))
  return patches_at(small, grid, patch, index)


def _of_scale(aim, step, s):
  """Aims of the tokens of one scale of a step, where each token has its own."""
  if aim.shape[1] == 1:
    return aim
  start = sum(index.shape[1] for index in step[:s])
  return aim[:, start : start + step[s].shape[1]]
