"""At which place does a query find what belongs to it, and at which would it by chance?"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

# Cosines that differ by less are equal but for float32's rounding. A tie is no find: a model that
# says the same of everything has found nothing.
TIE = 1e-6
# Of a query that has found nothing, however many are looked at.
NO_RANK = np.iinfo(np.int64).max
# Similarities held at once.
_CHUNK = 2**25


def best_ranks(
    queries: Float[np.ndarray, "n d"],
    candidates: Float[np.ndarray, "m d"],
    pairs: Int[np.ndarray, "p 2"],
) -> Int[np.ndarray, "n"]:
  """How many candidates that are not a query's own are at least as similar as the best that is.

  A query whose own are no numbers has found nothing: it has `NO_RANK`. What is no number for
  another candidate counts as more similar.

  Args:
    queries: normalised embeddings.
    candidates: normalised embeddings.
    pairs: (query, candidate) of all that belong together; each query has at least one.
  """
  order = np.argsort(pairs[:, 0], kind="stable")
  pairs = pairs[order]
  step = max(1, _CHUNK // len(candidates))
  out = []
  for start in range(0, len(queries), step):
    similarity = queries[start:start + step] @ candidates.T
    low, high = np.searchsorted(pairs[:, 0], [start, start + step])
    at = pairs[low:high, 0] - start, pairs[low:high, 1]
    best = np.full(len(similarity), -np.inf, similarity.dtype)
    with np.errstate(invalid="ignore"):
      np.maximum.at(best, at[0], similarity[at])
    similarity[at] = -np.inf
    # Not `>=`, which is false of a NaN on either side: what is not clearly behind is ahead.
    ahead = np.sum(~(similarity < best[:, None] - TIE), axis=1)
    out.append(np.where(np.isnan(best), NO_RANK, ahead))
  return np.concatenate(out)


def recall(ranks: Int[np.ndarray, "n"], k: int) -> float:
  """The share of queries whose own is among the first k."""
  return float(np.mean(ranks < k))


def chance(own: Sequence[int] | np.ndarray, candidates: int, k: int) -> float:
  """Expected recall at k of candidates in random order.

  Args:
    own: how many of the candidates belong to each query.
    candidates: how many there are.
    k: how many are looked at.
  """
  def miss(count):
    # All of the first k are others: C(candidates - count, k) / C(candidates, k).
    return math.prod(max(0, candidates - count - i) / (candidates - i)
                     for i in range(min(k, candidates)))

  counts, times = np.unique(own, return_counts=True)
  return float(sum(t * (1 - miss(c)) for c, t in zip(counts.tolist(), times)) / len(own))


def top_k(scores: Float[np.ndarray, "n c"], label: Int[np.ndarray, "n"], k: int,
          tie: float = 0.0) -> np.ndarray:
  """Whether each row's own class is among its k best (n,).

  Scores within `tie` are no find, and neither is anything in a row with a NaN: nothing compares
  with one.
  """
  own = np.take_along_axis(scores, label[:, None], axis=1)
  found = np.sum(scores >= own - tie, axis=1) - 1 < k
  return found & ~np.isnan(scores).any(axis=1)


def mean_per_class(right: np.ndarray, label: Int[np.ndarray, "n"]) -> float:
  """The mean over classes of the share of their images that are right."""
  count = np.bincount(label)
  return float(np.mean((np.bincount(label, weights=right) / np.maximum(count, 1))[count > 0]))
