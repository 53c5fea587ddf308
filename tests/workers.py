"""Tests on several workers: what is shown, and what comes of a worker that crashes.

A line for each file that ends, instead of dots: a run that is stopped from outside, or a worker
that crashes or hangs, has then told how far it came, where it was and how long files before took.
"""

import collections
import time

import pytest
from xdist.scheduler import LoadFileScheduling


class Files(LoadFileScheduling):
  """Files of tests for workers; one that crashes fails one test.

  xdist hands over the files that such a worker had finished as well: whoever gets one has nothing
  to run in it, so that nothing ends, so that it gets no other, and all wait for ever. And the test
  that the worker crashed in is run again, until no more workers may crash.
  """

  def remove_node(self, node):
    left = {file: tests for file, tests in self.assigned_work.pop(node).items()
            if not all(tests.values())}
    if not left:
      return None
    first = next(iter(left.values()))
    crashed = next(test for test, done in first.items() if not done)
    first[crashed] = True
    self.workqueue.update({file: tests for file, tests in left.items() if not all(tests.values())})
    for other in self.assigned_work:
      self._reschedule(other)
    return crashed

  def _reschedule(self, node):
    """A worker begins its last test when it gets another or is told that there is none."""
    if node.shutting_down or node not in self.registered_collections:
      return
    while self.workqueue and self._pending_of(self.assigned_work[node]) <= 2:
      self._assign_work_unit(node)
    if not self.workqueue:
      node.shutdown()


class Workers:
  """Reports of all workers, counted by file; only where the workers report to.

  Args:
    config: pytest's.
  """

  def __init__(self, config):
    self._config = config
    self._started = time.monotonic()
    self._began = {}  # files of which a test has begun, in that order
    self._left = {}  # of a file: its tests that have not ended
    self._spent = collections.Counter()  # of a file: seconds of its tests
    self._outcomes = collections.defaultdict(collections.Counter)
    self._total = self._done = 0

  def pytest_xdist_make_scheduler(self, config, log):
    return Files(config, log) if config.getoption("dist") == "loadfile" else None

  def pytest_xdist_node_collection_finished(self, node, ids):
    """Every worker has collected the same tests."""
    if self._left:
      return
    left = collections.defaultdict(set)
    for test in ids:
      left[_file(test)].add(test)
    self._left, self._total = dict(left), len(ids)

  def pytest_runtest_logstart(self, nodeid, location):
    self._began[_file(nodeid)] = True

  @pytest.hookimpl(tryfirst=True)
  def pytest_report_teststatus(self, report):
    """No letters; what fails is told when it does, with its name."""
    if report.passed:
      return ("passed" if report.when == "call" else ""), "", ""
    if report.skipped:
      return "skipped", "", ""
    return ("error" if report.when in ("setup", "teardown") else "failed"), "", "FAILED"

  @pytest.hookimpl(trylast=True)
  def pytest_runtest_logreport(self, report):
    file = _file(report.nodeid)
    self._spent[file] += report.duration
    if report.failed:
      self._say(f"FAILED in its {report.when}: {report.nodeid}")
    if report.failed or report.skipped or report.when == "call":
      self._outcomes[file][report.outcome] += 1
    # A crash is reported once, by no phase that a test has.
    if report.when in ("setup", "call"):
      return
    left = self._left.get(file, set())
    if report.nodeid in left:
      left.remove(report.nodeid)
      self._done += 1
      if not left:
        counts = ", ".join(f"{n} {outcome}" for outcome, n in self._outcomes[file].items())
        others = [f for f in self._began if self._left.get(f)]
        self._say(f"{file}: {counts}, {self._spent[file]:.0f} s"
                  + (f"  (now: {', '.join(others)})" if others else ""))

  def _say(self, text):
    minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
    reporter = self._config.pluginmanager.get_plugin("terminalreporter")
    reporter.ensure_newline()
    share = self._done / max(self._total, 1)
    reporter.write_line(f"{minutes:3d}:{seconds:02d} {share:4.0%} {text}")
    reporter.flush()


def _file(test):
  return test.split("::")[0]
