"""Are these the numbers that were saved? One checksum an array, the same on every mesh."""

import jax
import jax.numpy as jnp
import numpy as np


@jax.jit
def of_devices(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
  """The sum of each array's bits as unsigned integers, modulo 2^32: the same on every mesh."""
  def one(x):
    if x.dtype == jnp.bool_:
      x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return jnp.sum(bits.astype(jnp.uint32), dtype=jnp.uint32)
  return {name: one(x) for name, x in arrays.items()}


def of_host(x: np.ndarray, chunk: int = 1 << 24) -> int:
  """What `of_devices` gives, of an array on the host."""
  bits = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * x.dtype.itemsize}")
  parts = (np.sum(bits[i:i + chunk], dtype=np.uint64) for i in range(0, bits.size, chunk))
  return sum(map(int, parts)) % 2**32
