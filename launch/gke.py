r"""Trains on TPUs of a GKE cluster, as a JobSet that Kubernetes restarts after preemption.

  python -m launch.gke run ps3 --type v5e-256 -- \
    python -m big_vision_ext.train --config configs/ps3/ps3_1p5k_siglip_so400m.py:data=gs://B/data \
    --workdir gs://B/runs/ps3
  python -m launch.gke status ps3          # logs, delete likewise

`run` puts the tracked files of this repository into the workdir's bucket, creates the JobSet (or
finds the same one), and follows the log. `--dry-run` prints every command and the JobSet and runs
none; `--xpk CLUSTER` prints the commands for xpk instead.

Exit codes: 0 the run is complete, 2 an error (the last lines say which), 130 Ctrl-C (the run goes
on without this program).
"""

import argparse
import json
import pathlib
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence

from big_vision_ext.core import exit_codes
from launch import jobset, manifest, snapshot, tools, tpu_types, train_command

POLL_SECONDS = 15
# Where snapshots go in the workdir's bucket.
CODE_FOLDER = ".bve-code"
_ADVICE = (
    (r'no matches for kind "JobSet"|the server doesn\'t have a resource type "jobset',
     "The cluster has no JobSet: kubectl apply --server-side -f https://github.com/kubernetes-sigs/"
     "jobset/releases/download/v0.10.1/manifests.yaml"),
    (r"connection to the server .* was refused|no configuration has been provided|"
     r"current-context is not set|executable gke-gcloud-auth-plugin not found|Unauthorized",
     "Point kubectl to the cluster: `gcloud components install gke-gcloud-auth-plugin` and "
     "`gcloud container clusters get-credentials CLUSTER --location LOCATION`"),
    (r"exceeded quota|quota.*exceeded",
     "The namespace or the project has no quota for so many: kubectl describe resourcequota"),
    (r"forbidden", "Your account lacks a role on the cluster (container.developer)"),
    (r"Insufficient google.com/tpu|didn't match Pod's node affinity|"
     r"node\(s\) had untolerated taint",
     "No node pool of this shape has free chips. Each slice is one node pool with this "
     "accelerator, topology and machine type (see launch/README.md); one that is to grow from "
     "nothing may be waiting for capacity or quota: kubectl describe pod, kubectl get events"),
)


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """The command line: (options, the command behind `--`)."""
  argv = list(argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  parser = argparse.ArgumentParser(
      prog="python -m launch.gke", description=__doc__.split("\n\n")[0],
      epilog="More: launch/README.md", allow_abbrev=False)
  actions = parser.add_subparsers(dest="action", required=True)
  for action, text in (("run", "create the JobSet and follow it"),
                       ("status", "how the JobSet and its pods are"),
                       ("logs", "show the first pod's log, and follow it"),
                       ("delete", "end the run and delete the JobSet")):
    sub = actions.add_parser(action, help=text, description=text, allow_abbrev=False)
    sub.add_argument("name", help="of the JobSet")
    sub.add_argument("--context", help="of kubectl (default: its current one)")
    sub.add_argument("--namespace", help="default: kubectl's")
    sub.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    if action == "run":
      sub.add_argument("--type", required=True,
                       help="each slice: v5e-256, v5litepod-256, v5e:16x16")
      sub.add_argument("--slices", type=int, default=1)
      sub.add_argument("--spot", action="store_true", help="on spot nodes")
      sub.add_argument("--image", default="python:3.12", help="with Python 3.11 to 3.13 and bash")
      sub.add_argument("--service-account", default="default",
                       help="Kubernetes service account that may use the buckets")
      sub.add_argument("--mount", action="append", default=[], metavar="SOURCE=DIR",
                       help="nfs://SERVER/EXPORT=DIR or gs://BUCKET=DIR; buckets that the command "
                            "names are mounted without this")
      sub.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
      sub.add_argument("--secret", action="append", default=[], metavar="NAME=SECRET:KEY",
                       help="a variable from a Kubernetes secret")
      sub.add_argument("--max-restarts", type=int, default=100)
      sub.add_argument("--xpk", metavar="CLUSTER", help="print the commands for xpk instead")
      sub.add_argument("--zone", help="of xpk's cluster")
      sub.add_argument("--project", help="of xpk's cluster")
  return parser.parse_args(argv[:cut]), argv[cut + 1:]


def make_spec(options: argparse.Namespace, argv: Sequence[str],
              code: snapshot.Snapshot) -> tuple[jobset.Spec, str]:
  """(what to run, the address of the code's archive) from a command line.

  Raises:
    ValueError: something that cannot be; the message says what could.
  """
  _check_name(options.name)
  slice_type = tpu_types.parse(options.type)
  if options.slices < 1 or options.max_restarts < 0:
    raise train_command.CommandError("--slices: expected 1 or more; --max-restarts: 0 or more")
  command = train_command.prepare(argv, processes=options.slices * slice_type.hosts,
                                  mounts=options.mount, env=options.env, root=snapshot.ROOT)
  if shown := [name for name in command.env if train_command.is_secret(name)]:
    raise train_command.CommandError(
        f"--env {shown[0]}: everybody who may look at the JobSet would see its value. Put it into "
        f"a secret (kubectl create secret generic S --from-literal=K=...) and give --secret "
        f"{shown[0]}=S:K")
  train_command.check_sent(argv, code)
  bucket = next((m for m in command.mounts if m.bucket and
                 pathlib.PurePosixPath(command.workdir).is_relative_to(m.path)), None)
  bucket = bucket or next((m for m in command.mounts if m.bucket), None)
  if bucket is None:
    raise train_command.CommandError("the code travels in a bucket: name one (--workdir gs://BUCKET/"
                                     "DIR, or --mount gs://BUCKET=DIR)")
  archive = f"{CODE_FOLDER}/{code.name}.tar.gz"
  spec = jobset.Spec(
      options.name, slice_type, options.slices, command,
      (code.name, f"{bucket.path}/{archive}"), options.image, options.service_account,
      options.spot, options.max_restarts, tuple(_secret(text) for text in options.secret))
  return spec, f"{bucket.source}/{archive}"


def run(options: argparse.Namespace, argv: Sequence[str],
        make_tools: Callable[..., tools.Tools]) -> int:
  """`run`: creates the JobSet, or finds it, and follows it to its end; returns the exit code."""
  code = snapshot.take()
  spec, address = make_spec(options, argv, code)
  tool = make_tools(dry=options.dry_run or bool(options.xpk))
  tool.say(f"{spec.slices} x {spec.type.accelerator_type} ({spec.type.shape}): "
           f"{spec.slices * spec.type.hosts} pod(s), {spec.type.machine}\n{code.describe()}\n"
           f"workdir {spec.command.workdir}")
  if options.xpk:
    if spec.secrets:
      raise train_command.CommandError("--secret: xpk has no such thing; use the JobSet")
    print_xpk(tool, options, spec)
    return 0
  wanted = jobset.build(spec)
  cluster = Cluster(tool, options)
  there = cluster.jobset()
  if there is None:
    _upload(tool, code, address)
    cluster.apply(wanted)
  elif there["metadata"].get("annotations", {}).get(jobset.SPEC_KEY) != \
      wanted["metadata"]["annotations"][jobset.SPEC_KEY]:
    raise tools.ToolError(
        f"a JobSet {spec.name} exists and is another one (code "
        f"{there['metadata'].get('annotations', {}).get(jobset.CODE_KEY, 'unknown')}, state "
        f"{_state(there)}). Use another name, or delete it:\n  {cluster.delete_command()}")
  else:
    tool.say(f"JobSet {spec.name} is there already: {_state(there)}")
  return follow(tool, cluster)


def follow(tool: tools.Tools, cluster: "Cluster") -> int:
  """Follows a JobSet to its end; returns the exit code."""
  restarts, last, pending = 0, "", None
  # What a dry run takes the cluster to answer.
  answers = iter(({}, {"terminalState": "Completed"}))
  try:
    while True:
      there = cluster.jobset(dry={"status": next(answers)} if tool.dry else None)
      if there is None:
        raise tools.ToolError(f"JobSet {cluster.name} was deleted")
      now = int(there.get("status", {}).get("restarts", 0))
      if now != restarts:
        restarts = now
        tool.say(f"JobSet {cluster.name}: started again, {restarts} time(s)")
      state = _state(there)
      if state in ("Completed", "Failed"):
        last = cluster.log(last, tool.say, follow=False)
        tool.say(f"JobSet {cluster.name}: {state}, started again {restarts} time(s)")
        if state == "Completed":
          return 0
        raise tools.ToolError(
            f"the run failed: {cluster.ends() or 'no pod is left to ask'} "
            "(big_vision_ext/core/exit_codes.py says what they mean)\n  "
            + cluster.delete_command())
      last = cluster.log(last, tool.say)
      problem = cluster.pending()
      if problem and problem != pending:
        tool.say(problem)
      pending = problem
      tool.sleep(POLL_SECONDS)
  except KeyboardInterrupt:
    tool.say(f"\nLEFT BEHIND: JobSet {cluster.name} goes on without this program, and its nodes "
             f"cost money.\n  to follow it again   python -m launch.gke logs {cluster.name}\n"
             f"  to end and delete it {cluster.delete_command()}")
    return 130


class Cluster:
  """kubectl, for one JobSet."""

  def __init__(self, tool: tools.Tools, options: argparse.Namespace):
    self.name = options.name
    self._tool = tool
    self._kubectl = ["kubectl"] + [f"--{key}={value}" for key in ("context", "namespace")
                                   if (value := getattr(options, key))]
    self._label = f"jobset.sigs.k8s.io/jobset-name={self.name}"

  def jobset(self, dry: dict | None = None) -> dict | None:
    """The JobSet as Kubernetes has it, or None."""
    result = self._tool.run([*self._kubectl, "get", "jobset", self.name, "--ignore-not-found",
                             "--output=json"],
                            dry=tools.Result(0, json.dumps(dry) if dry else ""))
    if result.code:
      raise _explained(f"asking for JobSet {self.name}", result)
    return json.loads(result.out) if result.out.strip() else None

  def apply(self, wanted: dict) -> None:
    """Creates the JobSet."""
    result = self._tool.run([*self._kubectl, "apply", "--filename=-"],
                            stdin=manifest.to_yaml(wanted))
    if result.code:
      raise _explained(f"creating JobSet {self.name}", result)
    self._tool.say(result.out.strip() or f"JobSet {self.name} is created")

  def delete(self) -> None:
    """Deletes the JobSet and waits until its pods are gone; one that is not there is no error."""
    result = self._tool.run(self._delete())
    if result.code:
      raise _explained(f"deleting JobSet {self.name}", result)

  def delete_command(self) -> str:
    """The command that deletes it, for people."""
    return tools.quoted(self._delete())

  def _delete(self):
    return [*self._kubectl, "delete", "jobset", self.name, "--ignore-not-found",
            "--cascade=foreground"]

  def log(self, after: str, show: Callable[[str], None], follow: bool = True) -> str:
    """Shows the first pod's log behind a time; returns the time of its last line."""
    first = (f"{self._label},jobset.sigs.k8s.io/job-index=0,"
             "batch.kubernetes.io/job-completion-index=0")
    reached = after

    def line(text):
      nonlocal reached
      stamp, _, words = text.partition(" ")
      # Times sort as text. Asked again, kubectl gives the last second again.
      if re.match(r"\d{4}-\d\d-\d\dT", stamp) and stamp > reached:
        show(words)
        reached = stamp

    self._tool.stream(
        [*self._kubectl, "logs", f"--selector={first}", f"--container={jobset.CONTAINER}",
         "--timestamps", "--tail=-1", *(["--follow"] if follow else []),
         *([f"--since-time={after}"] if after else [])], line)
    return reached

  def pods(self) -> list[dict]:
    """The pods as Kubernetes has them."""
    result = self._tool.run([*self._kubectl, "get", "pods", f"--selector={self._label}",
                             "--output=json"], dry=tools.Result(0, '{"items": []}'))
    return json.loads(result.out)["items"] if result.code == 0 else []

  def pending(self) -> str:
    """Why pods are not running, if some are not."""
    waiting = []
    for pod in self.pods():
      for condition in pod.get("status", {}).get("conditions", []):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
          waiting.append(condition.get("message", "not scheduled"))
    return f"{len(waiting)} pod(s) wait for a node: {_with_advice(waiting[0])}" if waiting else ""

  def ends(self) -> str:
    """How the containers of the pods ended."""
    found = {}
    for pod in self.pods():
      for container in pod.get("status", {}).get("containerStatuses", []):
        ended = container.get("state", {}).get("terminated")
        if ended and container.get("name") == jobset.CONTAINER:
          found.setdefault(f"exit code {ended.get('exitCode')} ({ended.get('reason', '')})",
                           []).append(pod["metadata"]["name"])
    return "; ".join(f"{what}: {', '.join(names[:4])}"
                     + (f" and {len(names) - 4} more" if len(names) > 4 else "")
                     for what, names in sorted(found.items()))


def print_xpk(tool: tools.Tools, options: argparse.Namespace, spec: jobset.Spec) -> None:
  """Prints what does the same through xpk, which builds an image of the code."""
  where = [f"--{key}={value}" for key, value in
           (("cluster", options.xpk), ("zone", options.zone), ("project", options.project))
           if value]
  for i, mount in enumerate(m for m in spec.command.mounts if m.bucket):
    tool.run(["xpk", "storage", "attach", f"{spec.name}-{i}", *where, "--type=gcsfuse",
              f"--bucket={mount.bucket}", f"--mount-point={mount.path}", "--readonly=false",
              "--auto-mount=true", f"--mount-options={jobset.MOUNT_OPTIONS}"])
  script = ("bash launch/host_setup.sh && exec $HOME/.bve/venv/bin/python "
            + shlex.join(spec.command.argv[1:]))
  tool.run(["xpk", "workload", "create", *where, f"--workload={spec.name}",
            f"--tpu-type={spec.type.accelerator_type}", f"--num-slices={spec.slices}",
            f"--base-docker-image={spec.image}", "--script-dir=.",
            f"--max-restarts={spec.max_restarts}", f"--restart-on-exit-codes={exit_codes.RESTART}",
            f"--termination-grace-period-seconds={jobset.GRACE}",
            *[f"--env={name}={value}" for name, value in spec.command.env.items()],
            f"--command={script}"])


def _upload(tool, code, address):
  if tool.run(["gcloud", "storage", "ls", address], dry=tools.Result(1)).code == 0:
    return
  with tempfile.TemporaryDirectory() as folder:
    packed = pathlib.Path(folder) / address.rpartition("/")[2]
    if not tool.dry:
      snapshot.pack(code, packed)
    source = packed.name if tool.dry else str(packed)
    result = tool.run(["gcloud", "storage", "cp", source, address])
    if result.code:
      raise _explained(f"copying the code to {address}", result)


def _state(there):
  status = there.get("status", {})
  if status.get("terminalState"):
    return status["terminalState"]
  return "Suspended" if there.get("spec", {}).get("suspend") else "Running"


def _explained(doing, result):
  return tools.ToolError(f"{doing}: {_with_advice(result.last)}")


def _with_advice(text):
  advice = next((a for pattern, a in _ADVICE if re.search(pattern, text, re.I)), "")
  return text + (f"\n{advice}" if advice else "")


def _secret(text):
  match = re.fullmatch(r"([A-Za-z_][A-Za-z0-9_]*)=([a-z0-9.-]+):([A-Za-z0-9._-]+)", text)
  if not match:
    raise train_command.CommandError(f"--secret {text.partition('=')[0]}: expected NAME=SECRET:KEY")
  return match.groups()


def _check_name(name):
  # Pods append slice, host and five letters; 63 are allowed.
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
    raise train_command.CommandError(f"name {name!r}: expected up to 40 of a-z, 0-9 and -, from a "
                                     "letter on")


def main(argv: Sequence[str] | None = None,
         make_tools: Callable[..., tools.Tools] = tools.Tools) -> int:
  """Runs a command line; returns its exit code."""
  options, command = parse_args(sys.argv[1:] if argv is None else argv)
  try:
    if options.action == "run":
      return run(options, command, make_tools)
    _check_name(options.name)
    tool = make_tools(dry=options.dry_run)
    cluster = Cluster(tool, options)
    if options.action == "delete":
      cluster.delete()
      tool.say(f"JobSet {options.name} is deleted; unused nodes go when their pool shrinks")
      return 0
    if cluster.jobset(dry={"status": {}}) is None:
      raise tools.ToolError(f"there is no JobSet {options.name}")
    if options.action == "logs":
      return follow(tool, cluster)
    there = cluster.jobset(dry={"status": {}})
    tool.say(f"JobSet {options.name}: {_state(there)}, started again "
             f"{there.get('status', {}).get('restarts', 0)} time(s)")
    for pod in cluster.pods():
      tool.say(f"  {pod['metadata']['name']}: {pod.get('status', {}).get('phase')}")
    if problem := cluster.pending():
      tool.say(problem)
    return 0
  except KeyboardInterrupt:
    return 130
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main())
