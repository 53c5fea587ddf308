"""The measured process of `bench mae` on our side: a training step of the task "mae".

Reads `settings.json` and `input.npz` in a directory and writes `output.npz`, as the peer's script
`peers/transformers_mae_step.py` does; `mae.py` says what is in them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from big_vision_ext import convert, tasks
from big_vision_ext.benches import child
from big_vision_ext.core import config, sharding
from big_vision_ext.core import step as step_lib
from big_vision_ext.objectives import masks


def main(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Measures a step; see `mae.py` for what goes in and comes out."""
  weights = convert.read(settings["folder"])
  types = dict(dtype=settings["dtype"], param_dtype=settings["dtype"], **settings["options"])
  visible = settings["visible"]
  model = weights.model | {"image": weights.model["image"] | types,
                           "mask": {"num_visible": visible},
                           "decoder_parts": settings["decoder_parts"]}
  task = tasks.make("mae", model)
  params = child.load(weights, settings["dtype"], scan=types.get("scan", False))
  del weights  # and with it the file, which lies in memory
  batch = jax.device_put({"image": arrays["image"], "noise": arrays["noise"]})
  mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])

  def value_and_grad(params, frozen, batch, key):
    del frozen, key  # Nothing is frozen, and nothing drawn.
    mask = masks.from_rank(batch["noise"], visible)
    return jax.value_and_grad(task.loss_under)(params, batch["image"], mask)

  def step(params, batch):
    loss, grads = step_lib.accumulate(value_and_grad, settings["accum"], mesh, params, {}, batch,
                                      jax.random.key(0))
    return {"loss": loss, "grads": grads}

  result, out = child.measure(step, (params, batch), settings["repeats"], settings["dtype"])
  return out | child.arrays({"loss": result["loss"]}) | child.norms(result["grads"])
