"""How is a program compiled ahead of time: by which options, and what is left behind?"""

import ctypes
import functools
import pathlib
from typing import Any

import jax

# Which fusions jax's CPU compiler hands to YNNPACK.
_YNN_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
# From glibc's malloc.h; and the bytes from which an array has memory of its own.
_M_MMAP_THRESHOLD, _LARGE = -3, 2**20


def compiled(jitted: Any, *operands: Any) -> jax.stages.Compiled:
  """A jitted function compiled for operands like these.

  On a CPU the compiler leaves its memory to the process, about 0.1 GiB after a ViT-B: it is given
  back to the system, which a batch of large images can use. So are large arrays from then on, each
  when it is freed: by itself the C library keeps them for later ones that may not fit.
  """
  program = jitted.lower(*operands).compile(compiler_options=_options())
  if libc := _glibc():
    libc.malloc_trim(0)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE)
  return program


@functools.cache
def _options() -> dict[str, str]:
  """What the compiler is told beside its defaults.

  On a processor with AVX2 and no AVX-512 (AMD Zen 3), products by YNNPACK, the default, took an
  eighth longer than by Eigen (a ViT-B's look at 4K 9.5 s, not 8.5); with jax 0.10 it was the other
  way round. It keeps the reductions, of which small models are full.
  """
  if jax.default_backend() != "cpu" or jax.__version_info__ < (0, 12) or not _avx2_alone():
    return {}
  options = {_YNN_FUSIONS: "LIBRARY_FUSION_TYPE_REDUCE"}
  try:
    jax.jit(lambda x: x).lower(0.0).compile(compiler_options=options)
  except jax.errors.JaxRuntimeError:  # A compiler that has no such option.
    return {}
  return options


def _avx2_alone() -> bool:
  try:
    known = pathlib.Path("/proc/cpuinfo").read_text().split()
  except OSError:
    return False
  return "avx2" in known and "avx512f" not in known


@functools.cache
def _glibc() -> ctypes.CDLL | None:
  """The C library, if it has what is wanted of it."""
  try:
    libc = ctypes.CDLL(None)
    return libc if libc.malloc_trim and libc.mallopt else None
  except (AttributeError, OSError, TypeError):
    return None
