"""How is PS3 taught where to look?

Two forms. The released training code uses binary cross-entropy alone and teaches both scores,
top-down (of the caption) and bottom-up (of the image), the one box of the sampled caption. The
paper (arXiv 2503.19903 v2) adds a DICE term and teaches bottom-up the union of all boxes of the
image. Both average over scales, over tokens and over samples that have something to teach.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from big_vision_ext.core import boxes as geometry
from big_vision_ext.objectives import regions

Grid = tuple[int, int]
FORMS = ("bce", "bce_dice")

# One map for all scales, or one for each.
Score = Float[Array, "b y x"] | Float[Array, "b s y x"]

# The scale and the smoothing of DICE as in PS3's successor VILA-HD: sums are counted in hundreds.
_DICE_SCALE = 100.0
_DICE_SMOOTH = 1e-6


def bce(score: Score, targets: Sequence[regions.CellCounts]) -> Float[Array, "b"]:
  """Binary cross-entropy per sample, mean over the tokens of a scale, then over scales.

  Args:
    score: log-odds per low-resolution cell, for all scales or for each; every token of a cell
      shares its cell's.
    targets: counts per scale.
  """
  score = score.astype(jnp.float32)
  # -log sigmoid(s) = softplus(-s): no probability is formed, so none can round to 0 or 1.
  misses, alarms = jax.nn.softplus(-score), jax.nn.softplus(score)
  losses = []
  for i, (positive, total) in enumerate(targets):
    miss, alarm = _of_scale(misses, i), _of_scale(alarms, i)
    summed = jnp.sum(positive * miss + (total - positive) * alarm, axis=(-2, -1))
    # A scale that was looked at whole has no tokens left to be wrong about.
    losses.append(summed / jnp.maximum(total.sum(axis=(-2, -1)), 1))
  return jnp.mean(jnp.stack(losses), axis=0)


def dice(score: Score, targets: Sequence[regions.CellCounts]) -> Float[Array, "b"]:
  """DICE loss per sample, 1 - 2 |P T| / (|P| + |T|) on probabilities, mean over scales."""
  probs = jax.nn.sigmoid(score.astype(jnp.float32))
  losses = []
  for i, (positive, total) in enumerate(targets):
    prob = _of_scale(probs, i)
    overlap = jnp.sum(prob * positive, axis=(-2, -1)) / _DICE_SCALE
    mass = jnp.sum(prob * total + positive, axis=(-2, -1)) / _DICE_SCALE
    losses.append(1 - (2 * overlap + _DICE_SMOOTH) / (mass + _DICE_SMOOTH))
  return jnp.mean(jnp.stack(losses), axis=0)


def _of_scale(maps: Score, scale: int) -> Float[Array, "b y x"]:
  return maps[:, scale] if maps.ndim == 4 else maps


def masked_mean(values: Float[Array, "b"], keep: Bool[Array, "b"]) -> Float[Array, ""]:
  """Mean over the kept samples; zero, not NaN, if there is none."""
  # where, not a product: a dropped sample may not leak an infinity or a NaN.
  total = jnp.sum(jnp.where(keep, values, 0.0))
  return total / jnp.maximum(jnp.sum(keep), 1)


def selection_loss(
  topdown: Score | None,
  bottomup: Score | None,
  *,
  box: Float[Array, "b 4"],
  is_global: Bool[Array, "b"],
  image_hw: Grid,
  grids: Sequence[Grid],
  form: Literal["bce", "bce_dice"] = "bce",
  boxes: Float[Array, "b n 4"] | None = None,
  num_boxes: Int[Array, "b"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Loss of both scores, each with weight one.

  "bce" is the released loss; given `boxes` it teaches bottom-up their union instead of `box`.
  "bce_dice" is the paper's, and needs `boxes`. Samples with a global caption have no region to
  teach and do not count; towards a union of boxes every sample counts that has one, as that
  target does not depend on the caption. Means run over the whole batch as it is sharded, not
  per device and then over devices, so the loss does not depend on the number of devices.

  Args:
    topdown: log-odds given the caption, or None to leave this term out.
    bottomup: log-odds without a caption, or None.
    box: box of the caption, pixels of the image the model was given.
    is_global: whether the caption is of the whole image.
    image_hw: height and width of that image, in pixels.
    grids: token grid of each high-resolution scale.
    form: one of `FORMS`.
    boxes: all boxes of each image, padded.
    num_boxes: how many of `boxes` are real.

  Returns:
    The loss and its terms: `selection_{topdown,bottomup}_{bce,dice}`.

  Raises:
    ValueError: for an unknown form, or a form whose boxes are missing.
  """
  if form not in FORMS:
    raise ValueError(f"Selection loss form={form!r} is unknown; it is one of {FORMS}.")
  if (boxes is None) != (num_boxes is None) or (form == "bce_dice" and boxes is None):
    raise ValueError(
      f"The selection loss form={form!r} got boxes={'none' if boxes is None else 'given'} and "
      f"num_boxes={'none' if num_boxes is None else 'given'}; bce_dice needs both, bce both or "
      "neither. Set input.max_boxes above 0 so that batches carry all boxes."
    )
  local = ~is_global
  terms = {}

  def add(name, score, targets, keep):
    if score is None:
      return
    nonempty = targets[0].positive.sum(axis=(-2, -1)) > 0
    terms[f"selection_{name}_bce"] = masked_mean(bce(score, targets), keep)
    if form == "bce_dice":
      terms[f"selection_{name}_dice"] = masked_mean(dice(score, targets), keep & nonempty)

  for score in (topdown, bottomup):
    if score is not None:
      cells = score.shape[-2:]
  single = regions.box_targets(box, image_hw, grids, cells)
  add("topdown", topdown, single, local)
  if boxes is None:
    add("bottomup", bottomup, single, local)
  else:
    union = regions.union_targets(boxes, num_boxes, image_hw, grids, cells)
    add("bottomup", bottomup, union, num_boxes > 0)
  return sum(terms.values()), terms


