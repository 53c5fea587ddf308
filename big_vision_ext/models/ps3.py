"""How does PS3 see an image at 4K for the price of a few patches?

Shi et al. 2025, "Scaling Vision Pre-Training to 4K Resolution" (arXiv 2503.19903), for the
SigLIP and the C-RADIO layout. The three stages (`ps3_stages`) put together: the training pass of
one look, and encoding with as many looks as asked for.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from big_vision_ext.core import boxes
from big_vision_ext.models import ps3_stages, resample, selection


class PS3Vision(ps3_stages.PS3Stages):
  """A ViT that looks closer. Its fields are those of `ps3_stages.PS3Stages` and `vit.ViT`."""

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
      per look and scale; `score` (b, g, g) and `prob`, maps per scale, of the model;
      `bottomup_score` (b, g, g), whatever the prompt; `pooled` (b, d) of the selected tokens (of
      the low-resolution ones, if none are); `pooled_low`.
    """
    if num_looks is None and num_tokens is None:
      num_looks = 1
    image_hw = self._image_hw(image)
    low = self.low(image)
    features = self._selection_features(image, low)
    bottomup = self._score(features, self.prior_prompt)
    score = bottomup if prompt is None else self._score(features, prompt)
    maps, forced = self._choice_maps(score, scores, box, image_hw)
    limits = dict(num_tokens=num_tokens, only_first_n_scales=only_first_n_scales)
    plan = self.plan(image_hw, num_looks=num_looks, **limits)
    looks = selection.select(maps, plan, cells=self.cells, forced=forced)
    hidden = list(low["blocks"][-return_hidden:])
    out = self._score_out(score, image_hw) | {"bottomup_score": bottomup}
    out |= {"pooled_low": low["pooled"], "looks": looks}
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

  def _run_looks(self, image, kv, plan, looks, return_hidden):
    """Encodes every look and puts its tokens where they belong: by scale and raster position.

    Looks of equal size share one program, run in turn.

    Returns:
      Outputs of the last blocks, each (b, t, d), and raster indices per scale over all looks.
    """

    def one(model, carry, index):
      last, out = model.high(image, kv, index)
      # Asked for one block's outputs, a scan need not stack those of all.
      return carry, [last] if return_hidden == 1 else list(out["blocks"][-return_hidden:])

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
