"""Which high-resolution tokens does PS3 look at, look by look?

Two questions are kept apart. How many tokens each look takes from each scale depends only on
shapes and is answered in plain Python (`split_budget`, `plan_looks`). Which tokens they are
depends on scores and is answered on the device with indices of static shape (`select`).

Scores live on the cells of the low-resolution grid, so a finer grid is full of ties. The order
is therefore defined here: forced tokens first, then higher scores, then the raster position of
the low-resolution cell, then the raster position inside the cell. Cells are taken whole and in
the same sequence at every scale; as budgets grow with the area of a scale, the cell at which
the budget ends is cut at about the same fraction at every scale.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from big_vision_ext.core import boxes

Grid = tuple[int, int]
Counts = tuple[int, ...]


def check_scales(scales: Sequence[int], patch: int) -> None:
  """Raises ValueError unless scales rise in whole multiples of the first, and patches fit it."""
  base = scales[0]
  if not isinstance(patch, int) or base % patch:
    raise ValueError(f"patch_size={patch!r} must be one number that divides scales[0]={base}.")
  if len(scales) < 2 or any(b <= a or b % base for a, b in zip(scales, scales[1:])):
    raise ValueError(
      f"scales={scales} must rise, have at least two entries, and each must be a whole multiple "
      "of the first."
    )


def scale_sizes(scales: Sequence[int], patch: int, image_hw: Grid) -> list[Grid]:
  """Height and width in pixels of each high-resolution scale (`scales[1:]`) of an image.

  The longer side becomes the scale; the shorter one keeps the aspect ratio, rounded down to
  whole patches of the lowest scale times the zoom, at least one.
  """
  height, width = image_hw
  base = scales[0]
  sizes = []
  for scale in scales[1:]:
    zoom = scale // base
    # The division comes first, as in the release: rounding can lose a pixel, hence a patch.
    if height >= width:
      short = max(int(base / height * width) // patch, 1) * patch
      sizes.append((base * zoom, short * zoom))
    else:
      short = max(int(base / width * height) // patch, 1) * patch
      sizes.append((short * zoom, base * zoom))
  return sizes


def split_budget(
  scales: Sequence[int], max_select_num: int, *, remainder_to_last: bool = True
) -> Counts:
  """Tokens per look and high-resolution scale, in proportion to the area of the scales.

  Args:
    scales: all scales in pixels, the lowest first.
    max_select_num: tokens of one look.
    remainder_to_last: give what rounding leaves to the last scale, so that the split adds up
      (85 + 341 + 2134 = 2560); the ps3-torch 0.1.3 wheel does not (2133).
  """
  total = sum(s * s for s in scales[1:])
  budget = [int(max_select_num * s * s / total) for s in scales[1:]]
  if remainder_to_last:
    budget[-1] += max_select_num - sum(budget)
  return tuple(budget)


def _look_budget(
  budget: Counts, num: int | None, first_n: int | None, remainder_to_last: bool
) -> list[int]:
  """What one look asks for, before any scale runs dry."""
  wanted = list(budget)
  if num is not None:
    wanted = [int(b * num / sum(budget)) for b in budget]
    if remainder_to_last:
      wanted[-1] += num - sum(wanted)
  if first_n is not None:
    total, part = sum(wanted), sum(wanted[:first_n])
    if not part:
      raise ValueError(
        f"only_first_n_scales={first_n} leaves no tokens to select: the budget per scale is "
        f"{tuple(wanted)}. Raise max_select_num or name more scales."
      )
    wanted = [int(b / part * total) if i < first_n else 1 for i, b in enumerate(wanted)]
    wanted[-1] += sum(budget) - sum(wanted)
    # The single tokens of the left-out scales can overdraw the last one; they give way.
    for i in reversed(range(len(wanted) - 1)):
      owed = max(-wanted[-1], 0)
      paid = min(owed, wanted[i])
      wanted[i] -= paid
      wanted[-1] += paid
  return wanted


def check_request(
  n: int,
  num_looks: int | Literal["all"] | None,
  num_tokens: int | None,
  only_first_n_scales: int | None,
) -> None:
  """Raises ValueError for looks that cannot be planned on `n` high-resolution scales."""
  if (num_looks is None) == (num_tokens is None):
    raise ValueError(
      f"Give either num_looks or num_tokens, not num_looks={num_looks!r} with "
      f"num_tokens={num_tokens!r}."
    )
  if only_first_n_scales is not None and not 1 <= only_first_n_scales <= n:
    raise ValueError(f"only_first_n_scales={only_first_n_scales} must lie between 1 and {n}.")
  if num_looks != "all" and (num_looks if num_tokens is None else num_tokens) < 0:
    raise ValueError(f"num_looks={num_looks} and num_tokens={num_tokens} cannot be negative.")


def plan_looks(
  grids: Sequence[Grid],
  budget: Counts,
  *,
  num_looks: int | Literal["all"] | None = None,
  num_tokens: int | None = None,
  only_first_n_scales: int | None = None,
  remainder_to_last: bool = True,
) -> list[Counts]:
  """Tokens taken per look and scale: pure shape arithmetic, independent of scores.

  A scale that runs dry passes what it still owes to the next one, also beyond
  `only_first_n_scales`; at the last scale the debt is dropped (ps3 `get_selection_maps`).

  Args:
    grids: token grid (rows, columns) of each high-resolution scale.
    budget: tokens per look and scale, as from `split_budget`; zeros are allowed.
    num_looks: number of looks (more than the image holds are not made), or "all": as many as
      the total divided by the budget, which may leave out a few tokens of a scale that runs dry
      later than the last one.
    num_tokens: number of tokens over all looks instead; exactly one of the two is given.
    only_first_n_scales: spend the budget on the first so many scales.
    remainder_to_last: as in `split_budget`, for a last look that is smaller than the others.

  Returns:
    One tuple of counts per look; empty looks are left out, and 0 looks or tokens give [].
  """
  n = len(grids)
  check_request(n, num_looks, num_tokens, only_first_n_scales)
  if len(budget) != len(grids) or min(budget) < 0 or not sum(budget):
    raise ValueError(
      f"The budget {budget} must have one count >= 0 for each of {len(grids)} high-resolution "
      "scales, and a positive sum. See max_select_num and max_select_num_each_scale."
    )
  per_look = sum(budget)
  available = sum(h * w for h, w in grids[: only_first_n_scales or n])
  last = None
  if num_tokens is not None:
    num_tokens = min(num_tokens, available)
    looks = math.ceil(num_tokens / per_look)
    last = num_tokens - (looks - 1) * per_look
  else:
    looks = math.ceil(available / per_look)
    looks = looks if num_looks == "all" else min(num_looks, looks)

  left = [h * w for h, w in grids]
  plan = []
  for look in range(looks):
    num = last if look == looks - 1 else None
    wanted = _look_budget(budget, num, only_first_n_scales, remainder_to_last)
    for i in range(n):
      short = max(wanted[i] - left[i], 0)
      wanted[i] -= short
      left[i] -= wanted[i]
      if i + 1 < n:
        wanted[i + 1] += short
    if sum(wanted):
      plan.append(tuple(wanted))
  return plan


def _cell_order(grid: Grid, cells: Grid) -> np.ndarray:
  """Tokens of `grid`, sorted by the low-resolution cell they fall in, raster inside a cell."""
  return np.argsort(boxes.token_cells(grid, cells), kind="stable").astype(np.int32)


def rank(
  score: Float[Array, "b y x"],
  forced: Bool[Array, "b y x"] | None,
  cells: Grid,
  count: int,
  seen: Bool[Array, "b y x"] | None = None,
) -> Int[Array, "b count"]:
  """Raster indices of the `count` best tokens of one scale, best first.

  Any score map will do (a random one, another model's); ties follow the order in the module's
  docstring, with `cells` the low-resolution grid. Tokens that were `seen` come before all others.
  """
  b, height, width = score.shape
  order = _cell_order((height, width), cells)
  key = -score.reshape(b, -1)[:, order]
  first = [~x.reshape(b, -1)[:, order] for x in (seen, forced) if x is not None]
  operands = [*first, key, jnp.broadcast_to(order, key.shape)]
  # A stable sort of tokens laid out in tie-break order; keys only, so ties keep that order.
  ranked = jax.lax.sort(operands, dimension=1, is_stable=True, num_keys=len(operands) - 1)[-1]
  return ranked[:, :count]


def rankings(
  scores: Sequence[Float[Array, "b y x"]],
  counts: Counts,
  *,
  cells: Grid,
  forced: Sequence[Bool[Array, "b y x"]] | None = None,
  seen: Sequence[Bool[Array, "b y x"]] | None = None,
) -> list[Int[Array, "b t"]]:
  """The `counts[scale]` best tokens of every scale, best first. No gradient flows through.

  Args:
    scores: one map per high-resolution scale, larger is looked at earlier.
    counts: tokens per scale.
    cells: the low-resolution grid, which defines the order of ties.
    forced: maps of tokens to take before any other.
    seen: maps of tokens that earlier looks took; they keep the first places.
  """
  none = [None] * len(scores)
  return [
    rank(jax.lax.stop_gradient(score), force, cells, count, old)
    for score, count, force, old in zip(scores, counts, forced or none, seen or none)
  ]


def take(
  ranked: Sequence[Int[Array, "b t"]], plan: Sequence[Counts]
) -> list[list[Int[Array, "b t"]]]:
  """The tokens of every look: raster indices per scale, ascending within a look and scale.

  Look j takes the next `plan[j][i]` tokens of the ranking of scale i, so looks never share a
  token.

  Args:
    ranked: from `rankings`, as long as the plan needs.
    plan: counts per look and scale.

  Returns:
    `result[look][scale]`, int32 (b, plan[look][scale]).
  """
  looks, taken = [], [0] * len(ranked)
  for counts in plan:
    look = []
    for i, count in enumerate(counts):
      look.append(jnp.sort(ranked[i][:, taken[i] : taken[i] + count], axis=-1))
      taken[i] += count
    looks.append(look)
  return looks


def select(
  scores: Sequence[Float[Array, "b y x"]],
  plan: Sequence[Counts],
  *,
  cells: Grid,
  forced: Sequence[Bool[Array, "b y x"]] | None = None,
) -> list[list[Int[Array, "b t"]]]:
  """`take` from one ranking per scale for all looks of a plan; see `rankings`."""
  ranked = rankings(scores, totals(plan, len(scores)), cells=cells, forced=forced)
  return take(ranked, plan)


def cycles(plan: Sequence[Counts]) -> list[tuple[int, int, int]]:
  """A plan cut into repetitions, so that looks of equal counts can share a program.

  Returns:
    (start, period, repeats) of consecutive parts: `repeats` times the same `period` looks.
  """
  out, start = [], 0
  while start < len(plan):
    period = repeats = 1
    for length in range(1, (len(plan) - start) // 2 + 1):
      part, n = plan[start : start + length], 1
      while plan[start + n * length : start + (n + 1) * length] == part:
        n += 1
      if n > 1:
        period, repeats = length, n
        break
    out.append((start, period, repeats))
    start += period * repeats
  return out


def totals(plan: Sequence[Counts], n: int) -> Counts:
  """Tokens per scale over all looks of a plan for `n` high-resolution scales."""
  return tuple(sum(counts[i] for counts in plan) for i in range(n))


def merge_looks(
  looks: Sequence[Sequence[Int[Array, "b t"]]], grids: Sequence[Grid]
) -> tuple[Int[Array, "b n"], list[Int[Array, "b m"]]]:
  """How to put the tokens of all looks, look after look, into the order of scale and raster.

  Returns:
    The permutation, and the raster indices per scale over all looks, ascending.
  """
  offsets = [0, *itertools.accumulate(h * w for h, w in grids)]
  place = [at + offset for look in looks for at, offset in zip(look, offsets)]
  order = jnp.argsort(jnp.concatenate(place, axis=1), axis=1)
  return order, [jnp.sort(jnp.concatenate(at, axis=1), axis=1) for at in zip(*looks)]


def force(
  maps: Sequence[Float[Array, "b y x"]], forced: Sequence[Bool[Array, "b y x"]] | None
) -> list[Float[Array, "b y x"]]:
  """The maps with one, the highest probability, where tokens are forced."""
  return list(maps) if forced is None else [jnp.where(f, 1.0, m) for f, m in zip(forced, maps)]
