"""Restoration networks: the published sizes, one way to call them, and what a skip is."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_vision_ext.core import sharding, trees
from big_vision_ext.models import restoration
from big_vision_ext.models.restoration import resampling, swinir

# Small ones of every kind: name, scale, fields, sides of the pictures.
SMALL = {
  "msrresnet": ("msrresnet", 1, dict(width=6, depth=1), (9, 14)),
  "msrresnet-x4": ("msrresnet", 4, dict(width=6, depth=1), (5, 7)),
  "edsr-x3": ("edsr", 3, dict(width=6, depth=1), (5, 8)),
  "swinir-x2": ("swinir", 2, dict(width=8, depth=1, blocks=2, heads=2, window=4), (8, 12)),
  "swinir_light-x3": ("swinir_light", 3, dict(width=6, depth=1, blocks=1, heads=3, window=4),
                      (4, 8)),
  "swinir-denoise": ("swinir", 1, dict(width=8, depth=1, blocks=1, heads=2, window=4,
                                       tail="denoise"), (8, 4)),
  "unet": ("unet", 1, dict(width=4, depth=1), (16, 8)),
  "restormer": ("restormer", 1, dict(width=8, depth=1, refinement=1), (8, 16)),
}


@functools.cache
def made(case):
  """The network, random parameters (biases too), pictures, and what `apply` gives."""
  name, scale, fields, size = SMALL[case]
  net = restoration.build(name, scale, **fields)
  x = np.random.default_rng(1).random((2, *size, 3), np.float32)
  shapes = sharding.unbox(jax.eval_shape(net.init, jax.random.key(0), x)["params"])
  rng = np.random.default_rng(2)
  params = trees.nest({
    n: (rng.standard_normal(s.shape) / max(np.prod(s.shape[:-1]), 4) ** 0.5).astype(np.float32)
    for n, s in trees.flatten(shapes).items()})

  @jax.jit
  def run(params, x):
    y, out = net.apply({"params": params}, x)
    f = net.apply({"params": params}, x, method="features")
    return y, out["features"], f, net.apply({"params": params}, f, x, method="reconstruct")

  return net, params, x, run


def count(name, scale=1, **fields):
  net = restoration.build(name, scale, **fields)
  x = jnp.zeros((1, 16, 16, 3))
  return trees.count(nn.unbox(jax.eval_shape(net.init, jax.random.key(0), x)["params"]))


@pytest.mark.parametrize("name, scale, number", [
  ("msrresnet", 1, 1_259_075), ("msrresnet", 4, 1_517_571), ("edsr", 2, 1_369_859),
  ("swinir_light", 1, 940_015), ("swinir", 4, 11_900_199), ("restormer", 1, 26_126_644)])
def test_the_published_networks_have_the_published_numbers_of_parameters(name, scale, number):
  assert count(name, scale) == number


def test_every_scale_adds_the_convolutions_that_enlarge_so_much():
  base, step = count("msrresnet", 2), 64 * 256 * 9 + 256
  assert [count("msrresnet", s) - base for s in (4, 8, 16)] == [step, 2 * step, 3 * step]
  assert count("msrresnet", 3) - base == 64 * 9 * 5 * 64 + 64 * 5
  with pytest.raises(ValueError, match="scale=5.*1, 2, 3, 4, 8, 16"):
    restoration.build("edsr", 5)


@pytest.mark.parametrize("case", SMALL)
def test_a_picture_is_the_reconstruction_of_its_features(case):
  net, params, x, run = made(case)
  y, features, again, rebuilt = run(params, x)
  b, h, w, _ = x.shape
  assert y.shape == (b, h * net.scale, w * net.scale, 3) and y.dtype == jnp.float32
  assert features.shape[:3] == x.shape[:3] and features.std() > 1e-3
  np.testing.assert_array_equal(features, again)
  # XLA may fuse the two differently: float32 rounding of sums of some hundred numbers.
  np.testing.assert_allclose(y, rebuilt, atol=1e-5 * np.abs(y).max())
  assert np.abs(y - y.mean((1, 2), keepdims=True)).max() > 1e-3


def enlarged(x, scale, resample):
  """By Pillow, channel by channel in float32."""
  size = (x.shape[2] * scale, x.shape[1] * scale)
  one = lambda plane: np.asarray(Image.fromarray(plane, mode="F").resize(size, resample))
  return np.stack([np.stack([one(p[..., c]) for c in range(3)], -1) for p in x])


@pytest.mark.parametrize("case", SMALL)
def test_without_a_last_convolution_the_skip_alone_is_left(case):
  name, scale, fields, _ = SMALL[case]
  _, params, x, run_all = made(case)
  features = run_all(params, x)[1]
  silent = params | {"last": jax.tree.map(jnp.zeros_like, params["last"])}

  def run(skip):
    net = restoration.build(name, scale, **fields | {"global_skip": skip})
    return np.asarray(net.apply({"params": silent}, features, x, method="reconstruct"))

  kind = Image.BILINEAR if name == "msrresnet" else Image.BICUBIC
  want = enlarged(x, scale, kind)
  # Along borders Pillow renormalises where MATLAB mirrors.
  inner = slice(2 * scale, -2 * scale) if kind == Image.BICUBIC and scale > 1 else slice(None)
  np.testing.assert_allclose(run(True)[:, inner, inner], want[:, inner, inner], atol=1e-5)
  constant = run(False)
  assert np.ptp(constant, axis=(0, 1, 2)).max() == 0
  if name == "swinir" or name == "swinir_light":
    np.testing.assert_allclose(constant[0, 0, 0], [0.4488, 0.4371, 0.4040], atol=1e-6)
  else:
    assert not constant.any()


def test_the_published_skips_are_the_default():
  assert not restoration.build("swinir_light").global_skip
  assert restoration.build("swinir", tail="denoise").global_skip
  assert not restoration.build("swinir", tail="denoise", global_skip=False).global_skip
  assert restoration.build("msrresnet").global_skip
  assert restoration.build("swinir_light", 2).tail == "pixelshuffledirect"


def test_sides_that_do_not_fit_are_refused_with_the_multiple():
  for case, multiple in (("swinir-x2", 4), ("restormer", 8), ("unet", 8)):
    net, params, _, _ = made(case)
    assert net.multiple == multiple
    with pytest.raises(ValueError, match=f"10 x 16 pixels: .*multiples of {multiple}"):
      net.apply({"params": params}, np.zeros((1, 10, 16, 3), np.float32))
  assert made("msrresnet")[0].multiple == 1 == made("edsr-x3")[0].multiple
  assert restoration.build("swinir").multiple == restoration.build("restormer").multiple == 8


@pytest.mark.parametrize("name, fields, message", [
  ("swinr", {}, "net 'swinr' is unknown .is 'swinir' meant"),
  ("unet", {"widht": 3}, "no field 'widht' .is 'width' meant"),
  ("swinir", {"width": 8}, "width=8 does not divide into heads=6"),
  ("swinir", {"tail": "pixelshuffel"}, "tail='pixelshuffel'.*pixelshuffledirect"),
  ("restormer", {"scale": 2}, "scale=2: Restormer enlarges 1 times"),
  ("restormer", {"depth": [1, 2]}, "one number for each"),
  ("msrresnet", {"depth": 0}, "depth=0.*at least one"),
  ("edsr", {"remat_policy": "most"}, "remat_policy='most' is unknown"),
])
def test_impossible_networks_are_refused_by_the_field(name, fields, message):
  with pytest.raises(ValueError, match=message):
    restoration.build(name, **fields)


def test_shuffled_channels_are_in_pytorchs_order_and_come_back():
  x = np.random.default_rng(0).random((2, 3, 5, 12), np.float32)
  y = np.asarray(resampling.pixel_shuffle(x, 2))
  # Channel c of pixel (2 y + i, 2 x + j) is channel 4 c + 2 i + j of (y, x).
  for c, i, j in np.ndindex(3, 2, 2):
    np.testing.assert_array_equal(y[:, i::2, j::2, c], x[..., 4 * c + 2 * i + j])
  np.testing.assert_array_equal(resampling.pixel_unshuffle(y, 2), x)


def test_shifted_windows_see_their_neighbours_and_nothing_across_the_border():
  """One block of shifted windows: what a pixel changes is its own shifted window."""
  block = swinir.SwinBlock(heads=1, window=4, shift=2, mlp_dim=8, rate=0.0, dtype=jnp.float32,
                           param_dtype=jnp.float32)
  x = np.random.default_rng(0).standard_normal((1, 8, 12, 4)).astype(np.float32)
  rng = np.random.default_rng(1)
  shapes = sharding.unbox(jax.eval_shape(block.init, jax.random.key(0), x))
  params = jax.tree.map(lambda s: rng.standard_normal(s.shape).astype(np.float32), shapes)
  run = jax.jit(lambda x: block.apply(params, x))
  for at, rows, columns in (((0, 0), (0, 2), (0, 2)), ((3, 5), (2, 6), (2, 6)),
                            ((7, 11), (6, 8), (10, 12))):
    changed = x.copy()
    changed[(0, *at, 0)] += 1
    moved = np.argwhere(np.abs(run(changed) - run(x))[0].max(-1) > 0)
    assert (moved.min(0) == (rows[0], columns[0])).all()
    assert (moved.max(0) == (rows[1] - 1, columns[1] - 1)).all()


def test_a_policy_changes_memory_and_no_number():
  name, scale, fields, _ = SMALL["swinir-denoise"]
  _, params, x, _ = made("swinir-denoise")

  def grads(policy):
    net = restoration.build(name, scale, **fields, remat_policy=policy)
    return jax.jit(jax.grad(lambda p: (net.apply({"params": p}, x)[0] ** 2).mean()))(params)

  plain, again = grads("none"), grads("save:qkv,attention_out")
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
    # The same sums, perhaps fused differently.
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(a).max())


def test_in_bfloat16_only_the_trunk_is():
  name, scale, fields, _ = SMALL["edsr-x3"]
  _, params, x, run = made("edsr-x3")
  net = restoration.build(name, scale, **fields, dtype="bfloat16")
  y, out = net.apply({"params": params}, x)
  assert out["features"].dtype == jnp.bfloat16 and y.dtype == jnp.float32
  want = run(params, x)[0]
  # 8 bits of mantissa through five convolutions.
  assert 1e-6 < np.abs(y - want).max() < 0.03 * np.abs(want).max()


def test_branches_are_dropped_in_training_alone():
  name, scale, fields, _ = SMALL["swinir-x2"]
  _, params, x, run = made("swinir-x2")
  net = restoration.build(name, scale, **fields, drop_path=0.9)
  kept = net.apply({"params": params}, x)[0]
  np.testing.assert_allclose(kept, run(params, x)[0], atol=1e-5)
  dropped = net.apply({"params": params}, x, True, rngs={"dropout": jax.random.key(0)})[0]
  assert np.abs(dropped - kept).max() > 1e-3
