"""How is a program compiled: by which options, what is left behind, and what is kept on disk?"""

import ctypes
import functools
import pathlib
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

try:
  from jax._src import compiler as jax_compiler
except ImportError:  # Its own affair; see `keep_no_collectives`.
  jax_compiler = None

# Which fusions jax's CPU compiler hands to YNNPACK.
_YNN_FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
# From glibc's malloc.h; and the bytes from which an array has memory of its own.
_M_MMAP_THRESHOLD, _LARGE = -3, 4 * 2**20


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
def keep_no_collectives() -> None:
  """From now on jax's cache on disk leaves out programs of several CPU devices.

  XLA loads such a program without the order of its collectives: each device begins them in another,
  and they wait for each other for ever (jax 0.10 to 0.12, about every second run). Compiled anew it
  has that order. jax asks one function, its own, for a program's name in the cache; where it has no
  such function, it keeps nothing.
  """
  name_of = getattr(jax_compiler, "_get_cache_key", None)
  if name_of is None:
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    return

  @functools.wraps(name_of)
  def name_of_one(options, backend, computation, devices, *args, **kwargs):
    if backend.platform == "cpu" and devices.size > 1:
      return None
    return name_of(options, backend, computation, devices, *args, **kwargs)

  jax_compiler._get_cache_key = name_of_one


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
