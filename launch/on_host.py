"""Keeps a command running on one host of a cluster, whatever becomes of the connection to it.

  python3 on_host.py start  --run NAME --attempt N --code DIR -- COMMAND...
  python3 on_host.py status --run NAME [--attempt N]
  python3 on_host.py follow --run NAME [--attempt N] --offset BYTES --seconds S
  python3 on_host.py stop   --run NAME [--grace S]

It is copied to the host and runs on the Python that is there (3.8 or later, standard library only).
Every command may be given twice, which ssh clients do when they lose a connection: `start` starts
an attempt once, and lines of the log carry the position behind them, so that nobody shows them
twice. What it says to the launcher are lines that begin with "bve-status" (JSON) or "@POSITION".
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

HOME = pathlib.Path(os.environ.get("BVE_HOME", "~/.bve")).expanduser()
STATUS = "bve-status "
# libtpu's lock of the chips outlives a process that was killed.
LOCK_FILES = ("/tmp/libtpu_lockfile",)
CHUNK = 1 << 20


def start(run, attempt, code, command, identity=""):
  """Starts an attempt if it has not been started, after ending what runs of earlier ones."""
  place = _place(run, attempt)
  for other in _attempts(run):
    if other != attempt:
      _end(_place(run, other), grace=120)
  place.mkdir(parents=True, exist_ok=True)
  if _claim(place / "command.json", json.dumps({"argv": command, "id": identity})):
    for file in LOCK_FILES:
      _remove_stale(file)
    # A process of its own session, which no ending connection takes along.
    subprocess.Popen(
        [sys.executable, os.path.abspath(__file__), "_keep", "--run", run,
         "--attempt", str(attempt), "--code", os.path.abspath(code)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True, cwd="/")
    _wait(lambda: (place / "process.json").exists() or (place / "exit").exists(), 30)
  return status(run, attempt)


def keep(run, attempt, code):
  """Runs the command to its end and writes down how it ended: what `start` leaves behind."""
  place = _place(run, attempt)
  command = json.loads((place / "command.json").read_text())["argv"]
  with open(place / "log", "ab", buffering=0) as log:
    try:
      process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                 cwd=code, start_new_session=True)
    except OSError as error:
      log.write(f"error: {error}\n".encode())
      _write(place / "exit", "127")
      return
    _write(place / "process.json", json.dumps({"pid": process.pid, "born": _born(process.pid)}))
    code = process.wait()
  # As shells do: a signal that ended it is 128 + its number.
  _write(place / "exit", str(code if code >= 0 else 128 - code))


def status(run, attempt=None):
  """Prints one line about an attempt, the last one if none is named."""
  attempt = _last(run) if attempt is None else attempt
  place = _place(run, attempt)
  state = {"host": os.environ.get("HOSTNAME") or socket.gethostname(), "attempt": attempt}
  state.update(_state(place))
  if (place / "command.json").exists():
    state["id"] = json.loads((place / "command.json").read_text())["id"]
  log = place / "log"
  state["bytes"] = log.stat().st_size if log.exists() else 0
  print(STATUS + json.dumps(state), flush=True)
  return state


def follow(run, attempt, offset, seconds):
  """Prints an attempt's log from a position on, until its end or for a time, then its status."""
  attempt = _last(run) if attempt is None else attempt
  place = _place(run, attempt)
  until = time.monotonic() + seconds
  rest, pause = b"", 0.05
  while True:
    # Asked before the reading, so that the last words of a process are read.
    running = _state(place)["state"] == "running"
    while True:
      data = _read(place / "log", offset + len(rest))
      *lines, rest = (rest + data).split(b"\n")
      for line in lines:
        offset += len(line) + 1
        _say_line(offset, line)
      if not data:
        break
    if not running or time.monotonic() >= until:
      if rest and not running:
        _say_line(offset + len(rest), rest)
      break
    time.sleep(min(pause, max(0.0, until - time.monotonic())))
    pause = min(1.0, pause * 1.5)
  return status(run, attempt)


def stop(run, grace, attempt=None):
  """Asks an attempt to save and end, and ends it if it does not within `grace` seconds."""
  attempt = _last(run) if attempt is None else attempt
  _end(_place(run, attempt), grace)
  return status(run, attempt)


