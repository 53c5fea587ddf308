"""What does the end of a training process say to whoever started it?

| code | meaning | start it again? |
|---|---|---|
| 0 | the run is complete | no |
| 1 | a mistake in the program; the traceback is on stderr | no |
| 2 | an error that a person has to mend; one line on stderr says what | no |
| 75 | a step stalled, or another process of the run is gone; stderr says which | yes |
| 130 | Ctrl-C; the last step is saved | as the person likes |
| 137 | killed (SIGKILL), by the system or for want of memory | yes |
| 143 | SIGTERM, as before a preemption; the last step is saved | yes |

Started again, a run goes on from its last checkpoint.
"""

COMPLETE, BUG, ERROR, RESTART, INTERRUPTED, TERMINATED = 0, 1, 2, 75, 130, 143
KILLED = 137

# Those after which the same command, started again, has something to do that needs no person.
AGAIN = (RESTART, KILLED, TERMINATED)


def from_returncode(returncode: int) -> int:
  """A code as shells give it, from Python's, where the end by a signal is a negative number."""
  return 128 - returncode if returncode < 0 else returncode
