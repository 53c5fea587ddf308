"""What is a representation like, apart from what it is good for? Correlated, sparse, selective?

After Weiler et al. 2024 (FocusMIM), with the flaws of its logged numbers mended. Over B whole
images with D units each, z = (r - mean) / (std + 1e-5) and C = z^T z / (B - 1):

- *decorrelation*: the sum of C_ij^2 over pairs of different units, divided by D. Independent units
  do not give 0 but (D - 1) / (B - 1), its *floor* (`decorrelation_floor`); what counts is the
  *excess* above it. ||z^T z|| = ||z z^T||: B x B numbers serve, never D x D.
- *lifetime sparsity* of a unit over images, 1 - (E[r]^2 + e) / (E[r^2] + e) with e = 1e-7, averaged
  over all units; *population sparsity*, the same of an image over units.
- *dead* units hardly vary (std < 1e-5). They are counted and left out of the correlations, and
  with them out of D, and of lifetime sparsity.
- *participation ratio*, (tr S)^2 / ||S||^2 of the covariance S of r, and *effective rank*, exp of
  the entropy of its eigenvalues as shares (Roy and Vetterli 2007): how many directions are used.
  At most B - 1.

Of a latent that is a map, units are the channels at every place. `channels/` has the same measures
of its channels averaged over places. `within_place/` takes pairs of channels at the same place
only, averaged over places, and `within_channel/` pairs of places of the same channel.

`selectivity_ours/` is not from the paper, which speaks of category-specific units without a
measure: of each unit the class that it tells best from all others, by d' (difference of means over
the root of the mean variance) and by the area under the ROC curve (0.5 or more, either way round);
mean and 95th percentile over units that are not dead. With several classes chance finds some too:
the same areas for labels that were shuffled stand beside them (`auc_shuffled_mean`).
"""

import itertools

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from big_vision_ext.evaluators import _common
from input_pipeline import contents

DEAD = 1e-5
_EPS = 1e-7
# Columns, or units, that are worked on at once.
_CHUNK = 2048


