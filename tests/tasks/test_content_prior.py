"""The content prior as a task: what each stage trains, what it leaves alone, what it gives."""

import pathlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import optimizers, sharding, trees, typed
from big_vision_ext.core import step as step_lib
from big_vision_ext.objectives import masks

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDE = 16
IMAGE = dict(image_size=SIDE, width=8, mults=(1, 2), depth=1, groups=4, attention=(), codes=16,
             code_width=6)
RAIN = dict(kind="rain", range="medium")


def good(stage):
  degrade = {} if stage == "autoencoder" else dict(degrade=RAIN)
  fused = dict(fuse_levels=(1,)) if stage == "fuse" else {}
  return dict(stage=stage, image=IMAGE | fused) | degrade


def make(stage, image=(), **fields):
  settings = good(stage) | fields
  return tasks.make("content_prior", settings | dict(image=settings["image"] | dict(image)))


def batch(n=4, seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (n, SIDE // 4, SIDE // 4, 3), dtype=np.uint8)
  return {"image": coarse.repeat(4, 1).repeat(4, 2)}


def drawn(task, seed=1):
  """Random parameters, also where training begins with zeros."""
  shapes = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch(1)))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: (rng.standard_normal(x.shape) / max(
    np.prod(x.shape[:-1]), 4) ** 0.5).astype(np.float32), flax.core.unfreeze(shapes))


def degraded(task, rng, clean):
  """What a step with the key `rng` sees."""
  return jax.jit(task.degrade)(masks.sample_keys(jax.random.split(rng)[0], len(clean)), clean)[0]


def latent_of(task, params, image):
  return np.asarray(jax.jit(lambda p, x: task.net.apply({"params": p}, x, method="encode")[0])(
    params, image), np.float64)


def nearest(book, z):
  book = np.asarray(book, np.float64)
  far = ((z[..., None, :] - book) ** 2).sum(-1)
  return far, far.argmin(-1), book[far.argmin(-1)]


@pytest.fixture(scope="module")
def adapted():
  """The config's adaptation: its task, the state before and after two real steps, their metrics."""
  small = [f"model.image.{k}={v!r}" for k, v in IMAGE.items()]
  config = config_lib.resolve(config_lib.load(
    f"{ROOT}/configs/derain/prior.py:stage=adapt,runlocal,init=before,batch=4", small))
  task = tasks.make(config.task, config.model)
  mesh = sharding.make_mesh(config.mesh, devices=jax.devices()[:1])
  rules = sharding.merge_rules(config.sharding_rules)
  rows = sharding.batch_sharding(mesh, 4)
  _, shardings, tx, _ = step_lib.plan_state(task, config, mesh, rules)
  params = jax.tree.map(jnp.asarray, drawn(task))
  trained, _ = optimizers.split(params, config.optim.freeze)
  state = {"params": params, "opt": tx.init(trained), "ema": jax.tree.map(jnp.copy, trained),
           **{name: jnp.zeros((), jnp.int32) for name in step_lib.COUNTERS}}
  before = jax.device_get(params)
  with sharding.use(mesh, rules):
    run = step_lib.jitted(task, config, tx, lambda t: jnp.float32(1), mesh, shardings, rows)
    state, reports = jax.device_put(state, shardings), []
    for seed in range(2):
      state, metrics = run(state, jax.device_put(batch(seed=seed), rows))
      reports.append(jax.device_get(metrics))
  return task, before, jax.device_get(state["params"]), reports


def test_adaptation_moves_the_encoder_and_neither_codes_nor_decoder_nor_teacher(adapted):
  _, before, after, _ = adapted
  before, after = trees.flatten(before), trees.flatten(after)
  moved = {name for name in before if np.any(before[name] != after[name])}
  assert moved == {name for name in before if name.startswith("encoder/")}
  assert {name.split("/")[0] for name in before} == {
    "encoder", "codebook", "decoder", "to_image", "teacher"}


