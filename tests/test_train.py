import errno
import json
import pathlib
import threading

import jax
import numpy as np
import pytest

from big_vision_ext import train
from big_vision_ext.core import checkpoint, feed, inspection, metrics, trees
from big_vision_ext.core import step as step_lib
from input_pipeline import loader
from tests import toy_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
  """A run of 10 steps with checkpoints at 5 and 10. Not to be changed by tests."""
  workdir = tmp_path_factory.mktemp("finished")
  assert start(data, workdir) == 0
  return workdir


def start(data, workdir, *extra, steps=10):
  """Runs the trainer in this process; returns its exit code."""
  return train.main([f"--config=tests/toy_config.py:data={data},steps={steps}",
                     f"--workdir={workdir}", *extra])


def last_params(workdir, step=None):
  return trees.flatten(checkpoint.load_workdir(workdir, step)[1])


def watchers():
  return [t for t in threading.enumerate() if t.name == "watchdog"]


def test_a_run_leaves_its_config_metrics_and_checkpoints(finished):
  config, params, step = checkpoint.load_workdir(finished)
  assert step == 10 and config.batch_size == 8
  assert set(trees.names(params)) == {"fc1/kernel", "fc1/bias", "fc2/kernel", "fc2/bias", "t"}
  assert json.loads((finished / "config.json").read_text())["task"] == "tests.toy_task"
  lines = metrics.read(finished)
  assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4, 6, 8, 10]
  evaluated = [line for line in lines if "held_out/image_to_text/recall_at_1" in line]
  assert [line["step"] for line in evaluated] == [4, 8, 10]
  assert {"loss", "error", "lr", "grad_norm", "update_norm", "param_norm", "skipped_updates",
          "examples_seen", "time/step", "time/data_wait", "time/examples_per_second_per_chip",
          "time/goodput", "skipped_records", "skipped_records/data"} <= lines[-2].keys()
  losses = [line["loss"] for line in lines if "loss" in line]
  assert losses[-1] < losses[0]
  assert lines[-2]["examples_seen"] == 80


def test_a_finished_run_says_so_and_changes_nothing(data, finished, capsys):
  before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and p.name != ".lock"}
  assert start(data, finished) == 0
  out = capsys.readouterr().out
  assert "This run is complete: step 10 of 10" in out
  assert "held_out/image_to_text/recall_at_1" in out and "loss" in out
  assert before == {p: p.read_bytes() for p in before}


def test_set_up_is_told_step_by_step(data, tmp_path, capsys):
  assert start(data, tmp_path, steps=1) == 0
  out = capsys.readouterr().out
  for text in ("8 cpu device(s)", "24 examples an epoch", "fc1/kernel", "Initialising the param",
               "Reading the first batch", "Compiling the training step",
               "the model has 3,157 parameters", "each device: arguments", "temporaries",
               "Evaluating held_out",
               "step 1/1  loss", "Done: step 1"):
    assert text in out


def test_a_longer_total_goes_on_and_on_any_mesh_comes_to_the_same(data, tmp_path):
  """Stopped after 5 of 10 steps on 8 x data, the rest on 4 x fsdp, 2 x tensor."""
  constant = "--config.schedule.type=constant"
  assert start(data, tmp_path / "whole", constant) == 0
  assert start(data, tmp_path / "parts", constant, steps=5) == 0
  assert start(data, tmp_path / "parts", constant, "--config.mesh.data=1", "--config.mesh.fsdp=4",
               "--config.mesh.tensor=2", "--config.min_shard_size=0") == 0
  want = last_params(tmp_path / "whole")
  for name, value in last_params(tmp_path / "parts").items():
    # Sums are taken in another order on another mesh.
    np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_settings_of_this_hardware_are_used_and_the_average_is_evaluated_kept_and_read(
    data, tmp_path, capsys):
  own = ["--config.hardware.cpu.ema=0.9", "--config.hardware.cpu.batch_size=16",
         "--config.hardware.v5e.batch_size=1"]
  assert start(data, tmp_path, *own, steps=3) == 0
  assert "On cpu these settings are used: {'batch_size': 16, 'ema': 0.9}" in capsys.readouterr().out
  config, _, _ = checkpoint.load_workdir(tmp_path)
  assert (config.batch_size, config.ema) == (16, 0.9)
  trained, average = last_params(tmp_path), last_params(f"{tmp_path}:ema")
  assert trained.keys() == average.keys()
  assert all(not np.array_equal(trained[n], average[n]) for n in trained)
  # Goes on from where both were, and starts others from either.
  assert start(data, tmp_path, *own, steps=4) == 0
  assert start(data, tmp_path / "other", f"--config.init={tmp_path}:ema", "--config.lr=0.0",
               "--config.optim.weight_decay=0.0", steps=1) == 0
  for name, value in last_params(f"{tmp_path}:ema").items():
    np.testing.assert_allclose(last_params(tmp_path / "other")[name], value, atol=1e-6)


