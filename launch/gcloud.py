"""Google's command-line tool as this project uses it: queued resources, their nodes, and what its
errors mean."""

import dataclasses
import enum
import json
import re
from collections.abc import Callable

from launch import tools as tools_lib
from launch import tpu_types


class Kind(enum.Enum):
  """What kind of trouble an error of gcloud is."""

  QUOTA = "quota"
  CAPACITY = "capacity"
  PERMISSION = "permission"
  API = "api"
  LOGIN = "login"
  SSH_KEY = "ssh key"
  MISSING = "missing"
  EXISTS = "exists"
  GONE = "gone"
  INVALID = "invalid"
  PASSING = "passing"
  OTHER = "other"


# The first that matches. What to do is for a person who sees such a message for the first time.
_MEANINGS = (
    (Kind.PASSING, r"requests? per (minute|100 seconds)|rate.?limit|too many requests", ""),
    (Kind.QUOTA, r"quota (limit )?'?[\w-]+'?.*(exceeded|exhausted)|quota.*exceeded|exceed.*quota"
     r"|insufficient quota",
     "The project may not have so many chips of this kind in this zone. Ask for more at "
     "https://console.cloud.google.com/iam-admin/quotas (service: Cloud TPU API; spot, on-demand "
     "and reserved chips have quotas of their own), or choose a smaller --type, fewer --slices or "
     "another --zone. Suspended and failed queued resources count as well: "
     "`gcloud compute tpus queued-resources list --zone ZONE` shows them"),
    (Kind.CAPACITY, r"no more capacity|insufficient (reserved )?capacity|resource_pool_exhausted|"
     r"not enough resources|stockout|valid.?until.*(expired|passed)|resource_exhausted",
     "The zone has none free. A queued resource waits for some; another --zone may have them"),
    (Kind.API, r"api has not been used in project|it is disabled|service_disabled|"
     r"api is not enabled",
     "Enable it: `gcloud services enable tpu.googleapis.com`, and wait a minute"),
    (Kind.LOGIN, r"do not currently have an active account|reauth|gcloud auth login|refresh.*token|"
     r"unauthenticated|invalid_grant",
     "Log in: `gcloud auth login`"),
    (Kind.SSH_KEY, r"ssh key is not in|ssh-add|sshkeynotinagent",
     "Several hosts at once need the key in an agent: `eval $(ssh-agent)` and "
     "`ssh-add ~/.ssh/google_compute_engine`"),
    (Kind.MISSING, r"not_found|was not found|notfound|could not fetch resource", ""),
    (Kind.EXISTS, r"already_exists|already exists", ""),
    (Kind.GONE, r"unusable( terminal)? state|preempted|terminated", ""),
    (Kind.PERMISSION, r"permission_denied|permission.*denied|does not have permission|forbidden",
     "Your account lacks a role: tpu.admin to create TPUs, iam.serviceAccountUser for their "
     "service account"),
    (Kind.INVALID, r"invalid_argument|invalid value|unrecognized arguments|invalid choice",
     "Is this type offered in this zone? `gcloud compute tpus accelerator-types list --zone ZONE`"),
    (Kind.PASSING, r"deadline_exceeded|unavailable|connection (reset|refused|timed out|closed)|"
     r"internal error|\b50[0234]\b|return code \[255\]|timed out|"
     r"did not end within", ""),
)


class GcloudError(tools_lib.ToolError):
  """gcloud failed; `kind` says how."""

  def __init__(self, doing: str, text: str):
    self.kind, advice = meaning(text)
    super().__init__(f"{doing}: {text.strip() or 'gcloud failed and said nothing'}"
                     + (f"\n{advice}" if advice else ""))


def meaning(text: str) -> tuple[Kind, str]:
  """What kind of error a message is, and what to do about it (possibly nothing to say)."""
  for kind, pattern, advice in _MEANINGS:
    if re.search(pattern, text, re.I | re.S):
      return kind, advice
  return Kind.OTHER, ""


