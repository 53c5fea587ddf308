"""The JobSet of a run on GKE: one job a slice, one pod a host, restarted as a whole.

What becomes of a pod's end: 0 is done; an exit code that asks for a restart, or a node that is
taken away, fails the job, and the JobSet starts all of them again in the same workdir, up to a
number of times; any other exit code fails the JobSet at once (JobSet's failure policy on
Kubernetes' pod failure policy). GKE itself tells the pods of a slice, and the slices, about each
other.
"""

import dataclasses
import hashlib
import json
import shlex
from typing import Any

from big_vision_ext.core import exit_codes
from launch import tpu_types
from launch.train_command import Mount, TrainCommand

CONTAINER = "train"
SPEC_KEY = "big-vision-ext/spec"
CODE_KEY = "big-vision-ext/code"
# Seconds that a pod has to save after it was asked to end. GKE grants spot nodes 15 to 30 of them.
GRACE = 120
# As launch/host_setup.sh mounts buckets, and for the reasons given there.
MOUNT_OPTIONS = ("implicit-dirs,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0,"
                 "rename-dir-limit:200000")
_POOL = "cloud.google.com/gke-nodepool"


@dataclasses.dataclass(frozen=True)
class Spec:
  """A run on GKE.

  Attributes:
    name: of the JobSet.
    type: each slice.
    slices: how many.
    command: what runs in every pod.
    code: (name of the snapshot, path of its archive in a mounted bucket).
    image: has Python 3.11 to 3.13 and bash.
    service_account: Kubernetes service account that may use the buckets.
    spot: run on spot nodes.
    max_restarts: how often all jobs are started again.
    secrets: variables from Kubernetes secrets: NAME -> (secret, key).
  """

  name: str
  type: tpu_types.TpuType
  slices: int
  command: TrainCommand
  code: tuple[str, str]
  image: str
  service_account: str = "default"
  spot: bool = False
  max_restarts: int = 100
  secrets: tuple[tuple[str, str, str], ...] = ()


def build(spec: Spec) -> dict[str, Any]:
  """The JobSet as Kubernetes takes it."""
  body = {
      "failurePolicy": {
          "maxRestarts": spec.max_restarts,
          "rules": [{"name": "failed", "action": "FailJobSet",
                     "onJobFailureReasons": ["PodFailurePolicy"]}]},
      "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
      # It can be looked at for a day after it has ended.
      "ttlSecondsAfterFinished": 86400,
      "replicatedJobs": [{"name": "slice", "replicas": spec.slices,
                          "template": {"spec": _job(spec)}}],
  }
  digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]
  return {
      "apiVersion": "jobset.x-k8s.io/v1alpha2",
      "kind": "JobSet",
      "metadata": {
          "name": spec.name,
          # A node pool is a slice: no two jobs share one, and none is spread over two.
          "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": _POOL, SPEC_KEY: digest,
                          CODE_KEY: spec.code[0]}},
      "spec": body,
  }


def container_script(spec: Spec) -> str:
  """What a pod runs: unpack, set up, train."""
  name, archive = spec.code
  command = shlex.join(spec.command.argv[1:])
  return ("set -e\n"
          "trap 'exit 143' TERM\n"
          "mkdir -p /code\n"
          "cd /code\n"
          f"tar xzf {shlex.quote(archive)}  # {name}\n"
          "for try in 1 2 3; do\n"
          "  if bash launch/host_setup.sh; then break; fi\n"
          '  if [ "$try" = 3 ]; then exit 2; fi\n'
          "  sleep 20\n"
          "done\n"
          "# In place of the shell, so that SIGTERM reaches it.\n"
          f'exec "$HOME/.bve/venv/bin/python" {command}\n')


def _job(spec):
  return {
      "parallelism": spec.type.hosts,
      "completions": spec.type.hosts,
      "completionMode": "Indexed",
      "backoffLimit": 0,
      "podFailurePolicy": {"rules": [
          # A node that is taken away comes first: its pods may end with any code.
          {"action": "Count", "onPodConditions": [{"type": "DisruptionTarget"}]},
          {"action": "FailJob", "onExitCodes": {
              "containerName": CONTAINER, "operator": "NotIn",
              "values": sorted(exit_codes.AGAIN)}}]},
      "template": {
          # The driver that mounts buckets works as a container beside ours, which this asks for.
          "metadata": {"annotations": {"gke-gcsfuse/volumes": "true"}},
          "spec": _pod(spec)},
  }


def _pod(spec):
  chips = spec.type.chips_per_host
  several = spec.slices > 1
  pod = {
      "restartPolicy": "Never",
      "serviceAccountName": spec.service_account,
      "terminationGracePeriodSeconds": GRACE,
      "nodeSelector": {
          "cloud.google.com/gke-tpu-accelerator": spec.type.generation.gke_accelerator,
          "cloud.google.com/gke-tpu-topology": spec.type.shape},
      "tolerations": [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}],
      "containers": [{
          "name": CONTAINER,
          "image": spec.image,
          "command": ["bash", "-c", container_script(spec)],
          "env": _env(spec),
          # The coordinator of jax, and what TPU hosts of a slice talk through.
          "ports": [{"containerPort": 8482}, {"containerPort": 8471}],
          "resources": {"requests": {"google.com/tpu": chips}, "limits": {"google.com/tpu": chips}},
          "volumeMounts": [{"name": _volume_name(i), "mountPath": mount.path}
                           for i, mount in enumerate(spec.command.mounts)]
          + [{"name": "shm", "mountPath": "/dev/shm"}]}],
      "volumes": [_volume(i, mount, several) for i, mount in enumerate(spec.command.mounts)]
      + [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
  }
  if spec.spot:
    pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    pod["tolerations"].append({"key": "cloud.google.com/gke-spot", "operator": "Equal",
                               "value": "true", "effect": "NoSchedule"})
  if several:
    # Slices talk through the hosts' own network, without the detour of the pods'.
    pod |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
  return pod


def _env(spec):
  values = [{"name": name, "value": value} for name, value in spec.command.env.items()]
  secrets = [{"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
             for name, secret, key in spec.secrets]
  return [{"name": "PYTHONUNBUFFERED", "value": "1"}, *values, *secrets]


def _volume(i: int, mount: Mount, host_network: bool) -> dict[str, Any]:
  if mount.bucket is None:
    server, _, export = mount.source.removeprefix("nfs://").partition("/")
    return {"name": _volume_name(i), "nfs": {"server": server, "path": f"/{export}"}}
  attributes = {"bucketName": mount.bucket, "mountOptions": MOUNT_OPTIONS}
  if host_network:
    attributes["hostNetworkPodKSA"] = "true"
  return {"name": _volume_name(i), "csi": {"driver": "gcsfuse.csi.storage.gke.io",
                                           "volumeAttributes": attributes}}


def _volume_name(i):
  return f"storage-{i}"
