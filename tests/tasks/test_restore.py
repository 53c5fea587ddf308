"""Restoration: members of a population are runs of their own, degradations are keyed by row."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import counted, optimizers, sharding, step, trees, typed
from big_vision_ext.objectives import bicubic
from input_pipeline.build import painters

NET = {"name": "msrresnet", "fields": {"width": 8, "depth": 1}}
RAIN = {"kind": "rain", "range": dict(amount=(0.01, 0.01), width=(1, 3), length=(4, 8),
                                      angle=((-20, 20),))}
# Noise is compiled in less time than rain.
MODEL = {"net": NET, "image_size": 16, "degrade": {"kind": "noise"}}


def make(**changes):
  return tasks.make("restore", MODEL | changes)


def images(n=8, size=16, seed=0):
  """Smooth pictures: noise of a few pixels, enlarged."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (n, size // 4, size // 4, 3))
  return np.kron(small, np.ones((1, 4, 4, 1))).astype(np.uint8)


def init(task, seed=0):
  return sharding.unbox(task.init(jax.random.key(seed), {"image": images()}))


def trained(task, steps=3):
  """Parameters after a few steps of Adam, as the trainer takes them."""
  tx = optax.adam(1e-2)

  @jax.jit
  def one(params, state, rng):
    (loss, metrics), grads = jax.value_and_grad(
      lambda p: task.loss(p, {"image": images()}, rng, True), has_aux=True)(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, metrics

  params = init(task)
  state = tx.init(params)
  for i in range(steps):
    params, state, metrics = one(params, state, jax.random.fold_in(jax.random.key(5), i))
  return params, metrics


@pytest.fixture(scope="module")
def population():
  """The task of seeds 3, 0 and 7, and what training made of them."""
  task = make(seeds=(3, 0, 7), population="loop", share=0.5)
  return task, *trained(task)


def test_a_member_of_a_population_is_the_run_of_its_seed_alone(population):
  task, params, metrics = population
  for index, seed in ((0, 3), (1, 0)):
    alone, its = trained(make(seeds=(seed,), share=0.5))
    ours = trees.flatten(task.member(params, index))
    assert ours.keys() == trees.flatten(alone).keys()
    for name, want in trees.flatten(alone).items():
      # The same arithmetic in another program; Adam divides by the root of small numbers.
      np.testing.assert_allclose(ours[name], want, atol=1e-6, err_msg=name)
  assert abs(float(metrics["member_loss"]) - float(its["member_loss"])) > 1e-5
  assert float(metrics["member_spread"]) > 0


def test_members_side_by_side_compute_what_they_do_one_after_the_other(population):
  loop, params, _ = population
  side = make(seeds=(3, 0, 7), population="vmap", share=0.5)
  batch, rng = {"image": images()}, jax.random.key(1)
  run = lambda t: jax.jit(jax.value_and_grad(lambda p: t.loss(p, batch, rng, True)[0]))(params)
  (one, grads), (other, others) = run(loop), run(side)
  np.testing.assert_allclose(one, other, rtol=1e-5)
  want = trees.flatten(grads)
  for name, g in trees.flatten(others).items():
    # Sums in another order, in float32.
    np.testing.assert_allclose(g, want[name], atol=1e-5 * np.abs(want[name]).max(), err_msg=name)


def test_members_differ_in_everything_that_is_their_own(population):
  task, params, _ = population
  kernel = trees.flatten(init(task))["first/kernel"]
  assert kernel.shape[0] == 3 and np.abs(kernel[0] - kernel[1]).max() > 1e-3
  draw = jax.jit(lambda seed: task.views(
    {"image": images()}, jax.random.fold_in(jax.random.key(0), seed), True))
  views = [draw(3), draw(0)]
  # Half of the rows each, turned and made noisy by their own keys.
  assert views[0][0].shape == (4, 16, 16, 3)
  assert np.abs(views[0][0] - views[1][0]).max() > 0.1
  noise = [np.asarray(d - c) for c, d in views]
  assert np.abs(noise[0] - noise[1]).max() > 0.1 and min(n.std() for n in noise) > 0.01


def test_a_rows_degradation_depends_on_its_place_and_the_key_alone():
  task = make(degrade=RAIN)
  draw = jax.jit(lambda key, image: task.views({"image": image}, key, True))
  whole, part = (draw(jax.random.key(2), images(8)[:n]) for n in (8, 3))
  for a, b in zip(whole, part):
    # Rounded to 8 bits: how a batch is cut may move a value across an edge, by one level.
    np.testing.assert_allclose(a[:3], b, atol=1.01 / 255)
  other = draw(jax.random.key(3), images(8))
  assert np.abs(other[1] - whole[1]).max() > 0.1
  levels = np.asarray(whole[1]) * 255
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)


