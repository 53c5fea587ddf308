"""The network of the content prior: its parts against NumPy, and what codes and skip promise."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from big_vision_ext.core import sharding, trees
from big_vision_ext.models import vq_autoencoder, vq_parts

SMALL = dict(width=8, mults=(1, 2), depth=1, groups=4, attention=(), codes=16, code_width=6)


def draw(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def drawn(module, *args, seed=1, method=None):
  """Random parameters of a module, biases and what begins as zero included."""
  shapes = sharding.unbox(jax.eval_shape(
    lambda: module.init(jax.random.key(0), *args, method=method)))["params"]
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: (rng.standard_normal(x.shape) / max(
    np.prod(x.shape[:-1]), 4) ** 0.5).astype(np.float32), flax.core.unfreeze(shapes))


def images(n=2, rows=8, columns=16):
  return np.random.default_rng(0).random((n, rows, columns, 3), dtype=np.float32)


# float64 references.


def ref_conv(p, x, stride=1):
  kernel, bias = np.asarray(p["kernel"], np.float64), np.asarray(p["bias"], np.float64)
  top = kernel.shape[0] // 2
  # A stride of two begins at the first pixel: one row of zeros below and to the right.
  side = (0, 1) if stride == 2 else (top, top)
  x = np.pad(x, [(0, 0), side, side, (0, 0)])
  out = [[sum(signal.correlate2d(one[..., i], kernel[..., i, o], "valid")
              for i in range(kernel.shape[2])) + bias[o] for o in range(kernel.shape[3])]
         for one in x]
  return np.moveaxis(np.asarray(out), 1, -1)[:, ::stride, ::stride]


def ref_norm(p, x, groups):
  b, y, w, c = x.shape
  g = x.reshape(b, y * w, groups, c // groups)
  g = (g - g.mean((1, 3), keepdims=True)) / np.sqrt(g.var((1, 3), keepdims=True) + 1e-6)
  return g.reshape(x.shape) * np.asarray(p["scale"], np.float64) + p["bias"]


def swish(x):
  return x / (1 + np.exp(-x))


def ref_block(p, x, groups):
  y = ref_conv(p["conv1"], swish(ref_norm(p["norm1"], x, groups)))
  y = ref_conv(p["conv2"], swish(ref_norm(p["norm2"], y, groups)))
  return y + (ref_conv(p["skip"], x) if "skip" in p else x)


def check(module, reference, *args):
  p = drawn(module, *args)
  got = jax.jit(lambda p, *a: module.apply({"params": p}, *a))(p, *args)
  want = reference(p, *(np.asarray(a, np.float64) for a in args))
  # float32 sums of some hundred terms of about 1.
  np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)


def test_a_block_is_what_its_description_says():
  check(vq_parts.Block(12, groups=4), lambda p, x: ref_block(p, x, 4), draw(2, 5, 6, 8))


def test_sides_are_halved_and_doubled_as_described():
  check(vq_parts.Down(), lambda p, x: ref_conv(p["conv"], x, 2), draw(1, 6, 8, 4))
  check(vq_parts.Up(), lambda p, x: ref_conv(p["conv"], x.repeat(2, 1).repeat(2, 2)),
        draw(1, 3, 4, 4))


def test_attention_mixes_all_places_of_an_image():
  def reference(p, x):
    seen = ref_norm(p["norm"], x, 4)
    q, k, v = (ref_conv(p[n], seen).reshape(2, 12, 8) for n in ("query", "key", "value"))
    score = q @ k.swapaxes(1, 2) / 8**0.5
    score = np.exp(score - score.max(-1, keepdims=True))
    y = (score / score.sum(-1, keepdims=True) @ v).reshape(x.shape)
    return x + ref_conv(p["out"], y)

  check(vq_parts.Attention(groups=4), reference, draw(2, 3, 4, 8))


def test_the_skip_scales_and_shifts_by_what_both_sides_show():
  def reference(p, x, seen, w):
    both = ref_block(p["block"], np.concatenate([seen, x], -1), 4)
    leaky = lambda x: np.where(x > 0, x, 0.2 * x)
    scale, shift = (ref_conv(p[f"{n}2"], leaky(ref_conv(p[f"{n}1"], both)))
                    for n in ("scale", "shift"))
    return x + w[:, None, None, None] * (x * scale + shift)

  check(vq_parts.Fuse(groups=4), reference, draw(2, 3, 4, 8), draw(2, 3, 4, 8, seed=3),
        np.float32([0.3, 1.0]))


def test_the_gradient_passes_the_codes_as_if_they_were_not_there():
  z, e, up = draw(2, 3, 3, 4), draw(2, 3, 3, 4, seed=1), draw(2, 3, 3, 4, seed=2)
  value, pull = jax.vjp(vq_parts.straight_through, z, e)
  np.testing.assert_array_equal(value, e)
  to_z, to_e = pull(up)
  np.testing.assert_array_equal(to_z, up)
  assert not np.any(to_e)


def test_the_nearest_code_is_found_and_equal_vectors_have_equal_codes():
  book, z = draw(16, 6), draw(3, 4, 5, 6, seed=1)
  z[1, 2, 3] = z[0, 0, 0]
  z[2, 0] = book[:5]
  codes = vq_parts.nearest(book, z)
  far = ((z.astype(np.float64)[..., None, :] - book) ** 2).sum(-1)
  np.testing.assert_array_equal(codes.index, far.argmin(-1))
  np.testing.assert_array_equal(codes.vector, book[far.argmin(-1)])
  assert codes.index[1, 2, 3] == codes.index[0, 0, 0]
  np.testing.assert_array_equal(codes.index[2, 0], np.arange(5))
  # Shifted far away, squares cancel; near ties need float32's last digits.
  np.testing.assert_allclose(vq_parts.distances(book, z), far, atol=1e-4)


@pytest.fixture(scope="module")
def fused():
  net = vq_autoencoder.VQAutoencoder(**SMALL, fuse_levels=(1,))
  params = drawn(net, images(), np.ones(2, np.float32))
  return net, params, jax.jit(lambda p, x, w: net.apply({"params": p}, x, w)), jax.jit(
    lambda p, v, f, w: net.apply({"params": p}, v, f, w, method="decode"))


def test_without_the_skip_the_image_depends_on_the_codes_alone(fused):
  net, params, run, decode = fused
  _, out = run(params, images(), np.ones(2, np.float32))
  other = jax.tree.map(lambda x: x + draw(*x.shape, seed=5), out["features"])
  # Half of the batch sees the features, half does not.
  w = np.float32([0, 1])
  before, after = (decode(params, out["vector"], f, w) for f in (out["features"], other))
  np.testing.assert_array_equal(before[0], after[0])
  assert np.abs(np.asarray(before[1]) - after[1]).max() > 0.01
  closed = jax.jit(lambda p, v: net.apply({"params": p}, v, None, 0.0, method="decode"))
  np.testing.assert_allclose(closed(params, out["vector"])[0], before[0], atol=1e-6)


def test_an_image_is_what_the_decoder_makes_of_its_codes(fused):
  net, params, run, decode = fused
  y, out = run(params, images(), np.full(2, 0.5, np.float32))
  assert y.shape == images().shape and y.dtype == jnp.float32
  assert out["latent"].shape == (2, 4, 8, 6) and out["index"].shape == (2, 4, 8)
  np.testing.assert_array_equal(
    out["vector"], vq_parts.nearest(params["codebook"], out["latent"]).vector)
  want = decode(params, out["vector"], out["features"], np.full(2, 0.5, np.float32))
  np.testing.assert_allclose(y, want, atol=1e-5)


def test_a_skip_that_was_not_trained_yet_changes_nothing(fused):
  net, params, run, _ = fused
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), images(), np.ones(2, np.float32)))
  fresh = {k: v for k, v in params.items()}
  name = next(k for k in fresh if k.startswith("fuse"))
  module = vq_parts.Fuse(groups=4)
  begun = sharding.unbox(jax.jit(module.init)(
    jax.random.key(1), draw(1, 4, 4, 16), draw(1, 4, 4, 16), np.ones(1, np.float32)))["params"]
  assert trees.names(begun) == trees.names(sharding.unbox(shapes)["params"][name])
  fresh[name] = begun
  zero, one = (run(fresh, images(), np.full(2, w, np.float32))[0] for w in (0, 1))
  np.testing.assert_array_equal(zero, one)


def test_a_transformer_says_the_codes_where_there_is_one_on_grids_of_any_shape():
  net = vq_autoencoder.VQAutoencoder(
    **SMALL, code_layers=1, code_heads=2, code_dim=8)
  params = drawn(net, draw(1, 3, 5, 6), method="logits")
  params["codebook"] = draw(16, 6)
  z = draw(2, 3, 5, 6, seed=4)
  logits, codes = jax.jit(lambda p, z: (
    net.apply({"params": p}, z, method="logits"), net.apply({"params": p}, z, method="choose")))(
      params, z)
  np.testing.assert_array_equal(codes.index, np.argmax(logits, -1))
  np.testing.assert_array_equal(codes.vector, params["codebook"][np.argmax(logits, -1)])
  # It knows where it is: the same vector everywhere is not the same everywhere.
  flat = net.apply({"params": params}, np.broadcast_to(z[:1, :1, :1], z.shape), method="logits")
  assert np.asarray(flat)[0].std(axis=(0, 1)).max() > 1e-3


@pytest.mark.parametrize("fields, side", [
  ({}, 128), (dict(mults=(1, 2, 2, 4, 4, 8), attention=(5,)), 512)], ids=["f8", "f32"])
def test_the_described_sizes_have_the_parameters_of_their_layers(fields, side):
  net = vq_autoencoder.VQAutoencoder(**fields)
  shapes = sharding.unbox(jax.eval_shape(
    lambda: net.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))))["params"]
  conv = lambda a, b, k=3: k * k * a * b + b
  block = lambda a, b: 2 * (a + b) + conv(a, b) + conv(b, b) + (conv(a, b, 1) if a != b else 0)
  attend = lambda a: 2 * a + 4 * conv(a, a, 1)
  c = [64 * m for m in net.mults]
  middle = 2 * block(c[-1], c[-1]) + attend(c[-1])
  encoder = conv(3, 64) + middle + 2 * c[-1] + conv(c[-1], 256)
  decoder = conv(256, c[-1]) + middle + 2 * 64 + conv(64, 3)
  for i, width in enumerate(c):
    before = c[i - 1] if i else 64
    after = c[i + 1] if i + 1 < len(c) else width
    encoder += block(before, width) + block(width, width) + (conv(before, before) if i else 0)
    decoder += block(after, width) + 2 * block(width, width) + (conv(width, width) if i else 0)
  # The last level alone attends, at 16 x 16.
  encoder, decoder = encoder + 2 * attend(c[-1]), decoder + 3 * attend(c[-1])
  total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes))
  assert total == encoder + decoder + 1024 * 256
  latent = jax.eval_shape(lambda p: net.apply(
    {"params": p}, jnp.zeros((1, side, side, 3)), method="encode"), shapes)[0]
  assert latent.shape == (1, 16, 16, 256)


@pytest.mark.parametrize("fields, message", [
  (dict(groups=3), "groups=3 does not divide the 8 channels"),
  (dict(fuse_levels=(2,)), r"fuse_levels=\(2,\): 2 is no level"),
  (dict(mults=()), "expected at least one level"),
  (dict(code_layers=1, quantize=False), "no codes to predict"),
  (dict(code_layers=1, code_dim=10), "code_dim=10: expected a multiple of 4"),
])
def test_fields_that_do_not_fit_are_named(fields, message):
  with pytest.raises(ValueError, match=message):
    vq_autoencoder.VQAutoencoder(**SMALL | fields).check()


def test_an_image_that_cannot_be_halved_is_refused(fused):
  net, params, _, _ = fused
  with pytest.raises(ValueError, match="9 x 16 pixels.*multiples of 2"):
    net.apply({"params": params}, images(rows=9), method="encode")
