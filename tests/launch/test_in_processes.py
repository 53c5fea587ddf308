"""Evaluators and the intake of rows, in two processes at once."""

import json

import pytest

from big_vision_ext import evaluators
from launch import local_processes
from tests.evaluators.conftest import ColourTask, class_data, place  # noqa: F401
from tests.evaluators.test_whole_evaluators import SPECS
from tests.launch import in_processes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(class_data, tmp_path_factory):  # noqa: F811
  """What each of two processes with four devices found."""
  out = tmp_path_factory.mktemp("found")
  assert local_processes.main([
    "--num", "2", "--devices-per-process", "4", "--", "python", "tests/launch/in_processes.py",
    class_data, str(out)]) == 0
  return [json.loads((out / f"{process}.json").read_text()) for process in range(2)]


@pytest.mark.parametrize("mesh", in_processes.MESHES)
def test_every_row_is_made_by_one_process_and_arrives_where_it_belongs(found, mesh):
  parts = [process["intake"][mesh] for process in found]
  assert all(part["right"] for part in parts)
  assert sorted(parts[0]["rows"] + parts[1]["rows"]) == list(range(16))


def test_rows_that_cannot_be_cut_among_all_devices_are_a_clear_error(found):
  for process in found:
    assert "12 rows" in process["error"] and "8 devices" in process["error"]


@pytest.mark.parametrize("mesh", ("data", "tensor across"))
@pytest.mark.parametrize("kind", SPECS)
def test_two_processes_measure_what_one_does(found, place, mesh, kind):  # noqa: F811
  task = ColourTask()
  want = evaluators.make(kind, {"type": kind, **SPECS[kind]}, task=task, **place(1)).run(
    task.init())
  for process in found:
    # Ranks of float32 scores whose sums were taken in another order.
    assert process["evaluate"][mesh][kind] == pytest.approx(want, abs=1e-9)
