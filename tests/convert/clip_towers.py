"""Tiny CLIP models with random weights, for tests of formats."""

import numpy as np

from big_vision_ext import convert
from big_vision_ext.convert import clip, ours

# Heads are 64 wide, as OpenAI's files do not tell; else no two sizes are alike.
IMAGE = clip.IMAGE | dict(width=128, depth=2, mlp_dim=80, num_heads=2, patch_size=4, image_size=12,
                          num_classes=24)
TEXT = clip.TEXT | dict(width=64, depth=3, mlp_dim=56, num_heads=1, vocab_size=37, text_len=10,
                        out_dim=24)
MODEL = dict(image=IMAGE, text=TEXT, bias_init=None)


def draw(model=MODEL, seed=0):
  """Every parameter at random, of the size a trained one has."""
  rng, out = np.random.default_rng(seed), {}
  for name, shape in ours.shapes("clip", model).items():
    into_heads = name.endswith(("query/kernel", "key/kernel", "value/kernel"))
    fan = shape[0] if into_heads else int(np.prod(shape[:-1]))
    scale = fan**-0.5 if name.endswith("kernel") else 0.3
    mean = 1.0 if name.endswith("scale") or name == "t" else 0.0
    out[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)
  return out


def weights(model=MODEL, seed=0, **kw):
  """`Weights` of a model, drawn."""
  return convert.Weights(draw(model, seed), "clip", model, **kw)
