"""Has somebody asked this run to stop?"""

import signal

import jax

# What shells and schedulers expect of a process that a signal ended.
EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Stopper:
  """Turns SIGTERM and Ctrl-C into a wish that the loop asks for between two steps.

  A second Ctrl-C ends the process at once. With several processes, all stop after the same step.
  """

  def __init__(self):
    self._signal = None
    self._before = {}

  def __enter__(self):
    for number in EXIT_CODES:
      self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def wanted(self, step: int) -> bool:
    """Whether to stop after this step; every process has to ask at every step."""
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils
      if multihost_utils.reached_preemption_sync_point(step):
        self._signal = self._signal or signal.SIGTERM
    return self._signal is not None

  @property
  def exit_code(self) -> int:
    """The code to end the process with."""
    return EXIT_CODES.get(self._signal, 0)

  def _note(self, number, frame):
    del frame
    self._signal = number
    signal.signal(signal.SIGINT, signal.default_int_handler)
