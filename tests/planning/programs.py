"""A program whose every exchange and product is known by hand, compiled on eight devices."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

TURNS = 5


@functools.cache
def text() -> str:
  """HLO of a loop of TURNS turns, each gathering (16, 32) float32 over fsdp for two products of
  (8, 16) rows a device, and of one exchange of each other kind after it."""
  mesh = jax.make_mesh((2, 4, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
  batch, whole = PartitionSpec(("data", "fsdp")), PartitionSpec()
  cut, each = PartitionSpec("fsdp"), PartitionSpec(None, "fsdp")

  @functools.partial(jax.shard_map, mesh=mesh, in_specs=(batch, each),
                     out_specs=(batch, cut, whole, whole), check_vma=False)
  def program(x, w):
    def turn(x, w):
      full = jax.lax.all_gather(w, "fsdp", tiled=True)
      return jnp.tanh(x @ full @ full.T), None

    x, _ = jax.lax.scan(turn, x, w)
    scattered = jax.lax.psum_scatter(jnp.ones((16, 32)) * x.sum(), "fsdp", tiled=True)
    y = jax.lax.ppermute(x, ("data", "fsdp"), [(i, (i + 1) % 8) for i in range(8)])
    z = jax.lax.psum(y.sum(0), "data")
    turned = jax.lax.all_to_all(y.reshape(4, -1), "fsdp", 0, 0)
    total = jax.lax.psum(turned.sum(), ("data", "fsdp"))
    return y + turned.reshape(y.shape), scattered, z, total

  def shape(dims, spec):
    return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, spec))

  x, w = shape((64, 16), batch), shape((TURNS, 16, 32), each)
  return jax.jit(program).lower(x, w).compile().as_text()
