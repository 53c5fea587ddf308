"""How are two programs measured alike? Both sides call this; it needs the standard library only."""

import resource
import time
from collections.abc import Callable


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
  """Wall-clock time of each of `repeats` calls; `run` returns when its results are there."""
  out = []
  for _ in range(repeats):
    start = time.monotonic()
    run()
    out.append(time.monotonic() - start)
  return out


def peak_gib() -> float:
  """The most memory that this process ever had in RAM: weights, libraries, loading, everything."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
