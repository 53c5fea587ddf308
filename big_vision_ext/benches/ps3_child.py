"""The measured process of `bench ps3` on our side: one model, one image, one kind of pass.

Reads `settings.json` and `input.npz` in a directory and writes `output.npz`, as the peer's script
`peers/ps3_torch.py` does; `ps3.py` says what is in them.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext import convert
from big_vision_ext.benches import child
from big_vision_ext.models import ps3, selection_head, vit
from big_vision_ext.objectives import contrastive
from big_vision_ext.objectives import selection as selection_loss
from big_vision_ext.tasks import _towers

# Temperature and bias of the sigmoid loss, on both sides: their initial values.
_TEMPERATURE, _BIAS = 10.0, -10.0


def main(arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """Measures a pass; see `ps3.py` for what goes in and comes out."""
  weights = convert.read(settings["folder"])
  types = dict(dtype=settings["dtype"], param_dtype=settings["dtype"], **settings["options"])
  model = vit.build(ps3.PS3Vision, _towers.plain(weights.model["image"]) | types)
  params = child.load(weights, settings["dtype"], model.scan, under="img/")
  del weights  # and with it the file, which lies in memory
  image = jax.device_put(arrays.pop("image")[None])
  if settings["mode"] == "train":
    given = {k: jnp.asarray(arrays[k][None]) for k in ("prompt", "text", "box")}
    program = functools.partial(step, model, given)
  else:
    program = functools.partial(encode, model, settings["looks"])
  result, out = child.measure(program, (params, image), settings["repeats"],
                              settings["dtype"])
  for j, look in enumerate(result.pop("looks")):
    out |= {f"look/{j}/{i}": np.asarray(at) for i, at in enumerate(look)}
  out |= child.norms(result.pop("grads", {}))
  return out | child.arrays(result)


def encode(model: ps3.PS3Vision, looks: int, params: Any, image: Any) -> dict[str, Any]:
  """Features of the image, bottom-up."""
  out = model.apply({"params": params}, image, method="encode_image", num_looks=looks)
  return {"last": out["last_hidden"], "looks": out["looks"]}


def step(model: ps3.PS3Vision, given: Mapping[str, Any], params: Any, image: Any) -> dict[str, Any]:
  """The released objective on one local caption, with the gradient of every parameter."""
  local = jnp.zeros((1,), bool)

  def objective(params):
    pooled, out = model.apply({"params": params}, image, given["prompt"], given["box"], local)
    match, _ = contrastive.sigmoid_loss(
        selection_head.l2_normalize(pooled), given["text"], _TEMPERATURE, _BIAS)
    hw = image.shape[1:3]
    where, _ = selection_loss.selection_loss(
        out["topdown"]["score"], out["bottomup"]["score"], box=given["box"], is_global=local,
        image_hw=hw, grids=model.grids(hw))
    return match + where, {"pooled": pooled, "looks": [out["index"]]}

  (loss, found), grads = jax.value_and_grad(objective, has_aux=True)(params)
  return found | {"loss": loss, "grads": grads}
