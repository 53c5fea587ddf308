"""How does PS3 see an image at 4K for the price of a few patches?

Shi et al. 2025, "Scaling Vision Pre-Training to 4K Resolution" (arXiv 2503.19903), for the
SigLIP layout. Three stages: the whole image at the lowest scale, keeping every layer's keys and
values; a score for each place, top-down (given a prompt) or bottom-up (a learned prior); and
the best patches of all higher scales, run through the same transformer against the kept keys.

Everything has a static shape. Tokens are chosen as indices, and pixels, positions and features
are computed for the chosen tokens only. b batch, t tokens, d width, y x rows and columns.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from big_vision_ext.core import boxes
from big_vision_ext.models import blocks, resample, selection, selection_head, vit

Grid = tuple[int, int]
Indices = Sequence[Int[Array, "b t"]]

# Scores are cosines in [-1, 1], times this: probabilities lie between 0.0067 and 0.9933.
_SCORE_SCALE = 5.0
_SCORE_LIMIT = 10.0


class PS3Vision(vit.ViT):
  """A ViT that looks closer. Fields of `vit.ViT` hold for the trunk; `pool_type` must be "map".

  Images are uint8, or float in 0..255; they are normalised here, after resampling.

  Attributes:
    scales: image sizes in pixels, the lowest first; the others are whole multiples of it.
    max_select_num: tokens per look.
    max_select_num_each_scale: their split over scales; None for one in proportion to area.
    select_layers: blocks of the low-resolution pass whose outputs the score is made of.
    highres_branch: whether a ConvNeXt branch on a larger image adds to the score.
    selection_size: side in pixels of that image (1512 in the published models).
    selection_hidden, selection_out, selection_depth, selection_kernel: sizes of that branch.
    smooth_selection_prob: average the selection maps over a 6 x 6 grid before choosing.
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
  smooth_selection_prob: bool = False
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  def setup(self):
    super().setup()
    self._check_fields()
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    n, patch = len(self.scales) - 1, self.patch_size
    self.prior_prompt = self.param(
      "prior_prompt", nn.initializers.normal(1.0), (self.width,), self.param_dtype
    )
    seen = self.width * len(self.select_layers)
    self.selection_feature_proj = selection_head.NormedMlp(
      hidden=seen, features=self.width * n, used=self.width, **types
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
        self.selection_out * n, ("embed", "out"), self.selection_out, **types
      )

  def __call__(
    self,
    image: Num[Array, "b y x 3"],
    prompt: Float[Array, "b d"] | None = None,
    box: Float[Array, "b 4"] | None = None,
    is_global: Bool[Array, "b"] | None = None,
    pool_selected: Literal["gt", "all"] = "gt",
  ) -> tuple[Float[Array, "b d"], dict[str, Any]]:
    """The training pass: one look, tokens of the caption's region taken first.

    Args:
      image: uint8 or float in 0..255.
      prompt: top-down prompt; without it the bottom-up score chooses.
      box: region of the caption in pixels of `image`. Without it nothing is forced, and all
        selected tokens are pooled.
      is_global: samples whose caption is of the whole image; these pool the low-resolution
        pass. Without it all samples pool high-resolution tokens.
      pool_selected: pool only tokens inside the box, or all selected ones. A sample without a
        selected token in its box pools all.

    Returns:
      The pooled vector, and out: `pooled_low`, `pooled_high`; `topdown` (None without prompt)
      and `bottomup`, each with `score` (b, g, g) log-odds per low-resolution cell and `prob`,
      one map per high-resolution scale; `forced_prob`, the maps that chose; `index`, raster
      indices per scale; `gt_mask` (b, t), which of the selected tokens touch the box.
    """
    image_hw = self._image_hw(image)
    low = self.low(image)
    features = self._selection_features(image, low)
    bottomup = self._score(features, self.prior_prompt)
    topdown = None if prompt is None else self._score(features, prompt)
    score = bottomup if prompt is None else topdown
    maps, forced = self._choice_maps(score, None, box, image_hw)
    plan = self.plan(image_hw, num_looks=1)
    (index,) = selection.select(maps, plan, cells=self.cells, forced=forced)
    tokens, _ = self.high(image, low["kv"], index)
    gt_mask = None if box is None else self._gt_mask(box, image_hw, index)
    pooled_high = self.pool_high(tokens, self._pool_mask(pool_selected, gt_mask))
    pooled = pooled_high
    if is_global is not None:
      pooled = jnp.where(is_global[:, None], low["pooled"], pooled_high)
    out = {
      "pooled_low": low["pooled"],
      "pooled_high": pooled_high,
      "topdown": None if topdown is None else self._score_out(topdown, image_hw),
      "bottomup": self._score_out(bottomup, image_hw),
      "forced_prob": selection.force(maps, forced),
      "index": index,
      "gt_mask": gt_mask,
    }
    return pooled, out

  def encode_image(
    self,
    image: Num[Array, "b y x 3"],
    prompt: Float[Array, "b d"] | None = None,
    *,
    num_looks: int | Literal["all"] | None = None,
    num_tokens: int | None = None,
    only_first_n_scales: int | None = None,
    box: Float[Array, "b 4"] | None = None,
    scores: Array | Sequence[Array] | None = None,
    return_hidden: int = 1,
    pool_selected: Literal["gt", "all"] = "all",
  ) -> dict[str, Any]:
    """Features of an image, of as many looks as asked for (one, if nothing is).

    Args:
      image: uint8 or float in 0..255.
      prompt: top-down prompt; without it the bottom-up score chooses.
      num_looks: looks of `max_select_num` tokens, or "all" for (nearly) every
        token, see `selection.plan_looks`.
      num_tokens: tokens over all looks, instead.
      only_first_n_scales: spend the budget on so many high-resolution scales first.
      box: region to take first, in pixels of `image`.
      scores: maps to choose by instead of the model's, larger is earlier: one (b, g, g) map of
        low-resolution cells, or one map per high-resolution scale.
      return_hidden: how many of the last blocks' outputs to return.
      pool_selected: pool all selected tokens, or those inside `box`.

    Returns:
      `last_hidden` (b, g * g + t, d), low-resolution tokens, then the selected ones by scale and
      raster position, before the final norm; `hidden`, such an array for each of the last
      `return_hidden` blocks; `index`, raster indices per scale over all looks; `looks`, the same
      per look and scale; `score` (b, g, g) and `prob`, maps per scale, of the model; `pooled`
      (b, d) of the selected tokens (of the low-resolution ones, if none are); `pooled_low`.
    """
    if num_looks is None and num_tokens is None:
      num_looks = 1
    image_hw = self._image_hw(image)
    low = self.low(image)
    score = self._score(
      self._selection_features(image, low), self.prior_prompt if prompt is None else prompt
    )
    maps, forced = self._choice_maps(score, scores, box, image_hw)
    limits = dict(num_tokens=num_tokens, only_first_n_scales=only_first_n_scales)
    plan = self.plan(image_hw, num_looks=num_looks, **limits)
    looks = selection.select(maps, plan, cells=self.cells, forced=forced)
    hidden = list(low["blocks"][-return_hidden:])
    out = self._score_out(score, image_hw) | {"pooled_low": low["pooled"], "looks": looks}
    if not plan:
      empty = [jnp.zeros((image.shape[0], 0), jnp.int32)] * len(maps)
      nothing = {"index": empty, "pooled": low["pooled"]}
      return out | nothing | {"last_hidden": hidden[-1], "hidden": hidden}
    high, index = self._run_looks(image, low["kv"], plan, looks, return_hidden)
    gt_mask = None if box is None else self._gt_mask(box, image_hw, index)
    hidden = [jnp.concatenate(pair, axis=1) for pair in zip(hidden, high)]
    return out | {
      "last_hidden": hidden[-1],
      "hidden": hidden,
      "index": index,
      "pooled": self.pool_high(high[-1], self._pool_mask(pool_selected, gt_mask)),
    }

  def low(self, image: Num[Array, "b y x 3"]) -> dict[str, Any]:
    """Stage 1, the whole image squashed to the lowest scale.

    Returns:
      `hidden`, outputs of `select_layers`; `last` (b, g * g, d) before the final norm; `blocks`,
      outputs of all blocks; `pooled` (b, d); `kv`, keys and values per layer.
    """
    self._image_hw(image)
    small = resample.resize_cubic(image, (self.scales[0], self.scales[0]))
    y, out = self.encode(self.embed(self._normalise(small)))
    return {
      "hidden": [out["blocks"][i] for i in self.select_layers],
      "last": out["last"],
      "blocks": out["blocks"],
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
      `score` (b, g, g), log-odds per cell of the low-resolution grid, float32; `prob`, its
      sigmoid as one map per high-resolution scale.
    """
    features = self._selection_features(image, low)
    score = self._score(features, self.prior_prompt if prompt is None else prompt)
    return self._score_out(score, self._image_hw(image))

  def high(self, image: Num[Array, "b y x 3"], kv: Any, index: Indices):
    """Stage 3, the patches at raster positions `index[scale]` against the low-resolution keys.

    Returns:
      Tokens (b, t, d) before the final norm, scale by scale, and what the encoder gives beside.
    """
    sizes = selection.scale_sizes(self.scales, self.patch_size, self._image_hw(image))
    tokens = []
    for i, (size, at) in enumerate(zip(sizes, index)):
      if at.shape[-1]:
        tokens.append(self._tokens(image, i, size, at))
    x = blocks.constrain(jnp.concatenate(tokens, axis=1), "act_embed")
    _, out = self.encode(x, kv)
    return out["last"], out

  def pool_high(
    self, tokens: Float[Array, "b t d"], mask: Bool[Array, "b t"] | None = None
  ) -> Float[Array, "b d"]:
    """Final norm and attention pooling of high-resolution tokens, of those in `mask`."""
    return self.pool(self.Transformer.norm(tokens), mask)

  @property
  def cells(self) -> Grid:
    """Rows and columns of the low-resolution grid, which is the grid of the scores."""
    return (self.scales[0] // self.patch_size,) * 2

  def grids(self, image_hw: Grid) -> list[Grid]:
    """Token grid of each high-resolution scale for an image of this size in pixels."""
    sizes = selection.scale_sizes(self.scales, self.patch_size, image_hw)
    return [(h // self.patch_size, w // self.patch_size) for h, w in sizes]

  def budget(self) -> selection.Counts:
    """Tokens per look and high-resolution scale."""
    if self.max_select_num_each_scale is not None:
      return tuple(self.max_select_num_each_scale)
    return selection.split_budget(self.scales, self.max_select_num)

  def plan(self, image_hw: Grid, **kwargs) -> list[selection.Counts]:
    """Tokens per look and scale for an image of this size; see `selection.plan_looks`."""
    return selection.plan_looks(self.grids(image_hw), self.budget(), **kwargs)

  def _normalise(self, pixels):
    mean, std = jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.std, jnp.float32)
    return (pixels / 255.0 - mean) / std

  def _selection_features(self, image, low):
    """Unit-length features of the cells, and of the finer grid of the convolutional branch."""
    x = self.selection_feature_proj(jnp.concatenate(low["hidden"], axis=-1))
    x = selection_head.l2_normalize(x).reshape(x.shape[0], *self.cells, self.width)
    if not self.highres_branch:
      return x, None
    large = resample.resize_cubic(image, (self.selection_size, self.selection_size))
    # Without the barrier XLA computes the resampled pixels once more inside the gradient of the
    # stem's kernel, for every tap: half of the branch's time on a CPU.
    large = jax.lax.optimization_barrier(self._normalise(large))
    return x, selection_head.l2_normalize(self.highres_selection(large))

  def _score(self, features, prompt):
    """Log-odds (b, g, g) for a prompt (b, d) or (d,)."""
    prompt = jnp.broadcast_to(prompt, (features[0].shape[0], self.width))
    score = selection_head.cosine(features[0], prompt)
    if self.highres_branch:
      fine = selection_head.cosine(features[1], self.prompt_proj_for_highres(prompt))
      score = (score + resample.amax(fine, self.cells)) / 2
    return jnp.clip(_SCORE_SCALE * score, -_SCORE_LIMIT, _SCORE_LIMIT)

  def _score_out(self, score, image_hw):
    prob = [resample.nearest(jax.nn.sigmoid(score), grid) for grid in self.grids(image_hw)]
    return {"score": score, "prob": prob}

  def _choice_maps(self, score, override, box, image_hw):
    """What the choice is made by: maps per scale, and maps of tokens to force (or None)."""
    grids = self.grids(image_hw)
    if override is None:
      override = jax.nn.sigmoid(score)
    if not isinstance(override, (list, tuple)):
      override = [resample.nearest(override, grid) for grid in grids]
    shapes = [x.shape[1:] for x in override]
    if shapes != [tuple(g) for g in grids]:
      raise ValueError(
        f"Selection scores have the grids {shapes}, but an image of {image_hw} pixels has "
        f"{grids}; give one map per high-resolution scale or one map of {self.cells} cells."
      )
    forced = None if box is None else boxes.dilated_hit_maps(box, image_hw, grids)
    if not self.smooth_selection_prob:
      return override, forced
    # Smoothing comes after forcing, in the release: it spreads the forced ones as well.
    smooth = [resample.area(x, (6, 6)) for x in selection.force(override, forced)]
    return [resample.nearest(x, grid) for x, grid in zip(smooth, grids)], None

  def _tokens(self, image, scale, size, index):
    """Embedded patches of one high-resolution scale, with positions."""
    patch = self.patch_size
    cut = jax.vmap(lambda im, at: resample.gather_patches(im, size, patch, at))
    x = self.embed_patches(self._normalise(cut(image, index)))
    rows, cols = size[0] // patch, size[1] // patch
    if self.posemb_type == "learn":
      table = self.pos_embedding[0].reshape(*self.posemb_grid, self.width)
      position = resample.table_rows(table, (rows, cols), index)
    else:
      position = self.posemb(rows, cols)[index]
    # The residual table is that of a square image; others use its upper left part.
    side = self.scales[scale + 1] // patch
    residual = self.residuals[scale][0][index // cols * side + index % cols]
    return x + (position + residual).astype(x.dtype)

  def _run_looks(self, image, kv, plan, looks, return_hidden):
    """Encodes every look and puts its tokens where they belong: by scale and raster position.

    Looks of equal size share one program, run in turn.

    Returns:
      Outputs of the last blocks, each (b, t, d), and raster indices per scale over all looks.
    """

    def one(model, carry, index):
      _, out = model.high(image, kv, index)
      return carry, list(out["blocks"][-return_hidden:])

    parts = []
    for _, group in itertools.groupby(range(len(plan)), key=lambda j: plan[j]):
      group = list(group)
      if len(group) == 1:
        parts.append(one(self, None, looks[group[0]])[1])
        continue
      stacked = [jnp.stack(at) for at in zip(*(looks[j] for j in group))]
      run = nn.scan(one, variable_broadcast="params", split_rngs={"params": False})
      outs = run(self, None, stacked)[1]
      parts.append([x.swapaxes(0, 1).reshape(x.shape[1], -1, x.shape[3]) for x in outs])

    order, index = selection.merge_looks(looks, self.grids(image.shape[1:3]))
    hidden = [jnp.concatenate(layer, axis=1) for layer in zip(*parts)]
    return [jnp.take_along_axis(x, order[:, :, None], axis=1) for x in hidden], index

  def _gt_mask(self, box, image_hw, index):
    hits = [boxes.hits_at(box, image_hw, g, at) for g, at in zip(self.grids(image_hw), index)]
    return jnp.concatenate(hits, axis=1)

  def _pool_mask(self, pool_selected, gt_mask):
    if pool_selected not in ("gt", "all"):
      raise ValueError(f"pool_selected={pool_selected!r} is unknown; it is 'gt' or 'all'.")
    return gt_mask if pool_selected == "gt" else None

  def _image_hw(self, image) -> Grid:
    if image.ndim != 4 or image.shape[-1] != 3:
      raise ValueError(
        f"PS3 wants images (batch, height, width, 3), got {image.shape}; add a batch axis or "
        "convert to RGB."
      )
    return image.shape[1:3]

  def _check_fields(self):
    selection.check_scales(self.scales, self.patch_size)
    if self.pool_type != "map":
      raise ValueError(f"pool_type={self.pool_type!r}: PS3 pools by attention, set it to 'map'.")
    if not all(-self.depth <= i < self.depth for i in self.select_layers):
      raise ValueError(
        f"select_layers={self.select_layers} must name blocks of depth={self.depth}, 0 to "
        f"{self.depth - 1}."
      )
    if self.highres_branch and self.selection_size < self.selection_kernel:
      raise ValueError(
        f"selection_size={self.selection_size} must be at least selection_kernel="
        f"{self.selection_kernel}."
      )
