r"""Trains on Cloud TPU VMs, from asking for the machine to a complete run, preemptions included.

  python -m launch.tpu_vm run ps3 --type v5e-256 --zone us-west4-a --spot -- \
    python -m big_vision_ext.train --config configs/ps3/ps3_1p5k_siglip_so400m.py:data=gs://B/data \
    --workdir gs://B/runs/ps3
  python -m launch.tpu_vm status ps3 --zone us-west4-a      # logs, stop, delete likewise

`run` asks for a queued resource of that name (or takes the one that is there), sends the tracked
files of this repository, installs what they need, mounts the buckets, starts the command on every
host and follows it; after a preemption it asks again and goes on in the same workdir. Interrupted
and given again, it takes up what it finds. `--dry-run` prints every command and runs none.

Exit codes: 0 the run is complete, 2 an error (the last lines say which), 130 Ctrl-C (the training
goes on without this program).
"""

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence

from launch import gcloud as gcloud_lib
from launch import snapshot, tools, tpu_hosts, tpu_run, tpu_types, train_command
from launch.outcome import Outcome


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """The command line: (options, the command behind `--`)."""
  argv = list(argv)
  cut = argv.index("--") if "--" in argv else len(argv)
  parser = argparse.ArgumentParser(
      prog="python -m launch.tpu_vm", description=__doc__.split("\n\n")[0].removeprefix("r"),
      epilog="More: launch/README.md", allow_abbrev=False)
  actions = parser.add_subparsers(dest="action", required=True)
  for action, text in (("run", "create, send, set up, start, follow, resume; delete when complete"),
                       ("status", "what exists, and how the run is on every host"),
                       ("logs", "show the log of a host, and follow it"),
                       ("stop", "let the run save and end; the machine stays"),
                       ("delete", "delete the queued resource and its machines")):
    sub = actions.add_parser(action, help=text, description=text, allow_abbrev=False)
    sub.add_argument("name", help="of the queued resource, and of the run on it")
    sub.add_argument("--zone", required=True)
    sub.add_argument("--project", help="default: gcloud's")
    way = sub.add_mutually_exclusive_group()
    way.add_argument("--iap", dest="tunnel", action="store_const", const="iap",
                     help="reach the hosts through the Identity-Aware Proxy")
    way.add_argument("--internal-ip", dest="tunnel", action="store_const", const="internal",
                     help="reach the hosts by their internal addresses")
    sub.add_argument("--dry-run", action="store_true", help="print the commands, run none")
    if action in ("status", "logs", "stop"):
      sub.add_argument("--slice", type=int, default=0, help="whose log (default: 0)"
                       ) if action == "logs" else None
    if action == "run":
      _add_run(sub)
  return parser.parse_args(argv[:cut]), argv[cut + 1:]


def _add_run(sub):
  sub.add_argument("--type", required=True, help="each slice: v5e-256, v5litepod-256, v5e:16x16")
  sub.add_argument("--slices", type=int, default=1, help="how many slices (default: 1)")
  tier = sub.add_mutually_exclusive_group(required=True)
  for capacity in ("spot", "reserved", "on-demand"):
    tier.add_argument(f"--{capacity}", dest="capacity", action="store_const", const=capacity)
  sub.add_argument("--runtime-version", default="", help="image of the hosts (default: the type's)")
  sub.add_argument("--valid-until-duration", metavar="6h", help="wait no longer than this for it")
  sub.add_argument("--service-account", help="of the hosts; it needs to read and write the buckets")
  sub.add_argument("--network")
  sub.add_argument("--subnetwork")
  sub.add_argument("--internal-ips", action="store_true", help="hosts without external addresses")
  sub.add_argument("--mount", action="append", default=[], metavar="SOURCE=DIR",
                   help="nfs://SERVER/EXPORT=DIR or gs://BUCKET=DIR; buckets that the command "
                        "names are mounted at /gcs/BUCKET without this")
  sub.add_argument("--env", action="append", default=[], metavar="NAME=VALUE",
                   help="for the command; what looks like a secret is not shown")
  sub.add_argument("--tries", type=int, default=3, help="of each step that may fail (default: 3)")
  sub.add_argument("--max-resumes", type=int, default=1000,
                   help="after preemption and the like (default: 1000)")
  sub.add_argument("--max-failures", type=int, default=0,
                   help="crashes after which to start again all the same (default: 0)")
  sub.add_argument("--keep", action="store_true", help="do not delete the machine when complete")


