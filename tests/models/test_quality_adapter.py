"""UniQA's adapter against its formula in float64, and what it begins as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import trees
from big_vision_ext.models import quality_adapter

VALUES = (0.2, 0.4, 0.6, 0.8, 1.0)


def made(seed=0, **kwargs):
  module = quality_adapter.QualityAdapter(VALUES, **kwargs)
  return module, lambda d: module.init(jax.random.key(seed), jnp.zeros((1, d)))["params"]


def test_it_is_a_residual_with_a_relu_after_both_layers():
  module, init = made()
  params = init(24)
  f = np.random.default_rng(0).normal(0, 3, (7, 24))
  got, out = module.apply({"params": params}, f.astype(np.float32))
  w1, w2 = (np.asarray(params[n]["kernel"], np.float64) for n in ("fc_0", "fc_2"))
  a = np.maximum(np.maximum(f @ w1, 0) @ w2, 0)
  assert (a == 0).any() and (a > 0).any()
  np.testing.assert_allclose(got, f + a, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(out["levels"], VALUES)


def test_of_b16s_features_it_has_the_published_number_of_parameters():
  params = jax.eval_shape(lambda: made()[1](512))
  assert trees.count(params) == 262_149
  assert {n: x.shape for n, x in trees.flatten(params).items()} == {
      "fc_0/kernel": (512, 256), "fc_2/kernel": (256, 512), "levels": (5,)}


def test_it_begins_as_torchs_linear_layers_do():
  params = made()[1](512)
  for name, fan_in in (("fc_0", 512), ("fc_2", 256)):
    w, bound = np.asarray(params[name]["kernel"]), fan_in**-0.5
    assert np.abs(w).max() <= bound and np.abs(w).max() > 0.99 * bound
    # Of 131,072 uniform numbers the deviation is known to a few thousandths.
    assert w.std() == pytest.approx(bound / 3**0.5, rel=0.01)


def test_begun_at_zero_it_is_the_identity_and_still_learns():
  module, init = made(zero_init_last=True)
  params = init(16)
  f = np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
  np.testing.assert_array_equal(module.apply({"params": params}, f)[0], f)
  grad = jax.grad(lambda p: module.apply({"params": p}, f)[0].sum())(params)
  assert np.abs(grad["fc_2"]["kernel"]).max() > 0


def test_a_width_that_cannot_be_divided_is_told():
  with pytest.raises(ValueError, match="15 numbers and reduction=2"):
    made()[1](15)
