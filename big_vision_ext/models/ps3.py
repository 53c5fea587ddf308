"""How does PS3 see an image at 4K for the price of a few patches?

Shi et al. 2025, "Scaling Vision Pre-Training to 4K Resolution" (arXiv 2503.19903), for the
SigLIP and the C-RADIO layout. The three stages (`ps3_stages`) put together: the training pass of
one look, and encoding with as many looks as asked for.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Num

from big_vision_ext.core import boxes
from big_vision_ext.models import policy, ps3_checks, ps3_stages, resample, selection


class PS3Vision(ps3_stages.PS3Stages):
  """A ViT that looks closer. Its fields are those of `ps3_stages.PS3Stages` and `vit.ViT`."""

  def __call__(
    self,
    image: Num[Array, "b y x 3"],
    prompt: Float[Array, "n d"] | None = None,
    box: Float[Array, "n 4"] | None = None,
    is_global: Bool[Array, "n"] | None = None,
    pool_selected: Literal["gt", "all"] = "gt",
    tiles: ps3_stages.Tiles | None = None,
  ) -> tuple[Float[Array, "n d"], dict[str, Any]]:
    """The training pass: one look, tokens of the caption's region taken first.

    An image may have several captions, n / b of them, those of the first image first. What does not
    depend on the caption is computed once: the low-resolution pass and the features of the cells.

    Args:
      image: uint8 or float in 0..255.
      prompt: top-down prompt; without it the bottom-up score chooses.
      box: region of the caption in pixels of the image (with tiles: of the largest scale). Without
        it nothing is forced, and all selected tokens are pooled.
      is_global: samples whose caption is of the whole image; these pool the low-resolution
        pass. Without it all samples pool high-resolution tokens.
      pool_selected: pool only tokens inside the box, or all selected ones. A sample without a
        selected token in its box pools all.
      tiles: parts of a square image at the largest scale, of which `image` is a smaller view.
        Patches of that scale are chosen among those in the tiles; all else is as with the whole
        image, so that where the forced tokens use up the budget nothing but the view differs.

    Returns:
      The pooled vector, and out, with a row for each caption: `pooled_low`, `pooled_high`;
      `topdown` (None without prompt)
      and `bottomup`, each with `score`, log-odds per low-resolution cell (b, g, g), or with
      `selection_maps="each"` (b, s, g, g), and `prob`, one map per high-resolution scale;
      `forced_prob`, the maps that chose; `index`, raster indices per scale; `gt_mask` (b, t), which
      of the selected tokens touch the box. With `look_policy` also `first_look`, the raster indices
      of what the score chose unforced, and `later`, the scores `topdown` and `bottomup` for a look
      after it.
    """
    image_hw = self._shown_hw(image, tiles)
    # Where blocks are recomputed to save memory, so are the keys that a look asks: a thirtieth more
    # work for So400m at 4K.
    low = self.low(image, keep_inputs=self.remat_policy != "none")
    features = self._selection_features(image, low)
    bottomup = self._score(features, self.prior_prompt)
    given = [x.shape[0] for x in (prompt, box) if x is not None]
    if given and given[0] != image.shape[0]:
      times = given[0] // image.shape[0]
      low, features, bottomup = self._for_captions(times, low, features, bottomup)
    topdown = None if prompt is None else self._score(features, prompt)
    score = bottomup if prompt is None else topdown
    maps, forced = self._choice_maps(score, None, box, image_hw)
    if tiles is not None:
      ps3_checks.tiles(self, image, tiles)
      maps, forced = self._only_in_tiles(maps, forced, tiles)
    plan = self.plan(image_hw, num_looks=1)
    extra = {}
    if self.look_policy:
      tokens, index, first, saw = self._two_looks(image, low["kv"], plan[0], score, maps, forced)
      later = {"bottomup": self._later_score(bottomup, saw, self.prior_prompt)}
      later["topdown"] = None if prompt is None else self._later_score(topdown, saw, prompt)
      extra = {"first_look": first, "later": later}
    else:
      (index,) = selection.take(self.rankings(maps, plan[0], forced=forced), plan)
      (tokens,) = self.high(image, low["kv"], index, tiles)
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
    return pooled, out | extra

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
        low-resolution cells, one for each scale (b, s, g, g), or a list of one map per
        high-resolution scale. They stay as they are: what was seen changes nothing.
      return_hidden: how many of the last blocks' outputs to return.
      pool_selected: pool all selected tokens, or those inside `box`.

    Returns:
      `last_hidden` (b, g * g + t, d), low-resolution tokens, then the selected ones by scale and
      raster position, before the final norm; `hidden`, such an array for each of the last
      `return_hidden` blocks; `index`, raster indices per scale over all looks; `looks`, the same
      per look and scale; `score` (b, g, g), or with `selection_maps="each"` (b, s, g, g), and
      `prob`, maps per scale, of the model before any look; `bottomup_score`, such a score whatever
      the prompt; `pooled` (b, d) of the selected tokens (of the low-resolution ones, if none are);
      `pooled_low`.
    """
    if num_looks is None and num_tokens is None:
      num_looks = 1
    image_hw = self._image_hw(image)
    low = self.low(image, return_hidden)
    features = self._selection_features(image, low)
    bottomup = self._score(features, self.prior_prompt)
    score = bottomup if prompt is None else self._score(features, prompt)
    limits = dict(num_tokens=num_tokens, only_first_n_scales=only_first_n_scales)
    plan = self.plan(image_hw, num_looks=num_looks, **limits)
    hidden = low["last"]
    out = self._score_out(score, image_hw) | {"bottomup_score": bottomup}
    out["pooled_low"] = low["pooled"]
    if not plan:
      empty = [jnp.zeros((image.shape[0], 0), jnp.int32)] * len(self.grids(image_hw))
      nothing = {"index": empty, "looks": [], "pooled": low["pooled"]}
      return out | nothing | {"last_hidden": hidden[-1], "hidden": hidden}
    if self.look_policy and scores is None:
      asked = self.prior_prompt if prompt is None else prompt
      parts = self._follow(image, low["kv"], plan, score, asked, box, return_hidden)
    else:
      maps, forced = self._choice_maps(score, scores, box, image_hw)
      ranked = self.rankings(maps, selection.totals(plan, len(maps)), forced=forced)
      parts = self._run(plan, self._look_at(image, low["kv"], return_hidden), None,
                        selection.take(ranked, plan))
    looks = [index for index, _ in parts]
    order, index = selection.merge_looks(looks, self.grids(image_hw))
    high = [jnp.concatenate(layer, axis=1) for layer in zip(*(blocks for _, blocks in parts))]
    high = [jnp.take_along_axis(x, order[:, :, None], axis=1) for x in high]
    gt_mask = None if box is None else self._gt_mask(box, image_hw, index)
    hidden = [jnp.concatenate(pair, axis=1) for pair in zip(hidden, high)]
    return out | {
      "last_hidden": hidden[-1],
      "hidden": hidden,
      "looks": looks,
      "index": index,
      "pooled": self.pool_high(high[-1], self._pool_mask(pool_selected, gt_mask)),
    }

  def _choice_maps(self, score, override, box, image_hw):
    """What the choice is made by: maps per scale, and maps of tokens to force (or None)."""
    grids = self.grids(image_hw)
    if override is None:
      override = jax.nn.sigmoid(score)
    if not isinstance(override, (list, tuple)):
      override = [resample.nearest(x, grid) for x, grid in zip(self.per_scale(override), grids)]
    shapes = [x.shape[1:] for x in override]
    if shapes != [tuple(g) for g in grids]:
      raise ValueError(
        f"Selection scores have the grids {shapes}, but an image of {image_hw} pixels has "
        f"{grids}; give one map per high-resolution scale or one map of {self.cells} cells."
      )
    forced = None if box is None else self.forced_maps(box, image_hw)
    if not self.smooth_selection_prob:
      return override, forced
    # Smoothing comes after forcing, in the release: it spreads the forced ones as well.
    smooth = [resample.area(x, (6, 6)) for x in selection.force(override, forced)]
    return [resample.nearest(x, grid) for x, grid in zip(smooth, grids)], None

  def _only_in_tiles(self, maps, forced, tiles):
    """The maps of the choice, with nothing to choose outside of the tiles at the largest scale."""
    grid = maps[-1].shape[1:]
    there = resample.in_tiles(tiles[1], grid, self.scales[-1] // self.scales[0])
    # Scores are probabilities: below zero is below all others.
    maps = [*maps[:-1], jnp.where(there, maps[-1], -1.0)]
    return maps, None if forced is None else [*forced[:-1], forced[-1] & there]

  def _for_captions(self, times, low, features, bottomup):
    """What an image is seen by, as often as it has captions; each one's looks use it."""
    repeat = lambda x, axis=0: jnp.repeat(x, times, axis=axis)
    kv = jax.tree.map(functools.partial(repeat, axis=1 if self.scan else 0), low["kv"])
    low = {"kv": kv, "pooled": repeat(low["pooled"])}
    return low, jax.tree.map(repeat, features), repeat(bottomup)

  def _two_looks(self, image, kv, counts, score, maps, forced):
    """The tokens of one look spent on two: where the score says, and on the region it missed.

    Returns:
      Tokens (b, t, d) and raster indices of both, by scale and raster position; raster indices of
      the first; and what it saw.
    """
    image_hw = self._image_hw(image)
    grids = self.grids(image_hw)
    half = self.plan(image_hw, num_tokens=sum(counts) // 2)[0]
    # Rounding may give a scale one token more than the whole look has for it.
    part = tuple(min(n, m) for n, m in zip(half, counts))
    free, _ = self._choice_maps(score, None, None, image_hw)
    (first,) = selection.take(self.rankings(free, part), [part])
    seen = _mark(self._unseen(score.shape[0], image_hw), first)
    rest = tuple(n - m for n, m in zip(counts, part))
    ranked = self.rankings(maps, counts, forced=forced, seen=seen)
    second = selection.take(ranked, [part, rest])[1]
    tokens = [self.high(image, kv, index)[0] for index in (first, second)]
    saw = policy.nothing(score.shape[0], self.width, grids, self.cells)
    saw = policy.add(saw, tokens[0], first, grids)
    order, index = selection.merge_looks([first, second], grids)
    tokens = jnp.take_along_axis(jnp.concatenate(tokens, axis=1), order[:, :, None], axis=1)
    return tokens, index, first, saw

  def _follow(self, image, kv, plan, score, prompt, box, return_hidden):
    """Looks where each one's choice takes account of what the earlier ones saw; as of `_run`."""
    image_hw = self._image_hw(image)
    grids = self.grids(image_hw)
    everything = selection.totals(plan, len(grids))
    look = self._look_at(image, kv, return_hidden)

    def step(model, state, taken, counts):
      seen, saw = state
      now = model._later_score(score, saw, prompt)
      maps, forced = model._choice_maps(now, None, box, image_hw)
      ranked = model.rankings(maps, everything, forced=forced, seen=seen)
      index = [
        jnp.sort(jax.lax.dynamic_slice_in_dim(at, start, n, axis=1), axis=-1)
        for at, start, n in zip(ranked, taken, counts)
      ]
      _, (_, blocks) = look(model, None, index, counts)
      saw = policy.add(saw, blocks[-1], index, grids)
      return (_mark(seen, index), saw), (index, blocks)

    saw = policy.nothing(image.shape[0], self.width, grids, self.cells)
    before = [selection.totals(plan[:j], len(grids)) for j in range(len(plan))]
    state = self._unseen(image.shape[0], image_hw), saw
    return self._run(plan, step, state, [np.int32(x) for x in before])

  def _look_at(self, image, kv, return_hidden):
    """A step of `_run` that looks where it is told."""

    def step(model, state, index, counts):
      return state, (index, model.high(image, kv, index, num_last=return_hidden))

    return step

  def _run(self, plan, step, state, inputs):
    """Runs `step(model, state, inputs[j], plan[j]) -> state, output` for every look j, in turn.

    Looks, or cycles of looks, of equal sizes share one program.

    Returns:
      The outputs, in `_look_at` the raster indices per scale of a look and its tokens after each of
      the last blocks, (b, t, d).
    """
    outputs = []
    for start, period, repeats in selection.cycles(plan):

      def cycle(model, state, given, start=start):
        results = []
        for j, one in enumerate(given):
          state, out = step(model, state, one, plan[start + j])
          results.append(out)
        return state, results

      end = start + period * repeats
      given = [inputs[start + j : end : period] for j in range(period)]
      if repeats == 1:
        state, results = cycle(self, state, [x[0] for x in given])
        outputs += results
        continue
      given = [jax.tree.map(lambda *x: jnp.stack(x), *x) for x in given]
      run = nn.scan(cycle, variable_broadcast="params", split_rngs={"params": False})
      state, results = run(self, state, given)
      outputs += [jax.tree.map(lambda x, r=r: x[r], out) for r in range(repeats) for out in results]
    return outputs

  def _unseen(self, count, image_hw):
    return [jnp.zeros((count, *grid), bool) for grid in self.grids(image_hw)]

  def _gt_mask(self, box, image_hw, index):
    hits = [boxes.hits_at(box, image_hw, g, at) for g, at in zip(self.grids(image_hw), index)]
    return jnp.concatenate(hits, axis=1)

  def _pool_mask(self, pool_selected, gt_mask):
    if pool_selected not in ("gt", "all"):
      raise ValueError(f"pool_selected={pool_selected!r} is unknown; it is 'gt' or 'all'.")
    return gt_mask if pool_selected == "gt" else None


def _mark(maps, index):
  """Boolean maps per scale (b, y, x), true at raster indices as well."""
  out = []
  for x, at in zip(maps, index):
    flat = jax.vmap(lambda row, i: row.at[i].set(True))(x.reshape(x.shape[0], -1), at)
    out.append(flat.reshape(x.shape))
  return out
