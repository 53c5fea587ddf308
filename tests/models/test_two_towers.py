"""Two towers: one tree with big_vision's names, unit vectors, temperature and bias."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import layouts
from big_vision_ext.models.two_towers import TwoTowers, normalize
from tests.models import vit_reference as ref

IMAGE = dict(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=4, image_size=(8, 12))
TEXT = dict(width=16, depth=2, mlp_dim=24, num_heads=2, vocab_size=11, text_len=6)
IDS = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)
IMAGES = np.random.default_rng(1).standard_normal((3, 8, 12, 3)).astype(np.float32)


def make(image=IMAGE, text=TEXT, **kw):
  model = TwoTowers(image, text, **kw)
  abstract = jax.eval_shape(model.init, jax.random.key(0), IMAGES, IDS)["params"]
  return model, nn.unbox(abstract)


def randomize(params):
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), params)


def run(model, params, *args):
  return jax.jit(lambda p, *a: model.apply({"params": p}, *a))(params, *args)


@pytest.mark.parametrize("scan", [False, True])
def test_tree_is_that_of_big_vision(scan):
  _, params = make(IMAGE | {"scan": scan}, TEXT | {"scan": scan})
  assert params.keys() == {"img", "txt", "t", "b"}
  assert params["img"].keys() == {"embedding", "pos_embedding", "Transformer", "MAPHead_0"}
  assert params["txt"].keys() == {"Embed_0", "pos_embedding", "Encoder_0", "head"}
  blocks = {"encoderblock"} if scan else {"encoderblock_0", "encoderblock_1"}
  for encoder in (params["img"]["Transformer"], params["txt"]["Encoder_0"]):
    assert encoder.keys() == blocks | {"encoder_norm"}
  assert params["txt"]["head"]["kernel"].shape == (16, 24)
  assert params["t"].shape == params["b"].shape == (1,)


def test_siglip_base_has_its_published_size():
  """203.2 M parameters: 92.88 M image, 110.3 M text (32,000 pieces of 64 positions)."""
  text = {"variant": "B", "vocab_size": 32_000, "scan": True}
  image = {"variant": "B/16", "image_size": 224, "scan": True}
  model = TwoTowers(image, text)
  images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  ids = jax.ShapeDtypeStruct((1, 64), jnp.int32)
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), images, ids)["params"])
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  assert count == 203_155_970


def test_forward_gives_unit_vectors_of_the_towers():
  model, params = make()
  params = randomize(params)
  zimg, ztxt, out = run(model, params, IMAGES, IDS)
  p = jax.tree.map(np.float64, params)
  image, _ = ref.vit(p["img"], np.float64(IMAGES), (2, 3))
  text = ref.project(p["txt"]["head"], ref.text(p["txt"], IDS)[:, -1])
  unit = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (image, text)]
  np.testing.assert_allclose(zimg, unit[0], atol=1e-5)
  np.testing.assert_allclose(ztxt, unit[1], atol=1e-5)
  np.testing.assert_allclose(out["t"], np.exp(p["t"][0]), rtol=1e-6)
  np.testing.assert_allclose(out["b"], p["b"][0], rtol=1e-6)


def test_scan_equals_loop_after_conversion_of_both_towers():
  model, params = make()
  params = randomize(params)
  scan, _ = make(IMAGE | {"scan": True}, TEXT | {"scan": True})
  want = run(model, params, IMAGES, IDS)[:2]
  got = run(scan, layouts.loop_to_scan(params), IMAGES, IDS)[:2]
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_either_input_may_be_missing():
  model, params = make()
  params = randomize(params)
  zimg, ztxt, _ = run(model, params, IMAGES, IDS)
  alone, none, out = run(model, params, IMAGES)
  np.testing.assert_allclose(alone, zimg, atol=1e-6)
  assert none is None and "txt" not in out
  none, alone, out = run(model, params, None, IDS)
  np.testing.assert_allclose(alone, ztxt, atol=1e-6)
  assert none is None and "img" not in out


def test_temperature_is_kept_as_its_logarithm_and_the_bias_may_be_left_out():
  model = TwoTowers(IMAGE, TEXT)

  @jax.jit
  def init():
    params = model.init(jax.random.key(0), IMAGES, IDS)["params"]
    return params["t"], params["b"]

  t, b = init()
  np.testing.assert_allclose(t, np.log(10.0), rtol=1e-6)
  np.testing.assert_array_equal(b, [-10.0])
  assert "b" not in make(bias_init=None)[1]


def test_vectors_are_float32_whatever_the_type_of_computation():
  image, text = IMAGE | {"dtype": "bfloat16"}, TEXT | {"dtype": "bfloat16"}
  model, params = make(image, text)
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("float32")}
  shapes = jax.eval_shape(lambda p: model.apply({"params": p}, IMAGES, IDS)[:2], params)
  assert [z.dtype for z in shapes] == [jnp.float32] * 2


def test_a_vector_of_zeros_has_no_direction_and_no_nan():
  z = jnp.zeros((2, 4)).at[1].set(jnp.arange(4.0))
  np.testing.assert_allclose(jnp.linalg.norm(normalize(z), axis=1), [0, 1], atol=1e-6)
  grad = jax.grad(lambda z: jnp.sum(normalize(z) * jnp.arange(4)))(z)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize(
  "kw, message",
  [
    (dict(text=TEXT | {"out_dim": 20}), "24 wide and text vectors 20.*out_dim=24"),
    (dict(text=TEXT | {"vocab": 5}), "model.text.vocab=5.*'vocab_size'"),
    (dict(image=IMAGE | {"pool": "map"}), "model.image.pool='map'"),
    (dict(image=IMAGE | {"variant": "X"}), "variant 'X' is unknown"),
    (dict(temperature_init=0.0), "temperature_init=0.0"),
  ],
)
def test_a_wrong_config_is_refused_in_words(kw, message):
  with pytest.raises(ValueError, match=message):
    make(**kw)
