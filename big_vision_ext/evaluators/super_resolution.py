"""How well are pictures enlarged, and how much better after adapting to a few of their domain?

Low-resolution pictures are made by MATLAB's bicubic reduction, rounded to 8 bits. PSNR and SSIM of
luma (float, not rounded) and of RGB, without a border as wide as the scale. Data sets of a mixture
are domains, told apart by their names; without them come the means over all pictures.

With `shots`, a domain that was left out of training is adapted to: of each domain, the support of m
pictures is a part of one pool of the most, drawn by a seed, and all others are measured, the same
for every m. Adaptation is what meta-training did: K steps of plain SGD on all of the support.

The control condition="shuffled" is steered by the vector of another picture of all that are
measured, of whatever domain, drawn by a seed: the same in any batches.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext.core.feed import Intake
from big_vision_ext.evaluators import _bootstrap, _common
from big_vision_ext.objectives import bicubic, image_metrics
from big_vision_ext.objectives import meta as meta_lib
from input_pipeline import input_config as input_lib

_INPUT_BITS = 255.0
# Side of the window of SSIM.
_WINDOW = 11


class Evaluator:
  """Means over pictures: psnr_y, psnr_rgb, ssim_y, ssim_rgb, psnr_y_low and _high (95 %), the same
  of bicubic enlargement (bicubic_...), and `images`; `infinite` counts perfect ones, which are in
  no mean of PSNR.

  With shots: shots{m}/steps{K}/..., and gain_y over K = 0 with its paired interval.

  Args:
    task: with the output `output` and a `scale`; to adapt, the task "cdasr".
    output: which restores.
    crop: border left out, in pixels; None: the scale.
    shots: numbers of support pictures, e.g. (1, 5, 10).
    steps: numbers K of steps of adaptation; 0 measures the model as it is.
    rate: of these; None: the rate of the task's meta-training, or 1e-2.
    adapted: "adapter" or "all"; None: as in meta-training, or the adapter.
    repeats: how often support is drawn, by the seeds 0, 1, ...; what a picture gets is its mean
      over the draws that it is no support in.
    bootstrap: how often pictures are drawn anew for an interval; after a single draw of the support
      it says nothing of other draws.
    each: psnr_y of every picture too, as each/NUMBER, its number in the split, for paired
      comparisons of runs.
    batch_size: pictures at a time, over all processes.

  Raises:
    ValueError: the task cannot do that, or numbers make no sense, or do not fit the pictures.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, output: str = "restore",
               crop: int | None = None, shots: Sequence[int] = (),
               steps: Sequence[int] = (0, 1, 5, 10), rate: float | None = None,
               adapted: str | None = None, repeats: int = 1, bootstrap: int = 1000,
               each: bool = False, batch_size: int = 16):
    if output not in task.outputs or not hasattr(task, "scale"):
      raise ValueError(f"super_resolution: output={output!r}: this task has "
                       f"{', '.join(task.outputs)}; expected one that enlarges, and a scale")
    if shots and not hasattr(task, "rows_of_pairs"):
      raise ValueError(f"super_resolution: shots={tuple(shots)}: expected the task 'cdasr', which "
                       "can adapt")
    self._shuffled = getattr(getattr(task, "config", None), "condition", None) == "shuffled"
    if shots and self._shuffled:
      raise ValueError(f"super_resolution: shots={tuple(shots)} with model.condition='shuffled', a "
                       "control that adapts to nothing; expected shots=()")
    if adapted is not None and shots:
      task.patterns(adapted)
    if rate is not None and not rate >= 0:
      raise ValueError(f"super_resolution: rate={rate}: expected at least 0")
    if min((*shots, 1)) < 1 or min((*steps, 0)) < 0 or repeats < 1 or bootstrap < 1:
      raise ValueError(f"super_resolution: shots={tuple(shots)}, steps={tuple(steps)}, repeats="
                       f"{repeats}, bootstrap={bootstrap}: expected whole numbers of at least 1 "
                       "(steps: 0)")
    self._task, self._input = task, input_config
    self._mesh, self._rows = mesh, batch_sharding
    self._crop = task.scale if crop is None else crop
    self._shots, self._steps = sorted(set(shots)), sorted({0, *steps})
    meta = getattr(getattr(task, "config", None), "meta", None)
    self._rate = rate if rate is not None else meta.inner_rate if meta else 1e-2
    self._adapted = adapted or (meta.adapted if meta else "adapter")
    self._repeats, self._bootstrap, self._each = repeats, bootstrap, each
    self._batch_size = _common.divisible(batch_size, batch_sharding)
    # Now, not after training.
    self._check_side(getattr(getattr(task, "net", None), "multiple", 1))
    self._check_counts([len(m.source) for m in input_lib.open_members(input_config)])
    self._measure = jax.jit(self._measured(task.outputs[output]))
    self._plain = jax.jit(self._measured(
        lambda _, batch: bicubic.upsample(batch["image"], task.scale)))
    self._vectors = jax.jit(
        lambda params, batch: {"vector": task.vectors(params, self._reduced(batch["image"])[1])})
    self._adapt = jax.jit(self._adapting)

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      images, domain = self._pictures(params)
      names = input_lib.source_names(self._input)
      # Of what can be read.
      self._check_counts(np.bincount(domain, minlength=len(names)))
      rows = {"image": images} | self._of_others(params, images)
      found = self._over(self._measure, params, rows)
      plain = self._over(self._plain, params, rows)
      out = self._summary(found, domain, names) | {
          f"bicubic_{k}": v for k, v in self._summary(plain, domain, names, bare=True).items()}
      if self._shots:
        out |= self._few_shot(params, images, domain, names)
    return out

  def _pictures(self, params) -> tuple[np.ndarray, np.ndarray]:
    """All pictures, uint8 (n, s, s, 3), and the number of the domain of each."""
    same = jax.jit(lambda _, batch: {"image": batch["image"]})
    stream = _common.batches(self._input, "all", self._batch_size, self._rows)
    found = _common.collect(same, params, stream)
    sizes = [len(m.source) for m in input_lib.open_members(self._input)]
    return found["image"], np.searchsorted(np.cumsum(sizes), found["image_index"], side="right")

  def _check_side(self, multiple: int) -> None:
    side, unit = self._input.image_size, self._task.scale * multiple
    if side % unit:
      raise ValueError(f"super_resolution: input.image_size={side}: expected a multiple of {unit}, "
                       f"the scale {self._task.scale} times what sides of the network divide by")
    if side - 2 * self._crop < _WINDOW:
      raise ValueError(f"super_resolution: input.image_size={side} without a border of "
                       f"crop={self._crop}: expected at least {_WINDOW + 2 * self._crop}, as SSIM "
                       f"looks at {_WINDOW} pixels")

  def _check_counts(self, counts: Sequence[int]) -> None:
    """Of pictures of each domain."""
    for name, count in zip(input_lib.source_names(self._input), counts):
      if self._shots and count <= self._shots[-1]:
        raise ValueError(f"super_resolution: domain {name!r} has {count} pictures; expected more "
                         f"than the {self._shots[-1]} that are adapted to")
    if self._shuffled and sum(counts) < 2:
      raise ValueError(f"super_resolution: model.condition='shuffled' and {sum(counts)} picture: "
                       "expected at least 2, each steered by the vector of another")

  def _of_others(self, params, images) -> dict[str, np.ndarray]:
    """For the control "shuffled": `vector` (n, d), of each picture that of another one."""
    if not self._shuffled:
      return {}
    own = self._over(self._vectors, params, {"image": images})["vector"].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(own))
    vector = np.empty_like(own)
    vector[order] = own[np.roll(order, 1)]
    return {"vector": vector}

  def _reduced(self, image: jax.Array) -> tuple[jax.Array, jax.Array]:
    """High and low resolution in [0, 1], of uint8."""
    high = image.astype(jnp.float32) / _INPUT_BITS
    return high, bicubic.quantize(bicubic.downsample(high, self._task.scale))

  def _measured(self, restore: Callable) -> Callable:
    def measured(params, batch):
      high, low = self._reduced(batch["image"])
      restored = restore(params, batch | {"image": low})
      return {f"{name}_{channel}": measure(restored, high, crop=self._crop, channel=channel)
              for name, measure in (("psnr", image_metrics.psnr), ("ssim", image_metrics.ssim))
              for channel in ("y", "rgb")}

    return measured

  def _over(self, fn: Callable, params: Any, rows: Mapping[str, np.ndarray]
            ) -> dict[str, np.ndarray]:
    """`fn` of all rows, a batch at a time; the last is filled up with its last picture."""
    count, size, parts = len(rows["image"]), self._batch_size, []
    intake = Intake(self._rows, size)
    for start in range(0, count, size):
      at = np.minimum(np.arange(start, start + size), count - 1)[intake.rows]
      found = _common.to_host(fn(params, intake({k: v[at] for k, v in rows.items()})))
      parts.append({k: v[:count - start] for k, v in found.items()})
    return {k: np.concatenate([p[k] for p in parts]).astype(np.float64) for k in parts[0]}

  def _adapting(self, params, support):
    """The parameters after one more step on support pictures (m, s, s, 3), uint8."""
    task = self._task
    rows = task.rows(params, support.astype(jnp.float32) / _INPUT_BITS)
    phi, rest = meta_lib.split(params, task.patterns(self._adapted), "adapted")
    phi, _ = meta_lib.step(
        lambda phi: task.loss_of(meta_lib.merge(phi, rest), rows)[0], phi, self._rate)
    return meta_lib.merge(phi, rest)

  def _few_shot(self, params, images, domain, names) -> dict[str, float]:
    found: dict[tuple[int, int], list] = {}
    for k in range(len(names)):
      mine, most = np.flatnonzero(domain == k), self._shots[-1]
      for seed in range(self._repeats):
        # Hashed with the domain's number: equal sizes would share their draw.
        order = np.random.default_rng([seed, k]).permutation(mine)
        pool, queries = order[:most], np.sort(order[most:])
        for m in self._shots:
          now, at = params, 0
          for steps in self._steps:
            # One by one: CPUs are slow at convolutions within loops of a program.
            for _ in range(steps - at):
              now = self._adapt(now, images[pool[:m]])
            at = steps
            found.setdefault((m, steps), []).append((queries, self._over(
                self._measure, now, {"image": images[queries]})))
    out = {}
    for (m, steps), parts in found.items():
      numbers, joined = _by_picture(parts, len(images))
      _, before = _by_picture(found[m, 0], len(images))
      prefix = f"shots{m}/steps{steps}/"
      out |= {prefix + key: v
              for key, v in self._summary(joined, domain, names, numbers).items()}
      both = np.isfinite(joined["psnr_y"]) & np.isfinite(before["psnr_y"])
      gain = joined["psnr_y"][both] - before["psnr_y"][both]
      if steps and len(gain):
        low, high = _bootstrap.interval(gain, self._bootstrap)
        out |= {f"{prefix}gain_y": float(gain.mean()), f"{prefix}gain_y_low": low,
                f"{prefix}gain_y_high": high}
    return out

  def _summary(self, found, domain, names, numbers=None, bare: bool = False) -> dict[str, float]:
    """Means over all pictures, or over those of `numbers`, and of several domains of each."""
    numbers = np.arange(len(domain)) if numbers is None else numbers
    out, domain = {}, domain[numbers]
    groups = [("", np.ones(len(domain), bool))]
    if len(names) > 1:
      groups += [(f"{name}/", domain == k) for k, name in enumerate(names) if (domain == k).any()]
    for prefix, mine in groups:
      for key, values in found.items():
        finite = values[mine][np.isfinite(values[mine])]
        out[prefix + key] = float(finite.mean()) if len(finite) else float("inf")
        if key == "psnr_y" and not bare:
          out[f"{prefix}images"] = float(mine.sum())
          out[f"{prefix}infinite"] = float(mine.sum() - len(finite))
          if len(finite):
            low, high = _bootstrap.interval(finite, self._bootstrap)
            out |= {f"{prefix}psnr_y_low": low, f"{prefix}psnr_y_high": high}
    if self._each and not bare:
      out |= {f"each/{i:04d}": float(v) for i, v in zip(numbers, found["psnr_y"])}
    return out


def _by_picture(parts, count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """What each picture got, on average over the parts (numbers of pictures, {name: values})."""
  times = np.zeros(count)
  sums = {key: np.zeros(count) for key in parts[0][1]}
  for numbers, values in parts:
    times[numbers] += 1
    for key, of in values.items():
      sums[key][numbers] += of
  at = np.flatnonzero(times)
  return at, {key: total[at] / times[at] for key, total in sums.items()}
