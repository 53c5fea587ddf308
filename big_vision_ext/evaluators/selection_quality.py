"""Does selection go where the caption points, and how many tokens does it need for that?

For every (image, box, caption) of the split, each way of selecting and each budget of tokens. Let
B be the high-resolution tokens, of all scales, whose patch touches the box, and S those selected:

- *recall*: |S and B| / |B|, averaged over regions; Shi et al. 2025, table 9, gives it at 44 %;
- *iou*: |S and B| / |S or B|, averaged over regions;
- *box_recall*: the share of regions with |S and B| / |B| >= 1/2.

A budget is a number of tokens: a multiple of the model's own (`max_select_num`) is that many
looks, less is part of one, split over the scales as the model splits it. Scores are computed once;
each budget takes a prefix of their order, with the model's order of ties. A model with a policy for
later looks (`look_policy`) looks, for each budget, and what it chose is counted; `ranked_topdown`
and `ranked_bottomup` are what its first score's ranking alone would have found.
`chance/recall_at_...` is the share of all tokens, which is what a selection without preference
finds in expectation.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core import boxes
from big_vision_ext.evaluators import _common
from big_vision_ext.models import resample

SELECTIONS = ("topdown", "bottomup", "random")
# Of tasks that have it.
SURPRISE = "surprise"
RANKED = {"ranked_topdown": "topdown", "ranked_bottomup": "bottomup"}


class Evaluator:
  """See the module's docstring; for tasks that select, like "ps3".

  Args:
    budgets: whole numbers of tokens, or shares of all tokens below 1; default: a quarter, a half,
      one, two and four looks.
    selections: `topdown` (prompted by the region's caption), `bottomup`, `random` (uniform scores
      of the cells, a fixed key for each region); and of PS3 that is taught by surprise, `surprise`,
      what teaches it.
    batch_size: regions at a time, over all processes.

  Raises:
    ValueError: a task that selects nothing, or a budget or selection that does not exist.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               budgets: Sequence[float] | None = None, selections: Sequence[str] = SELECTIONS,
               batch_size: int = 32):
    if not hasattr(getattr(task, "vision", None), "plan"):
      raise ValueError("selection_quality: this task selects nothing; take region_retrieval")
    known = SELECTIONS + ((SURPRISE,) if SURPRISE in task.outputs else ())
    for name in selections:
      if name not in known:
        raise ValueError(f"selection_quality: selections has {name!r}; expected some of "
                         f"{', '.join(known)}")
    self._mesh = mesh
    self._size = (task.image_size, task.image_size)
    self._counts = counts_of(task.vision, self._size, budgets)
    self._stream = functools.partial(
        _common.batches, input_config, "regions", batch_size, batch_sharding)
    self._fn = jax.jit(functools.partial(
        _found, task, self._size, list(self._counts.values()), tuple(selections)))

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      rows = _common.collect(self._fn, params, self._stream())
    return measure(rows, self._counts) | {"regions": float(len(rows["index"]))}


