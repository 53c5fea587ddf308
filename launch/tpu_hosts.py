"""What is done on the hosts of a TPU: code sent, set up, started, followed, stopped.

Every step may be repeated and is, a stated number of times. The hosts of a slice are addressed
together, slices side by side.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import shlex
import tempfile
from collections.abc import Callable, Sequence

from launch import gcloud as gcloud_lib
from launch import snapshot as snapshot_lib
from launch import tools as tools_lib
from launch.train_command import TrainCommand

STATUS = "bve-status "
# Seconds that one `follow` stays connected before the other hosts are asked how they are.
FOLLOW_SECONDS = 240


class HostError(tools_lib.ToolError):
  """A step that failed on some host each time it was tried."""


@dataclasses.dataclass(frozen=True)
class Job:
  """What to run, under which name, from which code."""

  name: str
  command: TrainCommand
  snapshot: snapshot_lib.Snapshot

  @property
  def identity(self) -> str:
    """Tells this job from another one of the same name."""
    text = json.dumps([self.snapshot.name, self.command.argv])
    return hashlib.sha256(text.encode()).hexdigest()[:12]

  @property
  def code(self) -> str:
    """Where the code is on a host, from the home directory."""
    return f".bve/code/{self.snapshot.name}"


class Hosts:
  """The hosts of a queued resource that is up."""

  def __init__(self, gcloud: gcloud_lib.Gcloud, tools: tools_lib.Tools,
               request: gcloud_lib.Request, tries: int = 3):
    self._gcloud, self._tools, self._request = gcloud, tools, request
    self._tries = tries

  def send(self, job: Job) -> None:
    """Brings the code to hosts that do not have it.

    Raises:
      HostError: it did not arrive everywhere.
    """
    archive = f"bve-{job.snapshot.name}.tar.gz"
    unpack = (f"set -e; mkdir -p {job.code}.tmp; tar xzf {archive} -C {job.code}.tmp; "
              f"rm -rf {job.code}; mv {job.code}.tmp {job.code}; rm {archive}; "
              f"cp {job.code}/launch/on_host.py .bve/on_host.py")
    with tempfile.TemporaryDirectory() as folder:
      packed = pathlib.Path(folder) / archive
      if not self._tools.dry:
        snapshot_lib.pack(job.snapshot, packed)

      def one(node):
        if self._gcloud.ssh(node, f"test -f {job.code}/{snapshot_lib.RECORD}",
                            dry_code=1).code == 0:
          return tools_lib.Result(0)
        sent = self._gcloud.scp(str(packed) if not self._tools.dry else archive, node, archive)
        return sent if sent.code else self._gcloud.ssh(node, unpack)

      self._everywhere(f"sending the code ({job.snapshot.name})", one)
      if job.command.env:
        self._send_env(job, pathlib.Path(folder))

  def set_up(self, job: Job) -> None:
    """Installs what the code needs and mounts the storage.

    Raises:
      HostError: it failed somewhere.
    """
    mounts = " ".join(map(str, job.command.mounts))
    command = f"cd {job.code} && BVE_MOUNTS={shlex.quote(mounts)} bash launch/host_setup.sh"
    self._everywhere("setting up", lambda node: self._gcloud.ssh(node, command))

  def start(self, job: Job, attempt: int) -> None:
    """Starts the command on all hosts; on those where this attempt runs already, nothing happens.

    Raises:
      HostError: it could not be started somewhere.
    """
    env = f"set -a; . ./bve-{job.name}.env; set +a; " if job.command.env else ""
    command = (f"{env}python3 .bve/on_host.py start --run {job.name} --attempt {attempt} "
               f"--id {job.identity} --code {job.code} -- "
               f'"$HOME/.bve/venv/bin/python" {shlex.join(job.command.argv[1:])}')
    self._everywhere("starting", lambda node: self._gcloud.ssh(node, command))

  def stop(self, name: str, grace: int = 120) -> list[dict]:
    """Asks the run to save and end on all hosts; returns their statuses.

    Raises:
      HostError: some host was not reached.
    """
    return self._ask(f"stop --run {name} --grace {grace}", "stopping")

  def statuses(self, name: str, attempt: int | None = None) -> list[dict]:
    """How the run is on every host: `state` of running, exited, lost and absent, and `code`.

    Raises:
      HostError: some host was not reached.
    """
    which = "" if attempt is None else f" --attempt {attempt}"
    return self._ask(f"status --run {name}{which}", "asking the hosts")

  def follow(self, name: str, attempt: int | None, offset: int, show: Callable[[str], None],
             node: str | None = None) -> tuple[int, tools_lib.Result]:
    """Shows the first host's log from a position on, for a while.

    Returns:
      (the position after what was shown, how it went).
    """
    reached = offset

    def line(text):
      nonlocal reached
      position, _, words = text[1:].partition(" ")
      # Whatever else gcloud says is not the log; and what it asks for twice is shown once.
      if text.startswith("@") and position.isdigit() and int(position) > reached:
        show(words)
        reached = int(position)

    which = "" if attempt is None else f" --attempt {attempt}"
    result = self._gcloud.follow(
        node or self._request.nodes[0],
        f"python3 .bve/on_host.py follow --run {name}{which} --offset {offset} "
        f"--seconds {FOLLOW_SECONDS:g}", line)
    return reached, result

  def _ask(self, action, doing):
    absent = STATUS + '{"state": "absent", "attempt": 0, "code": null, "host": "%s"}\\n'
    command = (f"if [ -f .bve/on_host.py ]; then python3 .bve/on_host.py {action}; "
               f"else printf '{absent}' \"$HOSTNAME\"; fi")
    found = {}

    def one(node):
      result = self._gcloud.ssh(node, command)
      lines = [json.loads(text.removeprefix(STATUS)) for text in result.out.splitlines()
               if text.startswith(STATUS)]
      # A host that was asked twice has answered twice; the later answer holds.
      by_host = {status.get("host"): {**status, "node": node} for status in lines}
      found[node] = list(by_host.values())
      if not result.code and len(found[node]) < self._request.type.hosts and not self._tools.dry:
        return tools_lib.Result(1, err=f"{len(found[node])} of {self._request.type.hosts} hosts "
                                       "answered")
      return result

    self._everywhere(doing, one, say=False)
    return [status for node in self._request.nodes for status in found.get(node, [])]

  def _send_env(self, job, folder):
    file = folder / f"bve-{job.name}.env"
    if not self._tools.dry:
      file.touch(mode=0o600)
      file.write_text("".join(f"{name}={shlex.quote(value)}\n"
                              for name, value in job.command.env.items()))
    source = str(file) if not self._tools.dry else file.name

    def one(node):
      sent = self._gcloud.scp(source, node, file.name)
      return sent if sent.code else self._gcloud.ssh(node, f"chmod 600 {file.name}")

    self._everywhere(f"sending {', '.join(job.command.env)}", one)

  def _everywhere(self, doing, step, say=True):
    nodes: Sequence[str] = self._request.nodes
    if say:
      self._tools.say(f"{doing[0].upper()}{doing[1:]}: {self._request.hosts} host(s)")
    for attempt in range(self._tries):
      if attempt:
        self._tools.sleep(10 * 2**attempt)
      workers = 1 if self._tools.dry else min(len(nodes), 16)
      with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        results = dict(zip(nodes, pool.map(step, nodes)))
      # What arrived is not sent again.
      nodes = [node for node, result in results.items() if result.code]
      if not nodes:
        return
      kind, advice = gcloud_lib.meaning(results[nodes[0]].last)
      if kind is gcloud_lib.Kind.SSH_KEY:
        raise HostError(f"{doing}: {results[nodes[0]].last}\n{advice}")
      if kind is gcloud_lib.Kind.GONE:
        break
    raise HostError(f"{doing} failed on {', '.join(nodes)}, tried {attempt + 1} time(s). The last "
                    f"words:\n{results[nodes[0]].last}")
