import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import checkpoint, config, inventory, sharding, trees
from tests.core.small_state import make_state, place

MESHES = (config.Mesh(), config.Mesh(1, 8), config.Mesh(2, 2, 2))


def shapes(state):
  return jax.eval_shape(lambda: state)


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


@pytest.mark.parametrize("before", MESHES)
@pytest.mark.parametrize("after", MESHES)
def test_a_state_comes_back_bit_identical_on_any_mesh(before, after, tmp_path):
  before, after = sharding.make_mesh(before), sharding.make_mesh(after)
  state = make_state(before)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(7, state, {"config": {"lr": 1}})
  checkpoints.wait()
  back, meta = checkpoints.restore_latest(shapes(state), place(after))
  assert jax.tree.structure(back) == jax.tree.structure(state)
  for name, value in trees.flatten(back).items():
    np.testing.assert_array_equal(value, trees.flatten(state)[name])
    assert value.sharding == trees.flatten(place(after))[name]
    assert value.dtype == trees.flatten(state)[name].dtype
  assert meta["step"] == 7 and meta["config"] == {"lr": 1} and "jax" in meta["versions"]
  checkpoints.close()


def test_small_arrays_that_all_devices_hold_are_saved_without_a_program_for_each(
    mesh, tmp_path, caplog):
  """Only checksums are compiled, all of them at once."""
  places = sharding.replicated(mesh)
  state = {"params": {str(n): jax.device_put(jnp.ones((8, n)), places) for n in range(81, 89)},
           "step": jax.device_put(jnp.int32(1), places)}
  checkpoints = checkpoint.Checkpoints(tmp_path)
  with jax.log_compiles():
    checkpoints.save(1, state, {"config": {}})
    checkpoints.wait()
  checkpoints.close()
  assert caplog.text.count("Finished XLA compilation") == 1


def test_the_latest_two_and_the_multiples_of_keep_every_are_kept(mesh, tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path, keep_every=3)
  for step in range(1, 9):
    checkpoints.save(step, make_state(mesh), {"config": {}})
  checkpoints.wait()
  checkpoints.close()
  assert checkpoints.steps() == [3, 6, 7, 8]


def test_arrays_that_do_not_fit_are_listed_by_name(mesh, saved):
  want, places = make_state(mesh), place(mesh)
  want["params"]["a"]["kernel"] = jnp.zeros((8, 4))
  want["params"]["new"] = jnp.zeros(5)
  places["params"]["new"] = places["step"]
  del want["params"]["t"], places["params"]["t"]
  with pytest.raises(checkpoint.CheckpointError) as error:
    checkpoint.Checkpoints(saved, read_only=True).restore_latest(shapes(want), places)
  text = str(error.value)
  assert "missing in it (1):\n    params/new float32[5]" in text
  assert "extra in it (1):\n    params/t float32[]" in text
  assert "params/a/kernel: it has float32[16, 4], expected float32[8, 4]" in text


def data_files(folder):
  # Each value is in one or more of these: which, and in which form, is orbax's affair.
  return [path for path in (folder / "params").rglob("d/*") if path.is_file()]


def flip_bits(folder):
  for path in data_files(folder):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate_files(folder):
  for path in data_files(folder):
    path.write_bytes(path.read_bytes()[:-20])


def change_the_description(folder):
  path = next((folder / "meta").rglob("metadata"))
  text = path.read_text()
  assert '"sum": ' in text
  path.write_text(text.replace('"sum": ', '"sum": 1'))


