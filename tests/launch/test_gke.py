"""JobSets: what is asked for, what becomes of each way that a pod ends, how runs are followed."""

import json
import re
import sys

import pytest
import yaml

from launch import gke, jobset, manifest, snapshot
from tests.launch.conftest import HERE, Clock


@pytest.fixture
def cluster(cloud, toy_code, tmp_path, monkeypatch, capsys):
  """Runs `launch.gke` with a fake kubectl; returns (exit code, what was printed)."""
  program = tmp_path / "bin" / "kubectl"
  # With its libraries, as it reads YAML.
  program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_kubectl.py"}" "$@"\n')
  program.chmod(0o755)
  clock = Clock()

  class Cluster:
    def script(self, **script):
      (cloud.folder / "cluster.json").write_text(json.dumps(script))

    def run(self, *flags, name="ps3", toy=()):
      return self.call("run", name, "--type", "v5e-16", *flags, "--", "python", "-m", "toy_train",
                       "--workdir", "gs://bucket/runs/x", *toy)

    def call(self, *argv):
      code = gke.main(argv, clock.make_tools)
      printed = capsys.readouterr()
      return code, printed.out + printed.err

    @property
    def state(self):
      return json.loads((cloud.folder / "kubectl.json").read_text())

    @property
    def applied(self):
      return yaml.safe_load(self.state["applied"])

  cluster = Cluster()
  cluster.script()
  cluster.cloud = cloud
  return cluster


def test_a_run_is_created_from_code_in_the_bucket_and_followed_to_its_end(cluster):
  cluster.script(jobset=[{}, {}, {"restarts": 1}, {"terminalState": "Completed", "restarts": 1}],
                 log=[["2026-01-01T00:00:01Z one", "2026-01-01T00:00:02Z two"],
                      ["2026-01-01T00:00:02Z two", "2026-01-01T00:00:03Z three"]])
  code, text = cluster.run()
  assert code == 0
  # What is shown again after a reconnection is shown once.
  assert re.findall(r"^(one|two|three)$", text, re.M) == ["one", "two", "three"]
  assert "started again, 1 time(s)" in text and "Completed" in text
  archive = cluster.applied["metadata"]["annotations"][jobset.CODE_KEY]
  assert (cluster.cloud.folder / "objects" / "bucket" / gke.CODE_FOLDER /
          f"{archive}.tar.gz").exists()


def test_given_again_it_is_found_and_neither_sent_nor_created_twice(cluster):
  assert cluster.run()[0] == 0
  code, text = cluster.run()
  assert code == 0 and "is there already: Completed" in text
  assert sum(call.startswith("apply") for call in cluster.state["calls"]) == 1
  assert len(cluster.cloud.calls("storage cp")) == 1


def test_another_run_of_the_same_name_is_refused_and_untouched(cluster):
  cluster.run()
  before = cluster.applied
  code, text = cluster.run("--slices=2")
  assert code == 2 and "exists and is another one" in text and "kubectl delete jobset ps3" in text
  assert cluster.applied == before


