"""Every test runs on the CPU, on eight simulated devices, from the repository root."""

import os
import pathlib
import sys

import pytest

# Before jax is imported anywhere: the number of devices is fixed when its backend starts.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tiny programs take longer to optimise than to run: LLVM leaves that, which halves the time of
# compiling. XLA's own passes, of which the numbers are made, stay as they are for users.
for _flag, _value in (("--xla_force_host_platform_device_count", 8),
                      ("--xla_backend_optimization_level", 0)):
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


@pytest.fixture(scope="session")
def small_sample_data(tmp_path_factory):
  """A few canvases of the sample data, small ones: a data set that configs and commands can use."""
  from input_pipeline.build import sample

  out = tmp_path_factory.mktemp("data") / "sample"
  sample.build(out, train=8, val=3, progress=False, max_side=2048)
  return out
