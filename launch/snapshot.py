"""What code runs there? Packs the tracked files of this repository, as they are on disk now.

  python -m launch.snapshot --out FILE.tar.gz     packs
  python -m launch.snapshot --to DIR              unpacks under DIR, in a folder of its name

A snapshot has every tracked file with its uncommitted changes, and `SNAPSHOT.json`: the commit and
what differs from it. Its name is the commit, and for changed files a hash of the contents, so that
the same code has the same name. Untracked files stay at home; secrets and large files are refused.
"""

import argparse
import dataclasses
import gzip
import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECORD = "SNAPSHOT.json"
MAX_FILE = 20 * 2**20
MAX_TOTAL = 100 * 2**20
_SECRET_NAMES = re.compile(
    r"(^|/)(\.env(\..+)?|\.netrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519)|.*\.(pem|p12|pfx|jks)"
    r"|.*credentials.*\.json|.*service[-_]?account.*\.json|kubeconfig|google_compute_engine)$",
    re.I)
_SECRET_CONTENTS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+[A-Za-z0-9+/=]{16}|\"private_key\"\s*:\s*\"-----BEGIN"
    rb"|\bAKIA[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{34}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b")


class SnapshotError(ValueError):
  """Code that cannot or should not be sent."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """Code to send.

  Attributes:
    name: COMMIT, or COMMIT-dirty-HASH where files differ from it.
    commit: the full id.
    dirty: changed files, as git's short status has them.
    untracked: files that git does not know, and which are not part of it.
    files: (path, contents or the target of a symbolic link, mode) of each.
  """

  name: str
  commit: str
  dirty: tuple[str, ...]
  untracked: tuple[str, ...]
  files: tuple[tuple[str, bytes, int], ...]

  @property
  def record(self) -> dict:
    """What SNAPSHOT.json has."""
    return {"name": self.name, "commit": self.commit, "dirty": list(self.dirty)}

  def describe(self) -> str:
    """A line for people."""
    size = sum(len(data) for _, data, _ in self.files)
    text = f"code {self.name}: {len(self.files)} files, {size / 2**20:.1f} MiB"
    if self.dirty:
      text += f", {len(self.dirty)} changed since {self.commit[:12]}"
    if self.untracked:
      text += (f"\nnot sent, as git does not track them: {', '.join(self.untracked[:8])}"
               + (f" and {len(self.untracked) - 8} more" if len(self.untracked) > 8 else ""))
    return text


def take(root: pathlib.Path = ROOT) -> Snapshot:
  """Reads the code as it is now.

  Raises:
    SnapshotError: `root` is no git repository with a commit, or holds what should not be sent.
  """
  try:
    commit = _git(root, "rev-parse", "--verify", "HEAD").strip()
  except (OSError, subprocess.CalledProcessError) as error:
    raise SnapshotError(f"{root}: expected a git repository with at least one commit; the name of "
                        "the code that runs is its commit") from error
  dirty = tuple(_status(root))
  untracked = _git(root, "ls-files", "-z", "--others", "--exclude-standard").split("\0")[:-1]
  files, total = [], 0
  for path in sorted(_git(root, "ls-files", "-z").split("\0")[:-1]):
    place = root / path
    if place.is_symlink():
      files.append((path, os.fsencode(os.readlink(place)), 0o120777))
    elif place.is_dir():
      raise SnapshotError(f"{path}: is a git submodule; a snapshot cannot hold one")
    elif place.exists():
      total += place.stat().st_size
      _check_size(path, place.stat().st_size, total)
      data = place.read_bytes()
      _check_secret(path, data)
      files.append((path, data, 0o755 if os.access(place, os.X_OK) else 0o644))
  name = commit[:12]
  if dirty:
    digest = hashlib.sha256()
    for path, data, mode in files:
      digest.update(f"{path}\0{mode}\0{len(data)}\0".encode() + data)
    name += f"-dirty-{digest.hexdigest()[:8]}"
  return Snapshot(name, commit, dirty, tuple(untracked), tuple(files))


def pack(snapshot: Snapshot, out: pathlib.Path) -> None:
  """Writes a snapshot as a .tar.gz, the same bytes for the same code."""
  other = out.with_name(out.name + ".tmp")
  with open(other, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as zipped, \
      tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar:
    record = json.dumps(snapshot.record, indent=1).encode() + b"\n"
    for path, data, mode in (*snapshot.files, (RECORD, record, 0o644)):
      info = tarfile.TarInfo(path)
      info.mode = mode & 0o777
      if mode & 0o170000 == 0o120000:
        info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(data)
        tar.addfile(info)
      else:
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  os.replace(other, out)


def unpack(snapshot: Snapshot, folder: pathlib.Path) -> pathlib.Path:
  """Writes a snapshot's files to `folder`/NAME, unless it is there; returns that."""
  place = folder / snapshot.name
  if (place / RECORD).exists():
    return place
  folder.mkdir(parents=True, exist_ok=True)
  packed = folder / f".{snapshot.name}.{os.getpid()}.tar.gz"
  other = folder / f".{snapshot.name}.{os.getpid()}"
  pack(snapshot, packed)
  with tarfile.open(packed) as tar:
    tar.extractall(other, filter="tar")
  packed.unlink()
  try:
    os.replace(other, place)
  except OSError:
    # Somebody else was faster; theirs has the same name and so the same contents.
    if not (place / RECORD).exists():
      raise
  return place


def _git(root, *arguments):
  return subprocess.run(["git", "-C", str(root), *arguments], check=True, text=True,
                        capture_output=True).stdout


def _status(root):
  for entry in _git(root, "status", "--porcelain", "-z", "--untracked-files=no",
                    "--no-renames").split("\0"):
    if entry:
      yield entry


def _check_size(path, size, total):
  if size > MAX_FILE:
    raise SnapshotError(f"{path}: {size / 2**20:.0f} MiB are tracked by git; files over "
                        f"{MAX_FILE // 2**20} MiB are not sent: keep data in a bucket, and "
                        f"`git rm --cached {path}`")
  if total > MAX_TOTAL:
    raise SnapshotError(f"the tracked files have more than {MAX_TOTAL // 2**20} MiB (at {path}); "
                        "code has a few: keep data in a bucket")


def _check_secret(path, data):
  if _SECRET_NAMES.search(path) or _SECRET_CONTENTS.search(data):
    # Which line and what it says is left out: this may be shown anywhere.
    raise SnapshotError(f"{path}: looks like a key or a password, which would be copied to every "
                        f"host. `git rm --cached {path}`, and give it to the hosts in another way")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  parser = argparse.ArgumentParser(prog="python -m launch.snapshot",
                                   description=__doc__.split("\n\n")[0])
  where = parser.add_mutually_exclusive_group(required=True)
  where.add_argument("--out", type=pathlib.Path, metavar="FILE.tar.gz", help="pack into this file")
  where.add_argument("--to", type=pathlib.Path, metavar="DIR", help="write the files below DIR")
  options = parser.parse_args(argv)
  try:
    snapshot = take()
    print(snapshot.describe(), file=sys.stderr)
    if options.out:
      pack(snapshot, options.out)
      print(options.out)
    else:
      print(unpack(snapshot, options.to.resolve()))
  except (SnapshotError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