def test_pictures_are_turned_in_all_eight_ways_and_their_pairs_alike():
  task = make(degrade=None)
  picture = images(1, seed=4)
  batch = {"image": np.repeat(picture, 64, 0), "degraded": 255 - np.repeat(picture, 64, 0)}
  clean, degraded = jax.jit(lambda key: task.views(batch, key, True))(jax.random.key(0))
  np.testing.assert_allclose(clean, 1 - degraded, atol=1e-6)
  turns = {np.rot90(p, k).tobytes() for p in (picture[0], picture[0][:, ::-1]) for k in range(4)}
  assert {np.rint(np.asarray(c) * 255).astype(np.uint8).tobytes() for c in clean} == turns
  still, _ = task.views(batch, jax.random.key(0), False)
  # Division by 255, or multiplication by its inverse.
  np.testing.assert_allclose(still, batch["image"] / np.float32(255), atol=1e-7)


def test_the_population_is_cut_over_the_mesh_and_gives_the_same():
  task = make(seeds=(0, 1), population="vmap")
  batch, rng = {"image": images()}, jax.random.key(1)
  boxed = jax.eval_shape(task.init, jax.random.key(0), {"image": images()})
  mesh = sharding.make_mesh(config_lib.Mesh(data=4, fsdp=1, tensor=2), jax.devices()[:8])
  places = sharding.param_shardings(boxed, mesh, sharding.merge_rules(()))
  assert {p.spec[0] for p in jax.tree.leaves(places)} == {"tensor"}
  params = init(task)
  run = jax.jit(lambda p, b: task.loss(p, b, rng, True)[0])
  with sharding.use(mesh, sharding.merge_rules(())):
    spread = jax.device_put(batch, sharding.batch_sharding(mesh))
    np.testing.assert_allclose(
      run(jax.device_put(params, places), spread), run(params, batch), rtol=1e-5)


@pytest.mark.parametrize("loss, of", [
  ("l1", lambda d: np.abs(d).mean()), ("l2", lambda d: (d**2).mean()),
  ("charbonnier", lambda d: np.sqrt(d**2 + 1e-6).mean())])
def test_the_loss_is_that_of_its_name(loss, of):
  task = make(loss=loss)
  params, batch, rng = init(task), {"image": images()}, jax.random.key(4)
  clean, degraded = jax.jit(lambda key: task.views(batch, key, True))(jax.random.fold_in(rng, 0))
  error = np.float64(task.restore(params, {"image": degraded})) - np.float64(clean)
  found, metrics = jax.jit(lambda p: task.loss(p, batch, rng, True))(params)
  # float32 sums beside float64 ones.
  np.testing.assert_allclose(found, of(error), rtol=1e-5)
  psnr = (-10 * np.log10((error**2).mean(axis=(1, 2, 3)))).mean()
  np.testing.assert_allclose(metrics["psnr"], psnr, rtol=1e-5)


def test_outputs_take_bytes_and_floats_and_name_members_that_are_not_there(population):
  task, params, _ = population
  image = images(2)
  every = task.restore_all(params, {"image": image})
  assert every.shape == (3, 2, 16, 16, 3) and every.dtype == jnp.float32
  np.testing.assert_allclose(
    task.restore(params, {"image": image / np.float32(255)}, member=2), every[2], atol=1e-6)
  with pytest.raises(ValueError, match="member=3: there are 3, of the seeds 3, 0, 7"):
    task.restore(params, {"image": image}, member=3)


def test_what_would_mix_the_members_is_refused():
  config = dict(task="restore", total_steps=1, batch_size=8, model=MODEL | {"seeds": (0, 1)})
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:1])
  plan = lambda **optim: step.plan_state(
    make(seeds=(0, 1)), config_lib.resolve(config | {"optim": optim}), mesh, ())
  with pytest.raises(typed.ConfigError, match="clip_norm=1.0: the norm would be that of all 2"):
    plan()
  with pytest.raises(typed.ConfigError, match="'adafactor' looks at whole arrays"):
    plan(name="adafactor", clip_norm=None)
  plan(name="adam", clip_norm=None)
  optimizers.check_members(config_lib.Optim(), 1)