def test_the_loss_of_adaptation_is_that_of_its_definition(adapted):
  task, before, _, reports = adapted
  clean = batch()["image"] / np.float32(255)
  key = jax.random.fold_in(jax.random.key(0), 0)
  seen = degraded(task, key, clean)
  assert np.abs(np.asarray(seen) - clean).max() > 0.05
  z = latent_of(task, before, seen)
  wanted = latent_of(task, before | before["teacher"], clean)
  _, index, code = nearest(before["codebook"], wanted)
  far, chosen, _ = nearest(before["codebook"], z)
  p = np.exp(-far + far.min(-1, keepdims=True))
  entropy = -np.log(np.take_along_axis(p / p.sum(-1, keepdims=True), index[..., None], -1)).mean()
  got = reports[0]
  # float32 through a dozen layers.
  np.testing.assert_allclose(got["loss_feature"], ((z - code) ** 2).mean(), rtol=1e-4)
  np.testing.assert_allclose(got["loss_code"], 0.5 * entropy, rtol=1e-4)
  np.testing.assert_allclose(got["loss"], got["loss_feature"] + got["loss_code"], rtol=1e-6)
  np.testing.assert_allclose(got["code_accuracy"], (chosen == index).mean(), atol=1e-6)
  shares = np.bincount(chosen.reshape(-1), minlength=16) / chosen.size
  shares = shares[shares > 0]
  np.testing.assert_allclose(got["perplexity"], np.exp(-(shares * np.log(shares)).sum()), rtol=1e-4)


def test_what_the_adapted_encoder_is_to_agree_with_is_the_encoder_that_was_loaded(adapted):
  task, before, _, _ = adapted
  begun = task.begin(before)
  for name, value in trees.flatten(begun["teacher"]["encoder"]).items():
    np.testing.assert_array_equal(value, trees.flatten(before["encoder"])[name])
  assert not np.array_equal(before["teacher"]["encoder"]["conv_in"]["kernel"],
                            before["encoder"]["conv_in"]["kernel"])
  fuse = make("fuse")
  params = drawn(fuse)
  assert fuse.begin(params) is params


@pytest.fixture(scope="module")
def clean_stage():
  """With revival and a critic that takes part from the sixth update on; loss and gradients."""
  task = make("autoencoder", revive=dict(steps=3, threshold=0.5),
              critic=dict(start=5, width=8, layers=1))
  fn = lambda p, b, key: jax.value_and_grad(
    lambda p: task.loss(p, b, key, True), has_aux=True)(p)
  return task, drawn(task), jax.jit(fn)


def run_clean(clean_stage, updates):
  task, params, fn = clean_stage
  params = params | {"updates": np.float32(updates)}
  (loss, metrics), grads = fn(params, batch(), jax.random.key(5))
  return params, float(loss), jax.device_get(metrics), trees.flatten(jax.device_get(grads))


def test_the_first_stages_loss_is_that_of_its_definition(clean_stage):
  task = clean_stage[0]
  params, loss, metrics, _ = run_clean(clean_stage, updates=4)
  clean = batch()["image"].astype(np.float64) / 255
  z = latent_of(task, params, clean.astype(np.float32))
  _, index, code = nearest(params["codebook"], z)
  image = np.asarray(jax.jit(task.restore)(params, batch()), np.float64)
  error = ((z - code) ** 2).mean()
  want = np.abs(image - clean).mean() + 1.25 * error
  np.testing.assert_allclose(loss, want, rtol=1e-4)
  np.testing.assert_allclose(metrics["loss_commitment"], 0.25 * error, rtol=1e-4)
  shares = np.bincount(index.reshape(-1), minlength=16) / index.size
  np.testing.assert_allclose(metrics["codes_used"], (shares > 0).mean(), rtol=1e-6)
  usage = 0.99 * params["usage"] + 0.01 * shares
  np.testing.assert_allclose(metrics["params/usage"], usage, atol=1e-6)
  mse = ((image.clip(0, 1) - clean) ** 2).mean((1, 2, 3))
  np.testing.assert_allclose(metrics["psnr"], (-10 * np.log10(mse)).mean(), rtol=1e-4)


