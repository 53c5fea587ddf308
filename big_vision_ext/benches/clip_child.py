"""The measured process of `bench clip` on our side: the image tower of the task "clip".

Reads `settings.json` and `input.npz` in a directory and writes `output.npz`, as the peer's script
`peers/transformers_clip_features.py` does; `clip.py` says what is in them.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from big_vision_ext import convert, tasks
from big_vision_ext.benches import child


def main(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Measures a batch; see `clip.py` for what goes in and comes out."""
  weights = convert.read(settings["folder"])
  types = dict(dtype=settings["dtype"], param_dtype=settings["dtype"], **settings["options"])
  model = {"image": weights.model["image"] | types, "text": weights.model["text"]}
  task = tasks.make("clip", model)
  params = child.load(weights, settings["dtype"], scan=types["scan"], under="img/")
  del weights  # and with it the file, which lies in memory
  image = jax.device_put(arrays["image"])

  def features(params, image):
    return task.vision.apply({"params": params}, task.normalise(image))[0]

  result, out = child.measure(features, (params, image), settings["repeats"], settings["dtype"])
  return out | child.arrays({"features": result})
