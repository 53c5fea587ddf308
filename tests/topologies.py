"""A few steps of a tiny model on some mesh: what tests of many meshes and processes run.

As a script it is one of several processes: `python tests/topologies.py OUT.npz CASE...`, with the
variables that `core.sharding.join_processes` reads; the first process writes.
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

if __name__ == "__main__":
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding, trees
from big_vision_ext.core import step as step_lib

BATCH, STEPS = 16, 2
_TOWER = dict(width=16, depth=2, mlp_dim=32, num_heads=2)
_TEXT = dict(**_TOWER, vocab_size=40, text_len=8)
_IMAGE = {
    "siglip": dict(**_TOWER, patch_size=8, image_size=32),
    "ps3": dict(**_TOWER, patch_size=8, posemb_grid=(4, 4), scales=(32, 64, 128),
                max_select_num=20, select_layers=(0, 1), selection_size=64, selection_kernel=16,
                selection_hidden=8, selection_out=8, selection_depth=1),
}


def settings(task: str, accum: int, remat: str, scan: bool, mesh, **more) -> dict:
  """A config. Gradients that are zero but for rounding, as those of the biases of keys, are not to
  be blown up to whole steps by Adam: hence its epsilon."""
  how = dict(remat_policy=remat, scan=scan)
  return {
      "task": task, "batch_size": BATCH, "total_steps": STEPS, "lr": 1e-3, "min_shard_size": 0,
      "model": {"image": _IMAGE[task] | how, "text": _TEXT | how, "bias_init": -2.0},
      "optim": {"accum_steps": accum, "eps": 1e-5, "weight_decay": 1e-3},
      "mesh": dict(zip(sharding.AXES, mesh)), **more,
  }


def batches(spec):
  """Random samples, the same in every process."""
  rng = np.random.default_rng(0)
  side = spec["image"].shape[1]
  for _ in range(STEPS):
    corner, size = rng.uniform(0, side / 2, (BATCH, 2)), rng.uniform(side / 8, side / 2, (BATCH, 2))
    yield {
        "image": rng.integers(0, 256, spec["image"].shape, dtype=np.uint8),
        "text": rng.integers(3, 40, spec["text"].shape, dtype=np.int32),
        "box": np.concatenate([corner, corner + size], axis=1).astype(np.float32),
        "is_global": rng.random(BATCH) < 0.25,
    }


def run(values: dict) -> tuple[list[dict[str, float]], dict[str, np.ndarray], dict]:
  """The metrics of every step, the parameters after the last one, and the state itself.

  Uses as many devices as the mesh has, in as many processes as there are.
  """
  config = config_lib.resolve(values)
  task = tasks.make(config.task, config.model)
  count = int(np.prod([getattr(config.mesh, a) for a in sharding.AXES]))
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:count])
  rules = sharding.merge_rules(config.sharding_rules)
  rows = sharding.batch_sharding(mesh, BATCH, config.optim.accum_steps)
  shapes, shardings, tx, _ = step_lib.plan_state(task, config, mesh, rules)
  # Adam's state begins as zeros. Zero and tiny initial parameters hide mistakes, so all are random,
  # alike on every mesh, and drawn on the host, for which nothing has to be compiled.
  state = jax.tree.map(lambda s, place: sharding.put(np.zeros(s.shape, s.dtype), place), shapes,
                       shardings)
  params = jax.tree.map(sharding.put, _random(shapes["params"]), shardings["params"])
  state = step_lib.with_params(state, params)
  reports = []
  with sharding.use(mesh, rules):
    step = jax.jit(step_lib.make(task, config, tx, lambda t: jnp.float32(1), mesh),
                   donate_argnums=0, in_shardings=(shardings, rows),
                   out_shardings=(shardings, sharding.replicated(mesh)))
    for batch in batches(task.batch_spec(BATCH)):
      batch = {k: sharding.put(x, rows) for k, x in batch.items()}
      state, metrics = step(state, batch)
      reports.append({k: float(v) for k, v in metrics.items()})
    whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
    params = {n: np.asarray(x.addressable_data(0))
              for n, x in trees.flatten(whole(state["params"])).items()}
  return reports, params, state


def _random(shapes):
  """Parameters by name, so that no layout and no other parameter decides what one is."""

  def draw(name, shape):
    rng = np.random.default_rng(list(name.encode()))
    mean = 1.0 if name.endswith("scale") or name == "t" else 0.0
    fan = max(shape.size // shape.shape[-1], 1) if shape.ndim > 1 else 100
    return (mean + rng.standard_normal(shape.shape) / fan**0.5).astype(shape.dtype)

  return trees.map_with_names(draw, shapes)


def main(out: str, *cases: str) -> None:
  sharding.join_processes()
  for index, case in enumerate(cases):
    reports, params, _ = run(settings(*json.loads(case)))
    if jax.process_index() == 0:
      np.savez(f"{out}.{index}", reports=json.dumps(reports), **params)
  jax.distributed.shutdown()


if __name__ == "__main__":
  main(*sys.argv[1:])