@dataclasses.dataclass(frozen=True)
class Request:
  """A queued resource as we want it.

  Attributes:
    name: its id, and the prefix of its nodes' names.
    type: each slice.
    slices: how many.
    capacity: "spot", "reserved" or "on-demand".
    extra: further flags of `queued-resources create`.
  """

  name: str
  type: tpu_types.TpuType
  slices: int = 1
  capacity: str = "spot"
  runtime: str = ""
  extra: tuple[str, ...] = ()

  @property
  def nodes(self) -> tuple[str, ...]:
    """The names of its TPU VMs, one a slice."""
    if self.slices == 1:
      return (self.name,)
    return tuple(f"{self.name}-{i}" for i in range(self.slices))

  @property
  def hosts(self) -> int:
    """Hosts of all slices."""
    return self.slices * self.type.hosts

  @property
  def runtime_version(self) -> str:
    """The image of the hosts."""
    return self.runtime or self.type.generation.runtime

  def flags(self) -> list[str]:
    """The flags that create it."""
    t = self.type
    flags = ([f"--node-id={self.name}"] if self.slices == 1 else
             [f"--node-count={self.slices}", f"--node-prefix={self.name}"])
    flags += ([f"--accelerator-type={t.accelerator_type}"] if t.is_default_shape else
              [f"--type={t.generation.type}", f"--topology={t.shape}"])
    flags += [f"--runtime-version={self.runtime_version}"]
    flags += {"spot": ["--spot"], "reserved": ["--reserved"], "on-demand": []}[self.capacity]
    return flags + list(self.extra)

  def differences(self, resource: dict) -> list[str]:
    """How an existing one differs, e.g. ["slices: 1, asked for 2"]."""
    specs = resource.get("tpu", {}).get("nodeSpec", [])
    count = sum(int(s.get("multisliceParams", s.get("multiNodeParams", {})).get("nodeCount", 1))
                for s in specs)
    node = specs[0].get("node", {}) if specs else {}
    config = node.get("acceleratorConfig", {})
    if self.type.is_default_shape and node.get("acceleratorType"):
      has, wants = node["acceleratorType"], self.type.accelerator_type
    else:
      has, wants = config.get("topology", node.get("acceleratorType")), self.type.shape
    capacity = ("spot" if "spot" in resource else
                "reserved" if resource.get("reservationName")
                or resource.get("guaranteed", {}).get("reserved") else "on-demand")
    pairs = {"type": (has, wants), "slices": (count, self.slices),
             "runtime version": (node.get("runtimeVersion"), self.runtime_version),
             "capacity": (capacity, self.capacity)}
    return [f"{what}: {has}, asked for {wants}" for what, (has, wants) in pairs.items()
            if has != wants]

  def __str__(self):
    return f"{self.slices} x {self.type.accelerator_type} ({self.type.shape}), {self.capacity}"


