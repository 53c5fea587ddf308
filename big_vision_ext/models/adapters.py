"""What stands between a trunk and a pooling head that were not trained together?"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from big_vision_ext.models import activations, blocks
from big_vision_ext.models.selection_head import Linear


class PoolAdapter(nn.Module):
  """Tokens of one model in the space of another: C-RADIO's, as PS3 pools them (its "v2").

  A projection, `depth` residual blocks x + fc(gelu(norm(x))), and fc2(gelu(norm(x))), with exact
  GELU and LayerNorms of epsilon 1e-5.

  Attributes:
    hidden: width inside.
    features: width of the output.
    depth: number of residual blocks.
  """

  hidden: int
  features: int
  depth: int = 3
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = Linear(self.hidden, ("embed", "mlp"), **types, name="fc1")(x)
    for i in range(self.depth):
      x = x + AdapterBlock(self.hidden, **types, name=f"block_{i}")(x)
    x = activations.gelu(blocks.layer_norm("out_norm", 1e-5, **types)(x))
    return Linear(self.features, ("mlp", "embed"), **types, name="fc2")(x)


class AdapterBlock(nn.Module):
  """fc(gelu(norm(x))) of the same width."""

  features: int
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
    x = activations.gelu(blocks.layer_norm("norm", 1e-5, **types)(x))
    return Linear(self.features, ("mlp", None), **types, name="fc")(x)
