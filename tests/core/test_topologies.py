"""The same losses and parameters, whatever the mesh, the processes, the layout and what is kept."""

import functools
import itertools
import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding, trees
from tests import topologies

MESHES = {"8 data": (8, 1, 1), "8 fsdp": (1, 8, 1), "4 fsdp x 2 tensor": (1, 4, 2)}
# Both tasks and every kind of mesh, with every way to accumulate, to keep and to lay out.
COVERING = (
    ("siglip", 1, "none", False, "8 data"),
    ("siglip", 2, "nothing_saveable", True, "4 fsdp x 2 tensor"),
    ("ps3", 2, "nothing_saveable", True, "8 fsdp"),
    ("ps3", 1, "none", False, "4 fsdp x 2 tensor"),
)
# All 48, which take an hour.
ALL = tuple(pytest.param(*case, marks=() if case in COVERING else pytest.mark.thorough)
            for case in itertools.product(("siglip", "ps3"), (1, 2), ("none", "nothing_saveable"),
                                          (False, True), MESHES))


@functools.cache
def one_device(task, accum, remat, scan):
  return topologies.run(topologies.settings(task, accum, remat, scan, (1, 1, 1)))[:2]


def assert_same(got, want):
  (reports, params), (want_reports, want_params) = got, want
  for report, expected in zip(reports, want_reports, strict=True):
    assert report.keys() == expected.keys()
    for name in report:
      np.testing.assert_allclose(report[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
  assert params.keys() == want_params.keys()
  for name in params:
    np.testing.assert_allclose(params[name], want_params[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("task, accum, remat, scan, mesh", ALL)
def test_every_mesh_comes_to_the_losses_and_parameters_of_one_device(
    task, accum, remat, scan, mesh):
  values = topologies.settings(task, accum, remat, scan, MESHES[mesh])
  reports, params, state = topologies.run(values)
  assert_same((reports, params), one_device(task, accum, remat, scan))
  if mesh != "8 data":
    # Large parameters and their moments are really cut over the devices.
    for part in ("params", "opt"):
      for name, x in trees.flatten(state[part]).items():
        assert not name.endswith("Dense_0/kernel") or x.addressable_data(0).size == x.size // 8


@pytest.mark.slow
def test_two_processes_of_four_devices_come_to_the_same(tmp_path):
  """Both tasks, with accumulated batches, in real processes on this machine."""
  cases = [("siglip", 2, "nothing_saveable", True), ("ps3", 2, "nothing_saveable", True)]
  mesh = MESHES["4 fsdp x 2 tensor"]
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  root = pathlib.Path(__file__).resolve().parents[2]
  env = os.environ | {
      "JAX_PLATFORMS": "cpu",
      # As here, but for the number of devices: the later of two flags holds.
      "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
      "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
  command = [sys.executable, "tests/topologies.py", str(tmp_path / "out"),
             *(json.dumps([*case, mesh]) for case in cases)]
  logs = [open(tmp_path / f"log{i}", "w+") for i in range(2)]
  processes = [
      subprocess.Popen(command, cwd=root, stdout=log, stderr=log,
                       env=env | {"JAX_PROCESS_ID": str(i)}) for i, log in enumerate(logs)]
  codes = [p.wait() for p in processes]
  assert codes == [0, 0], "\n".join((tmp_path / f"log{i}").read_text()[-2000:] for i in range(2))
  for index, case in enumerate(cases):
    with np.load(tmp_path / f"out.{index}.npz") as got:
      params = {n: got[n] for n in got.files if n != "reports"}
      assert_same((json.loads(str(got["reports"])), params), one_device(*case))


def test_all_products_of_both_towers_and_the_head_run_in_bfloat16_on_float32_parameters():
  """The one that is left in float32 is that of image with text vectors."""
  values = topologies.settings("siglip", 1, "none", False, (1, 1, 1))
  for tower in ("image", "text"):
    values["model"][tower]["dtype"] = "bfloat16"
  task = tasks.make("siglip", config_lib.resolve(values).model)
  batch = {k: np.zeros(s.shape, s.dtype) for k, s in task.batch_spec(8).items()}
  params = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))
  assert {str(x.dtype) for x in jax.tree.leaves(params)} == {"float32"}
  jaxpr = jax.make_jaxpr(lambda p: task.loss(p, batch, None, True))(params).jaxpr
  products = [e for e in _equations(jaxpr) if e.primitive.name == "dot_general"]
  in_float32 = [e for e in products if {str(v.aval.dtype) for v in e.invars} != {"bfloat16"}]
  assert len(products) > 30
  assert [tuple(v.aval.shape for v in e.invars) for e in in_float32] == [((8, 16), (8, 16))]


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for sub in jax.tree.leaves(list(equation.params.values())):
      inner = getattr(sub, "jaxpr", sub)
      if hasattr(inner, "eqns"):
        yield from _equations(inner)
