"""How did a run of several processes end, all of them together?

  python -m launch.outcome 0 143 none     prints the outcome of a run whose processes ended so

Launchers start a run again after the codes that `big_vision_ext/core/exit_codes.py` says are
mended by it, and after machines that vanished. After 2, and after Ctrl-C, they never do; after a
crash (1, and signals such as 139) only if told to.
"""

import enum
import sys
from collections.abc import Iterable

from big_vision_ext.core import exit_codes


class Outcome(enum.Enum):
  """How a run ended."""

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
  if codes == {exit_codes.COMPLETE}:
    return Outcome.COMPLETE
  if codes - {exit_codes.COMPLETE, None, exit_codes.INTERRUPTED, *exit_codes.AGAIN}:
    return Outcome.ERROR
  return Outcome.STOPPED if exit_codes.INTERRUPTED in codes else Outcome.RESUME


if __name__ == "__main__":
  print(judge(int(code) if code.isdigit() else None for code in sys.argv[1:]).value)