class Evaluator:
  """Measures of a task's latent over a split.

  Args:
    task, input_config, mesh, batch_sharding: as for every evaluator.
    output: the task's output to measure, (b, d) or a map (b, y, x, c).
    max_images: so many of the split's images at most, the first ones. The floor of decorrelation
      falls with their number, while memory and time grow with it: `max_images * d` float32 numbers
      twice, and a matrix of max_images^2 float64 ones.
    selectivity: whether units are compared with classes, where there are any.
    seed: of the shuffled labels.
    batch_size: images at a time, over all processes.

  Raises:
    ValueError: the task has no such output.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, output: str = "latent",
               max_images: int = 10_000, selectivity: bool = True, seed: int = 0,
               batch_size: int = 32):
    if output not in task.outputs:
      raise ValueError(f"latents: output={output!r}: this task has {', '.join(task.outputs)}")
    if max_images < 3:
      raise ValueError(f"latents: max_images={max_images}: expected at least 3")
    fn = task.outputs[output]
    self._fn = jax.jit(lambda params, batch: {"r": fn(params, batch)})
    self._input, self._mesh, self._sharding = input_config, mesh, batch_sharding
    self._max, self._selectivity, self._seed = max_images, selectivity, seed
    self._batch_size = batch_size

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      stream = _common.batches(self._input, "all", self._batch_size, self._sharding)
      # Padded to the devices, a batch may be larger than was asked for; the rest is cut off below.
      stream = itertools.islice(stream, -(-self._max // self._batch_size))
      rows = _common.collect(self._fn, params, stream)
    r = rows["r"][:self._max].astype(np.float32)
    if len(r) < 3:
      raise ValueError(f"latents: {len(r)} images: expected at least 3")
    out = {"images": float(len(r))}
    flat = r.reshape(len(r), -1)
    out |= measures(flat)
    if r.ndim == 4:
      out |= {f"channels/{k}": v for k, v in measures(r.mean(axis=(1, 2))).items()}
      places = r.reshape(len(r), -1, r.shape[-1])
      out |= {f"within_place/{k}": v for k, v in within(places).items()}
      out |= {f"within_channel/{k}": v for k, v in within(places.swapaxes(1, 2)).items()}
    if self._selectivity:
      entries = contents.of_config(self._input)
      labels = [entries[i].label for i in rows["image_index"][:self._max]]
      out |= {f"selectivity_ours/{k}": v for k, v in self._selective(flat, labels).items()}
    return out

  def _selective(self, flat, labels) -> dict[str, float]:
    known = np.array([label is not None for label in labels])
    names, y = np.unique([n for n in labels if n is not None], return_inverse=True)
    if len(names) < 2 or np.bincount(y).min() < 2:
      return {}
    r = flat[known] if not known.all() else flat
    return selectivity(r, y, np.random.default_rng(self._seed).permutation(y))


def measures(r: Float[np.ndarray, "b d"]) -> dict[str, float]:
  """All measures of units over images, but selectivity."""
  mean, std = _moments(r)
  live = std >= DEAD
  out = {"units": float(len(std)), "dead": float(np.sum(~live)), **sparsity(r, live)}
  out |= decorrelation(r, mean, std, live)
  return out | spectrum(r, mean)


def decorrelation(r, mean, std, live) -> dict[str, float]:
  """Raw, floor and excess of a set of units; zeros where fewer than two of them live."""
  b, d = len(r), int(live.sum())
  if d < 2:
    return dict.fromkeys(("decorrelation", "decorrelation_floor", "decorrelation_excess"), 0.0)
  scale = std + DEAD
  total = _gram_square(r, mean, 1 / scale, live) / (b - 1) ** 2
  # C_jj, which is below 1 as the denominator has a little added.
  own = np.sum((std / scale)[live] ** 4)
  raw, floor = float((total - own) / d), (d - 1) / (b - 1)
  return {"decorrelation": raw, "decorrelation_floor": floor, "decorrelation_excess": raw - floor}


def within(r: Float[np.ndarray, "b g d"]) -> dict[str, float]:
  """Decorrelation of the d units of each group, averaged over the groups where two live."""
  found = []
  for group in range(r.shape[1]):
    mean, std = _moments(r[:, group])
    live = std >= DEAD
    if live.sum() > 1:
      found.append(decorrelation(r[:, group], mean, std, live))
  names = ("decorrelation", "decorrelation_floor", "decorrelation_excess")
  return {k: float(np.mean([f[k] for f in found])) if found else 0.0 for k in names}


def sparsity(r: Float[np.ndarray, "b d"], live: np.ndarray) -> dict[str, float]:
  """Lifetime sparsity of living units and population sparsity of images."""
  def of(axis):
    first = r.mean(axis, dtype=np.float64)
    second = np.einsum("bd,bd->d" if axis == 0 else "bd,bd->b", r, r, dtype=np.float64)
    return 1 - (first**2 + _EPS) / (second / r.shape[axis] + _EPS)

  units = of(0)[live]
  return {"lifetime_sparsity": float(units.mean()) if len(units) else 0.0,
          "population_sparsity": float(of(1).mean())}


def spectrum(r: Float[np.ndarray, "b d"], mean: np.ndarray) -> dict[str, float]:
  """Participation ratio and effective rank of the covariance."""
  if len(r) <= r.shape[1]:
    matrix = _gram(r, mean, np.ones_like(mean), slice(None))
  else:
    centred = r.astype(np.float64) - mean
    matrix = centred.T @ centred
  values = np.maximum(np.linalg.eigvalsh(matrix), 0.0)
  total = values.sum()
  if not total > 0:
    return {"participation_ratio": 0.0, "effective_rank": 0.0}
  share = values[values > 0] / total
  return {"participation_ratio": float(1 / np.sum(share**2)),
          "effective_rank": float(np.exp(-np.sum(share * np.log(share))))}


def selectivity(r: Float[np.ndarray, "b d"], y: Int[np.ndarray, "b"],
                shuffled: Int[np.ndarray, "b"]) -> dict[str, float]:
  """How well the best class of each unit is told from all others.

  Args:
    r: units over images.
    y: classes 0, 1, ..., each with at least two images.
    shuffled: the same in another order, for chance.
  """
  live = np.flatnonzero(_moments(r)[1] >= DEAD)
  if not len(live):
    return {}
  found = {"dprime": [], "auc": [], "auc_shuffled": []}
  for start in range(0, len(live), _CHUNK):
    part = r[:, live[start:start + _CHUNK]].astype(np.float64)
    ranks = stats.rankdata(part, axis=0)
    found["dprime"].append(dprime(part, y).max(axis=0))
    for name, classes in (("auc", y), ("auc_shuffled", shuffled)):
      area = auc(ranks, classes)
      found[name].append(np.maximum(area, 1 - area).max(axis=0))
  best = {name: np.concatenate(parts) for name, parts in found.items()}
  out = {f"{name}_mean": float(x.mean()) for name, x in best.items()}
  return out | {f"{k}_p95": float(np.percentile(best[k], 95)) for k in ("dprime", "auc")}


def dprime(r: Float[np.ndarray, "b d"], y: Int[np.ndarray, "b"]) -> Float[np.ndarray, "c d"]:
  """|mean of the class - mean of the rest| / root of the mean of both variances, of each class."""
  one = np.eye(y.max() + 1)[y].T
  count = one.sum(axis=1, keepdims=True)
  rest = len(y) - count
  first, second = one @ r, one @ r**2
  mean, other = first / count, (r.sum(0) - first) / rest
  var = second / count - mean**2
  other_var = ((r**2).sum(0) - second) / rest - other**2
  spread = np.sqrt(np.maximum((var + other_var) / 2, 1e-20))
  return np.abs(mean - other) / spread


def auc(ranks: Float[np.ndarray, "b d"], y: Int[np.ndarray, "b"]) -> Float[np.ndarray, "c d"]:
  """Area under the ROC curve of each class against the rest; of ranks from 1, ties averaged."""
  one = np.eye(y.max() + 1)[y].T
  count = one.sum(axis=1, keepdims=True)
  return (one @ ranks - count * (count + 1) / 2) / (count * (len(y) - count))


def _moments(r):
  """Mean and unbiased deviation of each unit, float64, without a float64 copy of all."""
  mean, std = (np.empty(r.shape[1]) for _ in range(2))
  for start in range(0, r.shape[1], _CHUNK):
    at = slice(start, start + _CHUNK)
    part = r[:, at].astype(np.float64)
    mean[at], std[at] = part.mean(axis=0), part.std(axis=0, ddof=1)
  return mean, std


def _gram_square(r, mean, scale, live) -> float:
  """||z z^T||^2 of z = (r - mean) * scale of the units that live."""
  if len(r) <= live.sum():
    return float(np.sum(_gram(r, mean, scale, live) ** 2))
  z = (r[:, live].astype(np.float64) - mean[live]) * scale[live]
  return float(np.sum((z.T @ z) ** 2))


def _gram(r, mean, scale, which) -> Float[np.ndarray, "b b"]:
  """z z^T, summed in float64 over parts of units whose products are float32's."""
  columns = np.arange(r.shape[1])[which]
  out = np.zeros((len(r), len(r)))
  for start in range(0, len(columns), _CHUNK):
    at = columns[start:start + _CHUNK]
    z = ((r[:, at] - mean[at]) * scale[at]).astype(np.float32)
    out += z @ z.T
  return out