def make_request(options: argparse.Namespace) -> gcloud_lib.Request:
  """The queued resource that a command line asks for.

  Raises:
    ValueError: a name, type or number that cannot be; the message says what could.
  """
  _check_place(options)
  if options.slices < 1 or options.tries < 1:
    raise train_command.CommandError("--slices and --tries: expected 1 or more")
  if options.internal_ips and not options.tunnel:
    raise train_command.CommandError("--internal-ips: how are the hosts to be reached? Give --iap, "
                                     "or --internal-ip from a machine of the same network")
  extra = [f"--{name.replace('_', '-')}={value}"
           for name in ("valid_until_duration", "service_account", "network", "subnetwork")
           if (value := getattr(options, name))]
  extra += ["--internal-ips"] if options.internal_ips else []
  return gcloud_lib.Request(options.name, tpu_types.parse(options.type), options.slices,
                            options.capacity, options.runtime_version, tuple(extra))


def _check_place(options):
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
    raise train_command.CommandError(f"name {options.name!r}: expected up to 40 of a-z, 0-9 and -, "
                                     "from a letter on")
  if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", options.zone):
    raise train_command.CommandError(f"--zone {options.zone}: expected a zone, e.g. us-west4-a (a "
                                     "region and a letter)")


def run(options: argparse.Namespace, argv: Sequence[str], make_tools: Callable[..., tools.Tools],
        again: str) -> int:
  """`run`: sees a training through; returns the exit code."""
  request = make_request(options)
  command = train_command.prepare(argv, processes=request.hosts, mounts=options.mount,
                                  env=options.env, root=snapshot.ROOT)
  code = snapshot.take()
  train_command.check_sent(argv, code)
  tool = make_tools(dry=options.dry_run, secrets=command.secrets)
  tool.say(f"{request}: {request.hosts} host(s), {request.slices * request.type.chips} chips\n"
           f"{code.describe()}\nworkdir {command.workdir}, "
           f"mounts {', '.join(map(str, command.mounts))}")
  gcloud = gcloud_lib.Gcloud(tool, options.zone, options.project, options.tunnel)
  job = tpu_hosts.Job(options.name, command, code)
  sees = tpu_run.Run(gcloud, tool, request, job, tries=options.tries,
                     max_resumes=options.max_resumes, max_failures=options.max_failures)
  try:
    outcome = sees.complete()
    tool.say(f"The run is {outcome.value}: {command.workdir} (resumed {sees.resumes} time(s))")
    if outcome is Outcome.COMPLETE and not options.keep:
      tool.say(f"Deleting {options.name}")
      gcloud.delete(options.name)
    else:
      tool.say(left(gcloud, options))
    return 0 if outcome is Outcome.COMPLETE else 130
  except KeyboardInterrupt:
    tool.say("\n" + left(gcloud, options, again))
    return 130
  except tools.ToolError as error:
    print(f"error: {tool.hide(str(error))}", file=sys.stderr)
    tool.say(left(gcloud, options))
    return 2


def left(gcloud: gcloud_lib.Gcloud, options: argparse.Namespace, again: str = "") -> str:
  """What exists and costs money after this program has ended, and how to end that."""
  try:
    resource = gcloud.describe(options.name)
    state = gcloud_lib.state_of(resource)
  except (tools.ToolError, KeyboardInterrupt):
    resource, state = {}, "unknown, as Google could not be asked"
  if resource is None:
    return f"Nothing is left: there is no queued resource {options.name} in {options.zone}."
  same = " ".join(["--zone", options.zone] + (["--project", options.project] if options.project
                                               else []))
  lines = [f"LEFT BEHIND: queued resource {options.name} in {options.zone}, {state}. It costs "
           "money while it is ACTIVE, counts against the quota until it is deleted, and a run that "
           "was started there goes on without this program."]
  if again:
    lines.append(f"  to follow it again   {again}")
  lines += [f"  how it is            python -m launch.tpu_vm status {options.name} {same}",
            f"  to save and stop     python -m launch.tpu_vm stop {options.name} {same}",
            f"  to delete it         {tools.quoted(gcloud.delete_command(options.name))}"]
  return "\n".join(lines)


