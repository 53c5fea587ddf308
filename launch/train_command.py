"""What runs on each host, and which storage has to be mounted there first?

The trainer reads and writes files. `gs://BUCKET/path` anywhere in its command line becomes
`/gcs/BUCKET/path`, and the bucket is mounted there on every host (gcsfuse on VMs, the Cloud Storage
FUSE driver on GKE). `--mount nfs://SERVER/EXPORT=DIR` does the same for a file server.
"""

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Sequence

from launch import snapshot

_BUCKET = re.compile(r"gs://([a-z0-9][a-z0-9._-]{1,61}[a-z0-9])(?![a-z0-9._-])")
_TRAINER = "big_vision_ext.train"
# Environment variables whose values are nobody's business.
_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE|AUTH", re.I)


class CommandError(ValueError):
  """A command that would not do, or not survive, what it is meant to."""


@dataclasses.dataclass(frozen=True)
class Mount:
  """A file system to mount: `source` (gs://BUCKET or nfs://SERVER/EXPORT) at `path`."""

  source: str
  path: str

  @property
  def bucket(self) -> str | None:
    """The bucket's name, if it is one."""
    return self.source.removeprefix("gs://") if self.source.startswith("gs://") else None

  def __str__(self):
    return f"{self.source}={self.path}"


@dataclasses.dataclass(frozen=True)
class TrainCommand:
  """A command line as it will run on every host.

  Attributes:
    argv: the command; its first word is `python`, that of the project's environment.
    workdir: the run's directory, as the hosts see it.
    mounts: what must be mounted first.
    env: variables to set.
  """

  argv: tuple[str, ...]
  workdir: str
  mounts: tuple[Mount, ...]
  env: dict[str, str]

  @property
  def secrets(self) -> tuple[str, ...]:
    """Values that must not be shown."""
    return tuple(value for name, value in self.env.items() if is_secret(name) and value)

  def __str__(self):
    return shlex.join(self.argv)


def prepare(argv: Sequence[str], *, processes: int, mounts: Sequence[str] = (),
            env: Sequence[str] = (), root: pathlib.Path) -> TrainCommand:
  """Checks a command line and makes it one that several hosts can run.

  Args:
    argv: what stands behind `--`, from `python` on.
    processes: how many of them train together.
    mounts: SOURCE=DIR, beyond the buckets that the command names.
    env: NAME=VALUE.
    root: the code; the config file is looked for in it.

  Raises:
    CommandError: the command is no training command, or its workdir would be lost with the machine.
  """
  argv = list(argv)
  if argv[:1] == ["--"]:
    argv = argv[1:]
  if len(argv) < 3 or not re.fullmatch(r"python[0-9.]*", argv[0]) or argv[1] != "-m":
    raise CommandError(
        f"the command {shlex.join(argv) or '(none)'!r} does not begin with `python -m MODULE`. "
        f"Expected behind `--`: python -m {_TRAINER} --config FILE[:args] --workdir DIR")
  argv[0] = "python"
  workdir = _value(argv, "--workdir")
  if not workdir:
    raise CommandError("the command has no --workdir: a run that is preempted goes on from there. "
                       "Expected --workdir gs://BUCKET/DIR, or a directory under a --mount")
  if argv[2] == _TRAINER:
    config = (_value(argv, "--config") or "").split(":")[0]
    if not config:
      raise CommandError(f"the command has no --config; {_TRAINER} needs one")
    if not (root / config).is_file():
      raise CommandError(f"--config {config}: no such file in {root}, the code that is sent")
    if processes > 1 and "--distributed" not in argv:
      argv.insert(3, "--distributed")
  mounted = [_mount(text) for text in mounts]
  for bucket in dict.fromkeys(b for arg in argv for b in _BUCKET.findall(arg)):
    if not any(m.source == f"gs://{bucket}" for m in mounted):
      mounted.append(Mount(f"gs://{bucket}", f"/gcs/{bucket}"))
  places = {m.bucket: m.path for m in mounted if m.bucket}
  argv = [_BUCKET.sub(lambda m: places[m[1]], arg) for arg in argv]
  if left := [arg for arg in argv if "gs://" in arg]:
    raise CommandError(f"{left[0]}: the bucket's name after gs:// is none (3 to 63 of a-z 0-9 . _ "
                       "-)")
  workdir = _value(argv, "--workdir")
  if not any(pathlib.PurePosixPath(workdir).is_relative_to(m.path) for m in mounted):
    raise CommandError(
        f"--workdir {workdir} is on the disk of the machine and is lost with it. Expected "
        "gs://BUCKET/DIR, or a directory under a mount (--mount nfs://SERVER/EXPORT=DIR)")
  return TrainCommand(tuple(argv), workdir, tuple(mounted), _variables(env))


def check_sent(argv: Sequence[str], code: snapshot.Snapshot) -> None:
  """Checks that no file that the command names stays at home.

  Raises:
    CommandError: it names one that git does not track.
  """
  for word in argv:
    file = word.removeprefix("--config=").split(":")[0]
    if file in code.untracked:
      raise CommandError(f"{file} is not tracked by git and would not be sent; `git add {file}` "
                         "(no commit needed)")


def is_secret(name: str) -> bool:
  """Whether a variable of this name should not be shown."""
  return bool(_SECRET.search(name))


def _value(argv, option):
  # Of `--workdir D` and `--workdir=D`, the last, as argparse has it.
  found = None
  for i, arg in enumerate(argv):
    if arg == option and i + 1 < len(argv):
      found = argv[i + 1]
    elif arg.startswith(f"{option}="):
      found = arg.partition("=")[2]
  return found


def _mount(text):
  source, _, path = text.rpartition("=")
  if not re.fullmatch(r"gs://[a-z0-9._-]{3,63}|nfs://[A-Za-z0-9.:-]+/\S*", source):
    raise CommandError(f"--mount {text}: expected gs://BUCKET=DIR or nfs://SERVER/EXPORT=DIR")
  if not re.fullmatch(r"(/[A-Za-z0-9._-]+)+", path):
    raise CommandError(f"--mount {text}: {path!r} is no absolute path of letters, digits, . _ -")
  return Mount(source, path)


def _variables(env):
  values = {}
  for text in env:
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
      # The value is left out: it may be a secret with a misspelt name.
      raise CommandError(f"--env {name}: expected NAME=VALUE")
    values[name] = value
  return values