BAD = {
    "config.optim.wegiht_decay: there is no such setting; did you mean 'weight_decay'":
        ["--config.optim.wegiht_decay=1"],
    "config.input.image_siz: there is no such setting; did you mean 'image_size'":
        ["--config.input.image_siz=8"],
    "config.evals.held_out.input.splt: there is no such setting; did you mean 'split'":
        ["--config.evals.held_out.input.splt=val"],
    "config.model.widht: there is no such setting; did you mean 'width'":
        ["--config.model.widht=8"],
    "config.batch_size='many': expected int, got str": ["--config.batch_size=many"],
    "config.batch_size=12 cannot be divided among 8 devices": ["--config.batch_size=12"],
    "config.mesh (data=-1, fsdp=3, tensor=1)": ["--config.mesh.fsdp=3"],
    "config.optim.freeze: the pattern 'fc9/.*' matches no parameter":
        ["--config.optim.freeze=('fc9/.*',)"],
    "image: the task wants uint8(8, 8, 8, 3), the input gives uint8(8, 16, 16, 3)":
        ["--config.input.image_size=16"],
    "nowhere: there is no such file or folder": ["--config.init=nowhere"],
    "config.evals.held_out.type='retrieval'": ["--config.evals.held_out.type=retrieval"],
    "unknown argument '--worksdir=x'; did you mean --workdir?": ["--worksdir=x"],
    "config.total_percent": ["--config.total_percent=5"],
    "config.nan_limit=0: expected at least 1": ["--config.nan_limit=0"],
    "config.peer_seconds=3: expected at least 10": ["--config.peer_seconds=3"],
    "config.profile_steps=(0, 3): expected (first step, how many)":
        ["--config.profile_steps=(0,3)"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_clear_line_and_claims_nothing(message, data, tmp_path, capsys):
  assert start(data, tmp_path / "run", *BAD[message]) == 2
  err = capsys.readouterr().err
  assert message in err and "Traceback" not in err and err.startswith("error: ")
  assert not (tmp_path / "run" / "config.json").exists()


def test_missing_data_and_files_are_named(data, tmp_path, capsys):
  assert start(tmp_path / "nodata", tmp_path / "run") == 2
  assert "nodata" in capsys.readouterr().err
  assert train.main(["--config=nowhere.py", f"--workdir={tmp_path}"]) == 2
  assert "there is no file nowhere.py" in capsys.readouterr().err
  assert train.main(["--config=tests/toy_config.py"]) == 2
  assert "expected --config FILE and --workdir DIR" in capsys.readouterr().err


def test_debug_shows_where_an_error_came_from(data, tmp_path, capsys):
  assert start(data, tmp_path, "--config.batch_size=many", "--debug") == 2
  assert "Traceback" in capsys.readouterr().err


def test_another_config_does_not_get_the_workdir_unless_told_to(data, finished, tmp_path, capsys):
  assert start(data, finished, "--config.lr=0.5") == 2
  assert "lr: 0.01 -> 0.5" in capsys.readouterr().err
  assert start(data, tmp_path, steps=2) == 0
  assert start(data, tmp_path, "--config.lr=0.5", "--resume_with_changes", steps=4) == 0
  out = capsys.readouterr().out
  assert "The config has changed in\n  lr: 0.01 -> 0.5" in out and "Going on from step 2" in out


def test_resume_takes_another_run_whole(data, finished, tmp_path):
  assert start(data, tmp_path, f"--config.resume={finished}", steps=12) == 0
  assert [line["step"] for line in metrics.read(tmp_path) if "loss" in line] == [12]
  assert start(data, tmp_path / "short", f"--config.resume={finished}", steps=8) == 2


def test_init_takes_the_weights_only(data, finished, tmp_path):
  # With a learning rate of 0 the weights stay what they were.
  assert start(data, tmp_path, f"--config.init={finished}/checkpoints/5", "--config.lr=0.0",
               "--config.optim.weight_decay=0.0", steps=1) == 0
  want = last_params(finished, 5)
  for name, value in last_params(tmp_path).items():
    np.testing.assert_array_equal(value, want[name])
  assert checkpoint.load_workdir(tmp_path)[2] == 1
  # What it began from is kept, also by runs that go on, for the cards of what is exported.
  assert start(data, tmp_path, f"--config.init={finished}/checkpoints/5", "--config.lr=0.0",
               "--config.optim.weight_decay=0.0", "--config.total_steps=2", steps=1) == 0
  (source,) = checkpoint.Checkpoints(tmp_path, read_only=True).meta(2)["init"]
  assert source["path"] == f"{finished}/checkpoints/5" and "step 5" in source["format"]


def test_a_model_of_another_shape_gets_a_list_of_what_differs(data, finished, tmp_path, capsys):
  assert start(data, tmp_path, f"--config.init={finished}", "--config.model.width=8") == 2
  err = capsys.readouterr().err
  assert "fc1/kernel: it has floating[192, 16], expected floating[192, 8]" in err


def test_a_loss_that_is_not_finite_stops_the_run_or_is_skipped(data, tmp_path, capsys):
  assert start(data, tmp_path, "--config.model.nan_at=0.0") == 2
  err = capsys.readouterr().err
  assert "not finite" in err and "config.nan_policy='skip'" in err
  # A program that goes on after a run that failed is not ended by the run's watchdog later.
  for dog in watchers():
    dog.join(5)
  assert not watchers()
  assert start(data, tmp_path, "--config.model.nan_at=0.0", "--config.nan_policy=skip") == 0
  assert metrics.read(tmp_path)[-2]["skipped_updates"] == 10


def test_a_roll_back_passes_over_the_batches_since_the_checkpoint_also_when_interrupted(
    data, tmp_path, capsys, monkeypatch):
  """Batches 9, 14 and no other up to 23 are so dark that their loss is not finite."""
  dark = ["--config.model.nan_below=125.5", "--config.nan_policy=roll_back"]
  used, check_batch = [], step_lib.check_batch

  def watched(spec, batch, *args):
    used.append(batch["image"].mean())
    if len(used) == stop_at:
      raise ValueError("the power is gone")
    return check_batch(spec, batch, *args)
  monkeypatch.setattr(step_lib, "check_batch", watched)
  stop_at = None
  assert start(data, tmp_path / "whole", *dark, steps=14) == 0
  out = capsys.readouterr().out
  assert "ROLL-BACK: an update was not finite by step 10 (loss nan" in out
  assert "and on with batch 10 (roll-back 1 of 3)" in out and "roll-back 2 of 3" in out
  # Steps 1 to 10; from the checkpoint of step 5, 6 to 10 with those that follow; 6 to 14 likewise.
  config = loader.InputConfig(data=data, image_size=8, text_len=4, threads=1)
  stream = [b["image"].mean() for b, _ in zip(
      loader.train_stream(config, batch_size=8, seed=0), range(24))]
  assert used == stream[:10] + stream[10:15] + stream[15:24]
  lines = metrics.read(tmp_path / "whole")
  assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4, 6, 8, 10, 12, 14]
  assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line)
  last = metrics.last_values(tmp_path / "whole")
  assert last["roll_backs"] == 2 and last["passed_over_batches"] == 10
  assert last["skipped_updates"] == 0 and last["examples_seen"] == 14 * 8

  # Ended by an error at step 8 after the first one, and at step 12 after the second.
  used, stop_at = [], 13
  assert start(data, tmp_path / "parts", *dark, steps=14) == 2
  used, stop_at = [], 17
  assert start(data, tmp_path / "parts", *dark, steps=14) == 2
  assert used[:5] == stream[5:10]
  used, stop_at = [], None
  assert start(data, tmp_path / "parts", *dark, steps=14) == 0
  assert used == stream[20:24]
  assert metrics.last_values(tmp_path / "parts") == last
  want = last_params(tmp_path / "whole")
  for name, value in last_params(tmp_path / "parts").items():
    np.testing.assert_array_equal(value, want[name], err_msg=name)

  assert start(data, tmp_path / "limit", *dark, "--config.nan_limit=1", steps=14) == 2
  assert "after 1 roll-backs, which is config.nan_limit" in capsys.readouterr().err


