"""Command lines that hosts can run, and those that are refused."""

import pytest

from launch import train_command
from launch.train_command import CommandError, Mount


def prepare(*argv, root, **options):
  return train_command.prepare(["python", "-m", *argv], processes=options.pop("processes", 1),
                               root=root, **options)


@pytest.fixture
def root(tmp_path):
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs" / "c.py").touch()
  return tmp_path


TRAIN = ("big_vision_ext.train", "--config", "configs/c.py:data=gs://data-b/x,init=gs://b2b/w.npz",
         "--workdir=gs://data-b/runs/r")


def test_buckets_anywhere_in_the_command_become_mounted_directories(root):
  command = prepare(*TRAIN, root=root)
  assert command.argv[3:] == ("--config",
                              "configs/c.py:data=/gcs/data-b/x,init=/gcs/b2b/w.npz",
                              "--workdir=/gcs/data-b/runs/r")
  assert command.workdir == "/gcs/data-b/runs/r"
  assert command.mounts == (Mount("gs://data-b", "/gcs/data-b"), Mount("gs://b2b", "/gcs/b2b"))


def test_a_mount_of_ones_own_takes_the_place_of_the_usual_one(root):
  command = prepare(*TRAIN, root=root, mounts=["gs://data-b=/data", "nfs://10.0.0.2/share=/mnt/s"])
  assert command.workdir == "/data/runs/r"
  assert [str(m) for m in command.mounts] == [
      "gs://data-b=/data", "nfs://10.0.0.2/share=/mnt/s", "gs://b2b=/gcs/b2b"]


def test_several_processes_are_told_that_they_are(root):
  assert "--distributed" not in prepare(*TRAIN, root=root).argv
  assert prepare(*TRAIN, root=root, processes=2).argv.count("--distributed") == 1
  assert prepare(*TRAIN, "--distributed", root=root, processes=2).argv.count("--distributed") == 1


@pytest.mark.parametrize("argv, message", [
    ([], "does not begin with `python -m MODULE`"),
    (["bash", "-c", "x"], "does not begin with `python -m MODULE`"),
    (["python", "-m", "big_vision_ext.train", "--config", "configs/c.py"], "no --workdir"),
    (["python", "-m", "big_vision_ext.train", "--workdir", "gs://bbb/r"], "no --config"),
    (["python", "-m", "big_vision_ext.train", "--config", "configs/d.py", "--workdir",
      "gs://bbb/r"], "configs/d.py: no such file"),
    (["python", "-m", "x", "--workdir", "runs/x"], "is on the disk of the machine"),
    (["python", "-m", "x", "--workdir", "/mnt/xy/r"], "is on the disk of the machine"),
    (["python", "-m", "x", "--workdir", "gs://B!/r"], "the bucket's name"),
])
def test_what_would_not_run_or_not_survive_is_refused(argv, message, root):
  with pytest.raises(CommandError, match=message):
    train_command.prepare(argv, processes=1, root=root, mounts=["nfs://s/e=/mnt/x"])


@pytest.mark.parametrize("mounts, env, message", [
    (["s3://b=/x"], [], "expected gs://BUCKET=DIR"), (["gs://bbb=x y"], [], "no absolute path"),
    ([], ["hunter2"], "expected NAME=VALUE")])
def test_mounts_and_variables_are_checked(mounts, env, message, root):
  with pytest.raises(CommandError, match=message):
    prepare("x", "--workdir", "gs://bbb/r", root=root, mounts=mounts, env=env)


def test_a_misspelt_variable_is_not_shown(root):
  with pytest.raises(CommandError) as error:
    prepare("x", "--workdir", "gs://bbb/r", root=root, env=["MY KEY=hunter2"])
  assert "hunter2" not in str(error.value)


def test_values_of_names_that_look_like_secrets_are_secrets(root):
  command = prepare("x", "--workdir", "gs://bbb/r", root=root,
                    env=["HF_TOKEN=a1", "WANDB_API_KEY=b2", "LIBTPU_INIT_ARGS=--x", "EMPTY_TOKEN="])
  assert command.secrets == ("a1", "b2")
