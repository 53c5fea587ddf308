"""Has somebody asked this run to stop?"""

import signal

from big_vision_ext.core import exit_codes

# What shells and schedulers expect of a process that a signal ended.
EXIT_CODES = {signal.SIGTERM: exit_codes.TERMINATED, signal.SIGINT: exit_codes.INTERRUPTED}


class Stopper:
  """Turns SIGTERM and Ctrl-C into a wish that the loop asks for between two steps.

  A second Ctrl-C ends the process at once.

  Attributes:
    signal: the number of the signal that came, 0 if none did.
  """

  def __init__(self):
    self.signal = 0
    self._before = {}

  def __enter__(self):
    for number in EXIT_CODES:
      self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *unused):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    del frame
    self.signal = int(number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
