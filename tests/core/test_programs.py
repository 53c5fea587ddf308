"""Programs compiled ahead of time give what they give otherwise, whatever the compiler knows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import programs


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
