"""Run by each of several processes: evaluates, and brings rows onto meshes; writes what it found.

  in_processes.py DATA OUT
"""

import json
import os
import pathlib
import sys

import jax
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

# Meshes of eight devices: what they are called, (data, fsdp, tensor), and the order of the devices.
MESHES = {
  "data": ((8, 1, 1), range(8)),
  "fsdp and tensor": ((2, 2, 2), range(8)),
  # Rows of one process lie between those of the other, as on a torus of chips.
  "in turns": ((8, 1, 1), (0, 4, 1, 5, 2, 6, 3, 7)),
  # Every row is needed by both processes.
  "tensor": ((1, 1, 8), range(8)),
  "tensor across": ((2, 1, 4), (0, 4, 1, 5, 2, 6, 3, 7)),
}


def mesh_of(name):
  from big_vision_ext.core import sharding
  shape, order = MESHES[name]
  devices = np.array(jax.devices())[list(order)].reshape(shape)
  return jax.sharding.Mesh(devices, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)


def intake(name):
  """The rows this process makes of a batch of 16, and whether all arrive where they belong."""
  from big_vision_ext.core import feed, sharding
  place = sharding.batch_sharding(mesh_of(name), 16)
  take = feed.Intake(place, 16)
  want = np.arange(16 * 3, dtype=np.int32).reshape(16, 3)
  arrays = take({"x": want[take.rows], "y": want[take.rows, 0]})
  right = arrays["x"].sharding == place
  for array, value in (("x", want), ("y", want[:, 0])):
    for shard in arrays[array].addressable_shards:
      right &= np.array_equal(shard.data, value[shard.index])
  return {"rows": take.rows, "right": bool(right)}


def evaluate(data, name):
  """All evaluators' results on a mesh."""
  from big_vision_ext import evaluators
  from big_vision_ext.core import sharding
  from input_pipeline import loader
  from tests.evaluators.conftest import LENGTH, ColourTask
  from tests.evaluators.test_whole_evaluators import SPECS
  task, mesh = ColourTask(), mesh_of(name)
  where = {
    "input_config": loader.InputConfig(data=data, split="val", image_size=8, text_len=LENGTH,
                                       threads=1),
    "mesh": mesh, "batch_sharding": sharding.batch_sharding(mesh)}
  whole = sharding.replicated(mesh)
  params = jax.tree.map(lambda x: sharding.put(x, whole), task.init())
  return {kind: evaluators.make(kind, {"type": kind, "batch_size": 5, **spec}, task=task,
                                **where).run(params) for kind, spec in SPECS.items()}


def main(data, out):
  from big_vision_ext.core import feed, sharding
  sharding.join_processes()
  found = {"intake": {name: intake(name) for name in MESHES},
           "evaluate": {name: evaluate(data, name) for name in ("data", "tensor across")}}
  try:
    feed.Intake(sharding.batch_sharding(mesh_of("tensor"), 12), 12)
  except sharding.ShardingError as error:
    found["error"] = str(error)
  path = pathlib.Path(out) / f"{os.environ['JAX_PROCESS_ID']}.json"
  path.write_text(json.dumps(found))


if __name__ == "__main__":
  main(*sys.argv[1:])
