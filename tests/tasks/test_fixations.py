"""The task "fixations": its loss by hand, what its policy may know, what its outputs promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import flops, sharding, trees
from big_vision_ext.models import resample
from big_vision_ext.objectives import masks, scanpaths
from big_vision_ext.tasks import _fixation_targets
from tests.models import tiny_vit

IMAGE = dict(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=4, image_size=32,
             scales=(16, 32), decoder_width=16, decoder_depth=1, decoder_heads=2,
             decoder_mlp_dim=24)
# The whole coarse grid of 4 x 4, and 3 x 3 of 8 x 8.
MODEL = dict(image=IMAGE, windows=(4, 3), looks=3)
SURPRISE = dict(policy="surprise")


def images(n=8, seed=0):
  """Noise that is not the same everywhere: some patches are hard, some are flat."""
  rng = np.random.default_rng(seed)
  rough = np.kron(rng.uniform(0, 60, (n, 8, 8, 1)), np.ones((1, 4, 4, 1)))
  base = np.kron(rng.uniform(60, 190, (n, 4, 4, 3)), np.ones((1, 8, 8, 1)))
  return np.clip(base + rough * rng.normal(size=(n, 32, 32, 3)), 0, 255).astype(np.uint8)


@functools.cache
def made(frame="scene", surprise_hidden=0, scales=IMAGE["scales"], **model):
  image = IMAGE | dict(frame=frame, surprise_hidden=surprise_hidden, scales=scales)
  model = MODEL | {"image": image} | model
  task = tasks.make("fixations", model)
  shapes = jax.eval_shape(lambda k: task.init(k, {"image": images()}), jax.random.key(0))
  params = tiny_vit.randomize(shapes)
  return task, params, jax.jit(lambda p, b, r: task.loss(p, b, r, True))


def walk(task, params, image, rng=0, n=8):
  """A scanpath, what it shows, and what is to be predicted then."""
  def run(params, image):
    gaze, looks = task.path(params, image, masks.sample_keys(jax.random.key(rng), n))
    steps = task._steps(looks, gaze)
    return gaze, looks, steps._replace(after=()), task._truth(params, image, looks, gaze, steps)

  gaze, looks, steps, truth = jax.device_get(jax.jit(run)(params, image))
  return gaze, looks, steps._replace(after=tuple(range(1, len(looks)))), truth


def test_the_loss_is_the_formula():
  """Of normalised pixels, in float64, with windows, overlaps and patches found by painting."""
  task, params, loss = made(windows=(2, 3))
  image, rng = images(), jax.random.key(5)
  got, metrics = loss(params, {"image": image}, rng)
  gaze, looks, *_ = walk(task, params, image, 5)
  aims = [gaze[:, t:t + 1] for t in (1, 2)]
  preds = jax.jit(lambda p: task.vision.apply(
    {"params": p}, image, looks, gaze, looks[1:], aims)[0])(params)
  total = count = 0.0
  by = {(t, s): [] for t in (1, 2) for s in (0, 1)}
  half = np.asarray(resample.resize_cubic(image, (16, 16)))
  for b in range(8):
    seen = [np.zeros((32, 32), bool), np.zeros((32, 32), bool)]
    for t in (1, 2):
      at = 0
      for s, (g, size) in enumerate(((4, 8), (8, 4))):
        for i in np.asarray(looks[t - 1][s])[b]:
          y, x = divmod(int(i), g)
          seen[s][y * size:(y + 1) * size, x * size:(x + 1) * size] = True
      for s, (g, size, scale) in enumerate(((4, 8, half), (8, 4, image))):
        for i in np.asarray(looks[t][s])[b]:
          y, x = divmod(int(i), g)
          pred, at = np.float64(preds[t - 1][b, at]), at + 1
          box = np.any(seen[s:], axis=0)[y * size:(y + 1) * size, x * size:(x + 1) * size]
          if box.all():
            continue
          patch = np.float64(scale[b, 4 * y:4 * y + 4, 4 * x:4 * x + 4]) / 255
          patch = ((patch - task.vision.mean) / task.vision.std).reshape(-1)
          patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 1e-6)
          by[t, s].append(np.mean((pred - patch) ** 2))
          total, count = total + by[t, s][-1], count + 1
  assert 0.3 < count / (8 * 2 * (4 + 9)) < 0.99
  # Float32 throughout: normalised flat patches magnify the rounding of their pixels.
  np.testing.assert_allclose(got, total / count, rtol=2e-4)
  for t in (1, 2):
    want = np.mean(by[t, 0] + by[t, 1])
    np.testing.assert_allclose(metrics[f"loss_after_{t}"], want, rtol=2e-4)
    np.testing.assert_allclose(
      metrics[f"loss_scale_{t - 1}"], np.mean(by[1, t - 1] + by[2, t - 1]), rtol=2e-4)
  np.testing.assert_allclose(metrics["target_share"], count / (8 * 26), rtol=1e-6)


VARIANTS = {
  "scene": {},
  "retinal": dict(frame="retinal", target="residual", surprise_hidden=8, policy="surprise"),
  "features": dict(target="features", frame="retinal", policy="walk"),
  "rest": dict(predict="rest", target="pix"),
}


def most_thorough(but):
  return [pytest.param(n, marks=() if n in but else pytest.mark.thorough) for n in VARIANTS]


@pytest.mark.parametrize("name", most_thorough(("retinal", "features")))
def test_every_parameter_learns_and_the_teacher_does_not(name):
  task, params, _ = made(**VARIANTS[name])
  batch = {"image": images()}
  grads = jax.jit(jax.grad(lambda p: task.loss(p, batch, jax.random.key(0), True)[0]))(params)
  flat = trees.flatten(grads)
  assert all(np.all(np.isfinite(g)) for g in flat.values())
  idle = {k for k, g in flat.items() if not np.any(np.asarray(g))}
  # The predictor norms the blocks' outputs itself, as CrossMAE's does, so the last norm is idle.
  norm = {f"Transformer/encoder_norm/{k}" for k in ("scale", "bias")}
  assert {k for k in idle if not k.startswith("teacher/")} == norm
  teacher = {k for k in flat if k.startswith("teacher/")}
  assert teacher <= idle and bool(teacher) == (name == "features")


@pytest.mark.parametrize("name", most_thorough(("retinal",)))
def test_loss_and_gradients_are_the_same_on_eight_devices(name):
  task, params, _ = made(**VARIANTS[name])
  value = jax.value_and_grad(lambda p, b: task.loss(p, b, jax.random.key(2), True), has_aux=True)
  batch = {"image": images()}
  (want, metrics), want_grads = jax.jit(value)(params, batch)
  # Unequal weights: samples have different numbers of targets that count.
  if name != "rest":
    assert len(set(walk(task, params, batch["image"], 2)[2].weight.sum(axis=1))) > 1
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    rows = sharding.batch_sharding(mesh, 8)
    (got, others), grads = jax.jit(value)(params, jax.device_put(batch, rows))
  # float32 sums in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for k, v in metrics.items():
    np.testing.assert_allclose(others[k], v, rtol=1e-4, atol=1e-5, err_msg=k)
  scale = max(np.abs(g).max() for g in jax.tree.leaves(want_grads))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), grads, want_grads)


def test_a_samples_scanpath_depends_on_its_key_and_picture_alone():
  for policy in scanpaths.POLICIES:
    extra = dict(saliency=jnp.ones((8, 3, 3))) if policy == "saliency" else {}
    task, params, _ = made(surprise_hidden=8, **SURPRISE)
    keys, image, order = masks.sample_keys(jax.random.key(0), 8), images(), np.arange(8)[::-1]
    path = jax.jit(lambda x, k, task=task, params=params, policy=policy, extra=extra: task.path(
      params, x, k, policy=policy, **extra)[0])
    gaze = path(image, keys)
    np.testing.assert_array_equal(np.asarray(gaze)[order], path(image[order], keys[order]))
    np.testing.assert_array_equal(gaze, path(image, keys))
    assert len({tuple(g.ravel()) for g in np.asarray(gaze)}) == 8


def test_the_next_fixation_does_not_move_when_what_is_unseen_changes():
  """Bit for bit. All is seen at a quarter of the size, so what changes is what that cannot show.

  A quarter is made of four pixels with weights -3, 19, 19, -3 of 32: the middle two may change
  against each other, and the sums, exact in float32, stay.
  """
  task, params, _ = made(surprise_hidden=8, scales=(8, 32), looks=4, windows=(2, 2),
                         **SURPRISE)
  keys, image = masks.sample_keys(jax.random.key(0), 16), np.clip(images(16), 20, 235)
  walk = jax.jit(lambda x: task.path(params, x, keys))
  gaze, looks = jax.device_get(walk(image))
  foretell = jax.jit(lambda x: task.vision.apply({"params": params}, x, looks, gaze)[1]["surprise"])
  score = foretell(image)
  hidden = np.tile(np.array([0, 15, -15, 0]), 8)[:, None].astype(np.int16)
  for count in (1, 2, 3):
    seen = np.zeros((16, 64), bool)
    for look in looks[:count]:
      np.put_along_axis(seen, look[1], True, axis=1)
    seen = np.kron(seen.reshape(16, 8, 8), np.ones((1, 4, 4), bool))[..., None]
    changed = np.where(seen, image, image + hidden).astype(np.uint8)
    np.testing.assert_array_equal(*(resample.resize_cubic(x, (8, 8)) for x in (image, changed)))
    other, _ = jax.device_get(walk(changed))
    np.testing.assert_array_equal(other[:, :count + 1], gaze[:, :count + 1])
    # The test can fail: what the looks after have seen is another picture.
    again = foretell(changed)
    np.testing.assert_array_equal(again[:, :count + 1], score[:, :count + 1])
    assert count == 3 or not np.allclose(again[:, count + 1], score[:, count + 1], atol=1e-4)


def test_the_surprise_policy_looks_where_errors_are_foretold_and_not_back():
  task, params, _ = made(surprise_hidden=8, policy="surprise", temperature=0.02, windows=(4, 4))
  keys, image = masks.sample_keys(jax.random.key(0), 64), images(64)
  gaze, looks = jax.jit(lambda p: task.path(p, image, keys))(params)
  out = jax.jit(lambda p: task.vision.apply({"params": p}, image, looks, gaze)[1])(params)
  cell = (np.asarray(gaze) * 4).astype(int) @ np.array([4, 1])
  top = np.asarray(out["surprise"][:, 0, 0]).reshape(64, 16)
  seen = np.zeros((64, 8, 8), bool).reshape(64, 64)
  np.put_along_axis(seen, np.asarray(looks[0][1]), True, axis=1)
  done = seen.reshape(64, 4, 2, 4, 2).all(axis=(2, 4)).reshape(64, 16)
  assert np.all(done.sum(axis=1) >= 1)
  best = np.argmax(np.where(done, -np.inf, top), axis=1)
  # All but the share of uniform looks, and a few that the noise decided.
  hit = np.mean(best == cell[:, 1])
  assert hit > 0.55, hit
  back = np.mean(np.take_along_axis(done, cell[:, 1:2], axis=1))
  # A uniform look is a fifth of all, and falls on what was seen a quarter of the time.
  assert back < 0.15


def test_a_residual_target_and_its_base_make_the_pixels_again():
  task, params, _ = made(target="residual")
  image = images()
  _, looks, _, truth = walk(task, params, image)
  plain = walk(made(target="pix")[0], params, image)[-1]
  np.testing.assert_allclose(truth.target + truth.shift, plain.target, atol=1e-5)
  # Fine tokens are given as the coarse view, seen whole, shows them.
  small = np.asarray(resample.resize_cubic(image, (16, 16)))
  large = np.asarray(resample.resize_cubic(small, (32, 32))) / 255
  large = (large - task.vision.mean) / task.vision.std
  for j, i in enumerate(np.asarray(looks[1][1])[0]):
    y, x = divmod(int(i), 8)
    want = large[0, 4 * y:4 * y + 4, 4 * x:4 * x + 4].reshape(-1)
    np.testing.assert_allclose(truth.shift[0, 16 + j], want, atol=1e-5)
  # Smaller than what it is the residual of, as natural scales are.
  assert np.mean(np.asarray(truth.target) ** 2) < 0.9 * np.mean(np.asarray(plain.target) ** 2)


def test_the_surprise_loss_is_that_of_the_formula():
  task, params, _ = made(surprise_hidden=8)
  image = images()
  _, looks, steps, _ = walk(task, params, image)
  rng = np.random.default_rng(0)
  surprise = rng.normal(size=(8, 3, 1, 4, 4)).astype(np.float32)
  error = rng.uniform(0.1, 2, steps.weight.shape).astype(np.float32)
  got, explained = steps.surprise_loss(surprise, error, task.vision.grids)
  weight, wrong, actual = np.asarray(steps.weight), [], []
  for b in range(8):
    for t in (0, 1):
      for j, i in enumerate(np.asarray(looks[t + 1][1])[b]):
        at = t * 25 + 16 + j
        if weight[b, at]:
          y, x = divmod(int(i), 8)
          actual.append(np.log(np.float64(error[b, at]) + 1e-3))
          wrong.append((surprise[b, t, 0, y // 2, x // 2] - actual[-1]) ** 2)
  # Float32 sums of a hundred squares.
  np.testing.assert_allclose(got, np.mean(wrong), rtol=1e-5)
  np.testing.assert_allclose(explained, 1 - np.mean(wrong) / np.var(actual), rtol=1e-4)


def test_the_teacher_follows_slowly_and_only_where_there_is_one():
  task, params, _ = made(target="features", teacher=0.9)
  moved = task.after_update(params, 0)
  assert set(moved["teacher"]) == {"embedding", "cls", "Transformer", "scale_embedding"}
  for name, want in trees.flatten(moved["teacher"]).items():
    old, new = (trees.flatten(t)[name] for t in (params["teacher"], params))
    np.testing.assert_allclose(want, 0.9 * old + 0.1 * new, rtol=1e-6)
  later = made(target="features", teacher=0.9, teacher_steps=20)[0]
  for step, keep in ((0, 0.9), (10, 0.95), (30, 1.0)):
    np.testing.assert_allclose(
      later.after_update(params, step)["teacher"]["cls"],
      keep * params["teacher"]["cls"] + (1 - keep) * params["cls"], rtol=1e-5, atol=1e-7)
  rest = {k: v for k, v in moved.items() if k != "teacher"}
  jax.tree.map(np.testing.assert_array_equal, rest, {k: params[k] for k in rest})
  task, params, _ = made()
  assert task.after_update(params, 0) is params
  fresh = jax.eval_shape(lambda k: made(target="features")[0].init(k, {"image": images()}),
                         jax.random.key(0))
  assert "teacher" in fresh and "teacher" not in made()[1]


@pytest.mark.parametrize("model", [
  dict(target="residual", frame="retinal", surprise_hidden=8),
  pytest.param(dict(policy="walk"), marks=pytest.mark.thorough)], ids=str)
def test_what_was_seen_is_given_and_the_rest_is_predicted_in_pictures(model):
  task, params, _ = made(**model)
  batch = {"image": images(), "index": np.arange(8)}
  out = jax.device_get(jax.jit(task.reconstruct)(params, batch))
  gaze, looks = jax.jit(lambda b, task=task: task.path({}, b["image"], task._keys(b, 0)))(batch)
  np.testing.assert_allclose(out["scanpath"], gaze)
  hidden = np.ones((8, 64))
  for look in looks:
    np.put_along_axis(hidden, np.asarray(look[1]), 0, axis=1)
  np.testing.assert_array_equal(out["hidden"].reshape(8, 64), hidden)
  pixels = np.kron(hidden.reshape(8, 8, 8), np.ones((1, 4, 4))) > 0
  for picture in ("input", "prediction"):
    assert out[picture].shape == (8, 32, 32, 3)
    np.testing.assert_allclose(out[picture][~pixels], batch["image"][~pixels], atol=1e-3)
  # The first look shows all at half the size; elsewhere the picture is that, enlarged.
  half = resample.resize_cubic(resample.resize_cubic(batch["image"], (16, 16)), (32, 32))
  np.testing.assert_allclose(out["input"][pixels], np.asarray(half)[pixels], atol=1e-3)
  assert np.abs(out["prediction"] - batch["image"])[pixels].mean() > 5
  assert ("surprise" in out) == ("surprise_hidden" in model)
  row = jax.device_get(jax.jit(task.reconstruct)(params, {k: v[3:4] for k, v in batch.items()}))
  np.testing.assert_allclose(row["prediction"][0], out["prediction"][3], atol=2e-3)
  np.testing.assert_allclose(row["loss"][0], out["loss"][3], rtol=1e-4)


def test_a_perfect_prediction_gives_the_picture_back():
  for target in ("norm_pix", "residual", "pix"):
    task, params, _ = made(target=target, windows=(2, 3))
    image = images()
    _, looks, *_ = walk(task, params, image)
    steps = task._rest(looks, None)
    truth = task._truth(params, image, looks, None, steps)
    raw = _fixation_targets.pixels(image, task.vision, 1, steps.tokens[0][1])
    np.testing.assert_allclose(truth.target * truth.scale + truth.shift, raw, atol=2e-5)
    shown = _fixation_targets.shown(image, steps.before[0], task.vision)
    grey = (0.5 - np.float32(task.vision.mean)) / np.float32(task.vision.std)
    nothing = ~np.asarray(steps.before[0][1].reshape(8, 64)) & ~np.kron(
      np.asarray(steps.before[0][0]), np.ones((1, 2, 2), bool)).reshape(8, 64)
    assert nothing.any()
    np.testing.assert_allclose(np.asarray(shown)[nothing],
                               np.broadcast_to(np.tile(grey, 16), (nothing.sum(), 48)), atol=1e-6)


@pytest.mark.slow
def test_more_looks_are_a_prefix_and_embeddings_do_not_depend_on_the_batch():
  task, params, _ = made(surprise_hidden=8, **SURPRISE)
  image = images()
  for looks in (2, None):
    whole = jax.jit(lambda p, b, n=looks: task.embed_image(p, b, looks=n))(params, {"image": image})
    part = jax.jit(lambda p, b, n=looks: task.embed_image(p, b, looks=n))(
      params, {"image": image[2:4]})
    np.testing.assert_allclose(whole[2:4], part, atol=1e-5)
  out = jax.jit(task.measure_looks)(params, {"image": image})
  assert out["error"].shape == out["seen"].shape == (8, 3) and out["state"].shape == (8, 3, 24)
  seen = np.asarray(out["seen"])
  np.testing.assert_allclose(seen[:, 0], 9 / 64, rtol=1e-6)
  assert np.all(np.diff(seen, axis=1) >= 0) and seen[:, 2].max() <= 27 / 64 + 1e-6
  np.testing.assert_allclose(out["remaining"], out["error"] * (1 - seen), rtol=1e-5)
  with pytest.raises(ValueError, match="looks=4"):
    task.embed_image(params, {"image": image}, looks=4)
  mean = made(pool="mean")[0]
  assert mean.embed_image(made()[1], {"image": image}).shape == (8, 24)


def test_flops_of_one_look_are_those_of_a_masked_autoencoder():
  image = {k: v for k, v in IMAGE.items() if k != "scales"}
  task = tasks.make("fixations", dict(image=image, windows=(3,), looks=1, predict="rest"))
  sizes = {k: IMAGE[k] for k in ("width", "depth", "mlp_dim", "patch_size", "decoder_width",
                                 "decoder_depth", "decoder_mlp_dim")}
  want = flops.mae(visible=9, targets=55, num_cls=1, decoder="cross", **sizes)
  assert task.forward_flops() == want and task.flops_per_example == 3 * want
  # A learned policy looks before it learns, without a gradient.
  plain, learned = made(surprise_hidden=8)[0], made(surprise_hidden=8, **SURPRISE)[0]
  more = learned.flops_per_example - plain.flops_per_example
  assert 0 < more < plain.flops_per_example


@pytest.mark.parametrize("change, message", [
  (dict(windows=(4, 3, 2)), "windows=.*expected 2 sides"),
  (dict(windows=((4, 3),) * 2), "each of looks=3"),
  (dict(windows=(4, 8)), "none of them all"), (dict(windows=(4, 0)), "none of them all"),
  (dict(looks=1), "looks=1"), (dict(polcy="walk"), "policy"),
  (dict(policy="walks"), "did you mean 'walk'"),
  (dict(policy="surprise"), "surprise_hidden"),
  (dict(image=IMAGE | dict(surprise_hidden=8), windows=(2, 3)), "4 x 4 tokens the first look"),
  (dict(image=IMAGE | dict(surprise_hidden=8), policy="surprise", uniform_share=0.1),
   "at least 20%"),
  (dict(image=IMAGE | dict(causal=False)), "causal=False"),
  (dict(image=IMAGE | dict(scales=()), windows=(3,), target="residual"), "several image.scales"),
  (dict(target="features", predict="rest"), "predict='next'"),
  (dict(policy="saliency"), "needs saliency"), (dict(teacher=1.5), "teacher=1.5"),
  (dict(temperature=0.0), "temperature=0.0"),
  (dict(saliency="no/such/map.npy"), "no/such/map.npy"),
  (dict(image=IMAGE | dict(image_size=30)), "image_size=30|30 pixels"),
  (dict(image=IMAGE | dict(max_looks=2)), "max_looks=2"),
])
def test_settings_that_do_not_fit_are_refused_by_name(change, message):
  with pytest.raises(ValueError, match=message):
    tasks.make("fixations", MODEL | change)


def test_a_saliency_map_comes_from_a_file(tmp_path):
  saliency = np.zeros((2, 2))
  saliency[0, 1] = saliency[1, 1] = saliency[1, 0] = 1
  np.save(tmp_path / "map.npy", saliency)
  task = tasks.make("fixations", MODEL | dict(
    policy="saliency", saliency=str(tmp_path / "map.npy"), uniform_share=0.0))
  gaze, _ = task.path({}, images(), masks.sample_keys(jax.random.key(0), 8))
  assert not np.any(np.all(np.asarray(gaze) < 0.5, axis=-1))
  np.save(tmp_path / "map.npy", -saliency)
  with pytest.raises(ValueError, match="none below 0"):
    tasks.make("fixations", MODEL | dict(policy="saliency", saliency=str(tmp_path / "map.npy")))


def test_models_of_features_have_no_pictures():
  task, params, _ = made(target="features")
  with pytest.raises(ValueError, match="target='features'"):
    task.reconstruct(params, {"image": images()})
