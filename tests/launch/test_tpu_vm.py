"""Runs on a fake cloud: commands really run, on hosts that are folders; see fake_gcloud.py."""

import re

import pytest

from launch import tpu_hosts, tpu_run, tpu_vm

QUOTA = ("ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit "
         "'TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI' has been exceeded. Limit: 0 in zone "
         "us-west4-a.")


@pytest.fixture
def launch(cloud, toy_code, clock, tmp_path, capsys):
  """Runs `tpu_vm run` on the toy; returns (exit code, what was printed)."""

  def run(*flags, toy=(), size="v5e-16", name="ps3", env=("MY_TOKEN=hush-hush",), workdir=None):
    workdir = workdir or tmp_path / "store" / "run"
    code = tpu_vm.main(
        ["run", name, "--type", size, "--zone", "us-west4-a",
         *([] if "--reserved" in flags else ["--spot"]), "--mount",
         f"nfs://server/x={tmp_path / 'store'}", *[f"--env={e}" for e in env], *flags, "--",
         "python", "-m", "toy_train", "--workdir", str(workdir), *toy], clock.make_tools)
    printed = capsys.readouterr()
    return code, printed.out + printed.err

  def let_go():
    if (run.workdir / "step").exists():
      (run.workdir / "go").touch()

  run.workdir = tmp_path / "store" / "run"
  run.let_go = let_go
  return run


def test_a_run_is_created_followed_to_its_end_and_deleted(launch, cloud):
  code, text = launch()
  assert code == 0
  assert (launch.workdir / "step").read_text() == "5"
  # The log of the first host, each line once and in order.
  assert re.findall(r"^step (\d)$", text, re.M) == list("12345")
  assert "complete" in text and "resumed 0 time(s)" in text
  # Every host of the slice ran it, once.
  assert {f.name: f.read_text() for f in launch.workdir.glob("starts-*")} == {
      f"starts-ps3-w-{w}": "x" for w in range(4)}
  assert cloud.state["resources"] == {}
  assert len(cloud.calls("queued-resources create")) == 1


def test_with_keep_the_machine_stays_and_the_statement_says_what_it_is_and_how_to_delete_it(
    launch, cloud):
  code, text = launch("--keep", size="v5e-8")
  assert code == 0
  assert list(cloud.state["resources"]) == ["ps3"]
  assert "LEFT BEHIND: queued resource ps3 in us-west4-a, ACTIVE" in text
  assert "gcloud compute tpus queued-resources delete ps3 --zone=us-west4-a --force" in text
  # Given again, it is found complete, and nothing is created or started twice.
  code, text = launch(size="v5e-8")
  assert code == 0
  assert len(cloud.calls("queued-resources create")) == 1
  assert (launch.workdir / "starts-ps3-w-0").read_text() == "x"


def test_after_a_preemption_it_goes_on_in_the_same_workdir_on_a_new_machine(launch, cloud, clock):
  cloud.script(faults=[{"match": "on_host.py status --run ps3 --attempt 1", "preempt": True,
                        "when": str(launch.workdir / "step")}])
  clock.meanwhile = lambda seconds: launch.let_go() if seconds == 30 else None
  code, text = launch(toy=["--hold"], size="v5e-8")
  assert code == 0
  assert len(cloud.calls("queued-resources create")) == 2
  assert "preempted, or taken for maintenance" in text and "resumed 1 time(s)" in text
  # It did go on: the second start found what the first had saved.
  assert re.findall(r"from step (\d+)", text)[-1] in ("1", "2")
  assert (launch.workdir / "step").read_text() == "5"
  assert len(cloud.calls("queued-resources delete")) == 2  # the suspended one, and the last


@pytest.mark.slow
def test_pauses_grow_while_runs_are_short(launch, cloud, clock):
  cloud.script(faults=[{"match": "on_host.py start", "times": 4, "preempt": True}])
  code, text = launch(size="v5e-8")
  assert code == 0 and "resumed 4 time(s)" in text
  pauses = [int(s) for s in re.findall(r"Waiting (\d+) s before", text)]
  assert pauses == [30, 60, 120, 240]


