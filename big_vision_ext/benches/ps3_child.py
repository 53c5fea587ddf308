"""The measured process of `bench ps3` on our side: one model, one image, one kind of pass.

Reads `settings.json` and `input.npz` in a directory and writes `output.npz`, as the peer's script
`peers/ps3_torch.py` does; `ps3.py` says what is in them.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext import convert
from big_vision_ext.benches.peers import timing
from big_vision_ext.convert import npz
from big_vision_ext.core import trees
from big_vision_ext.models import layouts, ps3, selection_head, vit
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
  params = load(weights, settings["dtype"], model.scan)
  image = jax.device_put(arrays["image"][None])
  train = settings["mode"] == "train"
  if train:
    given = {k: jnp.asarray(arrays[k][None]) for k in ("prompt", "text", "box")}
    program = functools.partial(step, model, given)
  else:
    program = functools.partial(encode, model, settings["looks"])
  start = time.monotonic()
  compiled = jax.jit(program).lower(params, image).compile()
  out = {"compile_seconds": time.monotonic() - start}
  result = jax.block_until_ready(compiled(params, image))
  found = {k: result[k] for k in ("looks", "last", "pooled", "loss") if k in result}
  if train:
    found["norms"] = jax.jit(_squares)(result["grads"])
  # The timed runs must find the memory that one result takes free, as they leave it.
  del result
  out["seconds"] = timing.seconds(
      lambda: jax.block_until_ready(compiled(params, image)), settings["repeats"])
  out["peak_gib"] = timing.peak_gib()
  return out | _named(found, weights.model)


def load(weights: convert.Weights, dtype: str, scan: bool) -> dict[str, Any]:
  """Parameters of the vision tower on the device, one array after the other."""
  source = weights.params.map(lambda x: x.astype(convert.DTYPES[dtype]))
  if scan:
    source = npz.scan_layout(source)
  under = [name for name in source if name.startswith("img/")]
  return trees.nest({name[len("img/"):]: jax.device_put(source[name]) for name in under})


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


def _squares(grads):
  one_by_one = layouts.scan_to_loop(grads)
  return jax.tree.map(lambda x: jnp.sum(jnp.square(x.astype(jnp.float32))), one_by_one)


def _named(found: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """What the peer compares with, under names."""
  found = jax.device_get(found)
  out = {f"look/{j}/{i}": at for j, look in enumerate(found.pop("looks"))
         for i, at in enumerate(look)}
  for name, square in trees.flatten(found.pop("norms", {})).items():
    out[f"norm/{name}"] = np.sqrt(square)
  return out | {k: np.asarray(x, np.float32) for k, x in found.items()}
