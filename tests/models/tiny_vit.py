"""A tiny vision transformer with random parameters, for tests."""

import math

import flax.linen as nn
import jax
import numpy as np

from big_vision_ext.models import layouts, vit

TINY = dict(width=24, depth=2, mlp_dim=40, num_heads=3, posemb_grid=(4, 4), patch_size=4)


def randomize(params, seed=0):
  """Every parameter at random, of the size a trained one has: nothing may hide behind a zero."""
  rng = np.random.default_rng(seed)

  def draw(path, x):
    *parents, name = (key.key for key in path)
    into_heads = parents and parents[-1] in ("query", "key", "value")
    fan = x.shape[0] if into_heads else math.prod(x.shape[:-1])
    scale = 1 / math.sqrt(fan) if name == "kernel" else 0.3
    mean = 1.0 if name == "scale" else 0.0
    return (mean + scale * rng.standard_normal(x.shape)).astype(np.float32)

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(params))


def make(images=(2, 16, 16, 3), scan=False, **kw):
  """A model, random parameters that do not depend on its layout, and images."""
  x = np.random.default_rng(1).standard_normal(images).astype(np.float32)
  loop = vit.ViT(**TINY | kw)
  params = randomize(jax.eval_shape(loop.init, jax.random.key(0), x)["params"])
  if scan:
    return vit.ViT(**TINY | kw, scan=True), layouts.loop_to_scan(params), x
  return loop, params, x


def apply(model, params, *args, method="__call__"):
  return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))(params, *args)


def float64(tree):
  return jax.tree.map(np.float64, tree)


def assert_close(got, want):
  """Equal but for the order of float32 sums: 1e-6 of the largest number there is.

  Of the tree, not of each array: the gradient of a key's bias, say, is a zero of rounded terms.
  """
  got, want = jax.device_get((got, want))
  atol = 1e-6 * max(np.abs(x).max() for x in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), got, want)
