import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from big_vision_ext.core import config, optimizers, sharding


def make_mesh(*sizes):
  return sharding.make_mesh(config.Mesh(*sizes))


def box(shape, *names):
  return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


@pytest.mark.parametrize("sizes,shape", [
    ((-1, 1, 1), (8, 1, 1)), ((2, -1, 2), (2, 2, 2)), ((1, 4, 2), (1, 4, 2))])
def test_a_mesh_takes_what_is_left_over(sizes, shape):
  mesh = make_mesh(*sizes)
  assert tuple(mesh.shape.values()) == shape and mesh.axis_names == ("data", "fsdp", "tensor")
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


@pytest.mark.parametrize("most,tensor,shape", [
    (8, 1, (1, 8, 1)), (128, 1, (1, 8, 1)), (4, 1, (2, 4, 1)), (3, 1, (4, 2, 1)), (4, 2, (1, 4, 2)),
    (2, 2, (2, 2, 2))])
def test_fsdp_takes_no_more_than_it_may_and_data_the_rest(most, tensor, shape):
  mesh = sharding.make_mesh(config.Mesh(-1, -1, tensor, max_fsdp=most))
  assert tuple(mesh.shape.values()) == shape


@pytest.mark.parametrize("sizes,message", [
    ((-1, 3, 1), "3 does not divide the 8 devices"),
    ((4, 1, 1), "needs 4 devices, there are 8"),
    ((-1, -1, 1), "at most one -1"),
    ((0, 1, 1), "expected positive sizes"),
])
def test_a_mesh_that_does_not_fit_is_an_error(sizes, message):
  with pytest.raises(sharding.ShardingError, match=message):
    make_mesh(*sizes)


def test_fewer_devices_can_be_chosen():
  mesh = sharding.make_mesh(config.Mesh(), devices=jax.devices()[:2])
  assert mesh.shape["data"] == 2


def test_a_batch_is_cut_over_data_and_fsdp_or_says_what_would_fit():
  mesh = make_mesh(2, 2, 2)
  assert sharding.batch_sharding(mesh, 8).spec == P(("data", "fsdp"))
  with pytest.raises(sharding.ShardingError, match="batch_size=10 .*4 devices.*that can is 8"):
    sharding.batch_sharding(mesh, 10)
  with pytest.raises(sharding.ShardingError, match="4 accumulation steps.*that can is 16"):
    sharding.batch_sharding(mesh, 8, accum_steps=4)


def test_parameters_are_cut_by_their_logical_axes():
  params = {"mlp": box((8, 12), "embed", "mlp"), "scan": box((3, 8, 4, 2), "layers", "embed",
                                                             "heads", "kv"),
            "bias": box((6,), None), "plain": jax.ShapeDtypeStruct((8, 8), jnp.float32)}
  rules = sharding.merge_rules(())
  got = sharding.param_shardings(params, make_mesh(2, 2, 2), rules)
  assert got["mlp"].spec == P("fsdp", "tensor")
  assert got["scan"].spec == P(None, "fsdp", "tensor", None)
  assert got["bias"].is_fully_replicated and got["plain"].is_fully_replicated


def test_what_does_not_divide_stays_whole_and_large_ones_are_told(caplog):
  params = {"small": box((6, 8), "embed", "mlp"), "large": box((1023, 2048), "embed", "mlp")}
  got = sharding.param_shardings(params, make_mesh(1, 4, 2), sharding.merge_rules(()))
  assert got["small"].spec == P(None, "tensor") and got["large"].spec == P(None, "tensor")
  assert "large (1023, 2048): 1023 over fsdp=4" in caplog.text and "small" not in caplog.text


def test_small_parameters_stay_whole_on_request():
  params = {"a": box((8, 8), "embed", "mlp"), "b": box((8, 9), "embed", None)}
  got = sharding.param_shardings(
      params, make_mesh(1, 8, 1), sharding.merge_rules(()), min_size=65)
  assert got["a"].is_fully_replicated and got["b"].spec == P("fsdp", None)


def test_a_config_replaces_rules_by_name():
  rules = sharding.merge_rules((("embed", ("data", "fsdp")), ("mlp", None)))
  got = sharding.param_shardings({"a": box((8, 8), "embed", "mlp")}, make_mesh(4, 2, 1), rules)
  assert got["a"].spec == P(("data", "fsdp"), None)
  with pytest.raises(sharding.ShardingError, match="no mesh axis 'model'"):
    sharding.merge_rules((("embed", "model"),))


def test_optimiser_moments_live_with_their_parameters():
  mesh = make_mesh(1, 4, 2)
  boxed = {"a": box((8, 8), "embed", "mlp"), "b": box((3,), None)}
  shardings = sharding.param_shardings(boxed, mesh, sharding.merge_rules(()))
  params = sharding.unbox(boxed)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(mu_dtype=jnp.bfloat16))
  got = sharding.state_shardings(tx, params, shardings, mesh)
  adam = got[1]
  assert adam.mu == shardings and adam.nu == shardings and adam.count.is_fully_replicated


def test_factored_moments_are_cut_along_what_they_have_of_their_parameter():
  mesh = make_mesh(1, 4, 2)
  boxed = {"a": box((3, 64, 4, 32), "layers", "embed", "heads", "kv"), "b": box((8,), "mlp")}
  shardings = sharding.param_shardings(boxed, mesh, sharding.merge_rules(()))
  tx = optimizers.make(config.Optim("adafactor"), 1.0, sharding.unbox(boxed))
  got = sharding.state_shardings(tx, sharding.unbox(boxed), shardings, mesh)
  factored, momentum = got[1]
  # The largest axis, embed, is missing in the one, and the second, kv, in the other.
  assert factored.v_row["a"].spec == P(None, "tensor", None)
  assert factored.v_col["a"].spec == P(None, "fsdp", "tensor")
  assert factored.v["a"].is_fully_replicated and factored.v["b"].spec == P("tensor")
  assert momentum.ema == shardings and factored.count.is_fully_replicated


def test_the_ring_of_a_batch_has_the_axes_that_cut_it():
  def ring(rows, *sizes):
    with sharding.use(make_mesh(*sizes), ()):
      return sharding.batch_ring(rows)

  assert sharding.batch_ring(7) is None
  assert ring(16, 2, 4, 1) == sharding.Ring(("data", "fsdp"), 8)
  assert ring(16, 1, 4, 2) == sharding.Ring(("fsdp", "tensor"), 8)
  assert ring(12, 1, 4, 2) == sharding.Ring(("fsdp",), 4)
  assert ring(7, 1, 1, 8) is None
  with pytest.raises(sharding.ShardingError, match="6 rows cannot be cut evenly over fsdp: 4"):
    ring(6, 1, 4, 2)


def test_a_host_array_is_put_where_it_belongs():
  mesh = make_mesh(1, 8, 1)
  places = jax.sharding.NamedSharding(mesh, P("fsdp"))
  array = sharding.put(np.arange(16.0), places, jnp.bfloat16)
  assert array.sharding == places and array.dtype == jnp.bfloat16
  np.testing.assert_array_equal(array, np.arange(16))