def test_a_critic_takes_part_from_its_start_on_and_each_side_learns_its_own_term(clean_stage):
  params, before, metrics, grads = run_clean(clean_stage, updates=4)
  critic = [n for n in grads if n.startswith("critic/")]
  assert metrics["loss_critic"] == metrics["loss_critic_image"] == 0
  assert not any(np.any(grads[n]) for n in critic)
  _, loss, after, later = run_clean(clean_stage, updates=5)
  assert after["params/updates"] == 6 and after["critic_weight"] > 0
  # Of scores between -1 and 1 all count alike, and what is added to all of them does not matter.
  assert {n for n in critic if not np.any(later[n])} <= {"critic/conv_out/bias"}
  np.testing.assert_allclose(loss - before, after["loss_critic"] + after["loss_critic_image"],
                             rtol=1e-3)
  # The critic learns to tell, not to be deceived: its gradient is that of its own term.
  task = clean_stage[0]
  clean, image = batch()["image"] / np.float32(255), task.restore(params, batch())

  def own(critic):
    real, fake = (task.critic.apply({"params": critic}, x) for x in (clean, image))
    return 0.5 * (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean())

  want = trees.flatten(jax.jit(jax.grad(own))(params["critic"]))
  for name, g in want.items():
    np.testing.assert_allclose(later[f"critic/{name}"], g, rtol=1e-3, atol=1e-5, err_msg=name)
  # And the decoder's changes by the critic: it is no spectator.
  assert np.any(later["decoder/conv_in/kernel"] != grads["decoder/conv_in/kernel"])


def test_every_parameter_of_the_first_stage_learns_but_codes_nobody_uses(clean_stage):
  _, _, metrics, grads = run_clean(clean_stage, updates=5)
  idle = [n for n, g in grads.items() if not np.any(g)]
  assert set(idle) - {"critic/conv_out/bias"} == {"spare", "updates", "usage"}
  used = np.any(grads["codebook"], axis=1).mean()
  np.testing.assert_allclose(used, metrics["codes_used"], rtol=1e-6)


def test_dead_codes_are_replaced_when_it_is_time_by_what_the_step_left_for_it(clean_stage):
  task, params, _ = clean_stage
  usage = np.full(16, 1 / 16, np.float32)
  usage[[2, 7]] = 0.4 / 16
  params = params | {"usage": usage}
  kept = task.after_update(params, jnp.int32(4))
  np.testing.assert_array_equal(kept["codebook"], params["codebook"])
  new = task.after_update(params, jnp.int32(6))
  changed = np.any(np.asarray(new["codebook"]) != params["codebook"], axis=1)
  assert np.flatnonzero(changed).tolist() == [2, 7]
  np.testing.assert_array_equal(new["codebook"][7], params["spare"][7])
  np.testing.assert_allclose(new["usage"], 1 / 16)


def test_only_the_skip_is_trained_last_and_without_it_the_adapted_prior_is_what_it_was(adapted):
  task, params, _, _ = adapted
  config = config_lib.resolve(config_lib.load(
    f"{ROOT}/configs/derain/prior.py:stage=fuse,runlocal,init=before,w=0.25"))
  fuse = tasks.make(config.task, config.model)
  names = sharding.unbox(jax.eval_shape(fuse.init, jax.random.key(0), fuse.batch_spec(1)))
  trained, _ = optimizers.split(names, config.optim.freeze)
  assert {n.split("/")[0] for n in trees.names(trained)} == {"fuse_level_1"}

  fuse = make("fuse", w=0.5)
  every = drawn(fuse) | params
  run = jax.jit(lambda p, b: {k: fn(p, b) for k, fn in fuse.outputs.items()})
  out = run(every, batch())
  np.testing.assert_allclose(out["restore_w0"], jax.jit(task.restore)(params, batch()), atol=1e-5)
  np.testing.assert_allclose(out["restore"], out["restore_w50"], atol=1e-6)
  assert np.abs(np.asarray(out["restore_w100"] - out["restore_w0"])).max() > 0.01
  # The floor is the clean encoder's, whatever has become of the other; floats are pixels too.
  spoilt = every | {"encoder": jax.tree.map(lambda x: 2 * x, every["encoder"])}
  again = run(spoilt, batch())
  np.testing.assert_array_equal(again["reconstruct"], out["reconstruct"])
  assert np.abs(np.asarray(again["restore_w0"] - out["restore_w0"])).max() > 0.01


