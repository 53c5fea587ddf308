"""How are two programs measured alike? Both sides call this; it needs the standard library only."""

import resource
import time
from collections.abc import Callable


def measure(run: Callable[[], object], repeats: int) -> dict[str, list[float]]:
  """Of each of `repeats` calls, `seconds` on the clock and `cpu_seconds` of all threads.

  `run` returns when its results are there.
  """
  out = {"seconds": [], "cpu_seconds": []}
  for _ in range(repeats):
    start, cpu = time.monotonic(), time.process_time()
    run()
    out["seconds"].append(time.monotonic() - start)
    out["cpu_seconds"].append(time.process_time() - cpu)
  return out


def peak_gib() -> float:
  """The most memory that this process ever had in RAM: weights, libraries, loading, everything."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
