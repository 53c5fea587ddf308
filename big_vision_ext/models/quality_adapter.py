"""What adapts the features of a frozen CLIP to scores of quality? UniQA's adapter.

Two layers without biases, half as wide in the middle, a ReLU after each, added to the feature; and
the values of the five levels, which are trained along with it, as in the released code. For
features of 512 numbers and five levels that is 262,149 parameters (arXiv 2406.01069).
"""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# What torch.nn.Linear begins with: uniform within 1 / sqrt(fan in).
_TORCH_DEFAULT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class QualityAdapter(nn.Module):
  """f + relu(W2 relu(W1 f)), and the values of the levels.

  Attributes:
    values: what the values of the levels begin with.
    reduction: how much narrower the middle is.
    zero_init_last: begin as the identity, where scores are those without an adapter. The second
      ReLU is left out then: at zero it would let no gradient through, for good.
  """

  values: Sequence[float]
  reduction: int = 2
  zero_init_last: bool = False

  @nn.compact
  def __call__(self, feature: Float[Array, "b d"]):
    """Features of images, as the image tower gives them (not of unit length).

    Returns:
      The adapted features (b, d), float32, and out: `levels` (k,), the values of the levels.

    Raises:
      ValueError: the width cannot be divided.
    """
    d = feature.shape[-1]
    if d % self.reduction or self.reduction < 1:
      raise ValueError(
          f"features of {d} numbers and reduction={self.reduction}: expected a divisor")
    dense = lambda width, init, name: nn.Dense(
        width, use_bias=False, kernel_init=init, dtype=jnp.float32, precision="highest", name=name)
    feature = feature.astype(jnp.float32)
    last = nn.initializers.zeros if self.zero_init_last else _TORCH_DEFAULT
    # Named by their places in the released file.
    a = nn.relu(dense(d // self.reduction, _TORCH_DEFAULT, "fc_0")(feature))
    a = dense(d, last, "fc_2")(a)
    a = a if self.zero_init_last else nn.relu(a)
    levels = self.param("levels", lambda _: jnp.asarray(self.values, jnp.float32))
    return feature + a, {"levels": levels}
