"""The code that is sent: all of it, nothing else, and under a name that says which."""

import json
import os
import subprocess
import tarfile

import pytest

from launch import snapshot
from tests.launch.conftest import commit


@pytest.fixture
def root(tmp_path):
  root = tmp_path / "code"
  (root / "pkg").mkdir(parents=True)
  (root / "pkg" / "a.py").write_text("a = 1\n")
  (root / "run.sh").write_text("#!/bin/sh\n")
  (root / "run.sh").chmod(0o755)
  (root / "link").symlink_to("pkg/a.py")
  (root / ".gitignore").write_text("data/\n")
  commit(root)
  return root


def files_of(code, folder):
  snapshot.pack(code, folder / "x.tar.gz")
  with tarfile.open(folder / "x.tar.gz") as tar:
    tar.extractall(folder / "out", filter="tar")
  return folder / "out"


def test_a_clean_tree_is_named_by_its_commit_and_arrives_whole(root, tmp_path):
  code = snapshot.take(root)
  head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True,
                        text=True).stdout.strip()
  assert code.name == head[:12] and code.dirty == ()
  out = files_of(code, tmp_path)
  assert (out / "pkg" / "a.py").read_text() == "a = 1\n"
  assert os.access(out / "run.sh", os.X_OK) and not os.access(out / "pkg" / "a.py", os.X_OK)
  assert os.readlink(out / "link") == "pkg/a.py"
  assert json.loads((out / snapshot.RECORD).read_text()) == {
      "name": head[:12], "commit": head, "dirty": []}


def test_changes_of_tracked_files_are_sent_and_named(root, tmp_path):
  clean = snapshot.take(root)
  (root / "pkg" / "a.py").write_text("a = 2\n")
  (root / "run.sh").unlink()
  code = snapshot.take(root)
  assert code.name.startswith(f"{clean.name}-dirty-")
  assert {entry.split()[-1] for entry in code.dirty} == {"pkg/a.py", "run.sh"}
  out = files_of(code, tmp_path)
  assert (out / "pkg" / "a.py").read_text() == "a = 2\n" and not (out / "run.sh").exists()
  # Other changes, another name; the same ones again, the same.
  (root / "pkg" / "a.py").write_text("a = 3\n")
  assert snapshot.take(root).name != code.name
  (root / "pkg" / "a.py").write_text("a = 2\n")
  assert snapshot.take(root).name == code.name


def test_untracked_files_stay_and_are_named_ignored_ones_are_not(root, tmp_path):
  (root / "new.py").touch()
  (root / "data").mkdir()
  (root / "data" / "big").touch()
  code = snapshot.take(root)
  assert code.untracked == ("new.py",) and "new.py" in code.describe()
  assert not (files_of(code, tmp_path) / "new.py").exists()


def test_the_same_code_is_packed_into_the_same_bytes(root, tmp_path):
  for name in ("a", "b"):
    snapshot.pack(snapshot.take(root), tmp_path / name)
  assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_unpacking_twice_gives_one_folder_and_leaves_no_rest(root, tmp_path):
  code = snapshot.take(root)
  first = snapshot.unpack(code, tmp_path / "to")
  assert snapshot.unpack(code, tmp_path / "to") == first
  assert [p.name for p in (tmp_path / "to").iterdir()] == [code.name]


@pytest.mark.parametrize("path, contents", [
    (".env", "A=b"), ("deploy/key.pem", "x"), ("my-service-account.json", "{}"),
    ("id_ed25519", "x"),
    ("notes.txt", "-----BEGIN RSA PRIVATE " "KEY-----\nMIIEpAIBAAKCAQEAxyzw\n"),
    ("sa.json", '{"private_' 'key": "-----BEGIN PRIVATE'), ("x.py", "t = 'hf_" + "a" * 34 + "'")])
def test_what_looks_like_a_secret_is_refused_without_showing_it(root, path, contents):
  (root / path).parent.mkdir(exist_ok=True)
  (root / path).write_text(contents)
  commit(root)
  with pytest.raises(snapshot.SnapshotError, match="looks like a key") as error:
    snapshot.take(root)
  assert path in str(error.value) and contents not in str(error.value).replace(path, "")


def test_large_files_are_refused_by_name(root, monkeypatch):
  monkeypatch.setattr(snapshot, "MAX_FILE", 1000)
  (root / "weights.npz").write_bytes(bytes(1001))
  commit(root)
  with pytest.raises(snapshot.SnapshotError, match="weights.npz"):
    snapshot.take(root)
  monkeypatch.setattr(snapshot, "MAX_FILE", 2000)
  monkeypatch.setattr(snapshot, "MAX_TOTAL", 500)
  with pytest.raises(snapshot.SnapshotError, match="tracked files have more than"):
    snapshot.take(root)


def test_a_folder_without_a_commit_is_refused(tmp_path):
  with pytest.raises(snapshot.SnapshotError, match="at least one commit"):
    snapshot.take(tmp_path)


def test_this_repository_can_be_sent():
  code = snapshot.take()
  sent = {path for path, _, _ in code.files}
  assert {"launch/on_host.py", "launch/host_setup.sh", "launch/env.sh", "requirements.txt",
          "big_vision_ext/train.py"} <= sent
