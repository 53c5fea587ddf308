"""What does a model of fixations know after each look, and does it matter where it looks?

For the task "fixations". After t = 1, 2, ... looks of a policy, over the images of a split:

- `POLICY/error_after_t`: mean error of what of the finest scale has not been seen so far, in the
  task's own units, averaged over images;
- `POLICY/remaining_after_t`: the same summed over what has not been seen, as a share of all tokens:
  what there is left to be surprised by. A good look takes much of it away;
- `POLICY/seen_after_t`: the share of the finest scale that was seen;
- `POLICY/gain_after_t`: 1 - remaining / remaining of uniform looks, at as many tokens encoded;
- `POLICY/gaze_r2`: how well the point of gaze f_t can be read from the state after look t by ridge
  regression, R^2 on images that the regression was not fitted on, over all looks;
- `POLICY/path_r2`: the same of the sum of all movements so far, f_t - f_1, from the second look on:
  path integration. In the scene frame places are told, in the retinal frame only movements are.

- `POLICY/decorrelation`, `..._floor` and `..._excess`, as of `latents`: over images, of the numbers
  of one token of each look, the middle one of its finest scale, averaged over looks;
  `POLICY/effective_rank` of the same tokens. There is no sparsity: that of numbers of either sign,
  which the norm keeps around zero, would say nothing;
- `tokens_after_t` and `gflop_after_t`, of encoding one image, the same for every policy.

Decoding of f_t and of the path is linear, fitted on every other image.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float

from big_vision_ext.evaluators import _common, latents
from big_vision_ext.evaluators.fewshot import ridge
from big_vision_ext.objectives import scanpaths


class Evaluator:
  """See the module's docstring.

  Args:
    policies: which to measure beside "uniform"; that of the task's config, if None.
    l2: strength of regularisation, of standardised states.
    seed: of the scanpaths.
    batch_size: images at a time, over all processes.

  Raises:
    ValueError: a task without looks, or a policy that does not exist.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               policies: Sequence[str] | None = None, l2: float = 1.0, seed: int = 0,
               batch_size: int = 32):
    if "looks" not in getattr(task, "outputs", {}):
      raise ValueError("fixations: this task does not look around; it measures 'fixations'")
    policies = [task.config.policy] if policies is None else list(policies)
    for name in policies:
      if name not in scanpaths.POLICIES:
        raise ValueError(f"fixations: policies has {name!r}; expected some of "
                         f"{', '.join(scanpaths.POLICIES)}")
    if not l2 > 0:
      raise ValueError(f"fixations: l2={l2}; expected a number above 0")
    self._mesh, self._l2 = mesh, l2
    self._costs = [task.looks_cost(t) for t in range(1, task.num_looks + 1)]
    self._fns = {
      name: jax.jit(functools.partial(task.outputs["looks"], policy=name, seed=seed))
      for name in dict.fromkeys(["uniform", *policies])}
    self._stream = functools.partial(
      _common.batches, input_config, "all", batch_size, batch_sharding)

  def run(self, params) -> dict[str, float]:
    out = {}
    with jax.set_mesh(self._mesh):
      rows = {name: _common.collect(fn, params, self._stream()) for name, fn in self._fns.items()}
    for name, of in rows.items():
      out |= {f"{name}/{k}": v for k, v in measure(of, rows["uniform"], self._l2).items()}
    for t, (tokens, flops) in enumerate(self._costs, start=1):
      out |= {f"tokens_after_{t}": float(tokens), f"gflop_after_{t}": flops / 1e9}
    return out | {"images": float(len(rows["uniform"]["index"]))}


def measure(rows: dict[str, np.ndarray], uniform: dict[str, np.ndarray], l2: float
            ) -> dict[str, float]:
  """The measures of one policy.

  Args:
    rows: (n, t) `error`, `remaining` and `seen`, `state` and `token` (n, t, d), `gaze` (n, t, 2).
    uniform: the same of uniform looks.
    l2: see `Evaluator`.
  """
  out = {}
  for i in range(rows["error"].shape[1]):
    for name in ("error", "remaining", "seen"):
      out[f"{name}_after_{i + 1}"] = float(rows[name][:, i].astype(np.float64).mean())
    base = uniform["remaining"][:, i].astype(np.float64).mean()
    out[f"gain_after_{i + 1}"] = float(1.0 - out[f"remaining_after_{i + 1}"] / max(base, 1e-12))
  state, gaze = (rows[k].astype(np.float64) for k in ("state", "gaze"))
  out["gaze_r2"] = decoded(state, gaze, l2)
  if gaze.shape[1] > 1:
    out["path_r2"] = decoded(state[:, 1:], gaze[:, 1:] - gaze[:, :1], l2)
  token = rows["token"].astype(np.float32)
  out |= latents.within(token)
  ranks = [latents.spectrum(x, x.mean(axis=0, dtype=np.float64))["effective_rank"]
           for x in token.swapaxes(0, 1)]
  return out | {"effective_rank": float(np.mean(ranks))}


def decoded(state: Float[np.ndarray, "n t d"], wanted: Float[np.ndarray, "n t c"], l2: float
            ) -> float:
  """R^2 of ridge regression, fitted on the images of even place and measured on the others.

  Of all coordinates together: 1 - squared errors / squared distances from the mean. NaN with fewer
  than two images on either side.
  """
  if len(state) < 4:
    return float("nan")
  flat = lambda x: x.reshape(-1, x.shape[-1])
  fit, test = (tuple(flat(x[start::2]) for x in (state, wanted)) for start in (0, 1))
  mean, std = fit[0].mean(0), fit[0].std(0) + 1e-5
  middle = fit[1].mean(0)
  (weight,) = ridge((fit[0] - mean) / std, fit[1] - middle, (l2,))
  error = (test[0] - mean) / std @ weight + middle - test[1]
  return float(1.0 - np.sum(error**2) / max(np.sum((test[1] - test[1].mean(0)) ** 2), 1e-12))
