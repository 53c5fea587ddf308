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
  shapes, shardings, tx, init = step_lib.plan_state(task, config, mesh, rules)
  with sharding.use(mesh, ()):
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    # Zero and tiny initial values hide mistakes: everything random, and alike on every mesh.
    noisy = jax.jit(_noise, out_shardings=shardings["params"], donate_argnums=0)
    state = step_lib.with_params(state, noisy(state["params"]))
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


def _noise(params):
  key = jax.random.key(1)
  return {n: _noise_of(x, jax.random.fold_in(key, i)) for i, (n, x) in enumerate(params.items())}


def _noise_of(tree, key):
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(key, len(leaves))
  noisy = [x + 0.05 * jax.random.normal(k, x.shape, x.dtype) for x, k in zip(leaves, keys)]
  return jax.tree.unflatten(structure, noisy)


def main(out: str, *cases: str) -> None:
  sharding.join_processes()
  for index, case in enumerate(cases):
    reports, params, _ = run(settings(*json.loads(case)))
    if jax.process_index() == 0:
      np.savez(f"{out}.{index}", reports=json.dumps(reports), **params)
  jax.distributed.shutdown()


if __name__ == "__main__":
  main(*sys.argv[1:])
