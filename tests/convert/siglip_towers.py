"""Tiny pairs of towers with random weights, for tests of formats."""

import numpy as np

from big_vision_ext import convert
from big_vision_ext.convert import siglip

# No two sizes are alike: an array that is turned or mixed up has another shape.
IMAGE = dict(width=48, depth=2, mlp_dim=80, num_heads=3, patch_size=8, image_size=32)
TEXT = dict(width=32, depth=3, mlp_dim=56, num_heads=2, vocab_size=37, text_len=10, out_dim=48)
MODEL = dict(image=IMAGE, text=TEXT, bias_init=-10.0)


def draw(model, seed=0):
  """Every parameter at random, of the size a trained one has."""
  rng, out = np.random.default_rng(seed), {}
  for name, shape in siglip.shapes(model).items():
    into_heads = name.endswith(("query/kernel", "key/kernel", "value/kernel"))
    fan = shape[0] if into_heads else int(np.prod(shape[:-1]))
    scale = fan**-0.5 if name.endswith("kernel") else 0.3
    mean = 1.0 if name.endswith("scale") or name == "t" else 0.0
    out[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)
  return out


def weights(model=MODEL, seed=0, **kw):
  """`Weights` of a model, drawn."""
  return convert.Weights(draw(model, seed), "siglip", model, **kw)


def assert_same_bits(got, want):
  """The same names, types and bits."""
  assert set(got) == set(want)
  for name, x in want.items():
    assert got[name].dtype == x.dtype and np.array_equal(
      np.ascontiguousarray(got[name]).view(np.uint8), np.ascontiguousarray(x).view(np.uint8)), name
