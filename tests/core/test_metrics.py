import json
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from big_vision_ext.core import metrics


class Console:
  def __init__(self):
    self.seen = []

  def report(self, step, scalars):
    self.seen.append((step, scalars))


def write(workdir, start, values):
  console = Console()
  if (workdir / metrics.FOLDER).exists():
    # tensorboard reads files in order of their names, which begin with the second they are made in.
    time.sleep(1 - time.time() % 1)
  writer = metrics.make_writer(workdir, start, console)
  for step, scalars in values:
    writer.write_scalars(step, scalars)
  writer.flush()
  writer.close()
  return console


def tensorboard(workdir):
  """What a stock tensorboard reads: {name: [(step, value), ...]}."""
  events = EventAccumulator(str(workdir / "tensorboard"), tensor_size_guidance={}).Reload()
  return {tag: [(e.step, float(tensor_util.make_ndarray(e.tensor_proto)))
                for e in events.Tensors(tag)] for tag in events.Tags()["tensors"]}


def test_scalars_reach_file_tensorboard_and_console(tmp_path):
  console = write(tmp_path, 0, [(1, {"loss": np.float32(0.5)}), (2, {"loss": 0.25, "n": 3})])
  assert metrics.read(tmp_path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25, "n": 3}]
  assert tensorboard(tmp_path) == {"loss": [(1, 0.5), (2, 0.25)], "n": [(2, 3.0)]}
  assert console.seen == [(1, {"loss": 0.5}), (2, {"loss": 0.25, "n": 3.0})]


def test_a_resumed_run_takes_back_what_came_after_its_checkpoint(tmp_path):
  write(tmp_path, 0, [(s, {"loss": float(s)}) for s in (2, 4, 6, 8)])
  write(tmp_path, 5, [(s, {"loss": s + 0.5}) for s in (6, 8, 10)])
  want = [(2, 2.0), (4, 4.0), (6, 6.5), (8, 8.5), (10, 10.5)]
  assert [(line["step"], line["loss"]) for line in metrics.read(tmp_path)] == want
  assert tensorboard(tmp_path)["loss"] == want


def test_a_run_killed_before_its_first_checkpoint_starts_its_record_again(tmp_path):
  write(tmp_path, 0, [(1, {"loss": 1.0}), (2, {"loss": 2.0})])
  write(tmp_path, 0, [(1, {"loss": 1.5})])
  assert metrics.read(tmp_path) == [{"step": 1, "loss": 1.5}]
  assert tensorboard(tmp_path) == {"loss": [(1, 1.5)]}


def test_a_torn_last_line_is_left_out_and_taken_back(tmp_path):
  path = tmp_path / metrics.FILE
  path.write_text('{"step": 2, "loss": 1.0}\n{"step": 4, "lo')
  assert metrics.read(tmp_path) == [{"step": 2, "loss": 1.0}]
  write(tmp_path, 4, [(6, {"loss": 3.0})])
  assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 6]


def test_a_broken_line_is_named(tmp_path):
  for broken in ("hello", "[1]", '{"stop": 1}'):
    (tmp_path / metrics.FILE).write_text(f'{{"step": 2}}\n{broken}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2: expected a JSON object"):
      metrics.read(tmp_path)


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
  write(tmp_path, 0, [(1, {"loss": float("nan"), "norm": np.float32(np.inf)})])
  assert metrics.read(tmp_path) == [{"step": 1, "loss": None, "norm": None}]


def test_times_are_told_from_results():
  assert metrics.is_timing("time/step") and not metrics.is_timing("loss")


def test_the_training_path_needs_no_tensorflow_and_no_torch():
  code = ("import sys; sys.modules['tensorflow'] = sys.modules['torch'] = None\n"
          "import big_vision_ext.train\n")
  subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
