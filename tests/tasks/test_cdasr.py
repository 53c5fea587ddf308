"""What steers never sees the high resolution; adaptation inside of the loss is what it says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import optimizers, sharding, trees
from big_vision_ext.core.config import Mesh, Optim
from big_vision_ext.core.typed import ConfigError
from big_vision_ext.objectives import bicubic, meta
from tests import tiny_run

MODEL = tiny_run.CDASR
META = dict(tasks=2, support=1, query=2, inner_steps=2, inner_rate=0.05, anneal_steps=100)
SIGLIP = {"task": "siglip", "model": {
    "image": dict(width=16, depth=3, mlp_dim=24, num_heads=2, patch_size=8, image_size=16),
    "text": dict(width=16, depth=1, mlp_dim=16, num_heads=2, vocab_size=9, text_len=4)}}


_made = {}


def task(**changes):
  if repr(changes) not in _made:
    _made[repr(changes)] = tasks.make("cdasr", MODEL | changes)
  return _made[repr(changes)]


def meta_task(**changes):
  return task(meta=META | changes, augment=False)


@pytest.fixture(scope="module")
def params():
  return tiny_run.params(name="cdasr")


def meta_params(params, step=0):
  return {**params, "meta_step": np.float32(step)}


def batch(n=6, seed=0):
  """Smooth pictures: waves of three colours."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:16, :16] / 16
  fy, fx, at = rng.uniform(0, 9, (3, n, 1, 1, 3))
  waves = 0.5 + 0.4 * np.sin(fy * y[None, :, :, None] + fx * x[None, :, :, None] + at)
  return {"image": np.uint8(np.rint(255 * waves))}


def pixels(seed=0, n=6):
  return batch(n, seed)["image"].astype(np.float32) / 255


def test_a_new_model_is_its_network_without_the_encoder_exactly(params):
  t = task()
  low = pixels()[:2, :8, :8]
  align = jax.jit(lambda key: t.init(key, {})["align"])(jax.random.key(0))
  both = {**params, "align": sharding.unbox(align)}
  got = jax.jit(t.restore)(both, {"image": low})
  want = jax.jit(lambda p, x: t.net.apply({"params": p}, x)[0])(params["net"], low)
  np.testing.assert_array_equal(got, want)
  # And with other values of the fusion it is not.
  assert np.abs(jax.jit(t.restore)(params, {"image": low}) - want).max() > 1e-3


def test_the_high_resolution_reaches_the_loss_and_nothing_that_restores(params):
  t = task(weights=dict(perceptual=0.3, semantic=0.2))
  high = pixels()
  # What the reduction of rows makes nothing of: a column that is orthogonal to all its weights.
  column = np.linalg.svd(bicubic.matrix(16, 8, "matlab"))[2][-1]
  other = high + np.float32(0.05 * column[:, None, None] / np.abs(column).max())
  rows = jax.jit(lambda x: t.rows(params, x, jax.random.key(0)))
  a, b = rows(high), rows(other)
  for name in ("low", "vector"):
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  assert np.abs(a["goal_vector"] - b["goal_vector"]).max() > 1e-4
  # Of pairs, whatever the high resolution is.
  pairs = jax.jit(lambda high: t.rows_of_pairs(params, a["low"], high))
  np.testing.assert_array_equal(pairs(high)["vector"], pairs(1 - high)["vector"])
  np.testing.assert_array_equal(pairs(a["high"])["vector"], pairs(other)["vector"])
  loss = jax.jit(lambda rows: t.loss_of(params, rows)[0])
  assert abs(loss(a) - loss(b)) > 1e-4


def test_low_resolution_is_matlabs_in_8_bits(params):
  rows = task(condition="none", encoder=None).rows(params, pixels())
  low = np.asarray(rows["low"], np.float64) * 255
  np.testing.assert_allclose(low, np.round(low), atol=1e-4)
  # In the interior: Keys' kernel stretched by two, eight taps.
  d = np.abs(np.arange(-3, 5) - 0.5) / 2
  w = np.where(d <= 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)
  w /= w.sum()
  window = pixels()[:, 5:13, 3:11].astype(np.float64)
  want = np.einsum("i,j,bijc->bc", w, w, window) * 255
  np.testing.assert_allclose(low[:, 4, 3], np.clip(want, 0, 255), atol=0.5 + 1e-3)