DAMAGES = {
    "flipped bits": flip_bits,
    "truncated files": truncate_files,
    "other values than described": change_the_description,
    "no parameters": lambda folder: shutil.rmtree(folder / "params"),
    "no data files": lambda folder: [path.unlink() for path in data_files(folder)],
    "no description": lambda folder: shutil.rmtree(folder / "meta"),
    "an empty folder": lambda folder: (shutil.rmtree(folder), folder.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(damage, mesh, saved, caplog):
  DAMAGES[damage](saved / "checkpoints" / "2")
  checkpoints = checkpoint.Checkpoints(saved)
  state = make_state(mesh)
  back, meta = checkpoints.restore_latest(shapes(state), place(mesh), fall_back=True)
  assert meta["step"] == 1
  np.testing.assert_array_equal(back["params"]["a"]["kernel"], state["params"]["a"]["kernel"])
  assert "DAMAGED CHECKPOINT" in caplog.text and "Going back to step 1" in caplog.text
  assert len(list((saved / "damaged_checkpoints").iterdir())) == 1
  # The step can be reached and saved once more.
  checkpoints.save(2, state, {"config": {}})
  checkpoints.wait()
  assert checkpoints.steps() == [1, 2]
  checkpoints.close()


def test_a_damaged_checkpoint_stays_where_it_is_unless_asked_for_the_one_before(mesh, saved):
  flip_bits(saved / "checkpoints" / "2")
  state = make_state(mesh)
  with pytest.raises(checkpoint.DamagedError, match="checkpoints/2.*--fallback_checkpoint.*step 1"):
    checkpoint.Checkpoints(saved).restore_latest(shapes(state), place(mesh))
  assert (saved / "checkpoints" / "2").is_dir() and not (saved / "damaged_checkpoints").exists()


def test_every_file_of_a_checkpoint_that_is_cut_short_or_missing_is_named(mesh, saved):
  folder = saved / "checkpoints" / "2"
  checkpoints = checkpoint.Checkpoints(saved, read_only=True)
  # The others are the inventory itself and two that orbax adds when all else is done.
  files = [p for p in folder.rglob("*") if p.is_file() and p.parent != folder]
  assert len(files) > 10
  for path in files:
    data, name = path.read_bytes(), path.relative_to(folder)
    path.write_bytes(data[:-1])
    with pytest.raises(checkpoint.DamagedError, match="step 2 is damaged") as error:
      checkpoints.params(2)
    assert f"{name} has {len(data) - 1} bytes, {len(data)} were written" in str(error.value)
    path.unlink()
    with pytest.raises(checkpoint.DamagedError, match=f"{name} is missing"):
      checkpoints.restore(2, shapes(make_state(mesh)), place(mesh))
    path.write_bytes(data)
  assert checkpoints.params(2)["t"] == 2


def test_a_checkpoint_from_before_there_were_inventories_is_read(mesh, saved):
  (saved / "checkpoints" / "2" / inventory.NAME).unlink()
  _, meta = checkpoint.Checkpoints(saved).restore_latest(shapes(make_state(mesh)), place(mesh))
  assert meta["step"] == 2


def test_with_only_damaged_checkpoints_a_run_does_not_start_over(mesh, saved):
  for step in ("1", "2"):
    truncate_files(saved / "checkpoints" / step)
  state = make_state(mesh)
  with pytest.raises(checkpoint.DamagedError, match="no earlier checkpoint"):
    checkpoint.Checkpoints(saved).restore_latest(shapes(state), place(mesh), fall_back=True)


def test_another_format_version_is_an_error_that_says_so(mesh, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "VERSION", 99)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, make_state(mesh), {})
    checkpoints.wait()
  with pytest.raises(checkpoint.CheckpointError, match="version 99; this program reads"):
    checkpoints.restore_latest(shapes(make_state(mesh)), place(mesh))
  checkpoints.close()


def test_a_full_disk_is_a_clear_error_and_leaves_the_earlier_checkpoint(mesh, saved, monkeypatch):
  import orbax.checkpoint as ocp
  checkpoints = checkpoint.Checkpoints(saved)

  def full(*args, **kwargs):
    raise RuntimeError("save failed") from OSError(errno.ENOSPC, "No space left on device")
  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(checkpoint.CheckpointError, match="no space is left on the device.*1, 2"):
      checkpoints.save(3, make_state(mesh), {})
  state = make_state(mesh, 2.0)
  back, meta = checkpoints.restore_latest(shapes(state), place(mesh))
  assert meta["step"] == 2
  np.testing.assert_array_equal(back["params"]["a"]["kernel"], state["params"]["a"]["kernel"])
  checkpoints.close()


def test_the_moving_average_is_read_in_place_of_what_was_trained(mesh, tmp_path):
  state, checkpoints = make_state(mesh), checkpoint.Checkpoints(tmp_path)
  average = jax.tree.map(lambda x: 2 * x, {"a": state["params"]["a"], "t": None})
  config = {"task": "siglip", "total_steps": 5, "batch_size": 8}
  checkpoints.save(1, state, {"config": config})
  checkpoints.save(2, state | {"ema": average}, {"config": config})
  checkpoints.wait()
  checkpoints.close()
  params, (_, got, step) = state["params"], checkpoint.load_workdir(f"{tmp_path}:ema")
  assert step == 2
  np.testing.assert_array_equal(got["a"]["kernel"], 2 * params["a"]["kernel"])
  np.testing.assert_array_equal(got["a"]["bias"], 2 * params["a"]["bias"])
  np.testing.assert_array_equal(got["t"], params["t"])  # not trained, hence not averaged
  trained = checkpoint.load_workdir(tmp_path)[1]
  np.testing.assert_array_equal(trained["a"]["kernel"], params["a"]["kernel"])
  at_two, step = checkpoint.find(f"{tmp_path / 'checkpoints' / '2'}:ema")
  np.testing.assert_array_equal(at_two.params(step)["a/kernel"], got["a"]["kernel"])
  with pytest.raises(checkpoint.CheckpointError, match="1: holds no moving average.*config.ema"):
    checkpoint.load_workdir(f"{tmp_path}:ema", step=1)


def test_load_workdir_gives_config_parameters_and_step(mesh, tmp_path):
  written = {"task": "siglip", "total_steps": 5, "batch_size": 8, "optim": {"b2": 0.95}}
  checkpoints = checkpoint.Checkpoints(tmp_path)
  for step in (4, 5):
    checkpoints.save(step, make_state(mesh, step), {"config": written})
  checkpoints.wait()
  checkpoints.close()
  found, params, step = checkpoint.load_workdir(tmp_path)
  assert step == 5 and found.optim.b2 == 0.95 and params["t"] == 5
  assert isinstance(params["a"]["kernel"], np.ndarray)
  _, params, step = checkpoint.load_workdir(tmp_path, step=4)
  assert step == 4 and params["t"] == 4
