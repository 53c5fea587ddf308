"""What are the three stages of PS3?

The whole image at the lowest scale, keeping every layer's keys and values (`low`); a score for
each place, top-down (given a prompt) or bottom-up (a learned prior) (`score`); and the best
patches of all higher scales, run through the same transformer against the kept keys (`high`).
Shi et al. 2025, sec. 3.

Everything has a static shape. Tokens are chosen as indices, and pixels, positions and features
are computed for the chosen tokens only. b batch, t tokens, d width, y x rows and columns.
"""

from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from big_vision_ext.core import boxes
from big_vision_ext.models import (
  adapters,
  blocks,
  policy,
  ps3_checks,
  resample,
  selection,
  selection_cells,
  selection_head,
  vit,
)

Grid = tuple[int, int]
Indices = Sequence[Int[Array, "b t"]]
# Pixels (b, n, side, side, 3) of some cells of the lowest grid at the largest scale, and their
# raster positions (b, n), -1 for none.
Tiles = tuple[Num[Array, "b n s s 3"], Int[Array, "b n"]]

# Scores are cosines in [-1, 1], times this: probabilities lie between 0.0067 and 0.9933.
_SCORE_SCALE = 5.0
_SCORE_LIMIT = 10.0


class PS3Stages(vit.ViT):
  """Parameters and stages. Fields of `vit.ViT` hold for the trunk; `pool_type` must be "map".

  Images are uint8, or float in 0..255; they are normalised here, after resampling.

  Attributes:
    scales: image sizes in pixels, the lowest first; the others are whole multiples of it.
    max_select_num: tokens per look.
    max_select_num_each_scale: their split over scales; None for one in proportion to area.
    select_layers: blocks of the low-resolution pass whose outputs the score is made of.
    highres_branch: whether a ConvNeXt branch on a larger image adds to the score.
    selection_size: side in pixels of that image (1512 in the published models).
    selection_hidden, selection_out, selection_depth, selection_kernel: sizes of that branch.
    low_antialias: make the lowest scale by antialiased resizing. False as published, where at 4K
      it is made of 16 pixels in every hundred.
    selection_antialias: the same for the image of the ConvNeXt branch.
    selection_maps: "first", as published: one score map serves all high-resolution scales, and
      the other outputs of the scoring layers are dead; or "each": every scale has its own.
    budget_rule: "split", as published: every scale gets its share of `max_select_num`; or "cells":
      the budget buys whole low-resolution cells at all scales (see `selection_cells`).
    look_policy: let what earlier looks saw change where later ones go (see `policy`). Training
      then spends the tokens of its look on two: one goes where the score says, the other to what
      of the region it missed.
    policy_hidden: width of the layers of that policy.
    smooth_selection_prob: average the selection maps over a 6 x 6 grid before choosing.
    adapter_hidden, adapter_depth: sizes of an adapter between the trunk and the pooling head
      (C-RADIO's trunk under SigLIP's head); 0 for none.
    pool_width, pool_heads, pool_mlp_dim: sizes of the pooling head; 0 for the trunk's.
    mean, std: pixel normalisation, in units where white is 1.
  """

  act: str = "gelu"
  scales: tuple[int, ...] = (378, 756, 1512)
  max_select_num: int = 2560
  max_select_num_each_scale: tuple[int, ...] | None = None
  select_layers: tuple[int, ...] = (0, 9, 18, 26)
  highres_branch: bool = True
  selection_size: int = 1512
  selection_hidden: int = 512
  selection_out: int = 512
  selection_depth: int = 3
  selection_kernel: int = 28
  low_antialias: bool = False
  selection_antialias: bool = False
  selection_maps: Literal["first", "each"] = "first"
  budget_rule: Literal["split", "cells"] = "split"
  look_policy: bool = False
  policy_hidden: int = 32
  smooth_selection_prob: bool = False
  adapter_hidden: int = 0
  adapter_depth: int = 3
  pool_width: int = 0
  pool_heads: int = 0
  pool_mlp_dim: int = 0
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  def setup(self):
    super().setup()
    ps3_checks.fields(self)
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    n, patch = len(self.scales) - 1, self.patch_size
    self.prior_prompt = self.param(
      "prior_prompt", nn.initializers.normal(1.0), (self.width,), self.param_dtype
    )
    seen = self.width * len(self.select_layers)
    self.selection_feature_proj = selection_head.NormedMlp(
      hidden=seen, features=self.width * n, used=self.width * self.num_maps, **types
    )
    init = nn.with_logical_partitioning(nn.initializers.zeros_init(), (None, None, "embed"))
    shapes = [(1, (s // patch) ** 2, self.width) for s in self.scales[1:]]
    self.residuals = [
      self.param(f"pos_emb_residual_{i}", init, shape, self.param_dtype)
      for i, shape in enumerate(shapes)
    ]
    if self.highres_branch:
      sizes = dict(hidden=self.selection_hidden, features=self.selection_out)
      sizes |= dict(depth=self.selection_depth, kernel=self.selection_kernel)
      self.highres_selection = selection_head.HighResSelection(**sizes, **types)
      self.prompt_proj_for_highres = selection_head.Linear(
        self.selection_out * n, ("embed", "out"), self.selection_out * self.num_maps, **types
      )
    if self.look_policy:
      self.later_looks = policy.LookPolicy(self.policy_hidden, **types)
    if self.adapter_hidden:
      self.pool_adapter = adapters.PoolAdapter(
        self.adapter_hidden, self.out_width, self.adapter_depth, **types
      )

  def make_pool(self, **types) -> nn.Module:
    heads, mlp_dim = self.pool_heads or self.num_heads, self.pool_mlp_dim or self.mlp_dim
    return blocks.MAPHead(heads, mlp_dim, self.act, self.ln_eps, **types)

  def low(self, image: Num[Array, "b y x 3"], num_last: int = 1, keep_inputs: bool = False):
    """Stage 1, the whole image squashed to the lowest scale.

    Returns:
      `hidden`, outputs of `select_layers`; `last`, of the last `num_last` blocks (b, g * g, d),
      before the final norm; `pooled` (b, d); `kv` for `high`, see `blocks.Encoder.__call__`.
    """
    self._image_hw(image)
    small = _resize(image, self.scales[0], self.low_antialias)
    select, last = [i % self.depth for i in self.select_layers], self.last_layers(num_last)
    layers = sorted({*select, *last})
    tokens = self.embed(self._normalise(small))
    y, out = self.encode(tokens, layers=layers, keep_inputs=keep_inputs)
    blocks = dict(zip(layers, out["blocks"]))
    return {
      "hidden": [blocks[i] for i in select],
      "last": [blocks[i] for i in last],
      "pooled": self.pool(y),
      "kv": out["kv"],
    }

  def score(
    self,
    image: Num[Array, "b y x 3"],
    low: dict[str, Any],
    prompt: Float[Array, "b d"] | None = None,
  ) -> dict[str, Any]:
    """Stage 2, how much each place matters: top-down given a prompt, else bottom-up.

    Returns:
      `score`, log-odds per cell of the low-resolution grid, float32: (b, g, g), or with
      `selection_maps="each"` (b, s, g, g); `prob`, its sigmoid as one map per high-resolution
      scale.
    """
    features = self._selection_features(image, low)
    score = self._score(features, self.prior_prompt if prompt is None else prompt)
    return self._score_out(score, self._image_hw(image))

  def high(
    self,
    image: Num[Array, "b y x 3"],
    kv: Any,
    index: Indices,
    tiles: Tiles | None = None,
    num_last: int = 1,
  ) -> list[Float[Array, "b t d"]]:
    """Stage 3, the patches at raster positions `index[scale]` against the low-resolution keys.

    Args:
      image: the whole image.
      kv: keys and values of the low-resolution pass, or what they are made of.
      index: what to look at, with as many rows as `kv`, several in a row for an image if need be.
      tiles: parts of the image at the largest scale, from which that scale's patches are taken;
        `image` is then a smaller view that serves the others.
      num_last: how many of the last blocks' outputs to give.

    Returns:
      Outputs of the last blocks (b, t, d), before the final norm, tokens scale by scale.
    """
    sizes = selection.scale_sizes(self.scales, self.patch_size, self._shown_hw(image, tiles))
    tokens = []
    for i, (size, at) in enumerate(zip(sizes, index)):
      if at.shape[-1]:
        of_tiles = tiles if i == len(sizes) - 1 else None
        tokens.append(self._tokens(image, i, size, at, of_tiles))
    x = blocks.constrain(jnp.concatenate(tokens, axis=1), "act_embed")
    if num_last == 1:
      return [self.encode(x, kv, layers=())[1]["last"]]
    return list(self.encode(x, kv, layers=self.last_layers(num_last))[1]["blocks"])

  def pool_high(
    self, tokens: Float[Array, "b t d"], mask: Bool[Array, "b t"] | None = None
  ) -> Float[Array, "b d"]:
    """Final norm and attention pooling of high-resolution tokens, of those in `mask`."""
    return self.pool(self.Transformer.norm(tokens), mask)

  def pool(
    self, y: Float[Array, "b t d"], mask: Bool[Array, "b t"] | None = None
  ) -> Float[Array, "b e"]:
    """Normed tokens -> one vector (b, `out_width`), through the adapter if there is one."""
    return super().pool(self.pool_adapter(y) if self.adapter_hidden else y, mask)

  def last_layers(self, count: int) -> range:
    """The last `count` blocks, as `blocks.Encoder` numbers them."""
    return range(max(0, self.depth - count), self.depth)

  @property
  def out_width(self) -> int:
    """Width of the pooled vectors."""
    return self.pool_width or self.width

  @property
  def cells(self) -> Grid:
    """Rows and columns of the low-resolution grid, which is the grid of the scores."""
    return (self.scales[0] // self.patch_size,) * 2

  def grids(self, image_hw: Grid) -> list[Grid]:
    """Token grid of each high-resolution scale for an image of this size in pixels."""
    sizes = selection.scale_sizes(self.scales, self.patch_size, image_hw)
    return [(h // self.patch_size, w // self.patch_size) for h, w in sizes]

  @property
  def zooms(self) -> tuple[int, ...]:
    """Size of each high-resolution scale over the lowest one's."""
    return tuple(s // self.scales[0] for s in self.scales[1:])

  @property
  def num_maps(self) -> int:
    """Score maps for one prompt."""
    return len(self.scales) - 1 if self.selection_maps == "each" else 1

  def budget(self) -> selection.Counts:
    """Tokens of a (first) look per high-resolution scale."""
    if self.budget_rule == "cells":
      return selection_cells.counts(self.zooms, self.max_select_num)
    if self.max_select_num_each_scale is not None:
      return tuple(self.max_select_num_each_scale)
    return selection.split_budget(self.scales, self.max_select_num)

  def plan(self, image_hw: Grid, **kwargs) -> list[selection.Counts]:
    """Tokens per look and scale for an image of this size; see `selection.plan_looks`."""
    grids = self.grids(image_hw)
    if self.budget_rule == "cells":
      return selection_cells.plan_looks(grids, self.zooms, self.max_select_num, **kwargs)
    return selection.plan_looks(grids, self.budget(), **kwargs)

  def rankings(self, maps: Sequence[Array], counts: selection.Counts, **kwargs) -> Indices:
    """The `counts[scale]` best tokens of every scale by the budget rule.

    Args:
      maps: scores per high-resolution scale (b, y, x).
      counts: tokens per scale, as many as a plan takes in all.
      **kwargs: maps of tokens that are `forced` or were `seen`, see `selection.rankings`.
    """
    if self.budget_rule == "cells":
      return selection_cells.rankings(maps, counts, zooms=self.zooms, **kwargs)
    return selection.rankings(maps, counts, cells=self.cells, **kwargs)

  def forced_maps(self, box: Float[Array, "b 4"], image_hw: Grid) -> list[Bool[Array, "b y x"]]:
    """The tokens to take first for a region, per scale.

    Those that the budget rule can take alike at all scales: patches of the first high-resolution
    grid as a whole, as published, or under "cells" just the patches on the region, whose cells come
    whole anyway.
    """
    grids = self.grids(image_hw)
    if self.budget_rule == "cells":
      return [boxes.hit_map(box, image_hw, grid) for grid in grids]
    return boxes.dilated_hit_maps(box, image_hw, grids)

  def per_scale(self, score: Array) -> list[Array]:
    """The map (b, g, g) of every high-resolution scale, of scores (b, g, g) or (b, s, g, g)."""
    if score.ndim == 3:
      return [score] * (len(self.scales) - 1)
    return [score[:, i] for i in range(score.shape[1])]

  def _normalise(self, pixels):
    # Channels are the last axis, or pixels with their channels are.
    mean, std = (np.resize(np.float32(x), pixels.shape[-1]) for x in (self.mean, self.std))
    return (pixels / 255.0 - mean) / std

  def _selection_features(self, image, low):
    """Unit-length features of the cells (b, y, x, maps, d), and of the finer grid of the branch.

    Where blocks are recomputed in the backward pass, so is all of this: it is a fiftieth of the
    work, and what it would keep through the backward pass of the high-resolution tokens, when
    memory is fullest, is twice as large as the images.
    """
    features = type(self)._features_of
    if self.remat_policy != "none":
      features = nn.remat(features)
    return features(self, image, low["hidden"])

  def _features_of(self, image, hidden):
    x = self.selection_feature_proj(jnp.concatenate(hidden, axis=-1))
    x = x.reshape(x.shape[0], *self.cells, self.num_maps, self.width)
    x = selection_head.l2_normalize(x)
    if not self.highres_branch:
      return x, None
    patches = resample.resized_patches(
      image, self.selection_size, self.selection_kernel, self.selection_antialias
    )
    return x, selection_head.l2_normalize(self.highres_selection(self._normalise(patches)))

  def _score(self, features, prompt):
    """Log-odds (b, g, g), or (b, s, g, g) of each scale, for a prompt (b, d) or (d,)."""
    b = features[0].shape[0]
    prompt = jnp.broadcast_to(prompt, (b, self.width))
    if self.highres_branch:
      fine_prompts = self.prompt_proj_for_highres(prompt).reshape(b, self.num_maps, -1)
    maps = []
    for i in range(self.num_maps):
      score = selection_head.cosine(features[0][..., i, :], prompt)
      if self.highres_branch:
        fine = selection_head.cosine(features[1], fine_prompts[:, i])
        score = (score + resample.amax(fine, self.cells)) / 2
      maps.append(jnp.clip(_SCORE_SCALE * score, -_SCORE_LIMIT, _SCORE_LIMIT))
    return maps[0] if self.selection_maps == "first" else jnp.stack(maps, axis=1)

  def _later_score(self, score, saw: policy.Saw, prompt):
    """The score for the next look, given what was seen; it teaches the policy alone."""
    b, g = score.shape[0], self.cells
    stop = jax.lax.stop_gradient
    prompt = stop(jnp.broadcast_to(prompt, (b, self.width)))
    maps = stop(score).reshape(b, -1, *g)
    change = self.later_looks(maps / _SCORE_SCALE, stop(saw), prompt)
    # Before anything was seen there is nothing to learn from it: the first look is the plain one.
    change = jnp.where(saw.count.any(axis=(1, 2))[:, None, None, None], change, 0.0)
    return jnp.clip(maps + change, -_SCORE_LIMIT, _SCORE_LIMIT).reshape(score.shape)

  def _score_out(self, score, image_hw):
    return {"score": score, "prob": self._prob(score, image_hw)}

  def _prob(self, score, image_hw):
    maps = self.per_scale(jax.nn.sigmoid(score))
    return [resample.nearest(x, grid) for x, grid in zip(maps, self.grids(image_hw))]

  def _tokens(self, image, scale, size, index, tiles):
    """Embedded patches of one high-resolution scale, with positions."""
    patch = self.patch_size
    rows, cols = size[0] // patch, size[1] // patch
    if tiles is None:
      # Rows that share an image read it together.
      at = index.reshape(image.shape[0], -1)
      pixels = jax.vmap(lambda im, at: resample.gather_patches(im, size, patch, at))(image, at)
      pixels = pixels.reshape(*index.shape, *pixels.shape[2:])
    else:
      pixels = resample.tile_patches(*tiles, patch, cols, index).astype(jnp.float32)
    x = self.embed_patches(self._normalise(pixels))
    if self.posemb_type == "learn":
      table = blocks.whole(self.pos_embedding, (None, None, "embed"))[0]
    if self.posemb_type == "learn" and self.posemb_fit == "crop":
      position = table[index // cols * self.posemb_grid[1] + index % cols]
    elif self.posemb_type == "learn":
      position = resample.table_rows(
        table.reshape(*self.posemb_grid, self.width), (rows, cols), index
      )
    else:
      position = self.posemb(rows, cols)[index]
    # The residual table is that of a square image; others use its upper left part.
    side = self.scales[scale + 1] // patch
    residual = blocks.whole(self.residuals[scale], (None, None, "embed"))[0]
    residual = residual[index // cols * side + index % cols]
    position = blocks.constrain(position + residual, "act_embed")
    return x + position.astype(x.dtype)

  def _image_hw(self, image) -> Grid:
    if image.ndim != 4 or image.shape[-1] != 3:
      raise ValueError(
        f"PS3 wants images (batch, height, width, 3), got {image.shape}; add a batch axis or "
        "convert to RGB."
      )
    return image.shape[1:3]

  def _shown_hw(self, image, tiles) -> Grid:
    """Height and width of the image that is shown, whole or by a view and tiles."""
    return self._image_hw(image) if tiles is None else (self.scales[-1],) * 2


def _resize(image, side, antialias):
  """Squashes images to squares."""
  resize = resample.resize_antialias if antialias else resample.resize_cubic
  return resize(image, (side, side))