@pytest.mark.slow
def test_a_preempted_run_is_given_up_after_the_stated_number_of_resumes(launch, cloud):
  cloud.script(faults=[{"match": "on_host.py start", "times": 99, "preempt": True}])
  code, text = launch("--max-resumes=2", size="v5e-8")
  assert code == 2
  assert "interrupted 3 times, more than --max-resumes allows" in text


@pytest.mark.parametrize("codes, resumed", [
    ("143", 1), pytest.param("75,137", 2, marks=pytest.mark.slow)])
def test_exit_codes_that_ask_for_it_start_again(launch, codes, resumed):
  code, text = launch(toy=[f"--codes={codes}"], size="v5e-8")
  assert code == 0
  assert f"resumed {resumed} time(s)" in text
  assert (launch.workdir / "starts-ps3-w-0").read_text() == "x" * (resumed + 1)


@pytest.mark.parametrize("codes", [
    "2", pytest.param("1", marks=pytest.mark.slow), pytest.param("139", marks=pytest.mark.slow)])
def test_errors_and_crashes_end_the_run_and_leave_a_statement(launch, codes, cloud):
  code, text = launch(toy=[f"--codes={codes}"], size="v5e-8")
  assert code == 2
  assert f"the run failed: exit codes {codes}" in text
  assert "LEFT BEHIND" in text and "delete ps3" in text
  assert (launch.workdir / "starts-ps3-w-0").read_text() == "x"


@pytest.mark.slow
def test_crashes_are_tried_again_if_asked_and_errors_never(launch):
  code, text = launch("--max-failures=1", toy=["--codes=139"], size="v5e-8")
  assert code == 0 and "crashed 1" in text
  code, text = launch("--max-failures=5", toy=["--codes=2"], size="v5e-8", name="other",
                      workdir=launch.workdir.with_name("second"))
  assert code == 2


@pytest.mark.slow
def test_a_run_that_always_ends_soon_is_given_up(launch, monkeypatch):
  monkeypatch.setattr(tpu_run, "MAX_SHORT", 2)
  code, text = launch(toy=["--codes=137,137,137"], size="v5e-8")
  assert code == 2 and "2 attempts on end took less than 10 minutes each" in text


def test_a_quota_error_is_explained_and_not_tried_again(launch, cloud):
  cloud.script(create=[{"error": QUOTA}])
  code, text = launch()
  assert code == 2
  assert "TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI" in text
  assert "console.cloud.google.com/iam-admin/quotas" in text
  assert "Nothing is left" in text
  assert len(cloud.calls("queued-resources create")) == 1


def test_a_request_that_fails_for_the_quota_later_is_explained_too(launch, cloud):
  cloud.script(create=[{"states": ["ACCEPTED", "FAILED"], "failed":
                        "Quota 'TPUV5sPreemptibleLitepodPerProjectPerRegionForTPUAPI' exhausted. "
                        "Limit 10000 in region us-west4"}])
  code, text = launch()
  assert code == 2
  assert "iam-admin/quotas" in text and "LEFT BEHIND" in text and "FAILED" in text


def test_lack_of_capacity_is_tried_a_stated_number_of_times(launch, cloud):
  cloud.script(create=[{"states": ["WAITING_FOR_RESOURCES", "FAILED"], "failed":
                        'There is no more capacity in the zone "us-west4-a"; you can try in '
                        "another zone where Cloud TPU Nodes are offered"}])
  code, text = launch("--tries=2")
  assert code == 2
  assert "Tried 2 time(s)" in text and "no more capacity" in text
  assert len(cloud.calls("queued-resources create")) == 2


