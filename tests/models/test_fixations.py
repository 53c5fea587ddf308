"""Several fixations: exact special cases, and nothing is known before it is seen."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import fixations, layouts, mae, vit
from big_vision_ext.objectives import glimpses, masks, mim
from tests.models import tiny_vit

TINY = dict(width=24, depth=2, mlp_dim=40, num_heads=3, patch_size=4, posemb_grid=(8, 12),
            decoder_width=16, decoder_depth=2, decoder_heads=2, decoder_mlp_dim=24)
SCALES = (16, 32)
GRIDS = ((4, 6), (8, 12))
# Of 4 x 6 and 8 x 12 tokens.
WINDOWS = (2, 3)


def images(n=2, shape=(32, 48), seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, *shape, 3), np.uint8)


def gazes(n=2, t=3, seed=3):
  return np.array(jax.random.uniform(jax.random.key(seed), (n, t, 2)))


@functools.partial(jax.jit, static_argnums=(1, 2))
def look_at(gaze, grids=GRIDS, windows=WINDOWS):
  return glimpses.retina(gaze, grids, windows)


def looks_at(gaze, windows=WINDOWS):
  return jax.device_get([look_at(gaze[:, t], GRIDS, windows) for t in range(gaze.shape[1])])


@functools.cache
def made(**kw):
  """A jitted model of looks and their successors, and random parameters."""
  model = fixations.FixationModel(**TINY | dict(scales=SCALES) | kw)

  def run(params, image, gaze, looks):
    aims = [gaze[:, t:t + 1] for t in range(1, gaze.shape[1])]
    return model.apply({"params": params}, image, looks, gaze, looks[1:], aims)

  gaze = gazes()
  looks = looks_at(gaze, (9, 3) if "surprise_hidden" in kw else WINDOWS)
  shapes = jax.eval_shape(
    lambda k: model.init(k, images(), looks, gaze, looks[1:], [gaze[:, 1:2], gaze[:, 2:]]),
    jax.random.key(0))
  return model, tiny_vit.randomize(shapes["params"]), jax.jit(run)


def of_mae(params):
  """A CrossMAE's parameters as those of a model of fixations: tables are fixed codes there."""
  params = dict(params)
  for name in ("pos_embedding", "decoder_pos_embedding"):
    params.pop(name)
  params["cls"] = params["cls"] + params.pop("cls_pos_embedding")
  return params


@functools.cache
def reference(num_cls=1):
  """A CrossMAE of the same sizes, on one grid that is not square, and its parameters."""
  model = mae.MaskedAutoencoder(**TINY | dict(decoder="cross", num_cls=num_cls))
  index = np.zeros((1, 4), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), images(1), index, index)
  params = tiny_vit.randomize(shapes["params"])
  for name, width in (("pos_embedding", 24), ("decoder_pos_embedding", 16)):
    params[name] = vit.sincos2d_mae(8, 12, width)[None]
  return model, params


def mae_loss(model, mask, image):
  def loss(params):
    pred, _ = model.apply({"params": params}, image, mask.visible, mask.target)
    return mim.masked_mse(pred, jnp.full(pred.shape, 0.3), mask.weight), pred

  return loss


def rest_loss(model, looks, image, gaze):
  def loss(params):
    tokens, weight, _ = glimpses.rest_targets(looks, ((8, 12),))
    (pred,), _ = model.apply(
      {"params": params}, image, looks, gaze, [tokens], [gaze[:, -1:]], (len(looks),))
    error = jnp.mean((pred - 0.3) ** 2, axis=-1)
    return glimpses.weighted_mean(error, weight), pred

  return loss


def compare(mine, theirs, params, same_targets=True):
  """Loss, predictions and gradients, those of tables aside, which are no parameters here."""
  (want, want_pred), want_grad = jax.jit(jax.value_and_grad(theirs, has_aux=True))(params)
  (got, got_pred), got_grad = jax.jit(jax.value_and_grad(mine, has_aux=True))(of_mae(params))
  tiny_vit.assert_close(got, want)
  if same_targets:
    tiny_vit.assert_close(got_pred, want_pred)
  want_grad = dict(want_grad)
  for name in ("pos_embedding", "decoder_pos_embedding", "cls_pos_embedding"):
    want_grad.pop(name)
  assert np.abs(np.asarray(want_grad["mask_token"])).max() > 1e-4
  tiny_vit.assert_close(got_grad, want_grad)


