"""How sure is a mean over pictures? Intervals by drawing the pictures anew."""

import numpy as np
from jaxtyping import Float


def interval(values: Float[np.ndarray, "n"], draws: int = 1000, seed: int = 0
             ) -> tuple[float, float]:
  """The central 95 % of the mean over items drawn anew with replacement.

  Of paired differences it is the interval of the mean difference: what a picture adds to both
  sides falls out.
  """
  values = np.asarray(values, np.float64)
  rng = np.random.default_rng(seed)
  means = values[rng.integers(len(values), size=(draws, len(values)))].mean(axis=1)
  low, high = np.percentile(means, (2.5, 97.5))
  return float(low), float(high)
