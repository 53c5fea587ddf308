"""How is a program compiled ahead of time without keeping what the compiler worked with?"""

import ctypes
import functools
from typing import Any

import jax

# From glibc's malloc.h; and the bytes from which an array has memory of its own.
_M_MMAP_THRESHOLD, _LARGE = -3, 4 * 2**20


def compiled(jitted: Any, *operands: Any) -> jax.stages.Compiled:
  """A jitted function compiled for operands like these.

  On a CPU the compiler leaves its memory to the process, about 0.1 GiB after a ViT-B: it is given
  back to the system, which a batch of large images can use. So are large arrays from then on, each
  when it is freed: by itself the C library keeps them for later ones that may not fit.
  """
  program = jitted.lower(*operands).compile()
  if libc := _glibc():
    libc.malloc_trim(0)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
  return program


@functools.cache
def _glibc() -> ctypes.CDLL | None:
  """The C library, if it has what is wanted of it."""
  try:
    libc = ctypes.CDLL(None)
    return libc if libc.malloc_trim and libc.mallopt else None
  except (AttributeError, OSError, TypeError):
    return None