def test_the_skip_learns_from_pairs_with_the_share_that_each_sample_draws():
  fuse = make("fuse", fuse_w=(0.25, 0.25))
  params = drawn(fuse)
  key = jax.random.key(2)
  loss, metrics = jax.jit(lambda p, b: fuse.loss(p, b, key, True))(params, batch())
  clean = batch()["image"] / np.float32(255)
  seen = degraded(fuse, key, clean)
  image = jax.jit(lambda p, x: fuse.restore_at(p, {"image": x}, np.full(4, 0.25, np.float32)))(
    params, seen)
  np.testing.assert_allclose(loss, np.abs(np.asarray(image, np.float64) - clean).mean(), rtol=1e-4)
  assert 1 <= metrics["perplexity"] <= 16


def test_without_codes_latents_agree_with_the_clean_ones_themselves():
  task = make("adapt", dict(quantize=False))
  params = drawn(task)
  assert "codebook" not in params
  key = jax.random.key(4)
  loss, metrics = jax.jit(lambda p, b: task.loss(p, b, key, True))(params, batch())
  clean = batch()["image"] / np.float32(255)
  seen = degraded(task, key, clean)
  want = latent_of(task, params, seen) - latent_of(task, params | params["teacher"], clean)
  np.testing.assert_allclose(loss, (want**2).mean(), rtol=1e-4)
  assert set(metrics) == {"loss_feature"}


def test_a_frozen_encoder_compares_what_is_drawn_with_what_is_clean_from_scratch_too():
  tower = dict(width=8, depth=1, mlp_dim=16, num_heads=1)
  eye = dict(task="siglip", model=dict(
    image=dict(**tower, patch_size=8, image_size=SIDE),
    text=dict(**tower, vocab_size=8, text_len=4)))
  task = make("scratch", perceptual=dict(encoder=eye, weight=0.3))
  params, key = drawn(task), jax.random.key(6)
  (loss, metrics), grads = jax.jit(lambda p, b: jax.value_and_grad(
    lambda e: task.loss(p | {"eye": e}, b, key, True), has_aux=True)(p["eye"]))(params, batch())
  clean = batch()["image"] / np.float32(255)
  seen = degraded(task, key, clean)
  image = jax.jit(task.restore)(params, {"image": seen})
  tokens = jax.jit(lambda p, x: task.eye(p, x, blocks=True)[1])
  far = np.asarray(tokens(params["eye"], image), np.float64) - tokens(params["eye"], clean)
  np.testing.assert_allclose(metrics["loss_perceptual"], 0.3 * np.abs(far).mean(), rtol=1e-4)
  np.testing.assert_allclose(
    metrics["loss_pixel"], np.abs(np.asarray(image, np.float64) - clean).mean(), rtol=1e-4)
  np.testing.assert_allclose(loss, sum(v for k, v in metrics.items() if k.startswith("loss_")),
                             rtol=1e-5)
  assert not any(np.any(g) for g in jax.tree.leaves(grads))


