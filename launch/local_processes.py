r"""Runs a command in several processes of this machine, joined as the hosts of a pod are.

  python -m launch.local_processes --num 2 --devices-per-process 4 -- \
      python -m big_vision_ext.train --config F --workdir D

Each process is told by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID who the others
are (jax.distributed on localhost), and simulates its devices on the CPU unless JAX_PLATFORMS says
otherwise. Lines of output begin with the process they come from.

The exit code is that of the process that failed first, or 0; `big_vision_ext/core/exit_codes.py`
says what each means. With `--restarts N`, processes that ended in a way that a restart mends are
started again, all of them, at most N times. SIGTERM and Ctrl-C are passed on; a second one kills.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from big_vision_ext.core import exit_codes

_POLL_SECONDS = 0.1


def run(command: Sequence[str], *, num: int, devices: int, grace: float,
        passed_on: list[int] | None = None) -> int:
  """Runs the processes once, to their end.

  Args:
    command: what each runs; "python" at its beginning is this Python.
    num: how many.
    devices: simulated CPU devices of each.
    grace: when one has failed, seconds that the others have to leave before they are killed.
    passed_on: signals to pass on to all, which others add to while this runs.

  Returns:
    0, or the exit code of the first that failed.
  """
  passed_on = [] if passed_on is None else passed_on
  command = [sys.executable if command[0] == "python" else command[0], *command[1:]]
  address = f"localhost:{_free_port()}"
  processes, readers = [], []
  for index in range(num):
    process = subprocess.Popen(
        command, env=_environment(address, num, index, devices), stdout=subprocess.PIPE,
        # A session of its own: what the terminal sends, it gets from here, once.
        stderr=subprocess.PIPE, start_new_session=True)
    processes.append(process)
    for stream, out in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
      readers.append(threading.Thread(target=_copy, args=(stream, out, index), daemon=True))
      readers[-1].start()

  first, deadline, sent = 0, None, 0
  while None in [p.poll() for p in processes]:
    if len(passed_on) > sent:
      _signal(processes, signal.SIGKILL if sent else passed_on[0])
      sent += 1
    if deadline is None and any(p.returncode for p in processes):
      index, first = _cause(processes)
      print(f"process {index} ended with {first}; the others have {grace:g} s", file=sys.stderr,
            flush=True)
      deadline = time.monotonic() + grace
    if deadline is not None and time.monotonic() > deadline:
      _signal(processes, signal.SIGKILL)
    time.sleep(_POLL_SECONDS)
  for reader in readers:
    reader.join()
  return first or _cause(processes)[1]


def _cause(processes: Sequence[subprocess.Popen]) -> tuple[int, int]:
  """The process that failed, of those that have ended, and its code; the first and 0 if none has.

  Of several, as a busy machine may show them at once, one that does not say that another is gone.
  """
  codes = [(i, exit_codes.from_returncode(p.returncode or 0)) for i, p in enumerate(processes)]
  failed = [(i, code) for i, code in codes if code]
  causes = [(i, code) for i, code in failed if code != exit_codes.RESTART]
  return (causes or failed or [(0, 0)])[0]


def _environment(address: str, num: int, index: int, devices: int) -> dict[str, str]:
  flag = "--xla_force_host_platform_device_count"
  kept = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(flag)]
  return {
      "JAX_PLATFORMS": "cpu", **os.environ, "XLA_FLAGS": " ".join([*kept, f"{flag}={devices}"]),
      "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(num),
      "JAX_PROCESS_ID": str(index)}


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(("localhost", 0))
    return s.getsockname()[1]


def _copy(stream, out, index: int) -> None:
  for line in stream:
    print(f"[{index}] {line.decode(errors='replace')}", end="", file=out, flush=True)


def _signal(processes: Sequence[subprocess.Popen], number: int) -> None:
  for process in processes:
    if process.poll() is None:
      process.send_signal(number)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
  """The command line; `command` is what comes after `--`."""
  argv = list(argv)
  own, command = (argv[:argv.index("--")], argv[argv.index("--") + 1:]) if "--" in argv else (
      argv, [])
  parser = argparse.ArgumentParser(
      prog="python -m launch.local_processes", description=__doc__.split("\n\n")[0],
      usage="%(prog)s --num N --devices-per-process M [options] -- COMMAND", allow_abbrev=False)
  parser.add_argument("--num", type=_positive, required=True, help="processes")
  parser.add_argument("--devices-per-process", type=_positive, default=1,
                      help="simulated CPU devices of each")
  parser.add_argument("--restarts", type=int, default=0,
                      help="how often to start all again after an end that a restart mends")
  parser.add_argument("--grace", type=float, default=90.0,
                      help="seconds that the others have to leave when one has failed")
  options = parser.parse_args(own)
  if not command:
    parser.error("expected the command to run after --, e.g. -- python -m big_vision_ext.train ...")
  options.command = command
  return options


def _positive(text: str) -> int:
  if not text.isdigit() or int(text) < 1:
    raise argparse.ArgumentTypeError(f"is {text}, expected a whole number above 0")
  return int(text)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  options = parse_args(sys.argv[1:] if argv is None else argv)
  asked: list[int] = []
  before = {number: signal.signal(number, lambda number, frame: asked.append(number))
            for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    for attempt in range(options.restarts + 1):
      code = run(options.command, num=options.num, devices=options.devices_per_process,
                 grace=options.grace, passed_on=asked)
      if asked or code not in exit_codes.AGAIN or attempt == options.restarts:
        return code
      print(f"ended with {code}; starting again ({attempt + 1} of {options.restarts})",
            file=sys.stderr, flush=True)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return code


if __name__ == "__main__":
  sys.exit(main())