@pytest.mark.parametrize("family, num_cls", [
  ("random", 3), pytest.param("random", 1, marks=pytest.mark.thorough),
  pytest.param("disc", 1, marks=pytest.mark.thorough)])
def test_one_look_at_one_scale_is_a_masked_autoencoder(family, num_cls):
  """Of random tokens CrossMAE, of those nearest to a gaze the hidden periphery."""
  model, params = reference(num_cls)
  keys, gaze, image = masks.sample_keys(jax.random.key(1), 2), gazes(t=1), images()
  mask = masks.make(family, keys, (8, 12), 25, centre=gaze[:, 0])
  looks = [(mask.visible,)]
  if family == "disc":
    looks = [glimpses.retina(gaze[:, 0], [(8, 12)], [5], "disc", keys)]
  mine = fixations.FixationModel(**TINY | dict(num_cls=num_cls))
  compare(rest_loss(mine, looks, image, gaze), mae_loss(model, mask, image), params)


def test_several_looks_pooled_are_a_masked_autoencoder_that_sees_several_discs():
  model, params = reference()
  keys, image = masks.sample_keys(jax.random.key(1), 2), images()
  gaze = np.array([[[0.1, 0.1], [0.9, 0.4], [0.2, 0.9]], [[0.5, 0.2], [0.1, 0.9], [0.8, 0.8]]],
                  np.float32)
  looks = [glimpses.retina(gaze[:, t], [(8, 12)], [3], "disc", keys) for t in range(3)]
  union = np.sort(np.concatenate([look[0] for look in looks], axis=1), axis=1)
  assert np.all(np.diff(union) > 0)
  hidden = np.ones((2, 96), bool)
  np.put_along_axis(hidden, union, False, axis=1)
  mask = masks.explicit(hidden.reshape(2, 8, 12))
  mine = fixations.FixationModel(**TINY, causal=False)
  compare(rest_loss(mine, looks, image, gaze), mae_loss(model, mask, image), params, False)


def test_coarse_grid_first_and_fine_tokens_then_is_the_order_of_ps3():
  """The low-resolution pass with its keys and values kept, and a look encoded against them."""
  model, params, run = made()
  gaze, image = gazes(t=2), images()
  looks = [look_at(gaze[:, 0], GRIDS, (9, 0)), look_at(gaze[:, 1], GRIDS, (0, 3))]
  preds, out = run(params, image, gaze, looks)
  assert preds[0].shape == (2, 9, 48) and out["seen"][0][0].shape == (2, 24, 24)
  tokens = out["tokens"]
  encode = jax.jit(lambda x, kv=None: model.apply({"params": params}, x, kv, method="encode"))
  low, kept = encode(tokens[:, :25])
  high, _ = encode(tokens[:, 25:], kept["kv"])
  tiny_vit.assert_close(out["seen"][0][0], low[:, 1:])
  tiny_vit.assert_close(out["seen"][1][1], high[:, 1:])
  tiny_vit.assert_close(out["state"], np.stack([low[:, 0], high[:, 0]], axis=1))
  # What is predicted of the fine tokens is made of the coarse ones alone.
  alone = jax.jit(lambda p: model.apply(
    {"params": p}, image, looks[:1], gaze[:, :1], looks[1:], [None])[0])(params)
  tiny_vit.assert_close(preds[0], alone[0])


def visible_pixels(looks, count, shape=(32, 48)):
  """Pixels that the first `count` looks read. A coarse patch, half as large, reads one beyond."""
  out = np.zeros((len(looks[0][0]), *shape), bool)
  for look in looks[:count]:
    for (rows, columns), index in zip(GRIDS, look):
      h, w = shape[0] // rows, shape[1] // columns
      reach = h // 4 - 1
      for row, tokens in enumerate(index):
        for i in tokens:
          y, x = int(i) // columns * h, int(i) % columns * w
          out[row, max(y - reach, 0):y + h + reach, max(x - reach, 0):x + w + reach] = True
  return out


@pytest.mark.parametrize("frame", fixations.FRAMES)
def test_pixels_that_are_not_seen_yet_reach_nothing(frame):
  """Bit for bit: tokens and states up to a look, and predictions made after it."""
  _, params, run = made(frame=frame)
  image, gaze = images(), gazes()
  looks = looks_at(gaze)
  preds, out = run(params, image, gaze, looks)
  for count in (1, 2, 3):
    changed = np.where(visible_pixels(looks, count)[..., None], image, 255 - image)
    assert 0.05 < np.mean(changed != image) < 0.95
    other, again = run(params, changed, gaze, looks)
    jax.tree.map(np.testing.assert_array_equal, out["seen"][:count], again["seen"][:count])
    np.testing.assert_array_equal(out["state"][:, :count], again["state"][:, :count])
    jax.tree.map(np.testing.assert_array_equal, preds[:count], other[:count])
    if count < 3:
      # The test can fail: what is seen later does change.
      assert not np.allclose(out["state"][:, count], again["state"][:, count], atol=1e-3)


