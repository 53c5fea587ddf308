"""The measured process of `bench restore` on our side: a step, or outputs, of the task "restore".

Reads `settings.json` and `input.npz` in a directory and writes `output.npz`, as the peer's script
`peers/restoration_step.py` does; `restore.py` says what is in them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext import convert, tasks
from big_vision_ext.benches import child


def main(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Measures a program; see `restore.py` for what goes in and comes out."""
  weights = convert.read(settings["file"])
  net, members = dict(weights.model["net"]), settings["members"]
  types = dict(dtype=settings["dtype"], param_dtype=settings["dtype"], **settings["options"])
  net["fields"] = net["fields"] | types
  task = tasks.make("restore", dict(
    net=net, image_size=arrays["image"].shape[1], augment=False, seeds=list(range(members)),
    population=settings["population"]))
  params = child.load(weights, settings["dtype"], scan=False)
  del weights  # and with it the file, which lies in memory
  if members > 1:
    params = jax.tree.map(lambda x: jnp.repeat(x[None], members, axis=0), params)
  batch = jax.device_put({k: arrays[k] for k in ("image", "degraded")})
  if settings["mode"] == "infer":
    restore = lambda params, batch: task.restore(params, {"image": batch["degraded"]})
    result, out = child.measure(restore, (params, batch), settings["repeats"], settings["dtype"])
    return out | child.arrays({"restored": result})

  def step(params, batch):
    # No degradation, no augmentation: the key draws nothing.
    loss = lambda p: task.loss(p, batch, jax.random.key(0), True)[0]
    loss, grads = jax.value_and_grad(loss)(params)
    return {"loss": loss, "grads": grads}

  result, out = child.measure(step, (params, batch), settings["repeats"], settings["dtype"])
  return out | child.arrays({"loss": result["loss"]}) | child.norms(result["grads"])
