"""Does the model find a region, and does it recognise what is in it?

For every (image, box, caption) of the split, and for each way of selecting patches:

- *retrieval_top1* and *retrieval_top10*: the region's embedding is compared with the embeddings of
  all the captions of the split; it counts if the best one, or one of the ten best, reads the same
  as its own. The embedding pools the selected tokens that lie on the region's box (all the
  selected ones if none does), which is what pre-training pools: a selection that misses the region
  is punished by having nothing to look at.
- *caption_to_region_top1* and *_top10*: the other way, each different caption among all regions;
  it counts if any region it belongs to is found. Each region was encoded with its own caption as
  the prompt where selection is `topdown`, whichever caption then looks for it.
- *selection_recall*: of the high-resolution tokens on the box, the share that was selected within
  the budget (Shi et al. 2025, table 9, measures it so).

A tie (cosines closer than 1e-6) is no find.

Ways of selecting: `topdown` (prompted by the region's caption), `bottomup`, `random` (uniform
scores, a fixed key for each region), `gt` (the box itself: what perfect selection would give), and
for models without selection `low` (tokens of the only scale, those on the box).

`chance/...` are the values that blind guessing has in expectation.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from big_vision_ext.evaluators import _common, _ranks

_KS = (1, 10)


class Evaluator:
  """See the module's docstring.

  Args:
    selections: the ways to measure, each one that the task's `region` output accepts.
    batch_size: regions at a time, over all processes.
    options: further arguments of the task's `region` output; PS3 takes `num_looks` and
      `only_first_n_scales`.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               selections: Sequence[str] = ("topdown", "bottomup", "random", "gt"),
               batch_size: int = 32, options: dict | None = None):
    self._mesh = mesh
    self._stream = functools.partial(
        _common.batches, input_config, "regions", batch_size, batch_sharding)
    self._region = {
        s: jax.jit(functools.partial(task.outputs["region"], selection=s, **(options or {})))
        for s in selections}

  def run(self, params) -> dict[str, float]:
    results = {}
    rows = {}
    with jax.set_mesh(self._mesh):
      for selection, fn in self._region.items():
        rows = _common.collect(fn, params, self._stream())
        results |= {f"{selection}/{k}": v for k, v in measure(rows).items()}
    results |= {f"chance/{k}": v for k, v in chance(rows).items()}
    results["regions"] = float(len(rows["index"]))
    return results


def measure(rows: dict[str, np.ndarray]) -> dict[str, float]:
  """Retrieval over the split, and recall where the model selects.

  Args:
    rows: zimg (n, d) and ztxt (n, d), normalised; text (n, l) ids; optionally recall (n,).
  """
  first, owner = _captions(rows)
  pairs = np.stack([np.arange(len(owner)), owner], axis=1)
  # One embedding for each different caption: equal texts have equal embeddings.
  to_text = _ranks.best_ranks(rows["zimg"], rows["ztxt"][first], pairs)
  to_region = _ranks.best_ranks(rows["ztxt"][first], rows["zimg"], pairs[:, ::-1])
  out = {f"retrieval_top{k}": _ranks.recall(to_text, k) for k in _KS}
  out |= {f"caption_to_region_top{k}": _ranks.recall(to_region, k) for k in _KS}
  if "recall" in rows:
    out["selection_recall"] = float(np.mean(rows["recall"]))
  return out


def chance(rows: dict[str, np.ndarray]) -> dict[str, float]:
  """What guessing uniformly among captions, regions, or tokens gives in expectation."""
  first, owner = _captions(rows)
  n, captions = len(owner), len(first)
  out = {f"retrieval_top{k}": min(1.0, k / captions) for k in _KS}
  out |= {f"caption_to_region_top{k}": _ranks.chance(np.bincount(owner), n, k) for k in _KS}
  if "budget_share" in rows:
    out["selection_recall"] = float(np.mean(rows["budget_share"]))
  return out


def _captions(rows):
  """The first row of each different caption, and which caption each row has."""
  _, first, owner = np.unique(rows["text"], axis=0, return_index=True, return_inverse=True)
  return first, owner.reshape(-1)
