"""host_setup.sh on a host whose root, package manager and gcsfuse are scripts that keep notes."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.launch.conftest import ROOT

# `$NOTES` keeps every call. A mount is there once it was made.
FAKES = {
    "sudo": 'exec "$@"',
    "gcsfuse": 'echo "gcsfuse $*" >>"$NOTES"; [ ! -e "$NOTES.no" ] || exit 1; touch "$NOTES.up"',
    "mount": 'echo "mount $*" >>"$NOTES"; touch "$NOTES.up"',
    "mount.nfs": "exit 0",
    "umount": "exit 0",
    "mountpoint": '[ -e "$NOTES.up" ]',
    "apt-get": 'echo "apt-get $*" >>"$NOTES"',
}
# An environment that has what is asked of it, or not.
PYTHON = '''#!/bin/sh
case "$*" in
  *"import libtpu"*) [ -e "$NOTES.libtpu" ] ;;
  *"pip install"*) echo "pip $*" >>"$NOTES"; touch "$NOTES.libtpu" ;;
  *) exec "{python}" "$@" ;;
esac
'''


@pytest.fixture
def host(tmp_path):
  code = tmp_path / "code"
  (code / "launch").mkdir(parents=True)
  for name in ("host_setup.sh", "env.sh"):
    shutil.copy(ROOT / "launch" / name, code / "launch")
  (code / "requirements.txt").touch()
  (code / "requirements-tpu.txt").write_text("libtpu\n")
  programs = tmp_path / "bin"
  programs.mkdir()
  for name, script in FAKES.items():
    (programs / name).write_text(f"#!/bin/sh\n{script}\n")
    (programs / name).chmod(0o755)
  venv = tmp_path / "venv"
  (venv / "bin").mkdir(parents=True)
  (venv / "bin" / "python").write_text(PYTHON.format(python=sys.executable))
  (venv / "bin" / "python").chmod(0o755)
  stamp = subprocess.run(["cksum"], stdin=open(code / "requirements.txt"), capture_output=True)
  (venv / ".installed").write_bytes(stamp.stdout)

  class Host:
    mount = tmp_path / "store"
    notes = tmp_path / "notes"

    def run(self, mounts="", **env):
      done = subprocess.run(
          ["bash", "launch/host_setup.sh"], cwd=code, capture_output=True, text=True,
          env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "NOTES": str(self.notes),
               "HOME": str(tmp_path), "BVE_VENV": str(venv), "BVE_MOUNTS": mounts, **env})
      return done.returncode, done.stdout + done.stderr

    @property
    def noted(self):
      return self.notes.read_text() if self.notes.exists() else ""

  return Host()


def test_a_bucket_is_mounted_once_so_that_hosts_see_each_others_files(host):
  for _ in range(2):
    code, text = host.run(f"gs://my-bucket={host.mount}")
    assert code == 0, text
  [line] = [line for line in host.noted.splitlines() if line.startswith("gcsfuse")]
  assert line.endswith(f"my-bucket {host.mount}")
  for option in ("--metadata-cache-ttl-secs=0", "--metadata-cache-negative-ttl-secs=0",
                 "--rename-dir-limit=200000", "--implicit-dirs"):
    assert option in line
  # The probe leaves nothing behind.
  assert list(host.mount.iterdir()) == []


def test_a_file_server_is_mounted_as_nfs(host):
  code, text = host.run(f"nfs://10.0.0.2/share={host.mount}")
  assert code == 0, text
  assert f"mount -t nfs -o rw,hard,vers=3 10.0.0.2:/share {host.mount}" in host.noted


def test_storage_that_cannot_be_written_is_refused_with_the_role_that_may_be_missing(host):
  # Mounted, as far as the system says, and no file can be made.
  host.mount.touch()
  host.notes.with_name("notes.up").touch()
  code, text = host.run(f"gs://my-bucket={host.mount}")
  assert code == 1 and "cannot be written" in text and "roles/storage.objectUser" in text


def test_a_mount_that_fails_ends_the_set_up(host):
  host.notes.with_name("notes.no").touch()
  code, text = host.run(f"gs://my-bucket={host.mount}")
  assert code == 1 and "mounting gs://my-bucket failed" in text


def test_libtpu_is_installed_once_and_its_absence_is_an_error(host):
  for _ in range(2):
    code, text = host.run()
    assert code == 0 and "ready: Python" in text
  assert host.noted.count("-r requirements-tpu.txt") == 1
  host.notes.with_name("notes.libtpu").unlink()
  code, text = host.run()
  assert code == 1 and "libtpu is not installed" in text


@pytest.mark.slow
def test_an_old_image_gets_a_python_from_uv(host, tmp_path):
  # Nothing but the plainest tools on PATH, and no network: curl hands out an installer of ours.
  plain = tmp_path / "plain"
  plain.mkdir()
  for name in ("bash", "sh", "cat", "cksum", "mkdir", "tail", "id", "hostname", "rm", "env",
               "dirname", "chmod", "touch"):
    (plain / name).symlink_to(shutil.which(name))
  uv = f'echo "uv $*" >>"$NOTES"; case "$2" in find) echo "{sys.executable}" ;; esac'
  installer = (f'mkdir -p "$UV_INSTALL_DIR"; printf "%s\\n" "#!/bin/sh" \'{uv}\' '
               '>"$UV_INSTALL_DIR/uv"; chmod +x "$UV_INSTALL_DIR/uv"')
  (plain / "curl").write_text(f"#!/bin/sh\ncat <<'EOF'\n{installer}\nEOF\n")
  (plain / "curl").chmod(0o755)
  venv = tmp_path / "other"
  code, text = host.run(PATH=str(plain), BVE_VENV=str(venv), PYENV_ROOT="/nowhere", BVE_NO_TPU="1")
  assert "uv python install --quiet 3.12" in host.noted, text
  # The environment is made with it; jax is not in the empty requirements, and that is noticed.
  assert (venv / "bin" / "python").exists() and "jax" in text and code == 1