def _end(place, grace):
  pid = _state(place).get("pid")
  if pid:
    os.kill(pid, signal.SIGTERM)
    if not _wait(lambda: _state(place)["state"] != "running", grace):
      os.killpg(pid, signal.SIGKILL)
      _wait(lambda: _state(place)["state"] != "running", 30)


def _claim(path, text):
  # True for one of those who try, however close together.
  other = path.with_suffix(f".{os.getpid()}")
  other.write_text(text)
  try:
    os.link(str(other), str(path))
    return True
  except FileExistsError:
    return False
  finally:
    other.unlink()


def _state(place):
  # absent: never started here; lost: it was running when the machine went down or was restarted.
  if (place / "exit").exists():
    return {"state": "exited", "code": int((place / "exit").read_text())}
  if not (place / "command.json").exists():
    return {"state": "absent", "code": None}
  if not (place / "process.json").exists():
    young = time.time() - (place / "command.json").stat().st_mtime < 60
    return {"state": "running" if young else "lost", "code": None, "pid": None}
  process = json.loads((place / "process.json").read_text())
  if _born(process["pid"]) == process["born"]:
    return {"state": "running", "code": None, "pid": process["pid"]}
  # It has ended; whoever keeps it is about to say how.
  if _wait(lambda: (place / "exit").exists(), 2):
    return {"state": "exited", "code": int((place / "exit").read_text())}
  return {"state": "lost", "code": None}


def _born(pid):
  # Tells a process from a later one with the same number, also after a restart of the machine.
  try:
    text = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except OSError:
    return None
  fields = text.rpartition(")")[2].split()
  if fields[0] in "ZX":
    return None
  return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip() + ":" + fields[19]


def _remove_stale(file):
  # Unless somebody has it open: then it is in use.
  path = pathlib.Path(file)
  if not path.exists():
    return
  for link in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
    try:
      if os.path.samefile(str(link), str(path)):
        return
    except OSError:
      continue
  try:
    path.unlink()
  except OSError as error:
    print(f"warning: {path} could not be removed ({error})", flush=True)


def _say_line(end, line):
  print("@{} {}".format(end, line.decode("utf-8", "replace").rstrip("\r")), flush=True)


def _read(path, offset):
  try:
    with open(path, "rb") as file:
      file.seek(offset)
      return file.read(CHUNK)
  except FileNotFoundError:
    return b""


def _wait(condition, seconds):
  until = time.monotonic() + seconds
  while not condition():
    if time.monotonic() >= until:
      return False
    time.sleep(0.02)
  return True


def _write(path, text):
  other = path.with_suffix(".tmp")
  other.write_text(text)
  os.replace(str(other), str(path))


def _place(run, attempt):
  return HOME / run / f"attempt-{attempt}"


def _attempts(run):
  return sorted(int(p.name.split("-")[1]) for p in (HOME / run).glob("attempt-*"))


def _last(run):
  return (_attempts(run) or [0])[-1]


def main(argv=None):
  """Runs a command line; returns its exit code."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("action", choices=("start", "status", "follow", "stop", "_keep"))
  parser.add_argument("--run", required=True)
  parser.add_argument("--attempt", type=int)
  parser.add_argument("--code", default=".")
  parser.add_argument("--id", default="", help="what tells this command from another")
  parser.add_argument("--offset", type=int, default=0)
  parser.add_argument("--seconds", type=float, default=300)
  parser.add_argument("--grace", type=float, default=120)
  argv = sys.argv[1:] if argv is None else list(argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  options, command = parser.parse_args(argv[:cut]), argv[cut + 1:]
  if options.action == "start":
    start(options.run, options.attempt, options.code, command, options.id)
  elif options.action == "_keep":
    keep(options.run, options.attempt, options.code)
  elif options.action == "status":
    status(options.run, options.attempt)
  elif options.action == "follow":
    follow(options.run, options.attempt, options.offset, options.seconds)
  else:
    stop(options.run, options.grace, options.attempt)
  return 0


if __name__ == "__main__":
  sys.exit(main())
