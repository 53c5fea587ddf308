"""Every test runs on the CPU, on eight simulated devices, from the repository root."""

import functools
import gc
import os
import pathlib
import sys
import time

import pytest

# Before jax is imported anywhere: the number of devices is fixed when its backend starts.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tiny programs take longer to optimise than to run: LLVM leaves that, which halves the time of
# compiling. XLA's own passes, of which the numbers are made, stay as they are for users. Devices
# that wait for each other on a machine with other work to do are not stuck after 40 seconds.
for _flag, _value in (("--xla_force_host_platform_device_count", 8),
                      ("--xla_backend_optimization_level", 0),
                      ("--xla_cpu_collective_call_terminate_timeout_seconds", 300)):
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402, after the settings above

from big_vision_ext.core import programs  # noqa: E402

# launch/test.sh has jax keep programs on disk. Not all tests of several devices ask for a mesh as
# commands do, which turns this on.
programs.keep_no_collectives()

# Linux allows a process 65,530 mappings of memory by default. Every program that XLA compiles for
# the CPU takes several, and a process that has no more of them left crashes in the next one.
# Between files, where little is compiled again for it, they are forgotten sooner than within one.
MOST_MAPPINGS, MOST_WITHIN_A_FILE = 15_000, 30_000
STARTED = time.monotonic()


def pytest_configure(config):
  """On several workers, files are told as they end, and a crash fails one test."""
  if getattr(config.option, "numprocesses", None):
    from tests import workers

    config.pluginmanager.register(workers.Workers(config))


def pytest_collection_modifyitems(items):
  """Files with slow tests first: the workers then end with many small files, at the same time."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup(item):
  """After BVE_TEST_MINUTES, if that is set, what has not begun is left out and told.

  Not what is compared with other implementations: that is never skipped.
  """
  minutes = float(os.environ.get("BVE_TEST_MINUTES", "inf"))
  late = time.monotonic() - STARTED > 60 * minutes
  if late and not item.get_closest_marker("oracle"):
    pytest.skip(f"left out: {minutes:g} minutes (BVE_TEST_MINUTES) are over")


def pytest_runtest_teardown(item, nextitem):
  """Forgets compiled programs where a worker holds a great many."""
  ends = nextitem is None or nextitem.path != item.path
  most = MOST_MAPPINGS if ends or item.get_closest_marker("slow") else MOST_WITHIN_A_FILE
  maps = pathlib.Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > most:
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def one_device(monkeypatch):
  """Training takes one device, as it finds on a laptop; eight cost a third more to compile for."""
  from big_vision_ext.core import sharding

  monkeypatch.setattr(sharding, "make_mesh", functools.partial(
    sharding.make_mesh, devices=jax.devices()[:1]))


@pytest.fixture(scope="session")
def small_sample_data(tmp_path_factory):
  """A few canvases of the sample data, small ones: a data set that configs and commands can use."""
  from input_pipeline.build import sample

  out = tmp_path_factory.mktemp("data") / "sample"
  sample.build(out, train=8, val=3, progress=False, max_side=2048)
  return out
