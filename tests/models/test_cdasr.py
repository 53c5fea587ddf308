"""The alignment starts as nothing, and turns vectors into maps as its formula says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import cdasr

_SIZES = dict(hidden=6, semantic=64, width=4)


def _inputs(seed=0, size=(5, 7)):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(2, 9)).astype(np.float32), rng.normal(size=(2, *size, 3)).astype(
      np.float32)


def _random(params, seed=1):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), params)


@pytest.mark.parametrize("spatial", cdasr.SPATIALS)
def test_it_begins_as_the_identity_and_each_step_of_it_can_be_trained(spatial):
  vector, features = _inputs()
  module = cdasr.Alignment(**_SIZES, spatial=spatial)
  params = jax.jit(module.init)(jax.random.key(0), vector, features)["params"]

  def value(p):
    y = module.apply({"params": p}, vector, features)[0]
    return jnp.sum(y**2), y

  run = jax.jit(jax.value_and_grad(value, has_aux=True))
  (_, y), grads = run(params)
  np.testing.assert_array_equal(y, features)
  assert np.abs(grads["fusion"]["kernel"]).max() > 0
  _, grads = run(_random(params))
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def _conv(x, p):
  """3 x 3 or 1 x 1 correlation with zeros around, in float64."""
  k, (h, w) = p["kernel"].astype(np.float64), x.shape[1:3]
  r = k.shape[0] // 2
  x = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
  return p["bias"] + sum(x[:, i:i + h, j:j + w] @ k[i, j]
                         for i in range(k.shape[0]) for j in range(k.shape[1]))


def _bilinear(x, size):
  """Half-pixel centres, the border repeated: every axis by interpolation of its samples."""
  for axis, n in ((1, size[0]), (2, size[1])):
    old = x.shape[axis]
    at = np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1)
    low = np.minimum(at.astype(int), old - 2)
    shape = [1] * x.ndim
    shape[axis] = n
    t = (at - low).reshape(shape)
    x = np.take(x, low, axis) * (1 - t) + np.take(x, low + 1, axis) * t
  return x


@pytest.mark.parametrize("spatial", cdasr.SPATIALS)
def test_it_computes_the_papers_three_steps(spatial):
  # Larger and smaller than the map of 8 x 8.
  vector, features = _inputs(size=(5, 11))
  module = cdasr.Alignment(**_SIZES, spatial=spatial)
  spec = jax.eval_shape(module.init, jax.random.key(0), vector, features)["params"]
  params = _random(spec)
  dense = lambda x, name: x @ params[name]["kernel"].astype(np.float64) + params[name]["bias"]
  relu = lambda x: np.maximum(x, 0)
  processed = relu(dense(relu(dense(vector.astype(np.float64), "proc_1")), "proc_2"))
  if spatial == "film":
    both = dense(relu(dense(processed, "conv_1")), "conv_2")[:, None, None]
    spatially = both[..., :3] * features + both[..., 3:]
  else:
    x = processed.reshape(2, 8, 8, 1) if spatial == "reshape" else processed[:, None, None]
    spatially = _conv(relu(_conv(x, params["conv_1"])), params["conv_2"])
    spatially = (_bilinear(spatially, (5, 11)) if spatial == "reshape"
                 else np.broadcast_to(spatially, (2, 5, 11, 4)))
  want = features + _conv(np.concatenate([features, spatially], -1), params["fusion"])
  y, out = jax.jit(lambda p: module.apply({"params": p}, vector, features))(params)
  np.testing.assert_allclose(out["processed"], processed, rtol=1e-4, atol=1e-4)
  # float32 through four layers of sums of up to 64 products.
  np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_the_papers_sizes_are_the_defaults_and_others_are_refused_by_name():
  vector, features = jnp.zeros((1, 512)), jnp.zeros((1, 8, 8, 64))
  spec = jax.eval_shape(cdasr.Alignment().init, jax.random.key(0), vector, features)["params"]
  shapes = {name: tuple(layer["kernel"].shape) for name, layer in spec.items()}
  assert shapes == {"proc_1": (512, 1024), "proc_2": (1024, 512), "conv_1": (3, 3, 8, 64),
                    "conv_2": (3, 3, 64, 64), "fusion": (3, 3, 128, 64)}
  for fields, message in ((dict(spatial="titel"), "expected one of reshape, tile, film"),
                          (dict(semantic=100), "expected a multiple of 64")):
    with pytest.raises(ValueError, match=message):
      cdasr.Alignment(**fields).init(jax.random.key(0), vector, features)
