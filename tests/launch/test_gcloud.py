"""What gcloud's messages mean, what requests look like, and that gcloud takes our commands."""

import re
import shutil

import pytest

from launch import gcloud, tpu_types, tpu_vm
from launch.gcloud import Kind
from tests.launch import record_surface

# As seen in public bug reports, but for the names.
MESSAGES = {
    "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit "
    "'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been exceeded. Limit: 0 in us-east5.":
        Kind.QUOTA,
    "Quota 'TPUV4sPreemptiblePodPerProjectPerRegionForTPUAPI' exhausted. Limit 20800 in region "
    "us-central2": Kind.QUOTA,
    "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'CreateNode requests' and limit 'Create "
    "requests per minute' of service 'tpu.googleapis.com'": Kind.PASSING,
    'ERROR: There is no more capacity in the zone "europe-west4-a"; you can try in another zone '
    "where Cloud TPU Nodes are offered": Kind.CAPACITY,
    "Insufficient reserved capacity. Contact customer support to increase your reservation.":
        Kind.CAPACITY,
    "ERROR: PERMISSION_DENIED: Cloud TPU API has not been used in project 12 before or it is "
    "disabled.": Kind.API,
    "ERROR: PERMISSION_DENIED: Permission 'tpu.nodes.get' denied on 'projects/p/locations/z/n'":
        Kind.PERMISSION,
    "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) You do not currently have an active account selected.":
        Kind.LOGIN,
    "ERROR: NOT_FOUND: Resource 'projects/p/locations/z/queuedResources/n' was not found":
        Kind.MISSING,
    "ERROR: ALREADY_EXISTS: Resource 'x' already exists": Kind.EXISTS,
    'TPU VM is in an unusable terminal state: "PREEMPTED"': Kind.GONE,
    "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) [/usr/bin/ssh] exited with return code [255].":
        Kind.PASSING,
    "ERROR: INVALID_ARGUMENT: Cloud TPU received a bad request. accelerator type is not available":
        Kind.INVALID,
    "something new": Kind.OTHER,
}


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_of_gcloud_is_understood(message):
  assert gcloud.meaning(message)[0] is MESSAGES[message]


@pytest.mark.parametrize("kind", [Kind.QUOTA, Kind.CAPACITY, Kind.API, Kind.LOGIN, Kind.SSH_KEY,
                                  Kind.PERMISSION, Kind.INVALID])
def test_what_a_person_has_to_mend_comes_with_advice(kind):
  [advice] = {advice for k, _, advice in gcloud._MEANINGS if k is kind}
  assert advice


def request(name="v5e-16", **options):
  return gcloud.Request("ps3", tpu_types.parse(name), **options)


def described(node, capacity, nodes=1, **more):
  return {**capacity, "tpu": {"nodeSpec": [{"node": node, "nodeId": f"n{i}", **more}
                                           for i in range(nodes)]}}


NODE = {"acceleratorType": "v5litepod-16", "runtimeVersion": "v2-alpha-tpuv5-lite"}


@pytest.mark.parametrize("resource, wanted, differences", [
    (described(NODE, {"spot": {}}), request(), 0),
    (described(NODE, {"spot": {}}, nodes=2), request(slices=2), 0),
    (described(NODE, {"spot": {}}, multisliceParams={"nodeCount": 2}), request(slices=2), 0),
    (described(NODE, {}), request(capacity="on-demand"), 0),
    (described(NODE, {"reservationName": "r"}), request(capacity="reserved"), 0),
    (described(NODE, {"guaranteed": {"reserved": True}}), request(capacity="reserved"), 0),
    (described(NODE, {"spot": {}}), request("v5e-32"), 1),
    (described(NODE, {"spot": {}}), request(runtime="other"), 1),
    (described(NODE, {}), request(slices=2), 2),
    ({"tpu": {"nodeSpec": [{"node": {"acceleratorConfig": {"type": "V5P", "topology": "4x4x12"},
                                     "runtimeVersion": "v2-alpha-tpuv5"}}]}, "spot": {}},
     request("v5p:4x4x12"), 0)])
def test_an_existing_resource_is_the_same_exactly_if_what_was_asked_for_is(resource, wanted,
                                                                         differences):
  assert len(wanted.differences(resource)) == differences


def test_nodes_are_named_as_google_names_them():
  assert request().nodes == ("ps3",)
  assert request(slices=3).nodes == ("ps3-0", "ps3-1", "ps3-2")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed")
@pytest.mark.parametrize("flags", [
    ("--type=v5e-256", "--spot", "--project=p", "--env=A=b"),
    ("--type=v5p:4x4x12", "--reserved", "--slices=2", "--iap", "--internal-ips", "--network=n",
     "--subnetwork=s", "--service-account=a@b.iam.gserviceaccount.com",
     "--valid-until-duration=6h")])
def test_the_real_gcloud_takes_every_command(flags, capsys):
  # It only parses them, without an account.
  assert tpu_vm.main(["run", "ps3", "--zone=us-west4-a", "--dry-run", *flags, "--", "python", "-m",
                      "big_vision_ext.train", "--config=configs/ps3/own_data.py",
                      "--workdir=gs://bucket/runs/x"]) == 0
  commands = re.findall(r"^gcloud .*", capsys.readouterr().out, re.M)
  assert len(commands) > 10
  assert [c["error_message"] for c in record_surface.lint(commands) if not c["success"]] == []
