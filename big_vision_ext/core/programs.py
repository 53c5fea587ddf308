"""How is a program compiled ahead of time without keeping what the compiler worked with?"""

import ctypes
import functools
from typing import Any

import jax


def compiled(jitted: Any, *operands: Any) -> jax.stages.Compiled:
  """A jitted function compiled for operands like these.

  On a CPU the compiler leaves its memory to the process, about 0.1 GiB after a ViT-B: it is given
  back to the system, which a batch of large images can use.
  """
  program = jitted.lower(*operands).compile()
  _give_back_memory()
  return program


def _give_back_memory() -> None:
  if trim := _malloc_trim():
    trim(0)


@functools.cache
def _malloc_trim():
  """glibc's function of this name; None with another C library, which has none."""
  try:
    return ctypes.CDLL(None).malloc_trim
  except (AttributeError, OSError, TypeError):
    return None
