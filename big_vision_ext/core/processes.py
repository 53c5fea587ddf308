"""What do the processes of one run tell each other, and how does one leave that the others need?"""

import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from big_vision_ext.core import exit_codes
from input_pipeline import loader

_LARGEST = 2**31 - 1


def gather(values: Any) -> np.ndarray:
  """The numbers of all processes, (processes, *shape); every process has to call this.

  It is a collective on the devices: for moments that are rare, not for every step.
  """
  values = np.asarray(values)
  if jax.process_count() == 1:
    return values[None]
  from jax.experimental import multihost_utils
  return np.asarray(multihost_utils.process_allgather(values))


class Exchange:
  """A few whole numbers that every process tells all others at every step.

  They travel behind the step on the devices, so that nobody waits: what was told at one step is
  known at the next.
  """

  def __init__(self, mesh: jax.sharding.Mesh):
    """`mesh` has the devices of all processes."""
    self._alone = jax.process_count() == 1
    self._told = None
    self._cut = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._share = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    owner = [device.process_index for device in mesh.devices.flat]
    self._first = [owner.index(process) for process in range(jax.process_count())]

  def tell(self, values: Sequence[int]) -> tuple["Told", "Told | None"]:
    """Tells this process's numbers; to be called by all processes at every step.

    Returns:
      (what is told now, what may be read now without waiting: of one process that itself, of
      several what was told at the step before, None at the first).
    """
    row = np.minimum(np.array(values, np.int64), _LARGEST).astype(np.int32)
    before = self._told
    if self._alone:
      self._told = Told(row[None], None)
      return self._told, self._told
    rows = np.broadcast_to(row, (jax.local_device_count(), len(row)))
    self._told = Told(self._share(loader.to_global({"rows": rows}, self._cut)["rows"]), self._first)
    return self._told, before


class Told:
  """What every process told at one step."""

  def __init__(self, array: Any, first: Sequence[int] | None):
    self._array, self._first = array, first

  def rows(self) -> np.ndarray:
    """(processes, values); waits until they are here."""
    if self._first is not None:
      self._array, self._first = jax.device_get(self._array)[self._first], None
    return self._array


def run_one_of_several(command: Callable[[], int]) -> int:
  """Runs what one process of several has to do, and leaves at once if it fails.

  A process that ends in the ordinary way waits for the others, which wait for it in the middle of a
  computation. So one that failed ends without a farewell; jax then aborts the others, within the
  `peer_seconds` of `core.sharding.join_processes`, and they end with the code for restarts.

  Returns:
    The exit code, if the run is complete or all leave together.
  """
  ctypes.CDLL(None).signal(signal.SIGABRT, _ABORTED)
  try:
    code = command()
  except jax.errors.JaxRuntimeError as error:
    print(f"error: the computation failed, as it does when another process of the run is gone: "
          f"{' '.join(str(error).split())[:500]}", file=sys.stderr)
    code = exit_codes.RESTART
  except BaseException as error:
    traceback.print_exc()
    code = exit_codes.INTERRUPTED if isinstance(error, KeyboardInterrupt) else exit_codes.BUG
  if code not in (exit_codes.COMPLETE, exit_codes.TERMINATED):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
  return code


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _ABORTED(number):
  # Jax aborts from a thread of its own while the main thread waits for a device: Python's own
  # handlers, which run in the main thread, would never be called. What happened, jax has printed.
  text = b"error: this process was aborted, as when another one of the run is gone (see above)\n"
  os.write(2, text)
  os._exit(exit_codes.RESTART)