def look(options: argparse.Namespace, make_tools: Callable[..., tools.Tools]) -> int:
  """`status`, `logs`, `stop` and `delete`; returns the exit code."""
  _check_place(options)
  tool = make_tools(dry=options.dry_run)
  gcloud = gcloud_lib.Gcloud(tool, options.zone, options.project, options.tunnel)
  if options.action == "delete":
    gcloud.delete(options.name)
    if not options.dry_run and (resource := gcloud.describe(options.name)) is not None:
      raise tools.ToolError(f"{options.name} is still there: {gcloud_lib.state_of(resource)}")
    tool.say(f"{options.name} is deleted")
    return 0
  resource = gcloud.describe(options.name, dry={
      "state": {"state": "ACTIVE"}, "tpu": {"nodeSpec": [
          {"nodeId": options.name, "node": {"acceleratorType": "v5litepod-8"}}]}})
  if resource is None:
    raise tools.ToolError(f"there is no queued resource {options.name} in {options.zone}")
  state = gcloud_lib.state_of(resource)
  tool.say(f"{options.name} in {options.zone}: {state}")
  if state != "ACTIVE":
    return 0
  request = existing(options.name, resource)
  hosts = tpu_hosts.Hosts(gcloud, tool, request)
  if options.action == "logs":
    return _logs(options, tool, request, hosts)
  statuses = hosts.stop(options.name) if options.action == "stop" else hosts.statuses(options.name)
  for status in statuses:
    tool.say(f"  {status['node']} {status['host']}: attempt {status['attempt']} {status['state']}"
             + (f" with exit code {status['code']}" if status["state"] == "exited" else ""))
  return 0


def existing(name: str, resource: dict) -> gcloud_lib.Request:
  """The request that a queued resource was made from, as far as its hosts matter."""
  specs = resource["tpu"]["nodeSpec"]
  node = specs[0]["node"]
  config = node.get("acceleratorConfig", {})
  if config.get("topology"):
    generation = config.get("type", "").lower().replace("v5lite_pod", "v5litepod")
    slice_type = tpu_types.parse(f"{generation}:{config['topology']}")
  else:
    slice_type = tpu_types.parse(node["acceleratorType"])
  count = int(specs[0].get("multisliceParams", {}).get("nodeCount", len(specs)))
  return gcloud_lib.Request(name, slice_type, count)


def _logs(options, tool, request, hosts):
  if not 0 <= options.slice < request.slices:
    raise tools.ToolError(f"--slice {options.slice}: expected 0 to {request.slices - 1}")
  offset = 0
  while True:
    offset, result = hosts.follow(options.name, None, offset, tool.say,
                                  node=request.nodes[options.slice])
    if result.code:
      raise gcloud_lib.GcloudError("following the log", result.last)
    statuses = hosts.statuses(options.name)
    if not any(s["state"] == "running" for s in statuses if
               s["node"] == request.nodes[options.slice]):
      return 0


def main(argv: Sequence[str] | None = None,
         make_tools: Callable[..., tools.Tools] = tools.Tools) -> int:
  """Runs a command line; returns its exit code."""
  argv = sys.argv[1:] if argv is None else list(argv)
  options, command = parse_args(argv)
  try:
    if options.action == "run":
      again = "python -m launch.tpu_vm " + shlex.join(
          re.sub(r"^([^=]+=).*", r"\1...", a) if i and argv[i - 1] == "--env" else a
          for i, a in enumerate(argv))
      return run(options, command, make_tools, again)
    return look(options, make_tools)
  except KeyboardInterrupt:
    return 130
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main())