@pytest.mark.parametrize("frame", fixations.FRAMES)
def test_coarse_tokens_never_see_fine_ones_of_their_look_and_fine_ones_see_them(frame):
  _, params, run = made(frame=frame)
  image, gaze = images(), gazes(t=2)
  # Only fine tokens read the upper left corner.
  coarse = np.array([[23], [23]], np.int32)
  fine = np.array([[0, 1], [0, 1]], np.int32)
  looks = [(coarse, fine)] * 2
  changed = image.copy()
  changed[:, :4, :8] = 255 - changed[:, :4, :8]
  _, a = run(params, image, gaze, looks)
  _, b = run(params, changed, gaze, looks)
  np.testing.assert_array_equal(a["seen"][0][0], b["seen"][0][0])
  assert not np.allclose(a["seen"][0][1], b["seen"][0][1], atol=1e-3)
  # The next look's coarse tokens know what the fine ones saw before.
  assert not np.allclose(a["seen"][1][0], b["seen"][1][0], atol=1e-3)
  lower = image.copy()
  lower[:, 24:, 40:] = 255 - lower[:, 24:, 40:]
  _, c = run(params, lower, gaze, looks)
  assert not np.allclose(a["seen"][0][1], c["seen"][0][1], atol=1e-3)


def test_in_the_retinal_frame_only_what_is_around_the_gaze_counts():
  """Image and gaze shifted by a coarse token: the same tokens, states and predictions."""
  model, params, run = made(frame="retinal")
  # In units of coarse tokens: before and after the shift no coarse window of one touches a border.
  gaze = np.array([[[1.3, 2.25], [1.6, 1.4], [1.7, 3.3]]] * 2, np.float32) / np.float32([4, 6])
  step = np.float32([1 / 4, 1 / 6])
  looks, shifted = (looks_at(g, windows=(1, 3)) for g in (gaze, gaze + step))
  for before, after in zip(looks, shifted):
    np.testing.assert_array_equal(before[0] + 6 + 1, after[0])
    np.testing.assert_array_equal(before[1] + 2 * 12 + 2, after[1])
  big = images(shape=(40, 56))
  image, moved = big[:, 8:, 8:], big[:, :32, :48]
  for (rows, columns), before, after in zip(GRIDS, looks[0], shifted[0]):
    cut = lambda x, at, g=(rows, columns): fixations.patches_at(x, g, 4, at)
    np.testing.assert_array_equal(cut(image, before), cut(moved, after))
  preds, out = run(params, image, gaze, looks)
  again, other = run(params, moved, gaze + step, shifted)
  close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b)
  # Positions are float32 differences, good to 1e-6, through two blocks.
  close(other["seen"], out["seen"])
  close(again, preds)
  _, params, run = made(frame="scene")
  a, b = run(params, image, gaze, looks)[1], run(params, moved, gaze + step, shifted)[1]
  assert not np.allclose(a["state"], b["state"], atol=1e-2)


def test_where_the_gaze_went_is_told_by_the_efference_copy_and_by_nothing_else():
  image, gaze = images(), gazes(t=2)
  gaze[:, 1] = 0.5
  looks = looks_at(gaze)
  aim = gaze[:, 1:]
  # The same places around another aim.
  other, there = aim + np.float32([1 / 4, -1 / 6]), (looks[1][0] + 5, looks[1][1] + 2 * 12 - 2)
  pred = {}
  for efference in (True, False):
    model, params, _ = made(frame="retinal", efference=efference)
    ask = jax.jit(lambda step, at, model=model, params=params: model.apply(
      {"params": params}, image, looks[:1], gaze[:, :1], [step], [at])[0][0])
    pred[efference] = ask(looks[1], aim), ask(there, other)
  # Without it the two are told apart by nothing.
  np.testing.assert_allclose(*pred[False], atol=2e-5)
  assert np.abs(pred[True][0] - pred[True][1]).max() > 0.05


