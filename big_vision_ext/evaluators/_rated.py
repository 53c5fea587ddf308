"""What does a model say of rated pictures, a crop at a time, and what did people say of them?"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from big_vision_ext.core.feed import Intake
from big_vision_ext.evaluators import _common, _correlation
from input_pipeline import contents, loader
from input_pipeline.ratings import Rating

CROPS = "ten_random"
# Bins of AVA's votes, 1 to 10; above 5 a picture counts as good.
_AVA_BINS = 10


@dataclasses.dataclass(frozen=True)
class Rated:
  """What was found of pictures, in record order.

  Attributes:
    values: of each picture, the mean over its crops, by name.
    ratings: what people said of each.
    skipped: rated pictures that could not be used.
  """

  values: dict[str, Float[np.ndarray, "n ..."]]
  ratings: list[Rating]
  skipped: int

  @property
  def score(self) -> Float[np.ndarray, "n"]:
    """Targets, 0 worst to 1 best."""
    return np.array([r.score for r in self.ratings])


def with_crops(input_config, crops: str):
  """The input of an evaluator that shows pictures by `crops`, unless the input itself says how."""
  return dataclasses.replace(input_config, eval_crops=input_config.eval_crops or crops)


def collect(fn: Callable, params: Any, input_config, batch_size: int, batch_sharding) -> Rated:
  """Runs `fn(params, batch) -> {name: (b, ...)}` over all crops, and takes means over pictures.

  Sums are of float64 in the order of crops: what a picture gets depends on nothing else.
  """
  rows = crop_rows(fn, params, input_config, batch_size, batch_sharding)
  return rows.of_images(rows.values)


@dataclasses.dataclass(frozen=True)
class CropRows:
  """What was found of crops, in order, and which of `entries` each is of."""

  values: dict[str, Float[np.ndarray, "m ..."]]
  image_index: Int[np.ndarray, "m"]
  entries: list[contents.Entry]

  def of_images(self, values: Mapping[str, np.ndarray]) -> Rated:
    """Means of rows (m, ...) over pictures."""
    images, which, count = np.unique(self.image_index, return_inverse=True, return_counts=True)
    out = {}
    for name, rows in values.items():
      total = np.zeros((len(images), *rows.shape[1:]))
      np.add.at(total, which, rows.astype(np.float64))
      out[name] = total / count.reshape(-1, *[1] * (rows.ndim - 1))
    rated = sum(e.rating is not None for e in self.entries)
    return Rated(out, [self.entries[i].rating for i in images], rated - len(images))


def crop_rows(fn: Callable, params: Any, input_config, batch_size: int, batch_sharding) -> CropRows:
  """The same, of each crop.

  Raises:
    ValueError: there are no rated pictures.
  """
  batch_size = _common.divisible(batch_size, batch_sharding)
  intake = Intake(batch_sharding, batch_size)
  stream = loader.eval_stream(
      input_config, batch_size=batch_size, items="rated", rows=intake.rows)
  parts = []
  for host in stream:
    batch = intake(host)
    out = dict(fn(params, batch)) | {k: batch[k] for k in ("image_index", "mask")}
    out = _common.to_host(out)
    keep = out.pop("mask").astype(bool)
    parts.append({k: v[keep] for k, v in out.items()})
  found = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  index = found.pop("image_index")
  if not len(index):
    raise ValueError(f"{input_config.data} [{input_config.split}]: none of its rated pictures can "
                     "be used")
  return CropRows(found, index, contents.of_config(input_config))


def measure(x: Float[np.ndarray, "n"], found: Rated, *, parameters: int, bootstrap: int,
            probs: Float[np.ndarray, "n k"] | None = None) -> dict[str, float]:
  """Measures of agreement, on the scale of the mean opinion scores.

  Args:
    x: scores of pictures, 0 worst to 1 best.
    found: whose.
    parameters, bootstrap: see `_correlation.measures`.
    probs: of levels, worst first, if there are any.

  Returns:
    those of `_correlation.measures`, `images`, `skipped_images`, and where votes for 1 to 10 are
    known (AVA) `binary_accuracy` and, with `probs`, `emd`.
  """
  x, mos, sign = on_mos_scale(x, found)
  # Lower is better in some data sets: turned round, the signs of all measures mean the same.
  out = _correlation.measures(sign * x, sign * mos, parameters=parameters, bootstrap=bootstrap)
  out |= {"images": float(len(mos)), "skipped_images": float(found.skipped)}
  if all(len(r.votes) == _AVA_BINS for r in found.ratings):
    out["binary_accuracy"] = _correlation.binary_accuracy(x, mos)
    if probs is not None:
      votes = np.array([r.votes for r in found.ratings], np.float64)
      out["emd"] = _correlation.emd(spread(probs, _AVA_BINS), votes)
  return out


def on_mos_scale(x: Float[np.ndarray, "n"], found: Rated
                 ) -> tuple[np.ndarray, np.ndarray, float]:
  """Scores on the scale of the mean opinion scores, those, and -1.0 where lower is better."""
  score = found.score
  mos = np.array([r.mos for r in found.ratings])
  if np.ptp(score) == 0:
    return x, mos, 1.0
  # Both say the same in other units: a straight line, up to rounding.
  slope, offset = np.polyfit(score, mos, 1)
  return slope * x + offset, mos, float(np.sign(slope))


def spread(probs: Float[np.ndarray, "n k"], bins: int) -> Float[np.ndarray, "n b"]:
  """Shares of levels as shares of more bins from worst to best; between two, in proportion."""
  at = np.linspace(0, bins - 1, probs.shape[1])
  out = np.zeros((len(probs), bins))
  for level, place in enumerate(at):
    low = min(int(place), bins - 2)
    out[:, low] += probs[:, level] * (1 - (place - low))
    out[:, low + 1] += probs[:, level] * (place - low)
  return out
