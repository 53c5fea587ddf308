"""How well do predicted scores agree with what people said? The measures of quality assessment.

Predictions are x (n,), mean opinion scores y (n,). Ties have the mean of their ranks in SRCC and
are counted as tau-b counts them in KRCC. PLCC is plain, or after a monotone logistic curve has been
fitted from x to y, as VQEG asks and many papers do silently; RMSE is of the fitted predictions, on
the scale of y. Where a number has no meaning (a constant column) it is NaN, never 0, with a
warning.
"""

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize  # jax requires it.

# A curve of five parameters through fewer points degenerates to a step.
_LEAST_FOR_FIVE = 50
_MAX_CALLS = 20_000


def srcc(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
  """Spearman's rank correlation."""
  x, y = _checked(x, y, "SRCC")
  return _pearson(ranks(x), ranks(y), "SRCC")


def plcc(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
  """Pearson's linear correlation of the predictions as they are."""
  return _pearson(*_checked(x, y, "PLCC"), "PLCC")


def krcc(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
  """Kendall's tau-b in O(n log n) (Knight 1966)."""
  x, y = _checked(x, y, "KRCC")
  a, b = (np.unique(values, return_inverse=True)[1] for values in (x, y))
  pairs = lambda counts: int(np.sum(counts.astype(np.int64) * (counts - 1) // 2))
  every = len(x) * (len(x) - 1) // 2
  ties_x, ties_y = pairs(np.bincount(a)), pairs(np.bincount(b))
  both = pairs(np.unique(a * (b.max() + 1) + b, return_counts=True)[1])
  if every in (ties_x, ties_y):
    return _undefined("KRCC")
  # With ties of x in the order of y, what is out of order is discordant.
  discordant = inversions(b[np.lexsort((b, a))])
  balance = every - ties_x - ties_y + both - 2 * discordant
  return balance / np.sqrt(float(every - ties_x) * float(every - ties_y))


def ranks(x: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
  """Ranks from 1; equal values share the mean of theirs."""
  _, which, counts = np.unique(x, return_inverse=True, return_counts=True)
  return (np.cumsum(counts) - (counts - 1) / 2)[which]


def inversions(values: Int[np.ndarray, "n"]) -> int:
  """The number of pairs i < j with values[i] > values[j], for whole numbers from 0 on.

  From the highest bit down: of a group of equal higher bits, each 0 is out of order with the 1s
  before it; then the group is parted by that bit, the order within kept.
  """
  v = np.asarray(values, np.int64)
  total = 0
  for bit in range(int(v.max(initial=0)).bit_length() - 1, -1, -1):
    one = (v >> bit) & 1
    group = v >> (bit + 1)
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
    sizes = np.diff(np.r_[starts, len(v)])
    before = np.cumsum(one) - one
    ones = before - np.repeat(before[starts], sizes)
    total += int(np.sum(ones[one == 0]))
    start = np.repeat(starts, sizes)
    zeros = np.arange(len(v)) - start - ones
    zeros_in_group = np.repeat(sizes - np.add.reduceat(one, starts), sizes)
    place = start + np.where(one, zeros_in_group + ones, zeros)
    parted = np.empty_like(v)
    parted[place] = v
    v = parted
  return total


def fit(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], parameters: int = 4
        ) -> tuple[Float[np.ndarray, "n"], str]:
  """Predictions on the scale of y, by a logistic curve of least squares.

  Of four parameters (VQEG 2003): (b1 - b2) / (1 + exp(-(x - b3) / |b4|)) + b2, begun at
  b1 = max y, b2 = min y, b3 = mean x, b4 = std x / 4. Of five (Sheikh et al. 2006):
  b1 (1/2 - 1 / (1 + exp(b2 (x - b3)))) + b4 x + b5.

  Returns:
    The fitted predictions, and what they are: "logistic5", "logistic4", or "raw", x itself, where
    no curve could be fitted (too few different values, or no convergence).
  """
  x, y = _checked(x, y, "the fit")
  spread = x.std()
  if parameters not in (4, 5):
    raise ValueError(f"a logistic curve of {parameters} parameters: expected 4 or 5")
  if spread > 0 and y.std() > 0:
    u = (x - x.mean()) / spread
    if parameters == 5 and len(x) >= _LEAST_FOR_FIVE:
      sign = 1.0 if np.dot(u, y - y.mean()) >= 0 else -1.0
      start = (np.ptp(y), sign, 0.0, 0.0, y.mean())
      if (q := _curve(_five, u, y, start)) is not None:
        return q, "logistic5"
    if len(np.unique(x)) >= 4 and (q := _curve(_four, u, y, (y.max(), y.min(), 0.0, 0.25))
                                   ) is not None:
      return q, "logistic4"
  return x, "raw"


def rmse(q: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]) -> float:
  """Root mean square error of predictions on the scale of y."""
  return float(np.sqrt(np.mean((np.asarray(q, np.float64) - np.asarray(y, np.float64)) ** 2)))


def binary_accuracy(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"],
                    threshold: float = 5.0) -> float:
  """Share of images that both call good, above the threshold, or both do not (AVA's measure)."""
  return float(np.mean((np.asarray(x) > threshold) == (np.asarray(y) > threshold)))


def emd(p: Float[np.ndarray, "n k"], q: Float[np.ndarray, "n k"], r: int = 2) -> float:
  """Mean earth mover's distance of two distributions over k ordered bins (Talebi & Milanfar 2018).

  (1/k sum |CDF_p - CDF_q|^r)^(1/r); rows need not sum to one.
  """
  share = lambda h: np.cumsum(h / np.sum(h, axis=-1, keepdims=True), axis=-1)
  gap = np.abs(share(np.asarray(p, np.float64)) - share(np.asarray(q, np.float64)))
  return float(np.mean(np.mean(gap**r, axis=-1) ** (1 / r)))


def measures(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"], *, parameters: int = 4,
             bootstrap: int = 1000, seed: int = 0) -> dict[str, float]:
  """All measures of a prediction, with their intervals.

  Args:
    x: predictions, the higher the better, on any scale.
    y: mean opinion scores, the higher the better.
    parameters: of the logistic curve.
    bootstrap: how often the images are drawn anew, with replacement, for the intervals; 0: none.
    seed: of those draws.

  Returns:
    srcc, krcc, plcc, plcc_fit, rmse (fitted), and of each NAME_low, NAME_high, the 2.5 and 97.5
    per cent points over the draws (the curve is not fitted anew); fit_parameters, 0 for "raw".
  """
  x, y = _checked(x, y, "the scores")
  q, kind = fit(x, y, parameters)
  columns = {"srcc": (srcc, x), "krcc": (krcc, x), "plcc": (plcc, x), "plcc_fit": (plcc, q),
             "rmse": (rmse, q)}
  out = {name: fn(of, y) for name, (fn, of) in columns.items()}
  if bootstrap and np.isfinite(out["srcc"]):
    for name, (fn, of) in columns.items():
      out |= dict(zip((f"{name}_low", f"{name}_high"), interval(fn, of, y, bootstrap, seed)))
  return out | {"fit_parameters": {"raw": 0.0, "logistic4": 4.0, "logistic5": 5.0}[kind]}


def interval(fn: Callable, x: np.ndarray, y: np.ndarray, draws: int = 1000, seed: int = 0
             ) -> tuple[float, float]:
  """The central 95 % of a measure over images drawn anew with replacement."""
  rng = np.random.default_rng(seed)
  found = []
  for _ in range(draws):
    at = rng.integers(len(x), size=len(x))
    # A draw may hold one value only, of which there is no correlation.
    if np.ptp(x[at]) > 0 and np.ptp(y[at]) > 0:
      found.append(fn(x[at], y[at]))
  if not found:
    return float("nan"), float("nan")
  low, high = np.percentile(found, [2.5, 97.5])
  return float(low), float(high)


def summary(values: Sequence[float]) -> dict[str, float]:
  """Mean, median and interquartile range over splits; NaN among them stays NaN."""
  values = np.asarray(values, np.float64)
  first, third = np.percentile(values, [25, 75])
  return {"mean": float(values.mean()), "median": float(np.median(values)),
          "iqr": float(third - first)}


def best(history: Sequence[Mapping[str, float]], name: str) -> Mapping[str, float] | None:
  """The entry with the largest finite `name`; the earliest of equals."""
  known = [h for h in history if h.get(name) is not None and np.isfinite(h[name])]
  return max(known, key=lambda h: h[name]) if known else None


def _pearson(x: np.ndarray, y: np.ndarray, name: str) -> float:
  a, b = x - x.mean(), y - y.mean()
  # Exactly equal values differ from their mean by rounding.
  if np.ptp(x) == 0 or np.ptp(y) == 0:
    return _undefined(name)
  a, b = a / np.abs(a).max(), b / np.abs(b).max()
  return float(np.clip(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)), -1.0, 1.0))


def _undefined(name: str) -> float:
  logging.warning("%s has no meaning where all predictions, or all scores, are equal: NaN", name)
  return float("nan")


def _checked(x, y, name: str) -> tuple[np.ndarray, np.ndarray]:
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if x.shape != y.shape or x.ndim != 1 or not len(x):
    raise ValueError(f"{name} of {x.shape} predictions and {y.shape} scores: expected as many, at "
                     "least one of each")
  for what, values in (("predictions", x), ("scores", y)):
    if bad := int(np.sum(~np.isfinite(values))):
      raise ValueError(f"{name}: {bad} of {len(values)} {what} are not finite")
  return x, y


def _four(u, b1, b2, b3, b4):
  return (b1 - b2) * _sigmoid((u - b3) / max(abs(b4), 1e-12)) + b2


def _five(u, b1, b2, b3, b4, b5):
  return b1 * (0.5 - _sigmoid(-b2 * (u - b3))) + b4 * u + b5


def _sigmoid(z):
  return 0.5 * (1 + np.tanh(0.5 * z))


def _curve(curve: Callable, u: np.ndarray, y: np.ndarray, start: Sequence[float]
           ) -> np.ndarray | None:
  """The curve of least squares at u, or None if it is not found."""
  if len(u) < len(start):
    return None
  residuals = lambda b: curve(u, *b) - y
  try:
    found, *_, ok = optimize.leastsq(residuals, start, maxfev=_MAX_CALLS)
  except (RuntimeError, ValueError, FloatingPointError):
    return None
  q = curve(u, *found)
  # 1 to 4: it has converged.
  return q if ok in (1, 2, 3, 4) and np.isfinite(q).all() and np.ptp(q) > 0 else None