def test_the_encoder_is_frozen_by_its_pattern_and_gets_no_gradient(params):
  t = task(weights=dict(perceptual=0.3, semantic=0.2))
  (loss, terms), grads = jax.jit(jax.value_and_grad(
      lambda p: t.loss(p, batch(), jax.random.key(0), True), has_aux=True))(params)
  for name, g in trees.flatten(grads).items():
    assert np.abs(g).max() == 0 if name.startswith("encoder/") else np.abs(g).max() > 0, name
  terms = {name: float(x) for name, x in terms.items()}
  assert float(loss) == pytest.approx(
      terms["pixel"] + 0.3 * terms["perceptual"] + 0.2 * terms["semantic"], rel=1e-6)
  trained, _ = optimizers.split(params, ("encoder/.*",))
  assert {n.split("/")[0] for n in trees.names(trained)} == {"net", "align"}
  optimizers.make(Optim(lr_mults=(("net/.*", 0.1),)), 1e-4, trained)


@pytest.mark.parametrize("spec", [MODEL["encoder"], SIGLIP], ids=["clip", "siglip"])
def test_vectors_are_those_of_the_towers_own_task(spec):
  own = tasks.make(spec["task"], spec["model"])
  t = task(encoder=spec, weights=dict(perceptual=1.0, semantic=1.0))
  image = batch(3)["image"]
  words = np.zeros((1, own.text.text_len), np.int32)
  spec = jax.eval_shape(
      lambda: sharding.unbox(own.init(jax.random.key(3), {"image": image, "text": words})))
  rng = np.random.default_rng(0)
  both = jax.tree.map(lambda x: rng.normal(0.1, 0.2, x.shape).astype(np.float32), spec)
  got, tokens = jax.jit(lambda p, x: t.encoder(p, x, blocks=True))(
      both["img"], image.astype(np.float32) / 255)
  want = jax.jit(own.outputs["image"])(both, {"image": image})
  np.testing.assert_allclose(got, want, atol=2e-6)
  # Patches alone: class tokens are no places.
  assert tokens.shape == (3, 4, 16) and t.encoder.width == want.shape[1]
  assert np.abs(np.diff(tokens, axis=1)).max() > 1e-3


def test_pictures_of_other_shapes_are_seen_in_the_middle():
  encoder = task().encoder
  x = np.random.default_rng(0).uniform(size=(1, 16, 24, 3)).astype(np.float32)
  np.testing.assert_array_equal(encoder.framed(x), x[:, :, 4:20])
  small = np.ones((1, 3, 2, 3), np.float32)
  np.testing.assert_allclose(encoder.framed(small), np.ones((1, 16, 16, 3)), rtol=1e-6)


def test_controls_have_as_many_parameters_and_do_not_see_the_picture(params):
  vectors = {}
  for kind in ("encoder", "shuffled", "constant"):
    t = task(condition=kind)
    spec = jax.eval_shape(lambda t=t: sharding.unbox(t.init(jax.random.key(0), {})))
    assert jax.tree.map(jnp.shape, spec) == jax.tree.map(jnp.shape, params)
    vectors[kind] = np.asarray(jax.jit(t.condition)(
        params, {"image": pixels()}, jax.random.key(1)))
  own, others = vectors["encoder"], vectors["shuffled"]
  # The same vectors, in another order; programs may round differently.
  at = np.abs(own[:, None] - others[None]).max(-1)
  np.testing.assert_allclose(at.min(axis=0), 0, atol=1e-6)
  assert sorted(at.argmin(axis=0)) == list(range(6))
  assert np.abs(own - others).max() > 1e-2
  assert len(np.unique(vectors["constant"], axis=0)) == 1
  np.testing.assert_allclose(np.linalg.norm(vectors["constant"], axis=1), 1, rtol=1e-6)
  plain = task(condition="none", encoder=None)
  names = trees.names(plain.init(jax.random.key(0), {}))
  assert all(n.startswith("net/") for n in names)
  assert plain.adapted == ("net/last/.*",)


