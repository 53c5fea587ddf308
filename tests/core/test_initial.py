import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import checkpoint, config, initial, sharding, trees
from tests.core.small_state import make_state


@pytest.fixture
def mesh():
  return sharding.make_mesh(config.Mesh())


@pytest.fixture
def saved(mesh, tmp_path):
  """A workdir with checkpoints of steps 1 and 2, whose parameters are once and twice a base."""
  checkpoints = checkpoint.Checkpoints(tmp_path / "run")
  for step in (1, 2):
    checkpoints.save(step, make_state(mesh, step), {"config": {}})
  checkpoints.wait()
  checkpoints.close()
  return tmp_path / "run"


def load(mesh, path, params=None, **settings):
  params = make_state(mesh, 0.0)["params"] if params is None else params
  places = jax.tree.map(lambda _: sharding.replicated(mesh), params)
  init = config.Init(str(path), **settings)
  source, step = checkpoint.find(path)
  return initial.init_params(init, params, places, initial.rename(source.params(step), init))


@pytest.mark.parametrize("suffix,scale", [("", 2), ("checkpoints", 2), ("checkpoints/1", 1)])
def test_weights_come_from_a_workdir_or_one_checkpoint(suffix, scale, mesh, saved):
  params = load(mesh, saved / suffix)
  assert params["t"] == scale


def test_a_floating_dtype_follows_ours(mesh, saved):
  ours = make_state(mesh)["params"]
  ours["a"]["bias"] = ours["a"]["bias"].astype(jnp.float32)
  params = load(mesh, saved, ours)
  assert params["a"]["bias"].dtype == jnp.float32
  np.testing.assert_array_equal(params["a"]["bias"], np.full(4, jnp.bfloat16(1 / 3), np.float32))


def test_differences_are_errors_unless_allowed(mesh, saved):
  ours = {"a": make_state(mesh, 0.0)["params"]["a"], "b": jnp.full(3, 5.0)}
  with pytest.raises(checkpoint.CheckpointError, match="(?s)missing in it.* b .*extra in it.* t"):
    load(mesh, saved, ours)
  params = load(mesh, saved, ours, allow_missing=("b",), allow_extra=("t",))
  np.testing.assert_array_equal(params["b"], np.full(3, 5.0))
  np.testing.assert_array_equal(
      params["a"]["kernel"], make_state(mesh, 2)["params"]["a"]["kernel"])


def test_names_are_mapped(mesh, saved):
  ours = {"img": {"kernel": jnp.zeros((16, 4)), "bias": jnp.zeros(4)}, "t": jnp.float32(0)}
  params = load(mesh, saved, ours, map=(("a/(.*)", r"img/\1"),))
  np.testing.assert_array_equal(
      params["img"]["kernel"], make_state(mesh, 2)["params"]["a"]["kernel"])


def test_a_pattern_that_matches_everything_is_applied_once(mesh, saved):
  ours = {"img": {"a": make_state(mesh, 0.0)["params"]["a"], "t": jnp.float32(0)}}
  params = load(mesh, saved, ours, map=(("(.*)", r"img/\1"),))
  assert params["img"]["t"] == 2


def test_a_pattern_that_matches_nothing_is_an_error(mesh, saved):
  for settings in ({"map": (("c/.*", ""),)}, {"allow_missing": ("c/.*",)},
                   {"allow_extra": ("c/.*",)}):
    with pytest.raises(trees.PatternError, match=f"config.init.{list(settings)[0]}.*'c/"):
      load(mesh, saved, **settings)


def test_a_path_without_a_checkpoint_is_named(mesh, saved, tmp_path):
  with pytest.raises(checkpoint.CheckpointError, match="nowhere: there is no such directory"):
    load(mesh, tmp_path / "nowhere")
  with pytest.raises(checkpoint.CheckpointError, match="has no checkpoint"):
    load(mesh, tmp_path)
  with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of step 5, only of 1, 2"):
    load(mesh, saved / "checkpoints" / "5")
