#!/usr/bin/env python3
"""A gcloud without a cloud: queued resources that follow a script, hosts that are directories.

Commands sent to hosts really run, each host with a home of its own; copies are copies. Flags are
checked against those of the real gcloud (gcloud_surface.json). What happens is told by
$FAKE_CLOUD/script.json:

  create   per request in turn: {"error": TEXT} or {"states": [...], "nodes": {NODE: [STATES]},
           "failed": TEXT}; each `describe` sees the next state and then always the last
  faults   [{"match": REGEX of a command line, "after": N, "times": N, "worker": I, "code": C,
           "text": TEXT, "when": FILE, "preempt" or "delete": true}]: calls that fail (while FILE
           exists); all hosts die first where it says so
"""

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

SURFACE = json.loads(pathlib.Path(__file__).with_name("gcloud_surface.json").read_text())
CHIPS_PER_HOST = 4


class Failed(Exception):
  """A call ends, with what it says on stderr and its exit code."""


class Cloud:
  """The state that all calls share, in one folder."""

  def __init__(self, folder):
    self.folder = pathlib.Path(folder)

  def __enter__(self):
    self._lock = open(self.folder / "lock", "a+")
    fcntl.flock(self._lock, fcntl.LOCK_EX)
    file = self.folder / "cloud.json"
    self.state = json.loads(file.read_text()) if file.exists() else {
        "resources": {}, "creates": 0, "calls": [], "hits": {}}
    script = self.folder / "script.json"
    self.script = json.loads(script.read_text()) if script.exists() else {}
    return self

  def __exit__(self, *unused):
    (self.folder / "cloud.json").write_text(json.dumps(self.state))
    self._lock.close()

  def homes(self, node):
    """(worker, home directory) of a node's hosts."""
    resource = self.resource(node)
    chips = int(resource["request"]["accelerator-type"].split("-")[1])
    for worker in range(1 if chips <= 8 else chips // CHIPS_PER_HOST):
      home = self.folder / "hosts" / node / str(worker)
      home.mkdir(parents=True, exist_ok=True)
      yield worker, home

  def kill_hosts(self, resource):
    """Everything on the hosts ends, and the disks are gone: preemption, or deletion."""
    for node in resource["nodes"]:
      place = self.folder / "hosts" / node
      for file in place.glob("*/.bve/*/attempt-*/process.json"):
        try:
          os.killpg(json.loads(file.read_text())["pid"], signal.SIGKILL)
        except (ProcessLookupError, ValueError):
          pass
      shutil.rmtree(place, ignore_errors=True)

  def resource(self, node):
    """The queued resource that a TPU VM belongs to."""
    for resource in self.state["resources"].values():
      if node in resource["nodes"]:
        return resource
    raise Failed("ERROR: (gcloud.compute.tpus.tpu-vm) NOT_FOUND: Resource "
                 f"'projects/p/locations/z/nodes/{node}' was not found", 1)

  def fault(self, line):
    """The fault that a call meets, if any."""
    for i, fault in enumerate(self.script.get("faults", [])):
      if not re.search(fault["match"], line, re.S) or (
          "when" in fault and not os.path.exists(fault["when"])):
        continue
      hits = self.state["hits"].get(str(i), 0)
      self.state["hits"][str(i)] = hits + 1
      if fault.get("after", 0) <= hits < fault.get("after", 0) + fault.get("times", 1):
        return fault
    return {}


def call(folder, argv):
  """One call of gcloud; returns (exit code, stdout, stderr)."""
  line = "gcloud " + " ".join(argv)
  try:
    with Cloud(folder) as cloud:
      cloud.state["calls"].append(line)
      command, positionals, flags = _parse(argv)
      if "queued-resources" in command:
        if fault := cloud.fault(line):
          raise Failed(fault["text"], fault.get("code", 1))
        return 0, _queued(cloud, command.split()[-1], positionals[0], flags), ""
      if "storage" in command:
        return 0, _storage(cloud, command.split()[-1], positionals), ""
      if command.endswith("describe"):
        state = _step(cloud.resource(positionals[0])["nodes"][positionals[0]])
        return 0, json.dumps({"name": positionals[0], "state": state}), ""
      verb, node = command.split()[-1], positionals[-1].split(":")[0]
      hosts, fault = _reach(cloud, verb, node, flags, line)
    return _on_hosts(verb, node, positionals, flags, hosts, fault)
  except Failed as failed:
    return failed.args[1], "", failed.args[0]


def _parse(argv):
  # (command, positionals, flags), refused as the real gcloud would.
  words = ["gcloud", *argv]
  command = next((" ".join(words[:n]) for n in range(7, 2, -1) if " ".join(words[:n]) in SURFACE),
                 None)
  if command is None:
    raise Failed(f"ERROR: (gcloud) Invalid choice: {' '.join(argv[:4])!r}.", 2)
  surface, positionals, flags = SURFACE[command], [], {}
  for word in words[len(command.split()):]:
    if not word.startswith("--"):
      positionals.append(word)
      continue
    name, equals, value = word[2:].partition("=")
    kind = surface["flags"].get(name)
    if kind is None or (kind is True) == bool(equals):
      raise Failed(f"ERROR: ({command}) unrecognized arguments: {word}", 2)
    if isinstance(kind, list) and value not in kind:
      raise Failed(f"ERROR: argument --{name}: Invalid choice: {value!r}", 2)
    flags[name] = value if equals else True
  for group in surface["one of"]:
    if sum(any(name in flags for name in names) for names in group) != 1:
      raise Failed(f"ERROR: Exactly one of {group} must be specified.", 2)
  if "zone" not in flags and "storage" not in command:
    raise Failed("ERROR: Underspecified resource: specify the [--zone] flag.", 2)
  return command, positionals, flags


def _step(states):
  # The present of a list of states, which moves on.
  return states.pop(0) if len(states) > 1 else states[0]


def _queued(cloud, verb, name, flags):
  resources = cloud.state["resources"]
  path = f"projects/p/locations/{flags['zone']}/queuedResources/{name}"
  if verb == "create":
    if name in resources:
      raise Failed("ERROR: (gcloud.compute.tpus.queued-resources.create) ALREADY_EXISTS: Resource "
                   f"'{path}' already exists", 1)
    plans = cloud.script.get("create") or [{}]
    plan = plans[min(cloud.state["creates"], len(plans) - 1)]
    cloud.state["creates"] += 1
    if "error" in plan:
      raise Failed(plan["error"], 1)
    prefix = flags.get("node-prefix", name)
    nodes = ([flags["node-id"]] if "node-id" in flags else
             [f"{prefix}-{i}" for i in range(int(flags["node-count"]))])
    resources[name] = {
        "request": {"accelerator-type": "v5p-16", **flags},
        "nodes": {n: plan.get("nodes", {}).get(n, ["READY"]) for n in nodes},
        "states": plan.get("states", ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]),
        "failed": plan.get("failed", "")}
    return ""
  if name not in resources:
    raise Failed(f"ERROR: (gcloud.compute.tpus.queued-resources.{verb}) NOT_FOUND: Resource "
                 f"'{path}' was not found", 1)
  resource = resources[name]
  if verb == "delete":
    cloud.kill_hosts(resource)
    del resources[name]
    return ""
  state = {"state": _step(resource["states"])}
  if state["state"] == "FAILED":
    state["failedData"] = {"error": {"code": 8, "message": resource["failed"]}}
  if state["state"] == "SUSPENDED":
    state["stateInitiator"] = "SERVICE"
  request = resource["request"]
  node = {"acceleratorType": request["accelerator-type"],
          "runtimeVersion": request["runtime-version"]}
  answer = {"name": path, "state": state, "tpu": {"nodeSpec": [
      {"node": node, "nodeId": n, "parent": "projects/1/locations/z"} for n in resource["nodes"]]}}
  if "spot" in request:
    answer["spot"] = {}
  if "reserved" in request:
    answer["reservationName"] = "projects/p/locations/z/reservations/-"
  return json.dumps(answer)