def test_the_shuffled_control_never_steers_by_the_pictures_own_vector(params):
  t, low = task(condition="shuffled"), {"image": pixels(n=3)}
  own = jax.jit(t.vectors)(params, low["image"])
  shuffled = jax.jit(lambda key: t.condition(params, low, key))
  orders = set()
  for seed in range(12):
    at = np.abs(shuffled(jax.random.key(seed))[:, None] - own[None]).max(-1).argmin(-1)
    assert sorted(at) == [0, 1, 2] and not np.any(at == np.arange(3))
    orders.add(tuple(at))
  assert len(orders) == 2
  # Nothing that restores has other pictures.
  for rows, key in ((low, None), ({"image": pixels(n=1)}, jax.random.key(0))):
    with pytest.raises(ValueError, match="expected condition='encoder' to restore or adapt"):
      t.condition(params, rows, key)
  with pytest.raises(ValueError, match="condition='shuffled'"):
    jax.eval_shape(t.restore, params, low)
  assert t.forward_flops() == task().forward_flops()


def reference(t, params, images, weights):
  """The meta-loss by loops over tasks and steps, and its gradient of second order, unrolled."""
  m = t.config.meta
  loss_of = lambda phi, rest, rows: t.loss_of(meta.merge(phi, rest), rows)[0]
  phi, rest = meta.split(params, t.adapted, "test")
  rows = t.rows(params, images)
  size = m.support + m.query

  def total(phi, rest):
    out = 0
    for i in range(m.tasks):
      of = lambda a, b, i=i: jax.tree.map(lambda x: x[i * size + a:i * size + b], rows)
      adapted = phi
      for w in weights:
        grads = jax.grad(loss_of)(adapted, rest, of(0, m.support))
        adapted = jax.tree.map(lambda p, g: p - m.inner_rate * g, adapted, grads)
        out += w * loss_of(adapted, rest, of(m.support, size)) / m.tasks
    return out

  return jax.jit(jax.value_and_grad(total))(phi, rest)


def test_the_meta_loss_is_the_one_written_out_and_so_is_its_gradient(params):
  t = meta_task(order=2, parallel="vmap")
  (loss, terms), grads = jax.jit(jax.value_and_grad(lambda p: t.loss(
      p, batch(), jax.random.key(0), True), has_aux=True))(meta_params(params, 50))
  # After 50 of 100 steps half of the way: 1/4 and 3/4.
  value, want = reference(meta_task(), meta_params(params), pixels(), (0.25, 0.75))
  assert float(loss) == pytest.approx(float(value), rel=1e-5)
  assert float(loss) == pytest.approx(
      0.25 * float(terms["query_first"]) + 0.75 * float(terms["query_last"]), rel=1e-5)
  found = trees.flatten(grads)
  for name, g in trees.flatten(want).items():
    # Sums in another order, float32, through steps of descent.
    np.testing.assert_allclose(found[name], g, rtol=1e-3, atol=1e-5 * np.abs(g).max() + 1e-7,
                               err_msg=name)
  assert np.abs(found["net/first/kernel"]).max() > 0 and found["meta_step"] == 0


def test_orders_agree_where_nothing_is_learned_inside(params):
  net = {"net": params["net"], "meta_step": np.float32(50)}
  grads = {}
  for order in (1, 2):
    t = task(condition="none", encoder=None, augment=False,
             meta=META | dict(order=order, inner_rate=0.0, adapted="all"))
    grads[order] = jax.jit(jax.grad(
        lambda p, t=t: t.loss(p, batch(), jax.random.key(0), True)[0]))(net)["net"]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
               grads[1], grads[2])
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads[1]))


