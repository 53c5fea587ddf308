"""What does a content prior restore, for each weight of its skip, and what could it at best?

Beside every measure of `restoration` stands the floor: clean pictures through the prior, what it
loses even where there is nothing to restore, and so about the best that it can come to with w = 0
(of a network that was trained on rainy pictures alone it is no bound). `floor/psnr` (dB) and
`floor/ssim` are means over pictures (`floor/psnr_equal` of them are as they were, and their PSNR
is infinite: they are left out), `floor/rms` is of all pixels, in 0..255, as `E_B` is. Of a
task with the outputs `restore_w0`, `restore_w50`, ... the measures of each are under `w0/`,
`w50/`, ...
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.evaluators import _common, restoration
from big_vision_ext.objectives import image_metrics
from big_vision_ext.tasks import restore

_PREFIX = "restore_"


@dataclasses.dataclass(frozen=True)
class _Weights:
  """The numbers of a population, for `restoration`: one member for each weight."""

  seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Sweep:
  """A task whose members are what another restores with each weight, of the same rain."""

  config: _Weights
  outputs: Mapping[str, Any]


class Evaluator:
  """Measures of a task with the outputs "reconstruct" and "restore", for one or several weights.

  Args:
    task, input_config, mesh, batch_sharding: as for every evaluator.
    rains: as of `restoration`; {} for the floor alone.
    batch_size: pictures at a time, over all processes.
    settings: others of `restoration`.

  Raises:
    ValueError: the task has no prior, or a degradation is none.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               rains: Mapping[str, Mapping[str, Any]], batch_size: int = 32,
               settings: Mapping[str, Any] | None = None):
    if not {"restore", "reconstruct"} <= set(task.outputs):
      raise ValueError(f"content_prior: this task has {', '.join(task.outputs)}; expected one with "
                       "the outputs 'restore' and 'reconstruct'")
    self._fn = jax.jit(lambda params, batch: _floor(task, params, batch))
    self._input, self._mesh, self._sharding = input_config, mesh, batch_sharding
    self._batch_size = batch_size
    self._rains = tuple(rains)
    self._weights = [n for n in task.outputs if n.startswith(f"{_PREFIX}w")]
    if self._rains:
      chosen = [task.outputs[n] for n in self._weights or ["restore"]]
      every = lambda params, batch: jnp.stack([fn(params, batch) for fn in chosen])
      self._restoration = restoration.Evaluator(
        task=_Sweep(_Weights(tuple(range(len(chosen)))), {"restore_all": every}),
        input_config=input_config, mesh=mesh, batch_sharding=batch_sharding, rains=rains,
        batch_size=batch_size, **(settings or {}))

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      stream = _common.batches(self._input, "all", self._batch_size, self._sharding)
      rows = _common.collect(self._fn, params, stream)
    mean = lambda name: float(np.mean(rows[name], dtype=np.float64))
    out = {"images": float(len(rows["index"])), "floor/ssim": mean("ssim"),
           "floor/rms": mean("squares") ** 0.5}
    out |= restoration.mean_psnr("floor/psnr", rows["psnr"])
    if not self._rains:
      return out
    found = self._restoration.run(params)
    if len(self._weights) < 2:
      prefix = "".join(f"{n.removeprefix(_PREFIX)}/" for n in self._weights)
      return out | {prefix + k: v for k, v in found.items() if k != "images"}
    for rain in self._rains:
      for i, name in enumerate(self._weights):
        own = {k: v for k, v in found.items() if k.startswith(f"{rain}/seed_{i}/")}
        own = {k.removeprefix(f"{rain}/seed_{i}/"): v for k, v in own.items()}
        # Of the degraded pictures, which all members see.
        own |= {k: found[f"{rain}/{k}"] for k in ("psnr_input",) if f"{rain}/{k}" in found}
        out |= {f"{name.removeprefix(_PREFIX)}/{rain}/{k}": v for k, v in own.items()}
    return out


def _floor(task, params, batch):
  """(b,) each: PSNR, SSIM and the mean square of errors in 0..255 of clean pictures."""
  clean = restore.to_float(batch["image"])
  through = task.outputs["reconstruct"](params, {"image": batch["image"]})
  stored = lambda x: jnp.round(255.0 * jnp.clip(x, 0.0, 1.0))
  return {"psnr": image_metrics.psnr(through, clean), "ssim": image_metrics.ssim(through, clean),
          "squares": jnp.mean((stored(through) - stored(clean)) ** 2, axis=(1, 2, 3))}
