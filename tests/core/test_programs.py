"""Programs compiled ahead of time give what they give otherwise, whatever the compiler knows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import compiler as jax_compiler
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import NamedSharding, PartitionSpec

from big_vision_ext.core import config, programs, sharding


@pytest.mark.parametrize("known", [True, False])
def test_an_option_that_the_compiler_does_not_have_is_left_out(monkeypatch, known):
  programs._options.cache_clear()
  monkeypatch.setattr(programs, "_avx2_alone", lambda: True)
  monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
  if not known:
    monkeypatch.setattr(programs, "_YNN_FUSIONS", "xla_cpu_no_such_option")
  try:
    assert bool(programs._options()) == known
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    f = programs.compiled(jax.jit(lambda x: jnp.tanh(x @ x).sum(0)), x)
    np.testing.assert_allclose(f(x), np.tanh(x @ x).sum(0), atol=1e-4)
  finally:
    programs._options.cache_clear()


@pytest.fixture
def kept(monkeypatch, tmp_path):
  """Names of what jax keeps on disk, in a folder of the test's own."""
  before = {name: getattr(jax.config, name) for name in (
    "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
    "jax_enable_compilation_cache")}
  # The patch as jax had it, whatever other tests have done.
  name_of = getattr(jax_compiler._get_cache_key, "__wrapped__", jax_compiler._get_cache_key)
  monkeypatch.setattr(jax_compiler, "_get_cache_key", name_of)
  programs.keep_no_collectives.cache_clear()
  jax.config.update("jax_compilation_cache_dir", str(tmp_path))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_enable_compilation_cache", True)
  compilation_cache.reset_cache()
  yield lambda: {path.name.split("-")[0] for path in tmp_path.glob("*-cache")}
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.mark.parametrize("jax_is_known", [True, False])
def test_a_program_of_several_cpu_devices_is_not_kept_on_disk(kept, monkeypatch, jax_is_known):
  def one(x):
    return x * 2 + 1

  def first(x):
    return x.sum(0)

  def second(x):
    return x.sum(0) * 2

  x = np.arange(16.0).reshape(8, 2)
  rows = NamedSharding(jax.make_mesh((8,), ("rows",)), PartitionSpec("rows"))
  jax.jit(first)(jax.device_put(x, rows))
  assert "jit_first" in kept()  # As jax does by itself.
  if not jax_is_known:
    monkeypatch.delattr(jax_compiler, "_get_cache_key")
  sharding.make_mesh(config.Mesh())
  if jax_is_known:
    jax.jit(one)(x)
    np.testing.assert_array_equal(jax.jit(second)(jax.device_put(x, rows)), x.sum(0) * 2)
    assert "jit_one" in kept() and "jit_second" not in kept()
  else:
    assert not jax.config.jax_enable_compilation_cache