@pytest.mark.parametrize("adapted", ["adapter", "all"])
def test_steps_inside_lower_the_loss_of_the_support_and_move_nothing_else(params, adapted):
  t = task(augment=False)
  rows = t.rows(params, pixels(n=2))
  phi, rest = meta.split(params, t.patterns(adapted), "test")
  value = jax.jit(lambda phi: t.loss_of(meta.merge(phi, rest), rows)[0])
  losses = [float(value(phi))]
  update = jax.jit(lambda phi: meta.step(value, phi, 0.02)[0])
  for _ in range(4):
    phi = update(phi)
    losses.append(float(value(phi)))
  assert losses == sorted(losses, reverse=True) and losses[-1] < 0.99 * losses[0]
  new = trees.flatten(meta.merge(phi, rest))
  moved = {n for n, x in trees.flatten(params).items() if np.any(new[n] != x)}
  assert not any(n.startswith("encoder/") for n in moved)
  assert {"net/last/kernel", "align/proc_1/kernel"} <= moved
  assert ("net/first/kernel" in moved) == (adapted == "all")


def test_outer_steps_are_counted_in_a_frozen_parameter(params):
  t = meta_task()
  after = t.after_update(meta_params(params), jnp.int32(6))
  assert after["meta_step"] == 7 and after["meta_step"].dtype == jnp.float32
  assert task().after_update(params, jnp.int32(6)) is params


@pytest.mark.slow
def test_the_meta_loss_is_the_same_on_eight_devices(params):
  t = meta_task(tasks=8, support=1, query=1)
  p, data = meta_params(params, 50), batch(16)
  run = jax.value_and_grad(lambda p, b: t.loss(p, b, jax.random.key(0), True)[0])
  loss, grads = jax.jit(run)(p, data)
  m = sharding.make_mesh(Mesh(data=2, fsdp=4), jax.devices()[:8])
  with sharding.use(m, ()):
    spread = jax.device_put(data, sharding.batch_sharding(m))
    other, others = jax.jit(run)(jax.device_put(p, sharding.replicated(m)), spread)
  assert float(loss) == pytest.approx(float(other), rel=1e-6)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  for name, g in trees.flatten(others).items():
    # Sums in another order, in float32.
    np.testing.assert_allclose(g, trees.flatten(grads)[name], atol=5e-6 * largest, err_msg=name)


def test_tasks_that_devices_cannot_share_are_told(params):
  m = sharding.make_mesh(Mesh(data=4), jax.devices()[:4])
  with sharding.use(m, ()), pytest.raises(ConfigError, match="meta.tasks=2: every device adapts"):
    jax.eval_shape(lambda p: meta_task().loss(p, batch(), jax.random.key(0), True)[0],
                   meta_params(params))


@pytest.mark.parametrize("changes, message", [
    (dict(image_size=17), "image_size=17: expected a multiple of 2"),
    (dict(net=dict(name="edrs", scale=2)), "config.model.net: net 'edrs' is unknown"),
    (dict(net=dict(name="edsr")), "config.model.net.scale=1: expected at least 2"),
    (dict(encoder=None), "encoder=None with condition='encoder': expected a tower"),
    (dict(encoder=None, condition="none", weights=dict(semantic=0.1)), "weights.semantic=0.1"),
    (dict(encoder={"task": "mae", "model": {}}), "encoder.task='mae': expected one of 'siglip'"),
    (dict(encoder={"task": "siglip", "model": {"image": {}}}), "model.encoder.model is read as a"),
    (dict(condition="clip"), "config.model.condition='clip'"),
    (dict(meta=dict(inner_steps=0)), "meta.inner_steps=0: expected at least 1"),
    (dict(meta=dict(order=3)), "config.model.meta.order=3"),
    (dict(weights=dict(pixel=-1.0)), "weights.pixel=-1.0: expected at least 0"),
    (dict(align=dict(semantic=100)), "expected a multiple of 64"),
])
def test_settings_that_cannot_be_are_told(changes, message):
  with pytest.raises(ValueError, match=message):
    tasks.make("cdasr", MODEL | changes)


def test_a_batch_that_is_no_tasks_is_refused(params):
  with pytest.raises(ConfigError, match="expected config.batch_size=6, config.model.meta.tasks=2"):
    meta_task().loss(meta_params(params), batch(4), jax.random.key(0), True)