def test_too_many_skips_in_a_row_end_a_run(data, tmp_path, capsys):
  assert start(data, tmp_path, "--config.model.nan_at=0.0", "--config.nan_policy=skip",
               "--config.nan_limit=3") == 2
  assert "updates were all not finite" in capsys.readouterr().err


def test_checks_name_the_operation_that_a_nan_came_from(data, tmp_path, capsys):
  # Even where the policy would go on.
  assert start(data, tmp_path, "--config.model.nan_at=0.0", "--config.nan_policy=skip",
               "--config.debug.checks=True") == 2
  err = capsys.readouterr().err
  assert "config.debug.checks: invalid value (nan)" in err and "toy_task.py, line" in err


def test_checks_find_transfers_that_nobody_asked_for(data, tmp_path, capsys, monkeypatch):
  assert start(data, tmp_path / "good", "--config.debug.checks=True", steps=2) == 0
  next_batch, count = feed.Feed.next, []

  def forgetful(self):
    count.append(1)
    batch = next_batch(self)
    return batch if len(count) == 1 else {name: np.asarray(x) for name, x in batch.items()}
  monkeypatch.setattr(feed.Feed, "next", forgetful)
  assert start(data, tmp_path / "bad", "--config.debug.checks=True") == 2
  err = capsys.readouterr().err
  assert "config.debug.checks: " in err and "Disallowed host-to-device transfer" in err


