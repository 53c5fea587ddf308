"""Which non-linearity stands between the two products of an MLP? Named as configs name them."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """The exact GELU, x * P(N(0, 1) < x), by the error function, as PyTorch has it.

  `nn.gelu` takes the complementary one: two polynomials, an exponential and a quotient. On a TPU,
  where a product computes its operands on the fly, that is most of the product's program, and most
  of the time to compile it. In float32 whatever `x` is: 1 + erf loses digits where x is negative.
  """
  wide = x.astype(jnp.float32)
  return (wide * (0.5 + 0.5 * jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)


def quick_gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
  """x * sigmoid(1.702 x), which OpenAI's CLIP was trained with (Hendrycks and Gimpel 2016).

  In float32 whatever `x` is, as the other one.
  """
  wide = x.astype(jnp.float32)
  return (wide * jax.nn.sigmoid(1.702 * wide)).astype(x.dtype)


ACTIVATIONS: dict[str, Callable] = {
  "gelu_tanh": functools.partial(nn.gelu, approximate=True),
  "gelu": gelu,
  "quick_gelu": quick_gelu,
}


def activation(name: str) -> Callable:
  """The activation called `name`: "gelu_tanh" (big_vision, SigLIP), "gelu" (exact; timm, PS3) or
  "quick_gelu" (CLIP)."""
  if name not in ACTIVATIONS:
    raise ValueError(f"Activation act={name!r} is unknown; it is one of {sorted(ACTIVATIONS)}.")
  return ACTIVATIONS[name]
