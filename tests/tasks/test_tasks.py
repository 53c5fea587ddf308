"""SigLIP and PS3 as tasks: what their losses and outputs promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import sharding, trees
from input_pipeline import tiles
from tests.models import tiny_vit

TOWER = dict(width=16, depth=2, mlp_dim=32, num_heads=2)
TEXT = dict(**TOWER, vocab_size=40, text_len=8, act="gelu")
PS3 = dict(
  image=dict(
    **TOWER, patch_size=8, posemb_grid=(4, 4), scales=(32, 64, 128), max_select_num=20,
    select_layers=(0, 1), selection_size=64, selection_kernel=16, selection_hidden=8,
    selection_out=8, selection_depth=1,
  ),
  text=TEXT,
)
SIGLIP = dict(image=dict(**TOWER, patch_size=8, image_size=32), text=TEXT)


def _batch(side, n=8, seed=0, is_global=None):
  rng = np.random.default_rng(seed)
  corner = rng.uniform(0, side / 2, (n, 2))
  size = rng.uniform(side / 8, side / 3, (n, 2))
  return {
    "image": rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8),
    "text": rng.integers(3, 40, (n, 8), dtype=np.int32),
    "box": np.concatenate([corner, corner + size], axis=1).astype(np.float32),
    "is_global": np.zeros(n, bool) if is_global is None else np.asarray(is_global),
    "index": np.arange(n, dtype=np.int32),
  }


@pytest.fixture(scope="module")
def ps3():
  task = tasks.make("ps3", PS3)
  params = sharding.unbox(jax.jit(task.init)(jax.random.key(0), _batch(128)))
  # Zero and tiny initial values hide mistakes: everything random.
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noise = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)]
  return task, jax.tree.unflatten(tree, noise), jax.jit(lambda p, b: task.loss(p, b, None, True))


@pytest.fixture(scope="module")
def siglip():
  task = tasks.make("siglip", SIGLIP | {"pool": "region"})
  return task, sharding.unbox(jax.jit(task.init)(jax.random.key(0), _batch(32)))


def test_every_ps3_parameter_learns_but_the_published_dead_ones(ps3):
  task, params, loss = ps3
  batch = _batch(128, is_global=[True] + [False] * 7)
  grads = jax.jit(jax.grad(lambda p: task.loss(p, batch, None, True)[0]))(params)
  idle = [name for name, g in trees.flatten(grads).items() if not np.any(np.asarray(g))]
  assert idle == []
  assert all(np.all(np.isfinite(g)) for _, g in trees.flatten(grads).items())


@pytest.mark.slow
@pytest.mark.parametrize("switches", [
  pytest.param(dict(selection_maps="each"), marks=pytest.mark.thorough),
  dict(budget_rule="cells", look_policy=True, selection_maps="each", selection_antialias=True,
       low_antialias=True),
], ids=lambda s: "-".join(s))  # fmt: skip
def test_every_parameter_learns_beyond_the_original_too(switches):
  task = tasks.make("ps3", PS3 | {"image": PS3["image"] | switches})
  batch = _batch(128, is_global=[True] + [False] * 7)
  params = sharding.unbox(jax.jit(task.init)(jax.random.key(0), batch))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params)

  def loss(p):
    return task.loss(p, batch, None, True)

  (total, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  grads = trees.flatten(grads)
  assert [name for name, g in grads.items() if not np.any(np.asarray(g))] == []
  assert all(np.all(np.isfinite(g)) for g in grads.values())
  terms = [v for k, v in metrics.items() if k.startswith(("selection_", "later_"))]
  assert len(terms) == (4 if "look_policy" in switches else 2)
  np.testing.assert_allclose(total, metrics["loss_contrastive"] + sum(terms), rtol=1e-6)
  if "selection_maps" in switches:
    scales = grads["img/selection_feature_proj/fc2/kernel"].reshape(32, 2, 16)
    assert np.all(np.abs(scales).sum(axis=(0, 2)) > 0)


def test_ps3_loss_is_the_sum_of_its_terms(ps3):
  _, params, loss = ps3
  total, metrics = loss(params, _batch(128))
  terms = [v for k, v in metrics.items() if k.startswith("selection_")]
  np.testing.assert_allclose(total, metrics["loss_contrastive"] + sum(terms), rtol=1e-6)


def test_a_global_caption_is_contrasted_with_the_low_resolution_pass_alone(ps3):
  """Neither the box nor what is selected within it matters then."""
  task, params, loss = ps3
  batch = _batch(128, is_global=[True] * 8)
  other = dict(batch)
  other["box"] = batch["box"][::-1].copy()
  a, b = loss(params, batch)[1], loss(params, other)[1]
  np.testing.assert_allclose(a["loss_contrastive"], b["loss_contrastive"], rtol=1e-6)
  assert float(a["loss_selection"]) == 0.0


def test_ps3_loss_is_the_same_on_eight_devices(ps3):
  task, params, loss = ps3
  batch = _batch(128)
  want, _ = loss(params, batch)
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    rows = sharding.batch_sharding(mesh, 8)
    got, _ = jax.jit(lambda p, b: task.loss(p, b, None, True))(params, jax.device_put(batch, rows))
  # float32 sums in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_ground_truth_selection_finds_small_regions_whole_and_random_finds_its_share(ps3):
  task, params, _ = ps3
  batch = _batch(128, n=64)
  batch["box"][:, 2:] = batch["box"][:, :2] + 6
  gt = jax.jit(lambda p, b: task.embed_region(p, b, "gt"))(params, batch)
  assert np.all(np.asarray(gt["recall"]) == 1.0)
  rand = jax.jit(lambda p, b: task.embed_region(p, b, "random"))(params, batch)
  share = float(rand["budget_share"][0])
  assert share == pytest.approx(20 / (64 + 256))
  # 64 regions of a few tokens that come and go together: within four standard errors.
  spread = float(np.std(np.asarray(rand["recall"]))) / 8
  assert abs(float(np.mean(np.asarray(rand["recall"]))) - share) < 4 * spread


@pytest.mark.parametrize("selection", ["topdown", "bottomup", "random", "gt"])
def test_a_regions_embedding_does_not_depend_on_the_batch_it_comes_in(ps3, selection):
  task, params, _ = ps3
  batch = _batch(128)
  fn = jax.jit(lambda p, b: task.embed_region(p, b, selection))
  whole = fn(params, batch)
  part = fn(params, {k: v[3:5] for k, v in batch.items()})
  np.testing.assert_allclose(whole["zimg"][3:5], part["zimg"], atol=1e-5)
  np.testing.assert_array_equal(whole["recall"][3:5], part["recall"])


def test_bottom_up_selection_never_sees_the_caption(ps3):
  task, params, _ = ps3
  batch = _batch(128)
  fn = jax.jit(lambda p, b: task.embed_region(p, b, "bottomup"))
  other = fn(params, dict(batch, text=batch["text"][::-1].copy()))
  np.testing.assert_array_equal(fn(params, batch)["zimg"], other["zimg"])


def test_the_temperature_stays_between_one_and_a_hundred(ps3):
  task, params, _ = ps3
  for t, want in ((9.0, np.log(100)), (-1.0, 0.0), (2.0, 2.0)):
    after = task.after_update({**params, "t": jnp.array([t])}, 0)
    assert float(after["t"][0]) == pytest.approx(want)


def test_siglip_with_region_pooling_sees_only_the_box_but_attends_everywhere(siglip):
  task, params = siglip
  batch = _batch(32)
  a = task.embed_region(params, batch)
  whole = dict(batch, box=np.tile(np.array([0, 0, 32, 32], np.float32), (8, 1)))
  b = task.embed_region(params, whole)
  assert not np.allclose(a["zimg"], b["zimg"], atol=1e-3)
  np.testing.assert_allclose(b["zimg"], task.embed_image(params, batch), atol=1e-6)


@pytest.mark.parametrize("name,config,message", [
  ("ps4", PS3, "Did you mean 'ps3'"),
  ("ps3", {**PS3, "selection_los": "bce"}, "selection_loss"),
  ("ps3", {**PS3, "image": {**PS3["image"], "scals": (1, 2)}}, "scales"),
  ("siglip", {**SIGLIP, "image": {k: v for k, v in SIGLIP["image"].items() if k != "image_size"}},
   "image_size"),
])
def test_a_misspelt_model_setting_is_named_with_the_nearest_one(name, config, message):
  with pytest.raises(ValueError, match=message):
    tasks.make(name, config)


def test_images_of_another_size_than_the_models_are_refused(ps3):
  task, params, _ = ps3
  with pytest.raises(ValueError, match=r"config.input.image_size=128"):
    task.loss(params, _batch(64), None, True)


def _tiled(batch, count, seed=0):
  """The batch with tiles of 32 pixels around the boxes beside its images of 128."""
  rng, n = np.random.default_rng(seed), len(batch["image"])
  out = dict(batch, tiles=np.zeros((n, count, 32, 32, 3), np.uint8),
             tile_at=np.zeros((n, count), np.int32))
  for i, (image, box) in enumerate(zip(batch["image"], batch["box"])):
    top, bottom, left, right = block = tiles.block_around(box, 4, 32, count, rng)
    tiles.cut(image[32 * top:32 * bottom, 32 * left:32 * right], 32, out["tiles"][i])
    out["tile_at"][i] = tiles.places(block, 4, count)
  return out


def test_with_the_regions_tiles_the_loss_is_that_of_the_whole_image(ps3):
  """Boxes of 16 to 43 pixels force at least the 16 tokens of the budget, in at most 9 tiles."""
  task, params, loss = ps3
  batch = _batch(128, is_global=[True] + [False] * 7)
  tiled_task = tasks.make("ps3", PS3 | {"tiles": 9, "view_size": 128})
  tiled = _tiled(batch, 9)
  spec = tiled_task.batch_spec(8)
  assert {k: (tiled[k].shape, tiled[k].dtype) for k in spec} == {
    k: (s.shape, s.dtype) for k, s in spec.items()}
  value, whole = (jax.jit(
    jax.value_and_grad(lambda p, b, t=t: t.loss(p, b, None, True)[0])) for t in (tiled_task, task))
  got, grads = value(params, tiled)
  want, want_grads = whole(params, batch)
  # The same numbers in a program that is compiled anew.
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for name, g in trees.flatten(grads).items():
    w = np.asarray(trees.flatten(want_grads)[name])
    np.testing.assert_allclose(g, w, atol=1e-5 * np.abs(w).max(), err_msg=name)
  # What is left of a whole image but view and tiles is nothing; the tiles themselves matter.
  other = dict(tiled, tiles=255 - tiled["tiles"])
  assert abs(float(value(params, other)[0]) - float(want)) > 1e-4


def test_with_tiles_nothing_outside_of_them_is_selected(ps3):
  _, params, _ = ps3
  task = tasks.make("ps3", PS3 | {"tiles": 4, "view_size": 64})
  batch = _batch(128, n=16, seed=1)
  # From one pixel, which leaves nearly all to the scores, to more than four tiles hold.
  batch["box"][:, 2:] = batch["box"][:, :2] + np.linspace(1, 60, 16)[:, None]
  tiled = _tiled(batch, 4)
  image = batch["image"][:, ::2, ::2]
  look = lambda p: task.vision.apply(
    {"params": p["img"]}, image, prompt=np.ones((16, 16), np.float32), box=batch["box"],
    tiles=(tiled["tiles"], tiled["tile_at"]))
  _, out = jax.jit(look)(params)
  at = np.asarray(out["index"][-1])
  cell = at // 16 // 4 * 4 + at % 16 // 4
  assert at.shape == (16, 16)
  assert all(set(c) <= set(t[t >= 0]) for c, t in zip(cell, tiled["tile_at"]))


@pytest.mark.parametrize("settings, message", [
  ({"tiles": 3, "view_size": 128}, "set input.tiles=4 or more"),
  ({"tiles": 9, "view_size": 32}, r"at least scales\[-2\]=64: set input.view_size"),
])
def test_tiles_that_cannot_serve_the_model_are_refused(ps3, settings, message):
  task = tasks.make("ps3", PS3 | settings)
  batch = {k: np.zeros(s.shape, s.dtype) for k, s in task.batch_spec(2).items()}
  with pytest.raises(ValueError, match=message):
    task.loss(ps3[1], batch, None, True)


@pytest.mark.parametrize("name, side, model", [
  ("ps3", 128, {}),
  pytest.param("ps3", 128, dict(scan=True, look_policy=True), marks=pytest.mark.thorough),
  ("siglip", 32, {}),
], ids=str)  # fmt: skip
def test_captions_that_share_an_image_train_as_if_each_had_its_own(name, side, model):
  batch = _batch(side, is_global=[True] + [False] * 7)
  of_image = {"image": batch["image"][:4]}
  if name == "siglip":
    model = SIGLIP | {"pool": "region"}
  else:
    model = PS3 | {"image": PS3["image"] | model, "max_boxes": 2, "selection_loss": "bce_dice"}
    boxes = np.stack([batch["box"]] * 2, axis=1)
    boxes[:, 1] += 5
    of_image |= {"boxes": boxes[:4], "num_boxes": np.int32([2, 1, 2, 1])}
  apart, shared = (tasks.make(name, model | {"captions_per_image": n}) for n in (1, 2))
  by_caption = {k: batch[k] for k in ("text", "box", "is_global")}
  one_each = by_caption | {k: np.repeat(x, 2, axis=0) for k, x in of_image.items()}
  together = of_image | {k: x.reshape(4, 2, *x.shape[1:]) for k, x in by_caption.items()}
  assert {k: (x.shape, x.dtype) for k, x in shared.batch_spec(4).items()} == {
    k: (x.shape, x.dtype) for k, x in together.items()}
  params = sharding.unbox(jax.jit(shared.init)(jax.random.key(0), together))
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: x + rng.normal(0, 0.1, x.shape).astype(np.float32), params)

  def value_and_grad(task, batch):
    f = jax.value_and_grad(lambda p: task.loss(p, batch, None, True)[0])
    return jax.jit(f)(params)

  (want, want_grad), (got, got_grad) = (
    value_and_grad(*x) for x in ((apart, one_each), (shared, together)))
  # Float32 sums in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5)
  tiny_vit.assert_close(got_grad, want_grad)
  # The low-resolution pass and the features of the cells are not paid twice.
  assert apart.flops_per_example < shared.flops_per_example < 2 * apart.flops_per_example


def test_captions_that_share_one_vector_are_refused():
  with pytest.raises(ValueError, match="captions_per_image=2 with pool='image'.*pool='region'"):
    tasks.make("siglip", SIGLIP | {"captions_per_image": 2})


def test_captions_that_share_tiles_of_one_region_are_refused():
  with pytest.raises(ValueError, match="captions_per_image=2 with tiles=4"):
    tasks.make("ps3", PS3 | {"captions_per_image": 2, "tiles": 4, "view_size": 64})