def test_a_profile_of_the_chosen_steps_can_be_read(data, tmp_path):
  assert start(data, tmp_path, "--config.profile_steps=(3,2)", steps=6) == 0
  (file,) = (tmp_path / inspection.PROFILE_FOLDER).rglob("*.xplane.pb")
  profile = jax.profiler.ProfileData.from_file(str(file))
  steps = {dict(event.stats).get("step_num") for plane in profile.planes for line in plane.lines
           for event in line.events if event.name == "train"}
  assert steps == {3, 4}


def test_no_space_for_a_checkpoint_ends_the_run_and_it_can_go_on_later(
    data, finished, tmp_path, capsys, monkeypatch):
  import orbax.checkpoint as ocp
  save = ocp.CheckpointManager.save

  def full(self, step, **kwargs):
    if step == 10:
      raise OSError(errno.ENOSPC, "No space left on device")
    return save(self, step, **kwargs)
  with monkeypatch.context() as patch:
    patch.setattr(ocp.CheckpointManager, "save", full)
    assert start(data, tmp_path) == 2
  err = capsys.readouterr().err
  assert "no space is left on the device to save step 10" in err and "there: 5" in err
  assert start(data, tmp_path) == 0
  want = last_params(finished)
  for name, value in last_params(tmp_path).items():
    np.testing.assert_array_equal(value, want[name])


def test_a_damaged_last_checkpoint_is_recomputed_from_the_one_before(
    data, finished, tmp_path, capsys):
  import shutil
  workdir = tmp_path / "copy"
  shutil.copytree(finished, workdir)
  for path in (workdir / "checkpoints" / "10" / "params").rglob("d/*"):
    path.write_bytes(path.read_bytes()[:-20])
  # The run looks complete, so it is asked to go one step further.
  assert start(data, workdir, steps=12) == 2
  err = capsys.readouterr().err
  assert "checkpoints/10: step 10 is damaged" in err and "--fallback_checkpoint" in err
  assert start(data, workdir, "--fallback_checkpoint", steps=12) == 0
  captured = capsys.readouterr()
  assert "DAMAGED CHECKPOINT" in captured.err and "Going on from step 5 of 12" in captured.out
  assert (workdir / "damaged_checkpoints").is_dir()
  steps = [line["step"] for line in metrics.read(workdir) if "loss" in line]
  assert steps == [1, 2, 4, 6, 8, 10, 12]


def test_the_parameters_are_big_visions_state_and_nothing_else(finished):
  description = checkpoint.Checkpoints(finished, read_only=True).meta(10)
  assert pathlib.Path(finished / "checkpoints" / "10").is_dir()
  assert {"format", "version", "step", "versions", "arrays", "config", "clock", "feed",
          "roll_backs"} == set(description)
  assert description["versions"]["jax"] == jax.__version__
  assert description["arrays"]["params/fc1/kernel"]["shape"] == [192, 16]