@pytest.mark.parametrize("changes, message", [
  (dict(seeds=()), r"seeds=\[\]: expected different whole numbers"),
  (dict(seeds=(1, 1)), r"seeds=\[1, 1\]: expected different"),
  (dict(share=0.0), "share=0.0: expected above 0"),
  (dict(net={"name": "unet", "fields": {"width": 4}}, image_size=12), "needs a multiple of 8"),
  (dict(net=NET | {"scale": 2}), "net.scale=2: .* makes pictures 1 times smaller"),
  (dict(degrade={"kind": "bicubic", "scale": 2}), "net.scale=1: .* expected net.scale=2"),
  (dict(degrade={"kind": "rains"}), "rains"),
  (dict(net={"name": "msresnet"}), "is 'msrresnet' meant"),
  (dict(los="l1"), "did you mean 'loss'")])
def test_settings_that_do_not_fit_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    make(**changes)


def test_networks_that_enlarge_learn_from_pictures_that_were_made_smaller():
  task = make(net=NET | {"scale": 2}, degrade={"kind": "bicubic", "scale": 2})
  batch, params, key = {"image": images(2)}, init(task), jax.random.key(0)
  clean, small = jax.jit(lambda: task.views(batch, key, True))()
  assert clean.shape == (2, 16, 16, 3) and small.shape == (2, 8, 8, 3)
  np.testing.assert_allclose(small, bicubic.quantize(bicubic.downsample(clean, 2)), atol=1e-6)
  loss = jax.eval_shape(lambda p: task.loss(p, batch, key, True)[0], params)
  assert loss.shape == ()
  assert jax.eval_shape(task.restore, params, batch).shape == (2, 32, 32, 3)


def test_pairs_of_one_size_train_no_network_that_enlarges_but_it_restores():
  task = make(net=NET | {"scale": 2}, degrade=None)
  params, batch = init(task), {"image": images(2), "degraded": images(2)}
  assert jax.eval_shape(task.restore, params, batch).shape == (2, 32, 32, 3)
  with pytest.raises(ValueError, match="net.scale=2: pairs have pictures 1 times smaller"):
    task.loss(params, batch, jax.random.key(0), True)


def test_batches_without_pairs_are_named():
  task = make(degrade=None)
  assert set(task.batch_spec(2)) == {"image", "degraded"} and set(make().batch_spec(2)) == {"image"}
  with pytest.raises(ValueError, match="no `degraded` pictures; set input.pairs=True"):
    task.loss(init(task), {"image": images()}, jax.random.key(0), True)


def test_arithmetic_is_counted_as_by_hand():
  """MSRResNet: 3 -> 8, two in the block, at-one, late and last, each 3 x 3 over 16 x 16."""
  pairs = 3 * 8 + 2 * 8 * 8 + 8 * 8 + 8 * 8 + 8 * 3
  assert make().forward_flops() == 2 * 9 * 16 * 16 * pairs
  assert make(seeds=(0, 1, 2)).flops_per_example == 9 * make().forward_flops()
  assert make(seeds=(0, 1), share=0.5).flops_per_example == 3 * make().forward_flops()
  x, y = jnp.ones((3, 5)), jnp.ones((5, 7))
  loop = lambda x, y: jax.lax.scan(lambda c, _: (jnp.cos(x @ y), None), x @ y, length=4)[0]
  assert counted.forward(loop, x, y) == 5 * 2 * 3 * 5 * 7


@pytest.mark.slow
def test_a_small_network_takes_rain_off_eight_crops_to_30_db():
  """In 500 steps, of rain that is drawn anew at each step; crops are dark, for what rain brings to
  white is lost."""
  net = {"name": "msrresnet", "fields": {"width": 16, "depth": 1}}
  task = make(net=net, image_size=24, augment=False, degrade=RAIN)
  crops = [painters.faces(np.random.default_rng(i), 24, 1.0) // 2 for i in range(8)]
  batch, params = {"image": np.stack(crops)}, init(task)
  tx = optax.adam(optax.cosine_decay_schedule(1e-2, 500), b2=0.99)
  state = tx.init(params)

  @jax.jit
  def one(params, state, key):
    (_, metrics), grads = jax.value_and_grad(
      lambda p: task.loss(p, batch, key, True), has_aux=True)(params)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(params, updates), state, metrics["psnr"]

  found = []
  for i in range(500):
    params, state, psnr = one(params, state, jax.random.key(i))
    found.append(float(psnr))
  # From less than 18 dB, where next to nothing is done, to 32.
  assert found[0] < 18 and np.mean(found[-20:]) > 30
