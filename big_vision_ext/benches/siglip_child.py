"""The measured process of `bench siglip` on our side: a training step of the task "siglip".

Reads `settings.json` and `input.npz` in a directory and writes `output.npz`, as the peer's script
`peers/open_clip_step.py` does; `siglip.py` says what is in them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from big_vision_ext import convert, tasks
from big_vision_ext.benches import child


def main(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Measures a step; see `siglip.py` for what goes in and comes out."""
  weights = convert.read(settings["folder"])
  types = dict(dtype=settings["dtype"], param_dtype=settings["dtype"], **settings["options"])
  model = {part: weights.model[part] | types for part in ("image", "text")}
  model["image"]["image_size"] = arrays["image"].shape[1]
  task = tasks.make("siglip", model)
  params = child.load(weights, settings["dtype"], scan=types.get("scan", False))
  del weights  # and with it the file, which lies in memory
  batch = jax.device_put({"image": arrays["image"], "text": arrays["text"]})

  def step(params, batch):
    (loss, _), grads = jax.value_and_grad(task.loss, has_aux=True)(params, batch, None, True)
    return {"loss": loss, "grads": grads}

  result, out = child.measure(step, (params, batch), settings["repeats"],
                              settings["dtype"])
  found = {"loss": result["loss"], "zimg": jax.jit(task.embed_image)(params, batch),
           "ztxt": jax.jit(task.embed_text)(params, batch)}
  return out | child.arrays(found) | child.norms(result["grads"])
