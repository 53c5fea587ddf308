"""How do we talk to PyTorch? Through files and a process with an environment of its own.

A peer is a script and a `requirements-NAME.txt` of exact versions. `run` makes its environment
once, in the user's cache, where all checkouts find it; it gives the script arrays and settings, and
returns the arrays it gives back (`exchange.py` is the script's side). Whatever fails raises
`PeerError` with what the child said.
"""

import fcntl
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_ext.core import huge_pages as huge_pages_lib

HERE = pathlib.Path(__file__).resolve().parent
_VERSION = (3, 11)
_STAMP = "installed.txt"


class PeerError(ValueError):
  """A peer's environment cannot be made, or its script failed."""


def cache() -> pathlib.Path:
  """Where environments are kept: below $BVE_CACHE, or the user's cache."""
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(os.environ.get("BVE_CACHE") or pathlib.Path(home, "big_vision_ext")) / "peers"


def run(
  script: str | os.PathLike,
  *,
  python: str | os.PathLike,
  arrays: Mapping[str, np.ndarray] | None = None,
  settings: Any = None,
  files: str | os.PathLike | None = None,
  timeout: float = 600,
  huge_pages: bool = False,
) -> dict[str, np.ndarray]:
  """Runs a peer's script and returns its arrays.

  Args:
    script: its path; it can import what lies beside it, and what lies beside this file.
    python: the interpreter, as from `environment`.
    arrays: numbers for it, by any names.
    settings: anything JSON can say.
    files: a directory for the exchange that is kept; a temporary one if None.
    timeout: seconds until it is stopped.
    huge_pages: whether it gets its memory in large pages, as our commands do.

  Raises:
    PeerError: an exception in the script, or too slow; with what it printed.
  """
  name = pathlib.Path(script).name
  with tempfile.TemporaryDirectory(prefix="peer-") as temporary:
    where = pathlib.Path(files or temporary)
    where.mkdir(parents=True, exist_ok=True)
    (where / "output.npz").unlink(missing_ok=True)
    np.savez(where / "input.npz", **(arrays or {}))
    (where / "settings.json").write_text(json.dumps(settings))
    # Nothing of the project's environment may reach the child, and it may not call home.
    ours = ("PYTHON", "VIRTUAL_ENV", huge_pages_lib.TUNABLES)
    variables = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    variables |= huge_pages_lib.variables() if huge_pages else {}
    # Installed without bytecode, and none belongs beside the project's own files.
    variables |= {"HF_HUB_OFFLINE": "1", "PYTHONPYCACHEPREFIX": str(cache() / "bytecode"),
                  "PYTHONNOUSERSITE": "1", "PYTHONPATH": str(HERE)}
    call([python, script, where], f"The oracle {name}", timeout, variables)
    if not (where / "output.npz").exists():
      raise PeerError(f"The oracle {name} ended without a result; it must call exchange.serve.")
    with np.load(where / "output.npz") as out:
      return dict(out)


def environment(name: str, say: Callable[[str], None] = lambda text: None) -> pathlib.Path:
  """The Python of the environment of `requirements-{name}.txt`, made if it is not there.

  Its directory carries a hash of the requirements, so an edit makes a new one. torch is installed
  with what it depends on, the rest exactly as listed and without dependencies.

  Args:
    name: of the requirements.
    say: called with a line on what is being done, if it takes long.

  Raises:
    PeerError: there is no Python 3.11, or pip fails.
  """
  requirements = HERE / f"requirements-{name}.txt"
  if not requirements.exists():
    raise PeerError(f"There is no {requirements.name} in {HERE} for the oracle {name!r}.")
  text = requirements.read_text()
  kept = cache()
  where = kept / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
  python = where / "bin" / "python"
  kept.mkdir(parents=True, exist_ok=True)
  # Several processes may want it at once; one makes it, the others wait.
  with open(kept / f"{name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if (where / _STAMP).exists() and python.exists():
      return python
    shutil.rmtree(where, ignore_errors=True)
    say(f"making the peer's environment in {where} (once; about 1 GB, some minutes)")
    call([find_python(), "-m", "venv", where], "Making an environment", 300)
    # Bytecode of what is imported is made then: of all that is installed it takes minutes.
    pip = [python, "-m", "pip", "install", "-q", "--no-compile", "--disable-pip-version-check"]
    torch = [line for line in text.splitlines() if line.startswith("torch==")]
    if torch:
      say(f"installing {torch[0]}")
      call([*pip, "-c", requirements, *torch], f"Installing {torch[0]}", 3600)
    say(f"installing the rest of {requirements.name}")
    call([*pip, "--no-deps", "-r", requirements], f"Installing {requirements.name}", 3600)
    (where / _STAMP).write_text(text)
  return python


def find_python() -> str:
  """A Python 3.11: $BVE_PY311, `python3.11` on the path, or one of pyenv's.

  Raises:
    PeerError: none is found, or $BVE_PY311 names something else.
  """
  chosen = os.environ.get("BVE_PY311")
  if chosen:
    if _version(chosen) != _VERSION:
      raise PeerError(f"BVE_PY311={chosen} is no Python 3.11 with venv and pip.")
    return chosen
  pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
  candidates = [sys.executable, "python3.11"]
  candidates += sorted(map(str, pyenv.glob("versions/3.11*/bin/python")), reverse=True)
  for candidate in candidates:
    if _version(candidate) == _VERSION:
      return candidate
  raise PeerError(
    "Oracles need Python 3.11, for which the versions they were published with have wheels. None "
    f"was found among {candidates}: install one (with venv) or set BVE_PY311 to its path."
  )


def _version(python: str) -> tuple[int, ...] | None:
  """The version of an interpreter that can make environments, None if it is none."""
  code = "import sys, venv, ensurepip; print(*sys.version_info[:2])"
  try:
    out = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60)
  except (OSError, subprocess.TimeoutExpired):
    return None
  return tuple(map(int, out.stdout.split())) if out.returncode == 0 else None


def call(command: Sequence, what: str, timeout: float, variables: Mapping | None = None) -> None:
  """Runs a command to its end.

  Raises:
    PeerError: it failed or took too long; with the end of what it printed.
  """
  try:
    done = subprocess.run(
      [str(x) for x in command], capture_output=True, text=True, timeout=timeout, env=variables
    )
  except subprocess.TimeoutExpired as e:
    raise PeerError(f"{what} took longer than {timeout:g} s: {command}") from e
  if done.returncode:
    said = (done.stdout[-1000:] + "\n" + done.stderr[-6000:]).strip()
    raise PeerError(f"{what} failed with code {done.returncode}; it said:\n{said}")
