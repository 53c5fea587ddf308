import json

import pytest

from big_vision_ext.core import config as config_lib
from big_vision_ext.core.workdir import Workdir, WorkdirError


def make_config(**changes):
  return config_lib.resolve({"task": "siglip", "total_steps": 5, "batch_size": 8, **changes})


def test_a_directory_belongs_to_the_config_that_claimed_it(tmp_path):
  first = Workdir(tmp_path / "a" / "b", make_config(), writes=True)
  first.claim()
  first.close()
  with pytest.raises(WorkdirError, match="lr: 0.001 -> 0.5\nUse another --workdir"):
    Workdir(tmp_path / "a" / "b", make_config(lr=0.5), writes=True)
  again = Workdir(tmp_path / "a" / "b", make_config(total_steps=9), writes=True)
  assert again.changes == []
  again.close()


def test_changes_can_be_accepted_and_are_then_the_directorys(tmp_path):
  for lr, changes in ((0.1, []), (0.5, ["lr: 0.1 -> 0.5"]), (0.5, [])):
    workdir = Workdir(tmp_path, make_config(lr=lr), writes=True, accept_changes=True)
    assert workdir.changes == changes
    workdir.claim()
    workdir.close()
  assert json.loads((tmp_path / "config.json").read_text())["lr"] == 0.5


def test_a_start_that_failed_claims_nothing(tmp_path):
  Workdir(tmp_path, make_config(lr=0.1), writes=True).close()
  Workdir(tmp_path, make_config(lr=0.2), writes=True).close()


def test_a_directory_has_one_trainer_at_a_time(tmp_path):
  first = Workdir(tmp_path, make_config(), writes=True)
  with pytest.raises(WorkdirError, match=r"another process \(id \d+\) is training here"):
    Workdir(tmp_path, make_config(), writes=True)
  Workdir(tmp_path, make_config(), writes=False)  # the other processes of the same run
  first.close()
  Workdir(tmp_path, make_config(), writes=True).close()


def test_what_is_no_directory_is_an_error(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(WorkdirError, match="is a file"):
    Workdir(tmp_path / "file", make_config(), writes=True)
  with pytest.raises(WorkdirError, match="mounted file system"):
    Workdir("gs://bucket/run", make_config(), writes=True)
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(WorkdirError, match="config.json: is not JSON"):
    Workdir(tmp_path, make_config(), writes=True)
