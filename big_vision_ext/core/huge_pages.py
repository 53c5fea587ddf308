"""How does a CPU get memory for large arrays without waiting for it? In pages of 2 MiB.

What a program keeps while it runs is new memory at every run on a CPU, and Linux clears each page
of it when it is first touched: in pages of 4 KiB a training step of SwinIR-light (4 pictures of 64
px) has 930,000 such faults, which take about as long as its arithmetic, in pages of 2 MiB 5,000.
glibc asks for those if its tunable `glibc.malloc.hugetlb` is 1 when a process starts, so commands
that compute start themselves again with it, before they import what takes time. NumPy asks for them
by itself.

Imports nothing heavy.
"""

import importlib.machinery
import os
import pathlib
import sys

TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
# What the system does: "always", "madvise" (for who asks) or "never".
_SETTING = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart(spec: importlib.machinery.ModuleSpec | None) -> None:
  """Starts this process again, with large pages, if it has none and can have some.

  It keeps its number, its files and its arguments. `GLIBC_TUNABLES=glibc.malloc.hugetlb=0` keeps it
  from doing so, as does any other value of that tunable.

  Args:
    spec: `__spec__` of what Python was told to run (`python -m MODULE`). Started in any other way,
      by a notebook say, a process is left as it is.
  """
  arguments = sys.orig_argv[1:]
  told = spec is not None and ("-m", spec.name) in zip(arguments, arguments[1:])
  if told and sys.executable and _missing():
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], os.environ | variables())


def variables() -> dict[str, str]:
  """What the environment must say for a process to start with large pages, and what it says."""
  said = os.environ.get(TUNABLES, "")
  if _TUNABLE in said:
    return {TUNABLES: said}
  return {TUNABLES: f"{said}:{_TUNABLE}=1".lstrip(":")}


def _missing() -> bool:
  """Whether large pages are there for who asks, and this process does not."""
  if _TUNABLE in os.environ.get(TUNABLES, ""):
    return False
  try:
    library, version = os.confstr("CS_GNU_LIBC_VERSION").split()
    numbers = tuple(map(int, version.split(".")[:2]))
    return library == "glibc" and numbers >= (2, 35) and "[madvise]" in _SETTING.read_text()
  except (AttributeError, OSError, ValueError):  # Another C library, or another system.
    return False