class Gcloud:
  """gcloud, for one project and zone."""

  def __init__(self, tools: tools_lib.Tools, zone: str, project: str | None = None,
               tunnel: str | None = None):
    """Args:
      tools: runs it.
      zone: of the TPUs.
      project: or gcloud's own default.
      tunnel: how hosts are reached: None by their external address, "internal", or "iap".
    """
    self._tools = tools
    self.zone = zone
    self.where = [f"--zone={zone}"] + ([f"--project={project}"] if project else [])
    self._reach = {None: [], "internal": ["--internal-ip"], "iap": ["--tunnel-through-iap"]}[tunnel]
    # Tunnelled commands to single nodes exist in the alpha commands only.
    self._ssh = ["gcloud", *(["alpha"] if tunnel == "iap" else []), "compute", "tpus", "tpu-vm"]

  def describe(self, name: str, dry: dict | None = None) -> dict | None:
    """A queued resource as Google has it, or None.

    Raises:
      GcloudError: it could not be asked.
    """
    result = self._tools.run(
        ["gcloud", "compute", "tpus", "queued-resources", "describe", name, *self.where,
         "--format=json"],
        dry=tools_lib.Result(1, err="NOT_FOUND") if dry is None else
        tools_lib.Result(0, json.dumps(dry)))
    if result.code:
      error = GcloudError(f"asking for {name}", result.last)
      if error.kind is Kind.MISSING:
        return None
      raise error
    return json.loads(result.out)

  def node(self, name: str) -> dict | None:
    """A TPU VM as Google has it (state, health), or None."""
    result = self._tools.run(["gcloud", "compute", "tpus", "tpu-vm", "describe", name,
                              *self.where, "--format=json"],
                             dry=tools_lib.Result(0, '{"state": "READY"}'))
    if result.code:
      error = GcloudError(f"asking for {name}", result.last)
      if error.kind is Kind.MISSING:
        return None
      raise error
    return json.loads(result.out)

  def create(self, request: Request) -> None:
    """Asks for a queued resource; returns at once, before it is granted.

    Raises:
      GcloudError: it was refused.
    """
    # Shapes of v5p and v6e can be named in the alpha command only.
    track = [] if request.type.is_default_shape else ["alpha"]
    result = self._tools.run(["gcloud", *track, "compute", "tpus", "queued-resources", "create",
                              request.name, *self.where, *request.flags(), "--async", "--quiet"])
    if result.code:
      raise GcloudError(f"asking for {request} in {self.zone}", result.last)

  def delete(self, name: str) -> None:
    """Deletes a queued resource with its nodes, and waits for it; one that is gone is no error.

    Raises:
      GcloudError: it was refused.
    """
    result = self._tools.run(self.delete_command(name))
    if result.code and GcloudError("", result.last).kind is not Kind.MISSING:
      raise GcloudError(f"deleting {name}", result.last)

  def delete_command(self, name: str) -> list[str]:
    """The command that deletes a queued resource, for people as well."""
    return ["gcloud", "compute", "tpus", "queued-resources", "delete", name, *self.where, "--force",
            "--quiet"]

  def ssh_command(self, node: str, command: str, worker: str = "all") -> list[str]:
    """The command that runs a shell command on the hosts of a node."""
    return [*self._ssh, "ssh", node, *self.where, f"--worker={worker}", *self._reach,
            # A host that is gone is noticed, instead of waited for.
            "--ssh-flag=-o ServerAliveInterval=30", "--ssh-flag=-o ConnectTimeout=30",
            "--quiet", f"--command={command}"]

  def ssh(self, node: str, command: str, dry_code: int = 0) -> tools_lib.Result:
    """Runs a shell command on all hosts of a node; `dry_code` is its exit code in a dry run."""
    return self._tools.run(self.ssh_command(node, command), dry=tools_lib.Result(dry_code))

  def follow(self, node: str, command: str, on_line: Callable[[str], None]) -> tools_lib.Result:
    """Runs a shell command on a node's first host and hands over its lines as they come."""
    return self._tools.stream(self.ssh_command(node, command, worker="0"), on_line)

  def scp(self, file: str, node: str, to: str) -> tools_lib.Result:
    """Copies a file to all hosts of a node."""
    return self._tools.run([*self._ssh, "scp", file, f"{node}:{to}", *self.where, "--worker=all",
                            *self._reach, "--quiet"])


def state_of(resource: dict | None) -> str:
  """The state of a queued resource; ABSENT if there is none."""
  return "ABSENT" if resource is None else resource.get("state", {}).get("state", "UNKNOWN")


def reason_of(resource: dict) -> str:
  """Why a queued resource failed or is suspended, as far as Google says."""
  state = resource.get("state", {})
  error = state.get("failedData", {}).get("error", {})
  if error:
    return error.get("message") or json.dumps(error)
  return f"by {state['stateInitiator'].lower()}" if "stateInitiator" in state else "no reason given"

