"""Workdirs of tiny models whose every weight is random: nothing was trained, all of it counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from big_vision_ext import tasks
from big_vision_ext.core import checkpoint, sharding

MODEL = {
    "image": dict(
        width=32, depth=2, mlp_dim=64, num_heads=2, patch_size=8, posemb_grid=(4, 4),
        scales=(32, 64, 128), max_select_num=20, select_layers=(0, 1), selection_size=48,
        selection_kernel=12, selection_hidden=16, selection_out=16, selection_depth=1),
    "text": dict(width=32, depth=1, mlp_dim=64, num_heads=2, vocab_size=259, text_len=16),
}
INPUT = dict(data="nowhere", image_size=128, text_len=16)
MAE = {
    "image": dict(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=8, image_size=32,
                  decoder_width=16, decoder_depth=1, decoder_heads=2, decoder_mlp_dim=24),
    "mask": dict(num_visible=4),
}
FOCUSMIM = {"image": dict(widths=(4, 6), depth=1, image_size=32)}
CLIP = {
    "image": dict(width=32, depth=2, mlp_dim=48, num_heads=2, patch_size=8, image_size=32,
                  num_classes=20),
    "text": dict(width=24, depth=1, mlp_dim=48, num_heads=2, vocab_size=259, text_len=32,
                 eot_id=1),
}
# Twice as large, steered by CLIP's image tower.
CDASR = {
    "net": dict(name="edsr", scale=2, fields=dict(width=6, depth=1)), "image_size": 16,
    "align": dict(hidden=8, semantic=64, width=4),
    "encoder": {"task": "clip", "model": {
        "image": dict(width=16, depth=1, mlp_dim=24, num_heads=2, patch_size=8, image_size=16,
                      num_classes=12),
        "text": dict(width=16, depth=1, mlp_dim=16, num_heads=2)}},
}
RESTORE = {"net": dict(name="edsr", scale=2, fields=dict(width=6, depth=1)), "image_size": 16}
# Settings of the model and the input of each task.
_RUNS = {
    "ps3": (MODEL, INPUT),
    "mae": (MAE, dict(data="nowhere", image_size=32, captions=False)),
    "focusmim": (FOCUSMIM, dict(data="nowhere", image_size=32, captions=False)),
    "cdasr": (CDASR, dict(data="nowhere", image_size=16, captions=False)),
    "clip": (CLIP, dict(data="nowhere", image_size=32, text_len=32, canonicalize=False)),
    "restore": (RESTORE, dict(data="nowhere", image_size=16, captions=False)),
}


@functools.cache
def params(seed: int = 0, name: str = "ps3", **image):
  """Parameters, none at its initial value: norms, biases and residual tables included.

  `image` are changes of `model.image`.
  """
  model = _RUNS[name][0]
  task = tasks.make(name, model | {"image": model["image"] | image} if image else model)
  spec = jax.eval_shape(
      lambda: sharding.unbox(task.init(jax.random.key(0), jax.tree.map(
          lambda s: jnp.zeros(s.shape, s.dtype), task.batch_spec(1)))))
  rng = np.random.default_rng(seed)
  def fill(path, x):
    centre = 1.0 if path[-1].key == "scale" else 0.0
    spread = 0.5 / max(1, np.prod(x.shape[:-1]) ** 0.5) if path[-1].key == "kernel" else 0.2
    return (centre + spread * rng.standard_normal(x.shape)).astype(x.dtype)
  return jax.tree_util.tree_map_with_path(fill, spec)


def save(workdir, seed: int = 0, step: int = 3, name: str = "ps3", **changes):
  """Writes a checkpoint of these parameters, as training would; `changes` are of the model."""
  model, settings = _RUNS[name]
  checkpoints = checkpoint.Checkpoints(workdir)
  state = {"params": jax.tree.map(jnp.asarray, params(seed, name)), "step": jnp.int32(step)}
  checkpoints.save(step, state, {"config": {
      "task": name, "total_steps": step, "batch_size": 8, "model": model | changes,
      "input": settings}})
  checkpoints.wait()
  checkpoints.close()
  return workdir