def _storage(cloud, verb, positionals):
  place = cloud.folder / "objects" / positionals[-1].replace("gs://", "")
  if verb == "ls":
    if not place.exists():
      raise Failed("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.", 1)
    return positionals[-1] + "\n"
  place.parent.mkdir(parents=True, exist_ok=True)
  shutil.copy2(positionals[0], place)
  return ""


def _reach(cloud, verb, node, flags, line):
  # The hosts that a call is for, and the fault it meets there.
  resource, fault = cloud.resource(node), cloud.fault(line)
  if fault.get("preempt"):
    cloud.kill_hosts(resource)
    resource["states"] = ["SUSPENDING", "SUSPENDED"]
    resource["nodes"] = {n: ["PREEMPTED"] for n in resource["nodes"]}
  if fault.get("delete"):
    cloud.kill_hosts(resource)
    cloud.state["resources"] = {}
    cloud.resource(node)
  if resource["nodes"][node][0] in ("PREEMPTED", "TERMINATED"):
    raise Failed(f"ERROR: (gcloud.compute.tpus.tpu-vm.{verb}) TPU VM is in an unusable terminal "
                 f'state: "{resource["nodes"][node][0]}"', 1)
  worker = flags.get("worker", "0")
  return [h for h in cloud.homes(node) if worker in ("all", str(h[0]))], fault


def _on_hosts(verb, node, positionals, flags, hosts, fault):
  codes, out, err = [], "", ""
  for worker, home in hosts:
    err += f"{verb.upper()}: Attempting to connect to worker {worker}...\n"
    code = 0
    if fault and fault.get("worker", worker) == worker:
      code = fault.get("code", 1)
      err += fault.get("text", "") + "\n"
    elif verb == "scp":
      shutil.copy2(positionals[0], home / positionals[1].split(":")[1])
    else:
      done = subprocess.run(
          ["bash", "-c", flags["command"]], cwd=home, capture_output=True, text=True,
          env={**os.environ, "HOME": str(home), "HOSTNAME": f"{node}-w-{worker}",
               "BVE_HOME": str(home / ".bve")})
      code, out, err = done.returncode, out + done.stdout, err + done.stderr
    if code and len(hosts) > 1:
      err += (f"##### Command execution on worker {worker} failed with exit status {code}. "
              "Continuing.\n")
    codes.append(code)
  return next((code for code in codes if code), 0), out, err


if __name__ == "__main__":
  exit_code, said, complained = call(os.environ["FAKE_CLOUD"], sys.argv[1:])
  sys.stdout.write(said)
  sys.stderr.write(complained + "\n" * bool(complained))
  sys.exit(exit_code)