def counts_of(vision, size: tuple[int, int], budgets: Sequence[float] | None
              ) -> dict[int, tuple[int, ...]]:
  """{tokens: tokens per scale} of each budget, as the model itself would spend it.

  Raises:
    ValueError: a budget that is neither a number of tokens nor a share.
  """
  total = sum(y * x for y, x in vision.grids(size))
  look = sum(vision.budget())
  budgets = [look // 4, look // 2, look, 2 * look, 4 * look] if budgets is None else budgets
  out = {}
  for budget in budgets:
    number = isinstance(budget, (int, float)) and not isinstance(budget, bool)
    share = number and 0 < budget < 1
    if not share and not (number and budget >= 1 and budget == int(budget)):
      raise ValueError(f"selection_quality: budgets has {budget!r}; expected a number of tokens, "
                       "or a share between 0 and 1")
    tokens = max(1, min(total, round(budget * total) if share else int(budget)))
    plan = vision.plan(size, num_tokens=tokens)
    out[tokens] = tuple(map(sum, zip(*plan)))
  return out


def measure(rows: dict[str, np.ndarray], counts: dict[int, tuple[int, ...]]) -> dict[str, float]:
  """Means over regions.

  Args:
    rows: `wanted` (n,), |B|; `tokens` (n,), of all scales; each other array of two axes (n,
      budgets) is |S and B| of the way of selecting that it is named after.
    counts: tokens per scale of each budget.
  """
  wanted = np.maximum(rows["wanted"], 1)
  out = {}
  for name in (*SELECTIONS, SURPRISE, *RANKED):
    for j, (tokens, per_scale) in enumerate(counts.items() if name in rows else ()):
      found = rows[name][:, j]
      recall = found / wanted
      out[f"{name}/recall_at_{tokens}"] = float(np.mean(recall))
      out[f"{name}/iou_at_{tokens}"] = float(np.mean(found / (sum(per_scale) + wanted - found)))
      out[f"{name}/box_recall_at_{tokens}"] = float(np.mean(recall >= 0.5))
  total = float(np.mean(rows["tokens"]))
  return out | {f"chance/recall_at_{tokens}": sum(c) / total for tokens, c in counts.items()}


def _found(task, size, counts, selections, params, batch):
  """How many tokens on each box each budget finds; see `measure` for the names."""
  vision = task.vision
  grids = vision.grids(size)
  box = batch["box"]
  wanted = sum(boxes.hit_map(box, size, grid).sum((1, 2)) for grid in grids)
  out = {"wanted": wanted,
         "tokens": jnp.full(wanted.shape, sum(y * x for y, x in grids), jnp.int32)}
  most = tuple(max(of_scale) for of_scale in zip(*counts))
  for name in selections:
    ranked = vision.rankings(_maps(task, grids, name, params, batch), most)
    found = 0
    for i, at in enumerate(ranked):
      hits = jnp.cumsum(boxes.hits_at(box, size, grids[i], at), axis=1)
      # A zero in front: the first c tokens find hits[c].
      hits = jnp.pad(hits, ((0, 0), (1, 0)))
      found += hits[:, np.array([c[i] for c in counts])]
    if vision.look_policy and name in RANKED.values():
      out[f"ranked_{name}"] = found
      found = jnp.stack([_looked(task, size, sum(c), name, params, batch) for c in counts], axis=1)
    out[name] = found
  return out


def _looked(task, size, tokens, name, params, batch):
  """Tokens on each box that the model finds with so many, choosing each look in turn."""
  out = task.outputs["encode"](params, _seen(batch, name), num_tokens=tokens)
  hits = [boxes.hits_at(batch["box"], size, grid, at)
          for grid, at in zip(task.vision.grids(size), out["index"])]
  return sum(hit.sum(1) for hit in hits)


def _seen(batch, name):
  """What of a batch a way of selecting is shown."""
  return {k: batch[k] for k in (("image", "text") if name == "topdown" else ("image",))}


def _maps(task, grids, name, params, batch):
  """The maps that the model chooses by, one for each scale (b, y, x)."""
  if name == "random":
    # The keys of the task's own random selection.
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(batch["index"])
    cells = jax.vmap(lambda k: jax.random.uniform(k, task.vision.cells))(keys)
    maps = [resample.nearest(cells, grid) for grid in grids]
  elif name == SURPRISE:
    cells = jax.nn.sigmoid(task.outputs["surprise"](params, _seen(batch, name)))
    maps = [resample.nearest(cells, grid) for grid in grids]
  else:
    maps = task.outputs["encode"](params, _seen(batch, name), num_tokens=0)["prob"]
  if task.vision.smooth_selection_prob:
    maps = [resample.nearest(resample.area(x, (6, 6)), g) for x, g in zip(maps, grids)]
  return maps
