"""What does a launcher make of how the processes of a run ended?

| code | of a training process | the launcher |
|---|---|---|
| 0 | the run is complete | is done |
| 2 | an error of config, data or checkpoint; the last line says which | ends: again would be the same |
| 75 | "restart me": stalled, or lost its peers | starts it again, in the same workdir |
| 143 | SIGTERM: saved and left | starts it again, in the same workdir |
| 130 | Ctrl-C: saved and left | ends: somebody wanted it to |
| any other | a crash | ends, unless told to try again |

  python -m launch.exit_codes 0 143 none     prints the outcome of a run whose processes ended so
"""

import enum
import sys
from collections.abc import Iterable

RESTART = 75
RESUME = (RESTART, 143)
STOPPED = 130


class Outcome(enum.Enum):
  """How a run ended, all of its processes together."""

  COMPLETE = "complete"
  RESUME = "to be resumed"
  STOPPED = "stopped by Ctrl-C"
  ERROR = "failed"


def judge(codes: Iterable[int | None]) -> Outcome:
  """The outcome of a run from the exit codes of its processes.

  A crash or an error of one outweighs what the others say, who only notice that it is gone. None
  stands for a process that vanished with its machine.
  """
  codes = set(codes)
  if not codes:
    raise ValueError("no process, no outcome")
  if codes == {0}:
    return Outcome.COMPLETE
  if codes - {0, None, STOPPED, *RESUME}:
    return Outcome.ERROR
  return Outcome.STOPPED if STOPPED in codes else Outcome.RESUME


if __name__ == "__main__":
  print(judge(int(code) if code.isdigit() else None for code in sys.argv[1:]).value)