def test_a_slice_that_does_not_come_up_beside_others_is_asked_for_anew_with_them(launch, cloud):
  cloud.script(create=[{"nodes": {"ps3-1": ["CREATING", "TERMINATED"]}}, {}])
  code, text = launch("--slices=2", size="v5e-8")
  assert code == 0
  assert "ps3-1 is TERMINATED; 1 of 2 slices are up" in text
  assert len(cloud.calls("queued-resources create")) == 2
  assert {f.name for f in launch.workdir.glob("starts-*")} == {
      "starts-ps3-0-w-0", "starts-ps3-1-w-0"}


def test_partial_failure_that_stays_lists_what_is_left(launch, cloud):
  cloud.script(create=[{"nodes": {"ps3-1": ["TERMINATED"]}}])
  code, text = launch("--slices=2", "--tries=2", size="v5e-8")
  assert code == 2
  assert "1 of 2 slices are up" in text and "Tried 2 time(s)" in text
  assert "LEFT BEHIND: queued resource ps3" in text


def test_a_copy_that_fails_on_one_worker_is_repeated_and_then_named(launch, cloud):
  cloud.script(faults=[{"match": "scp", "worker": 2, "times": 1, "code": 255, "text": "lost"}])
  code, text = launch()
  assert code == 0
  cloud.script(faults=[{"match": "scp", "worker": 2, "times": 99, "code": 255,
                        "text": "ssh: connect to host 1.2.3.4 port 22: Connection refused"}])
  code, text = launch(name="second")
  assert code == 2
  assert "sending the code" in text and "failed on second, tried 3 time(s)" in text
  assert "Command execution on worker 2 failed" in text and "LEFT BEHIND" in text


def test_a_key_that_is_not_in_the_agent_is_explained_at_once(launch, cloud):
  cloud.script(faults=[{"match": "--worker=all", "times": 99, "text":
                        "ERROR: (gcloud.compute.tpus.tpu-vm.ssh) The SSH key is not in the "
                        "keychain. Run: ssh-add /home/me/.ssh/google_compute_engine"}])
  code, text = launch()
  assert code == 2
  assert "ssh-add ~/.ssh/google_compute_engine" in text
  assert len(cloud.calls("--worker=all")) == 1


def test_a_lost_connection_is_taken_up_where_the_log_was(launch, cloud, clock):
  cloud.script(faults=[{"match": "on_host.py follow", "after": 1, "times": 1, "code": 255,
                        "text": "client_loop: send disconnect: Broken pipe"},
                       {"match": "status --run ps3 --attempt 1", "after": 1, "times": 3,
                        "code": 255, "text": "Connection timed out"}])
  clock.meanwhile = lambda seconds: launch.let_go() if seconds == 10 else None
  code, text = launch(toy=["--hold"], size="v5e-8")
  assert code == 0
  assert re.findall(r"^step (\d+)$", text, re.M) == list("12345")
  assert "The connection was lost; trying again (1 of 10)" in text
  assert len(cloud.calls("queued-resources create")) == 1


def test_an_existing_one_of_another_kind_is_refused_and_untouched(launch, cloud):
  assert launch("--keep", size="v5e-8")[0] == 0
  code, text = launch("--slices=2", "--reserved", size="v5e-16")
  assert code == 2
  for difference in ("type: v5litepod-8, asked for v5litepod-16", "slices: 1, asked for 2",
                     "capacity: spot, asked for reserved"):
    assert difference in text
  assert list(cloud.state["resources"]) == ["ps3"]


def interrupted(*unused, **options):
  """Instead of following a log."""
  raise KeyboardInterrupt


