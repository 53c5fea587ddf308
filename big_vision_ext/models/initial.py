"""What values do kernels and biases begin with, where Flax has no name for it?"""

import math

import jax
import jax.numpy as jnp


def uniform(bound: float):
  """Uniform up to `bound`. Drawn as one row: programs that draw axes apart, as many as there are
  convolutions in some models, take minutes to compile on CPUs. The numbers are the same."""

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

  return init


def pytorch(fan: int):
  """PyTorch's convolutions and dense layers, kernels and biases: uniform up to fan ** -0.5."""
  return uniform(fan**-0.5)


def pytorch_kernel(key, shape, dtype=jnp.float32):
  """The same of a kernel (..., in, out), whose fan its shape tells."""
  return pytorch(math.prod(shape[:-1]))(key, shape, dtype)


def kaiming(gain: float):
  """He's normal values of kernels (y, x, in, out), times `gain`; drawn as one row, too."""

  def init(key, shape, dtype=jnp.float32):
    drawn = jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
    return gain * math.sqrt(2 / math.prod(shape[:3])) * drawn

  return init