def test_the_jobset_has_a_job_a_slice_and_a_pod_a_host_on_nodes_of_the_shape(cluster):
  cluster.run("--slices=3", "--spot", "--secret=TOKEN=s:k", "--env=A=b")
  there = cluster.applied
  [job] = there["spec"]["replicatedJobs"]
  assert job["replicas"] == 3
  spec = job["template"]["spec"]
  assert (spec["parallelism"], spec["completions"], spec["completionMode"]) == (4, 4, "Indexed")
  pod = spec["template"]["spec"]
  assert pod["nodeSelector"] == {
      "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
      "cloud.google.com/gke-tpu-topology": "4x4", "cloud.google.com/gke-spot": "true"}
  [container] = pod["containers"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  env = {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}
  assert env["A"] == "b" and env["TOKEN"] == {"secretKeyRef": {"name": "s", "key": "k"}}
  mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
  [volume] = [v for v in pod["volumes"] if "csi" in v]
  assert mounts[volume["name"]] == "/gcs/bucket"
  assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket"
  assert spec["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
  # The shell gives way to the trainer, which therefore gets the SIGTERM.
  script = container["command"][-1]
  assert script.splitlines()[-1] == ('exec "$HOME/.bve/venv/bin/python" -m toy_train --workdir '
                                     "/gcs/bucket/runs/x")


@pytest.mark.parametrize("end, becomes", [
    ({"exit": 2}, "failed"), ({"exit": 1}, "failed"), ({"exit": 139}, "failed"),
    ({"exit": 75}, "restarted"), ({"exit": 143}, "restarted"), ({"exit": 137}, "restarted"),
    ({"exit": 1, "disrupted": True}, "restarted")])
def test_each_way_that_a_pod_ends_leads_where_the_table_of_exit_codes_says(toy_code, end, becomes):
  # The rules, carried out as Kubernetes and JobSet document them: the first that matches counts.
  options, argv = gke.parse_args(["run", "x", "--type", "v5e-16", "--", "python", "-m", "toy_train",
                                  "--workdir", "gs://bucket/r"])
  there = jobset.build(gke.make_spec(options, argv, snapshot.take())[0])["spec"]
  job = there["replicatedJobs"][0]["template"]["spec"]
  reason = None
  for rule in job["podFailurePolicy"]["rules"]:
    codes = rule.get("onExitCodes")
    if (end.get("disrupted") if codes is None else
        codes["containerName"] == "train" and end["exit"] not in codes["values"]):
      reason = {"Count": None, "FailJob": "PodFailurePolicy"}[rule["action"]]
      break
  if reason is None:
    assert job["backoffLimit"] == 0
    reason = "BackoffLimitExceeded"
  action = next((rule["action"] for rule in there["failurePolicy"]["rules"]
                 if reason in rule["onJobFailureReasons"]), "RestartJobSet")
  assert {"FailJobSet": "failed", "RestartJobSet": "restarted"}[action] == becomes
  assert there["failurePolicy"]["maxRestarts"] == 100


def test_a_failed_run_names_the_pods_and_their_exit_codes(cluster):
  ended = [{"metadata": {"name": f"ps3-slice-0-{i}"}, "status": {"containerStatuses": [
      {"name": "train", "state": {"terminated": {"exitCode": code, "reason": "Error"}}}]}}
           for i, code in enumerate([139, 75, 75])]
  cluster.script(jobset=[{}, {"terminalState": "Failed"}], pods=ended)
  code, text = cluster.run()
  assert code == 2
  assert "exit code 139 (Error): ps3-slice-0-0" in text
  assert "exit code 75 (Error): ps3-slice-0-1, ps3-slice-0-2" in text


def test_pods_without_a_node_are_explained(cluster):
  waiting = {"metadata": {"name": "p"}, "status": {"phase": "Pending", "conditions": [
      {"type": "PodScheduled", "status": "False",
       "message": "0/3 nodes are available: 3 Insufficient google.com/tpu."}]}}
  cluster.script(jobset=[{}, {}, {"terminalState": "Completed"}], pods=[waiting] * 2)
  code, text = cluster.run()
  assert text.count("2 pod(s) wait for a node") == 1 and "No node pool of this shape" in text


@pytest.mark.parametrize("errors, advice", [
    ({"apply": 'error: resource mapping not found: no matches for kind "JobSet" in version'},
     "kubectl apply --server-side -f https://github.com/kubernetes-sigs/jobset"),
    ({"get": "The connection to the server localhost:8080 was refused"}, "get-credentials"),
    ({"apply": 'pods "x" is forbidden: exceeded quota: tpus'}, "no quota for so many")])
def test_errors_of_kubectl_are_explained(cluster, errors, advice):
  cluster.script(errors=errors)
  code, text = cluster.run()
  assert code == 2 and advice in text


def test_ctrl_c_says_what_goes_on(cluster, monkeypatch):
  def interrupted(*unused, **options):
    raise KeyboardInterrupt

  cluster.script(jobset=[{}])
  monkeypatch.setattr(gke.Cluster, "log", interrupted)
  code, text = cluster.run()
  assert code == 130 and "LEFT BEHIND: JobSet ps3" in text and "kubectl delete jobset ps3" in text


def test_a_dry_run_prints_the_way_and_a_jobset_that_is_the_one_created(cluster):
  code, text = cluster.run("--dry-run")
  assert code == 0 and not (cluster.cloud.folder / "kubectl.json").exists()
  assert cluster.cloud.state["calls"] == []
  printed = yaml.safe_load(re.search(r"<<'EOF'\n(.*?)\nEOF", text, re.S)[1])
  cluster.run()
  assert printed == cluster.applied


def test_xpk_gets_the_same_run(cluster):
  code, text = cluster.run("--xpk=my-cluster", "--zone=us-west4-a", "--slices=2")
  assert code == 0
  [create] = [line for line in text.splitlines() if line.startswith("xpk workload create")]
  for part in ("--cluster=my-cluster", "--tpu-type=v5litepod-16", "--num-slices=2",
               "--restart-on-exit-codes=75", "--workdir /gcs/bucket/runs/x"):
    assert part in create
  assert "--bucket=bucket --mount-point=/gcs/bucket" in text


def test_secrets_do_not_go_into_a_jobset(cluster):
  code, text = cluster.run("--env=HF_TOKEN=hush")
  assert code == 2 and "--secret HF_TOKEN=S:K" in text and "hush" not in text


def test_status_logs_and_delete_speak_of_the_same_jobset(cluster):
  cluster.script(jobset=[{}], pods=[{"metadata": {"name": "p-0"}, "status": {"phase": "Running"}}])
  assert cluster.call("status", "ps3")[0] == 2
  cluster.script(pods=[{"metadata": {"name": "p-0"}, "status": {"phase": "Running"}}])
  cluster.run()
  code, text = cluster.call("status", "ps3", "--namespace=n")
  assert code == 0 and "p-0: Running" in text and "--namespace=n" in cluster.state["calls"][-1]
  assert cluster.call("delete", "ps3")[0] == 0
  assert cluster.state["applied"] is None


def test_yaml_is_read_back_as_what_it_was():
  value = {"a.b/c": "x", "on": "yes", "n": 3, "t": True, "s": "3", "empty": [], "none": {},
           "text": "line\n  indented: yes\n\n# no comment\n", "open": "a\nb", "colon": "a: b",
           "list": [{"x": 1, "y": {"z": ["p", "q"]}}, "plain", "two\nlines\n", ["inner"]][:3],
           "dash": "- a", "hash": "a #b", "zero": 0, "blank": "", "colon-end": "k:"}
  assert yaml.safe_load(manifest.to_yaml(value)) == value
