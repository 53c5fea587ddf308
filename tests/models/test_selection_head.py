"""The depthwise convolution and the gradient written for it are those of XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import selection_head


def grouped(x, kernel):
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), ((3, 3), (3, 3)), dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1], precision=jax.lax.Precision.HIGHEST)


@pytest.mark.parametrize("seed, shape", [(0, (2, 9, 5, 6)), (1, (1, 3, 12, 4)), (2, (3, 7, 7, 1))])
def test_depthwise_is_a_grouped_convolution_forward_and_backward(seed, shape):
  rng = np.random.default_rng(seed)
  draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32)
  x, kernel, weight = draw(*shape), draw(7, 7, 1, shape[-1]), draw(*shape)

  def run(f):
    loss = lambda x, k: jnp.sum(f(x, k) * weight)
    return f(x, kernel), *jax.grad(loss, (0, 1))(x, kernel)

  for ours, theirs in zip(run(selection_head.depthwise), run(grouped)):
    # Float32 sums of 49 or some hundred products, in another order.
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6 * np.abs(theirs).max())
