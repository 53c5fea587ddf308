"""How well are clean pictures got back from degraded ones, under degradations seen and unseen?

Each of a split's pictures is degraded by a key of its own, a function of the seed, of the name of
the degradation and of the picture's number: results depend neither on the batch size nor on the
devices. Degraded pictures are rounded to 8 bits, as if they had been stored.

Of rain, the decoupled measures of the deraining study (arXiv 2502.12600; as recalled, masks after a
co-author's code): `E_R`, root mean square of what was changed where it rains, `E_B`, of the damage
where it does not, both in 0..255. Ours beside them: `E_R_gt`, the error where it rains, and `rho`,
the removal ratio, 1 perfect, 0 untouched, and `E_B_strict`, the damage where no rain at all falls:
what counts as background else is half wet. They are of sums over the whole split, not means of
pictures. `psnr` (dB) and `ssim` are means over pictures, of whole ones; `psnr_input` is that of the
degraded ones, and of pictures that are equal, whose PSNR is infinite, there are `psnr_equal`.
Of what is everywhere, noise above all, `flat_noise` is the deviation of what is left of it where
the clean pictures are flat, over the whole split, in 0..255.

Of a population each is the mean over its members, `_std` the deviation over them, of those that
have a number, and `seed_N/` has each member's own.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.evaluators import _common
from big_vision_ext.objectives import bicubic, degradations, image_metrics
from big_vision_ext.tasks import restore

PAIRS = "pairs"


class Evaluator:
  """Measures of a task with the output "restore_all" or "restore".

  Args:
    task, input_config, mesh, batch_sharding: as for every evaluator.
    rains: {name: config of `objectives.degradations`}; {"kind": "pairs"} for the degraded pictures
      that come with the split (`input.pairs`), whose rain is what they have above the clean ones.
    seed: of the degradations.
    crop: pixels left out along the border for PSNR and SSIM.
    channel: of PSNR and SSIM: "rgb", "y" or "y_rounded".
    batch_size: pictures at a time, over all processes.

  Raises:
    ValueError: the task restores nothing, or a degradation is none.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding,
               rains: Mapping[str, Mapping[str, Any]], seed: int = 0, crop: int = 0,
               channel: str = "rgb", batch_size: int = 32):
    if not {"restore", "restore_all"} & set(task.outputs):
      raise ValueError(f"restoration: this task has {', '.join(task.outputs)}; expected one with "
                       "the output 'restore'")
    if not rains:
      raise ValueError("restoration: rains={}: expected {name: a degradation}, e.g. "
                       "{'seen': {'kind': 'rain', 'range': 'small'}}")
    self._task = task
    self._how = dict(crop=crop, channel=channel)
    self._seeds = tuple(task.config.seeds) if "restore_all" in task.outputs else (0,)
    self._makers = {name: _maker(name, spec, input_config) for name, spec in rains.items()}
    self._keys = {name: jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) >> 1)
                  for name in rains}
    self._fn = jax.jit(self._all)
    self._input, self._mesh, self._sharding = input_config, mesh, batch_sharding
    self._batch_size = batch_size

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      stream = _common.batches(self._input, "all", self._batch_size, self._sharding)
      rows = _common.collect(self._fn, params, stream)
    out = {"images": float(len(rows["index"]))}
    for name in self._makers:
      out |= {f"{name}/{k}": v for k, v in self._of(name, rows).items()}
    return out

  def _all(self, params, batch):
    """{name: (b,) or, where members differ, (b, k)}: sums and measures of every picture."""
    clean = restore.to_float(batch["image"])
    out = {}
    for name, make in self._makers.items():
      keys = jax.vmap(lambda i, name=name: jax.random.fold_in(self._keys[name], i))(
        jnp.maximum(batch["index"], 0))
      degraded, layer = make(keys, clean, batch)
      degraded = bicubic.quantize(degraded)
      found = self._one(name, params, clean, degraded, layer)
      out |= {f"{name}/{k}": v for k, v in found.items()}
    return out

  def _one(self, name, params, clean, degraded, layer):
    if "restore_all" in self._task.outputs:
      restored = self._task.outputs["restore_all"](params, {"image": degraded})
    else:
      restored = self._task.outputs["restore"](params, {"image": degraded})[None]
    if restored[0].shape != clean.shape:
      raise ValueError(
        f"restoration: rains[{name!r}] makes {degraded.shape[1]} pixels of {clean.shape[1]}, of "
        f"which this task makes {restored[0].shape[1]}; expected one that undoes the task's scale, "
        "e.g. {'kind': 'bicubic', 'scale': 2}")
    of_members = lambda fn: jax.tree.map(
      lambda *xs: jnp.stack(xs, axis=-1), *[fn(x) for x in restored])
    out = of_members(lambda x: {"psnr": image_metrics.psnr(x, clean, **self._how),
                                "ssim": image_metrics.ssim(x, clean, **self._how)})
    if degraded.shape == clean.shape:
      out["psnr_input"] = image_metrics.psnr(degraded, clean, **self._how)
    if layer is None:
      if degraded.shape == clean.shape:
        sums = of_members(lambda x: image_metrics.flat_sums(x, clean))
        out |= {f"flat/{k}": v for k, v in sums.items()}
      return out
    for prefix, strict in (("rain", False), ("strict", True)):
      sums = of_members(
        lambda x, strict=strict: image_metrics.rain_sums(x, degraded, clean, layer, strict=strict))
      out |= {f"{prefix}/{k}": v for k, v in sums.items()}
    return out

  def _of(self, name: str, rows: Mapping[str, np.ndarray]) -> dict[str, float]:
    own = {k.removeprefix(f"{name}/"): np.asarray(v, np.float64) for k, v in rows.items()
           if k.startswith(f"{name}/")}
    members = [self._member({k: v[:, i] if v.ndim == 2 else v for k, v in own.items()})
               for i in range(len(self._seeds))]
    out = {}
    for key in dict.fromkeys(k for m in members for k in m):
      # A member without equal pictures has none to count.
      missing = 0.0 if key.endswith("_equal") else np.nan
      values = np.array([m.get(key, missing) for m in members])
      told = values[np.isfinite(values)]
      out[key] = float(told.mean()) if len(told) else float("nan")
      if len(members) > 1 and key != "psnr_input":
        out[f"{key}_std"] = float(told.std(ddof=1)) if len(told) > 1 else float("nan")
        out |= {f"seed_{seed}/{key}": float(v) for seed, v in zip(self._seeds, values)}
    return out

  def _member(self, own: Mapping[str, np.ndarray]) -> dict[str, float]:
    out = {"ssim": float(own["ssim"].mean())}
    for key in ("psnr", "psnr_input"):
      if key in own:
        out |= mean_psnr(key, own[key])
    sums = {prefix: {k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)}
            for prefix in ("rain/", "strict/", "flat/")}
    if sums["rain/"]:
      out |= image_metrics.rain_measures(sums["rain/"])
      # The rain is the same by either mask.
      out["E_B_strict"] = image_metrics.rain_measures(sums["strict/"])["E_B"]
    if sums["flat/"]:
      out["flat_noise"] = image_metrics.flat_noise(sums["flat/"])
    return out


def mean_psnr(key: str, values: np.ndarray) -> dict[str, float]:
  """The mean of the finite ones, and how many are not, where there are any."""
  finite = np.isfinite(values)
  out = {key: float(values[finite].mean())} if finite.any() else {}
  return out if finite.all() else out | {f"{key}_equal": float(np.sum(~finite))}


def _maker(name: str, spec: Mapping[str, Any], input_config):
  """fn(keys, clean, batch) -> (degraded, layer or None)."""
  if spec.get("kind") == PAIRS:
    if len(spec) > 1 or not input_config.pairs:
      raise ValueError(f"restoration: rains[{name!r}]={dict(spec)}: pairs take no settings, and "
                       "input.pairs=True with a data set that has them")

    def of_pairs(keys, clean, batch):
      del keys
      degraded = restore.to_float(batch["degraded"])
      return degraded, jnp.clip(degraded - clean, 0.0, 1.0).mean(axis=-1)
    return of_pairs
  degradation = degradations.make(spec, f"restoration: rains[{name!r}]")

  def synthetic(keys, clean, batch):
    del batch
    degraded, aux = degradation(keys, clean)
    return degraded, aux.get("layer")
  return synthetic
