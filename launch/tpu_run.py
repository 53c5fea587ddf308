"""Sees a run on a TPU through: gets the machine, starts, follows, starts again after preemption."""

from collections.abc import Sequence

from big_vision_ext.core import exit_codes
from launch import gcloud as gcloud_lib
from launch import tools as tools_lib
from launch import tpu_hosts
from launch.gcloud import Kind
from launch.outcome import Outcome, judge

POLL_SECONDS = 30
# How long a node may be on its way (being created, repaired) while the others are up.
NODE_PATIENCE = 600
# How long hosts may run on after the first has ended: the trainer's own watch over its peers is
# shorter.
PEER_PATIENCE = 600
# A run that lasted this long was no failed start: the pauses between attempts begin anew.
LONG_RUN = 600
# So many short runs on end, on a machine that stays, are no accident.
MAX_SHORT = 20


class RunError(tools_lib.ToolError):
  """The run cannot go on."""


class LostError(Exception):
  """The machine is gone, or going."""


class Run:
  """One job on one queued resource."""

  def __init__(self, gcloud: gcloud_lib.Gcloud, tools: tools_lib.Tools,
               request: gcloud_lib.Request, job: tpu_hosts.Job, *, tries: int = 3,
               max_resumes: int = 1000, max_failures: int = 0):
    """Args:
      gcloud, tools: to act.
      request: the machine.
      job: what to run there.
      tries: how often a step is tried that may fail in passing.
      max_resumes: how often to start again after preemption and the like.
      max_failures: how often to start again after a crash.
    """
    self._gcloud, self._tools, self._request, self._job = gcloud, tools, request, job
    self._hosts = tpu_hosts.Hosts(gcloud, tools, request, tries)
    self._tries, self._max_resumes, self._max_failures = tries, max_resumes, max_failures
    self.resumes = self.failures = 0

  def complete(self) -> Outcome:
    """Runs the job until it is complete or somebody stopped it.

    Raises:
      ToolError: it cannot go on; the message says why.
    """
    pause = short_runs = 0
    while True:
      if pause:
        self._tools.say(f"Waiting {pause} s before the next attempt")
        self._tools.sleep(pause)
      began = self._tools.now()
      try:
        self.acquire()
        began = self._tools.now()
        codes = self._attempt()
        outcome = judge(codes)
      except LostError as lost:
        self._tools.say(f"{self._request.name}: {lost}")
        codes, outcome = [None], Outcome.RESUME
      except tpu_hosts.HostError as error:
        # The machine may be the reason; if it is up, the error is what it seems to be.
        if not self._lost():
          raise
        self._tools.say(f"{self._request.name} was lost meanwhile ({error})")
        codes, outcome = [None], Outcome.RESUME
      if outcome in (Outcome.COMPLETE, Outcome.STOPPED):
        return outcome
      ended = ", ".join("lost" if c is None else str(c) for c in sorted(set(codes), key=str))
      if outcome is Outcome.ERROR:
        self.failures += 1
        if exit_codes.ERROR in codes or self.failures > self._max_failures:
          raise RunError(f"the run failed: exit codes {ended} (big_vision_ext/core/"
                         "exit_codes.py says what they mean); its last lines are above")
      else:
        self.resumes += 1
        if self.resumes > self._max_resumes:
          raise RunError(f"interrupted {self.resumes} times, more than --max-resumes allows")
      self._tools.say(f"Starting again (exit codes {ended}): resumed {self.resumes} time(s), "
                      f"crashed {self.failures}; {self._job.command.workdir} has what was saved")
      short = self._tools.now() - began < LONG_RUN
      short_runs = short_runs + 1 if short and None not in codes else 0
      if short_runs >= MAX_SHORT:
        raise RunError(f"{short_runs} attempts on end took less than {LONG_RUN // 60} minutes "
                       f"each, on a machine that is up (exit codes {ended}); its last lines are "
                       "above")
      pause = min(900, pause * 2 or 30) if short else 0

  def acquire(self) -> None:
    """Returns once the queued resource and all of its nodes are up.

    Raises:
      ToolError: it was refused, is another one, or failed each time it was tried.
    """
    name, failed, said, created = self._request.name, 0, None, False
    since = told = self._tools.now()
    while True:
      resource = self._gcloud.describe(name, dry=self._as_granted() if created else None)
      state = gcloud_lib.state_of(resource)
      if resource is None:
        self._create(failed)
        created = True
        continue
      if differences := self._request.differences(resource):
        raise RunError(f"{name} exists in {self._gcloud.zone} and is another one:\n  "
                       + "\n  ".join(differences) + "\nUse another name, or delete it:\n  "
                       + tools_lib.quoted(self._gcloud.delete_command(name)))
      if state != said:
        self._tools.say(f"{name} ({self._request}) in {self._gcloud.zone}: {state}")
        said = state
        since = told = self._tools.now()
      elif self._tools.now() - told >= 600:
        told = self._tools.now()
        self._tools.say(f"{name}: {state} for {round((told - since) / 60)} minutes")
      problem = None
      if state == "ACTIVE":
        problem = self._wait_for_nodes()
        if problem is None:
          return
      elif state == "FAILED":
        problem = gcloud_lib.reason_of(resource)
      elif state == "SUSPENDED":
        # What preemption leaves: the nodes are gone, the entry stays and counts against the quota.
        self._tools.say(f"{name} was suspended ({gcloud_lib.reason_of(resource)}): "
                        "asking for a new one")
        self._gcloud.delete(name)
        self._tools.sleep(POLL_SECONDS)
        continue
      if problem is not None:
        failed += 1
        error = gcloud_lib.GcloudError(f"{name} could not be had", problem)
        if error.kind in (Kind.QUOTA, Kind.PERMISSION, Kind.API, Kind.INVALID):
          raise error
        if failed >= self._tries:
          raise RunError(f"{error}\nTried {failed} time(s)")
        self._tools.say(f"{error}\nDeleting it, and asking again ({failed} of {self._tries} tries)")
        self._gcloud.delete(name)
        self._tools.sleep(60 * 2**failed)
        continue
      self._tools.sleep(POLL_SECONDS)

  def _create(self, failed):
    for attempt in range(self._tries):
      try:
        self._tools.say(f"Asking for {self._request} in {self._gcloud.zone}: {self._request.name}")
        self._gcloud.create(self._request)
        return
      except gcloud_lib.GcloudError as error:
        if error.kind is Kind.EXISTS:
          return
        if error.kind not in (Kind.PASSING, Kind.CAPACITY) or attempt + 1 == self._tries:
          raise
        self._tools.say(f"{error}\nTrying again")
        self._tools.sleep(30 * 2**(attempt + failed))

  def _wait_for_nodes(self):
    # None once all are ready, otherwise what is wrong.
    until = self._tools.now() + NODE_PATIENCE
    while True:
      states = {node: self._node_state(node) for node in self._request.nodes}
      bad = {node: state for node, state in states.items() if state != "READY"}
      if not bad:
        return None
      what = ", ".join(f"{node} is {state}" for node, state in bad.items())
      coming = {"CREATING", "STARTING", "RESTARTING", "REPAIRING", "REIMAGING"}
      if not set(bad.values()) <= coming or self._tools.now() >= until:
        return f"{what}; {len(states) - len(bad)} of {len(states)} slices are up"
      self._tools.sleep(POLL_SECONDS)

  def _node_state(self, node):
    found = self._gcloud.node(node)
    return "ABSENT" if found is None else found.get("state", "UNKNOWN")

  def _lost(self):
    # Whether the machine is not, or not wholly, there any more.
    if self._tools.dry:
      return False
    try:
      state = gcloud_lib.state_of(self._gcloud.describe(self._request.name))
      lost = state != "ACTIVE" or any(
          self._node_state(node) not in ("READY", "UNKNOWN") for node in self._request.nodes)
    except gcloud_lib.GcloudError as error:
      self._tools.say(str(error))
      return False
    if state == "ABSENT":
      # By a person: preemption leaves a suspended one.
      raise RunError(f"{self._request.name} was deleted; it is not asked for again")
    return lost

  def _attempt(self) -> Sequence[int | None]:
    # Starts, or finds running, the job on all hosts; returns the exit codes they end with.
    job = self._job
    before = self._hosts.statuses(job.name)
    running = [s for s in before if s["state"] == "running"]
    if running and any(s.get("id") != job.identity for s in running):
      raise RunError(f"another command or other code runs as {job.name} on its hosts. Stop it "
                     f"first: python -m launch.tpu_vm stop {job.name} --zone {self._gcloud.zone}")
    if before and all(s["state"] == "exited" and s["code"] == 0 and s.get("id") == job.identity
                      for s in before):
      return [0]
    attempt = max((s["attempt"] for s in before), default=0)
    if len(running) == len(before) and len({s["attempt"] for s in before}) == 1 and running:
      self._tools.say(f"Attempt {attempt} runs there already")
    else:
      attempt += 1
      self._hosts.send(job)
      self._hosts.set_up(job)
      self._tools.say(f"Attempt {attempt}: {job.command}")
      self._hosts.start(job, attempt)
    return self._follow(attempt)

  def _follow(self, attempt):
    offset, failed, ended = 0, 0, None
    while True:
      offset, result = self._hosts.follow(self._job.name, attempt, offset, self._tools.say)
      if self._tools.dry:
        self._hosts.statuses(self._job.name, attempt)
        return [0]
      try:
        statuses = self._hosts.statuses(self._job.name, attempt)
      except tpu_hosts.HostError as error:
        if self._lost():
          raise LostError("preempted, or taken for maintenance") from error
        failed += 1
        if failed >= 10:
          raise RunError(f"the hosts could not be reached {failed} times in a row, though Google "
                         f"says that they are up: {error}") from error
        self._tools.say(f"The connection was lost; trying again ({failed} of 10)")
        self._tools.sleep(min(60, 5 * 2**failed))
        continue
      failed = 0
      going = [s for s in statuses if s["state"] == "running"]
      if not going:
        if any(s["state"] in ("lost", "absent") for s in statuses) and self._lost():
          raise LostError("preempted, or taken for maintenance")
        # What was said between the following and the asking: the last words, an error among them.
        self._hosts.follow(self._job.name, attempt, offset, self._tools.say)
        return [s["code"] for s in statuses]
      if len(going) < len(statuses):
        ended = self._tools.now() if ended is None else ended
        if self._tools.now() - ended > PEER_PATIENCE:
          self._tools.say(f"{len(going)} host(s) still run though others have ended: stopping them")
          self._hosts.stop(self._job.name)
          # How these end says nothing.
          return [s["code"] for s in statuses if s["state"] != "running"] + [None]
        self._tools.sleep(5)
      elif result.code and self._lost():
        raise LostError("preempted, or taken for maintenance")

  def _as_granted(self):
    # What Google would answer once the machine is there, for a dry run.
    request = self._request
    node = {"acceleratorType": request.type.accelerator_type,
            "runtimeVersion": request.runtime_version,
            "acceleratorConfig": {"topology": request.type.shape}}
    tier = {"spot": {"spot": {}}, "reserved": {"reservationName": "-"}, "on-demand": {}}
    return {"state": {"state": "ACTIVE"}, **tier[request.capacity],
            "tpu": {"nodeSpec": [{"node": node, "nodeId": n} for n in request.nodes]}}