def test_what_comes_before_is_remembered_in_the_retinal_frame_with_its_movements():
  _, params, run = made(frame="retinal")
  image, gaze = images(), gazes()
  looks = looks_at(gaze)
  _, out = run(params, image, gaze, looks)
  order = fixations.order_of([[4, 9]] * 3, 1, True)
  assert order.groups == (4, 10, 1, 4, 10, 1, 4, 10)
  assert order.ends == (14, 29, 44) and order.classes == (4, 19, 34)
  assert out["tokens"].shape == (2, 44, 24)
  # The same pixels, told to have been looked at from elsewhere first.
  from_elsewhere = gaze.copy()
  from_elsewhere[:, 0] = 1 - from_elsewhere[:, 0]
  again = run(params, image, from_elsewhere, looks)[1]
  assert not np.allclose(out["state"][:, 2], again["state"][:, 2], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("change", [
  pytest.param(dict(scan=True), marks=pytest.mark.thorough),
  pytest.param(dict(remat_policy="nothing_saveable"), marks=pytest.mark.thorough),
  dict(scan=True, remat_policy="dots_saveable")], ids=str)
def test_how_it_is_computed_does_not_change_what(change):
  image, gaze = images(), gazes()
  looks = looks_at(gaze)

  def value(kw, adapt):
    _, params, run = made(frame="retinal", **kw)
    loss = lambda p: sum(jnp.sum(x**2) for x in run.__wrapped__(p, image, gaze, looks)[0])
    return jax.jit(jax.value_and_grad(loss))(adapt(params))

  own = made(frame="retinal")[1]
  adapt = layouts.loop_to_scan if "scan" in change else lambda p: p
  want, want_grad = value({}, lambda p: own)
  got, grad = value(change, lambda _: adapt(own))
  # Float32 sums in another order.
  np.testing.assert_allclose(got, want, rtol=2e-6)
  tiny_vit.assert_close(grad, adapt(jax.device_get(want_grad)))


def test_surprise_is_foretold_from_the_latest_look_at_the_whole_coarsest_grid():
  model, params, run = made(surprise_hidden=8)
  image, gaze = images(), gazes()
  looks = [look_at(gaze[:, t], GRIDS, w) for t, w in enumerate(((9, 3), (2, 3), (9, 3)))]
  preds, out = run(params, image, gaze, looks)
  assert out["surprise"].shape == (2, 3, 1, 4, 6)
  np.testing.assert_array_equal(out["surprise"][:, 0], out["surprise"][:, 1])
  assert not np.allclose(out["surprise"][:, 0], out["surprise"][:, 2], atol=1e-3)
  # Token by token, so that a cell's number is made of its own token.
  x, head = np.float64(out["seen"][2][0]), params["surprise_head"]
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x * head["norm"]["scale"] + head["norm"]["bias"]
  x = x @ head["fc1"]["kernel"] + head["fc1"]["bias"]
  x = x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
  x = x @ head["fc2"]["kernel"] + head["fc2"]["bias"]
  np.testing.assert_allclose(out["surprise"][:, 2, 0].reshape(2, 24), x[..., 0], atol=1e-5)
  # It learns nothing into the encoder.
  foretell = lambda p: jnp.sum(run.__wrapped__(p, image, gaze, looks)[1]["surprise"])
  grads = jax.jit(jax.grad(foretell))(params)
  assert not np.any(grads["embedding"]["kernel"])
  assert np.any(grads["surprise_head"]["fc1"]["kernel"])
  with pytest.raises(ValueError, match="4 x 6 tokens"):
    run(params, image, gaze, looks_at(gaze))


@pytest.mark.parametrize("settings, message", [
  (dict(frame="head"), "frame='head'"), (dict(positions="table"), "positions='table'"),
  (dict(pool_type="map"), "pool_type='map'"), (dict(scales=(18, 32)), "patches of 4"),
  (dict(scales=(32, 16)), "must grow"), (dict(scales=(8, 16)), "32 pixels"),
  (dict(scales=(), surprise_hidden=8), "several scales"),
  (dict(frame="retinal", max_looks=2), "max_looks=2"),
  (dict(causal=False), "causal=False"),
])
def test_what_cannot_be_is_refused_by_name(settings, message):
  model = fixations.FixationModel(**TINY | dict(scales=SCALES) | settings)
  gaze = gazes()
  looks = looks_at(gaze)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda k: model.init(k, images(), looks, gaze, looks[1:], [gaze[:, :1]] * 2),
                   jax.random.key(0))


def test_a_look_at_nothing_is_refused():
  with pytest.raises(ValueError, match="look 2 of 2 shows nothing"):
    fixations.order_of([[4, 9], [0, 0]], 1, False)