def test_ctrl_c_leaves_the_training_and_says_what_costs_money_and_the_next_launch_finds_it(
    launch, cloud, clock, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(tpu_hosts.Hosts, "follow", interrupted)
    code, text = launch(toy=["--hold"], size="v5e-8")
  assert code == 130
  assert "LEFT BEHIND: queued resource ps3 in us-west4-a, ACTIVE" in text
  assert "to follow it again   python -m launch.tpu_vm run ps3" in text and "hush" not in text
  follow = tpu_hosts.Hosts.follow

  def let_go_and_follow(*arguments, **options):
    launch.workdir.mkdir(parents=True, exist_ok=True)
    (launch.workdir / "go").touch()
    return follow(*arguments, **options)

  monkeypatch.setattr(tpu_hosts.Hosts, "follow", let_go_and_follow)
  code, text = launch(toy=["--hold"], size="v5e-8")
  assert "Attempt 1 runs there already" in text
  assert code == 0 and re.findall(r"^step (\d+)$", text, re.M) == list("12345")
  assert (launch.workdir / "starts-ps3-w-0").read_text() == "x"


def test_another_command_is_not_started_over_one_that_runs(launch, cloud, monkeypatch, capsys,
                                                           clock):
  with monkeypatch.context() as patch:
    patch.setattr(tpu_hosts.Hosts, "follow", interrupted)
    launch(toy=["--hold"], size="v5e-8")
  code, text = launch(toy=["--steps=5"], size="v5e-8")
  assert code == 2 and "another command or other code runs as ps3" in text
  # Stopped, it leaves with SIGTERM's code; its log can still be read.
  assert tpu_vm.main(["stop", "ps3", "--zone", "us-west4-a"], clock.make_tools) == 0
  assert "ps3-w-0: attempt 1 exited with exit code 143" in capsys.readouterr().out
  assert tpu_vm.main(["logs", "ps3", "--zone", "us-west4-a"], clock.make_tools) == 0
  assert "from step 0" in capsys.readouterr().out
  assert tpu_vm.main(["status", "ps3", "--zone", "us-west4-a"], clock.make_tools) == 0
  assert "ACTIVE" in capsys.readouterr().out
  assert tpu_vm.main(["delete", "ps3", "--zone", "us-west4-a"], clock.make_tools) == 0
  assert cloud.state["resources"] == {}


def test_one_deleted_by_somebody_is_not_asked_for_again(launch, cloud, clock):
  cloud.script(faults=[{"match": "on_host.py status --run ps3 --attempt 1", "delete": True}])
  code, text = launch(toy=["--hold"], size="v5e-8")
  assert code == 2
  assert "ps3 was deleted; it is not asked for again" in text and "Nothing is left" in text
  assert len(cloud.calls("queued-resources create")) == 1


def test_secrets_are_in_no_output_and_no_command_line(launch, cloud):
  code, text = launch(size="v5e-8")
  assert code == 0
  assert "hush-hush" not in text and "secret ***" in text
  assert not any("hush-hush" in call for call in cloud.state["calls"])


def test_a_dry_run_prints_the_commands_of_the_whole_way_and_runs_none(launch, cloud):
  code, text = launch("--dry-run")
  assert code == 0 and cloud.state["calls"] == []
  steps = [line.split("--zone")[0].split("gcloud compute tpus ")[-1].split()[:2]
           for line in text.splitlines() if line.startswith("gcloud")]
  verbs = [" ".join(step) for step in steps]
  assert verbs[0] == "queued-resources describe" and verbs[1] == "queued-resources create"
  assert verbs[-1] == "queued-resources delete" and "tpu-vm scp" in verbs
  assert "hush-hush" not in text
  # All that is no command is a comment: the output may be read by a shell.
  assert all(line.startswith(("gcloud ", "# ")) for line in text.splitlines())


@pytest.mark.parametrize("argv, message", [
    (["--type", "v5e-255"], "did you mean v5e-256"),
    (["--zone", "us-west4"], "expected a zone, e.g. us-west4-a"),
    (["--slices", "0"], "expected 1 or more"),
    (["--internal-ips"], "how are the hosts to be reached"),
])
def test_what_cannot_be_is_refused_before_anything_is_created(argv, message, cloud, toy_code, clock,
                                                             capsys):
  base = ["run", "ps3", "--type", "v5e-8", "--zone", "us-west4-a", "--spot"]
  code = tpu_vm.main([*base, *argv, "--", "python", "-m", "toy_train", "--workdir", "gs://abc/r"],
                     clock.make_tools)
  assert code == 2 and message in capsys.readouterr().err
  assert cloud.state["calls"] == []