def test_arithmetic_counts_what_is_trained_three_times():
  adapt = make("adapt")
  encode, choose, _ = adapt._flops
  assert adapt.flops_per_example == 4 * encode + 3 * choose
  # One 3 x 3 convolution of the image, at least, and codes compared at every place.
  assert encode > 2 * 9 * 3 * 8 * SIDE**2 and choose == 2 * 16 * 6 * (SIDE // 2) ** 2


@pytest.mark.parametrize("stage, fields, message", [
  ("autoencoder", dict(image=IMAGE | dict(image_size=15)), "image_size=15: is no multiple of 2"),
  ("autoencoder", dict(degrade=RAIN), "sees clean images only"),
  ("adapt", dict(degrade=dict(kind="bicubic", scale=2)), "expected one that keeps its size"),
  ("adapt", dict(image=IMAGE | dict(fuse_levels=(1,))), "the stage 'fuse' trains a skip"),
  ("fuse", dict(image=IMAGE), r"needs its levels, e\.g\. \(1, 2\)"),
  ("autoencoder", dict(image=IMAGE | dict(code_layers=1)), "takes the nearest codes"),
  ("adapt", dict(revive={}), "no codes are trained here"),
  ("adapt", dict(critic={}), "the stage 'adapt' has none"),
  ("adapt", dict(perceptual=dict(weight=1.0, encoder=dict(task="siglip", model={}))),
   "the stage 'adapt' has none"),
  ("autoencoder", dict(critic=dict(width=6)), "critic.width=6: .* divide by groups=4"),
  ("adapt", dict(w=0.5), "w=0.5: expected 0, or in the stage 'fuse' up to 1"),
  ("fuse", dict(fuse_w=(0.5, 0.2)), "the lower first"),
  ("adapt", dict(temperature=0.0), "temperature=0.0: expected more than 0"),
  ("autoencoder", dict(image=IMAGE | dict(groups=3)), "groups=3 does not divide"),
])
def test_settings_that_do_not_fit_are_named(stage, fields, message):
  with pytest.raises((ValueError, typed.ConfigError), match=message):
    tasks.make("content_prior", good(stage) | fields)


def test_pairs_that_come_with_the_batch_are_what_is_trained_on():
  """The loss is that of the degradation which made them."""
  made, paired = (make("adapt", degrade=d) for d in (dict(kind="noise"), None))
  assert set(made.batch_spec(2)) == {"image"}
  assert set(paired.batch_spec(2)) == {"image", "degraded"}
  params, key = drawn(paired), jax.random.key(8)
  pairs = batch() | {"degraded": degraded(made, key, batch()["image"] / np.float32(255))}
  loss = lambda task, b: jax.jit(lambda p: task.loss(p, b, key, True)[0])(params)
  np.testing.assert_allclose(loss(paired, pairs), loss(made, batch()), rtol=1e-5)
  with pytest.raises(ValueError, match="no `degraded` pictures; set input.pairs=True"):
    paired.loss(params, batch(), key, True)
  for stage, names in (("autoencoder", 1), ("scratch", 2), ("fuse", 2)):
    assert len(make(stage, degrade=None).batch_spec(2)) == names


def test_no_key_of_the_degradation_is_used_again(monkeypatch):
  """Rows' keys of the degradation and of the skip's w have none in common."""
  class Enough(Exception):
    pass

  def note(key, count, true=masks.sample_keys):
    seen.append(true(key, count))
    if len(seen) == 2:
      raise Enough
    return seen[-1]

  seen = []
  monkeypatch.setattr(masks, "sample_keys", note)
  with pytest.raises(Enough):
    make("fuse", degrade=dict(kind="noise")).loss({}, batch(), jax.random.key(2), True)
  of_rain, of_w = (set(map(tuple, jax.random.key_data(k).tolist())) for k in seen)
  assert len(of_rain) == len(of_w) == 4 and not of_rain & of_w


@pytest.mark.slow
def test_the_loss_and_what_codes_are_used_are_the_same_on_eight_devices():
  task = make("autoencoder", revive={})
  params, b, key = drawn(task), batch(8), jax.random.key(3)
  fn = lambda p, b: task.loss(p, b, key, True)
  want, found = jax.jit(fn)(params, b)
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    got, other = jax.jit(fn)(params, jax.device_put(b, sharding.batch_sharding(mesh, 8)))
  # float32 sums in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(other["params/usage"], found["params/usage"], atol=1e-7)
  np.testing.assert_allclose(other["params/spare"], found["params/spare"], atol=1e-5)