def look_loss(
  topdown: Score | None,
  bottomup: Score | None,
  index: Sequence[Int[Array, "b t"]],
  *,
  box: Float[Array, "b 4"],
  is_global: Bool[Array, "b"],
  image_hw: Grid,
  grids: Sequence[Grid],
  boxes: Float[Array, "b n 4"] | None = None,
  num_boxes: Int[Array, "b"] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """Loss of the scores for a look after one that took `index`: find what is still unseen.

  Binary cross-entropy over the tokens that were not looked at, of samples in which the look left
  something to find. As in `selection_loss`, top-down is taught the box, and bottom-up the union of
  all boxes if they are given, else the box.

  Args:
    topdown, bottomup: log-odds for the later look, or None.
    index: raster indices per scale of what was looked at.
    box, is_global, image_hw, grids, boxes, num_boxes: as in `selection_loss`.

  Returns:
    The loss and its terms: `later_{topdown,bottomup}_bce`.
  """
  terms = {}

  def add(name, score, targets, hits, keep):
    if score is None:
      return
    left = regions.unseen(targets, index, hits, grids)
    rest = sum(counts.positive.sum(axis=(-2, -1)) for counts in left) > 0
    terms[f"later_{name}_bce"] = masked_mean(bce(score, left), keep & rest)

  cells = (bottomup if topdown is None else topdown).shape[-2:]
  single = regions.box_targets(box, image_hw, grids, cells)
  on_box = [geometry.hits_at(box, image_hw, grid, at) for grid, at in zip(grids, index)]
  add("topdown", topdown, single, on_box, ~is_global)
  if boxes is None:
    add("bottomup", bottomup, single, on_box, ~is_global)
  else:
    union = regions.union_targets(boxes, num_boxes, image_hw, grids, cells)
    on_any = [regions.union_hits_at(boxes, num_boxes, image_hw, grid, at)
              for grid, at in zip(grids, index)]
    add("bottomup", bottomup, union, on_any, num_boxes > 0)
  return sum(terms.values()), terms
