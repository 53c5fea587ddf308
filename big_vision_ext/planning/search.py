"""What is the largest batch that fits?

Memory is close to affine in the rows of a chip: state, gradients and gathered parameters do not
depend on them, activations are proportional to them. A line through two compiled programs says
where to look; what is answered was compiled.
"""

import dataclasses
import math
from collections.abc import Callable

# Compiling takes minutes: within this share of the answer the search ends.
_CLOSE = 0.05


@dataclasses.dataclass(frozen=True)
class Trial:
  """A batch that was compiled: rows on each chip, GiB it needs (NaN if not told), whether it fits.
  """

  rows: int
  gib: float
  fits: bool


def estimate(rows: int, gib: float, fixed_gib: float, hbm_gib: float) -> int:
  """Rows a chip that should fit, from one trial and what does not depend on them.

  Args:
    rows: of the trial.
    gib: its memory.
    fixed_gib: memory without any rows: state and gradients.
    hbm_gib: of the chip.
  """
  each = (gib - fixed_gib) / rows
  return max(int((hbm_gib - fixed_gib) / each), 0) if each > 0 else rows


def largest(try_rows: Callable[[int], Trial], first: Trial, fixed_gib: float, hbm_gib: float,
            max_trials: int = 6) -> tuple[int, list[Trial]]:
  """The largest number of rows a chip that fits, within 5 %, and the trials made.

  Args:
    try_rows: compiles a number of rows.
    first: a trial made already.
    fixed_gib: memory without any rows, for the first guess.
    hbm_gib: of the chip.
    max_trials: how many to make at most, `first` included.

  Returns:
    0 rows if nothing that was tried fits.
  """
  trials = [first]
  while len(trials) < max_trials:
    low = max((t.rows for t in trials if t.fits), default=0)
    high = min((t.rows for t in trials if not t.fits), default=None)
    if high is not None and high - low <= max(1, _CLOSE * low):
      break
    guess = _guess(trials, fixed_gib, hbm_gib)
    guess = max(guess, low + 1)
    if high is not None:
      guess = min(guess, high - 1)
    elif guess - low <= _CLOSE * low:
      break
    trials.append(try_rows(guess))
  return max((t.rows for t in trials if t.fits), default=0), trials


def _guess(trials, fixed_gib, hbm_gib) -> int:
  known = sorted({t.rows: t.gib for t in trials if not math.isnan(t.gib)}.items(),
                 key=lambda point: abs(point[1] - hbm_gib))
  if len(known) >= 2 and (known[0][1] - known[1][1]) * (known[0][0] - known[1][0]) > 0:
    (a, at_a), (b, at_b) = known[:2]
    each = (at_a - at_b) / (a - b)
    return int(a + (hbm_gib - at_a) / each)
  if known:
    return estimate(*known[0], fixed_gib, hbm_gib)
  return min(t.rows for t in trials) // 2
