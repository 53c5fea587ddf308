"""A small training state with a sharded and a whole parameter, of two kinds of numbers."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from big_vision_ext.core import sharding


def place(mesh):
  """Shardings of `make_state`."""
  cut = NamedSharding(mesh, PartitionSpec("fsdp"))
  whole = sharding.replicated(mesh)
  return {"params": {"a": {"kernel": cut, "bias": whole}, "t": whole},
          "opt": ({"mu": cut},), "step": whole}


def make_state(mesh, scale=1.0):
  state = {
      "params": {"a": {"kernel": scale * jnp.arange(64.0).reshape(16, 4) / 7,
                       "bias": jnp.ones(4, jnp.bfloat16) / 3}, "t": jnp.float32(scale)},
      "opt": ({"mu": jnp.full((16, 4), 1e-20)},), "step": jnp.int32(3)}
  return jax.device_put(state, place(mesh))
