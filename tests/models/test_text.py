"""The text tower: big_vision's tree, NumPy's numbers, and what it does with padding."""

import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from big_vision_ext.models import layouts
from big_vision_ext.models.text import TextTransformer
from tests.models import vit_reference as ref

TINY = dict(vocab_size=11, width=24, depth=2, mlp_dim=40, num_heads=3, text_len=6)
IDS = np.random.default_rng(0).integers(0, 11, (3, 6)).astype(np.int32)


def make(scan=False, **kw):
  loop = TextTransformer(**TINY | kw)
  rng = np.random.default_rng(1)
  abstract = nn.unbox(jax.eval_shape(loop.init, jax.random.key(0), IDS)["params"])
  params = jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(np.float32), abstract)
  if scan:
    return TextTransformer(**TINY | kw, scan=True), layouts.loop_to_scan(params)
  return loop, params


def run(model, params, ids=IDS):
  return jax.jit(lambda p, x: model.apply({"params": p}, x))(params, ids)


def float64(tree):
  return jax.tree.map(np.float64, tree)


def test_parameter_names_and_shapes_are_those_of_big_vision():
  _, params = make(out_dim=5)
  assert params.keys() == {"Embed_0", "pos_embedding", "Encoder_0", "head"}
  assert params["Embed_0"]["embedding"].shape == (11, 24)
  assert params["pos_embedding"].shape == (1, 6, 24)
  assert params["Encoder_0"].keys() == {"encoderblock_0", "encoderblock_1", "encoder_norm"}
  assert params["head"]["kernel"].shape == (24, 5) and params["head"]["bias"].shape == (5,)
  assert make(pool_type="map")[1].keys() == {"Embed_0", "pos_embedding", "Encoder_0", "MAPHead_0"}


def test_the_text_tower_of_ps3_has_its_published_size():
  """452.4 M parameters, of which the prompt projection, two layers and a norm, is elsewhere."""
  model = TextTransformer(32_000, 1152, 27, 4304, 16, out_dim=1152, scan=True, act="gelu")
  ids = jax.ShapeDtypeStruct((1, 64), np.int32)
  params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ids)["params"])
  count = sum(math.prod(x.shape) for x in jax.tree.leaves(params))
  prompt = 2 * (1152 * 1152 + 1152) + 2 * 1152
  assert round((count + prompt) / 1e6, 1) == 452.4


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("act", ["gelu_tanh", "gelu"])
def test_forward_is_that_of_a_float64_reference(scan, act):
  model, params = make(scan=scan, act=act, out_dim=5)
  z, out = run(model, params)
  loop = float64(layouts.scan_to_loop(params))
  tokens = ref.text(loop, IDS, getattr(ref, act))
  # Float32 through two blocks of values of size one.
  np.testing.assert_allclose(out["encoded"], tokens, atol=1e-5)
  np.testing.assert_allclose(out["pre_logits"], tokens[:, -1], atol=1e-5)
  np.testing.assert_allclose(z, ref.project(loop["head"], tokens[:, -1]), atol=2e-5)


@pytest.mark.parametrize("pool_type", ["last", "first", "mean", "max", "map"])
def test_pools_are_what_their_names_say(pool_type):
  model, params = make(pool_type=pool_type)
  z, out = run(model, params)
  y = np.float64(out["encoded"])
  want = {
    "last": y[:, -1],
    "first": y[:, 0],
    "mean": y.mean(1),
    "max": y.max(1),
    "map": ref.map_head(float64(params["MAPHead_0"]), y) if pool_type == "map" else None,
  }[pool_type]
  np.testing.assert_allclose(z, want, atol=1e-5)


def test_every_token_sees_every_other_one():
  model, params = make()
  changed = np.tile(IDS[:1], (6, 1))
  changed[np.arange(6), np.arange(6)] = (IDS[0] + 1) % 11
  z, _ = run(model, params, np.concatenate([IDS[:1], changed]))
  assert np.abs(z[1:] - z[0]).max(axis=1).min() > 1e-3


@pytest.mark.parametrize("bad", [-1, 11])
def test_an_id_outside_of_the_vocabulary_shows_as_nan(bad):
  model, params = make()
  ids = IDS.copy()
  ids[1, 2] = bad
  z, _ = run(model, params, ids)
  assert np.isnan(z[1]).all() and np.isfinite(z[::2]).all()


@pytest.mark.parametrize("ids", [IDS[:, :5], IDS[0], IDS.astype(np.float32)])
def test_ids_of_another_length_or_type_are_refused(ids):
  model, params = make()
  with pytest.raises(ValueError, match=r"integer ids of shape \(batch, 6\)"):
    model.apply({"params": params}, ids)


def test_an_unknown_pool_is_refused():
  with pytest.raises(ValueError, match="pool_type='lst'"):
    make(pool_type="lst")
