"""PS3 taught by surprise: no box is read, and what teaches the score learns nothing from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks, weights
from big_vision_ext.core import boxes, checkpoint, sharding, trees
from big_vision_ext.core import config as config_lib
from big_vision_ext.evaluators import selection_quality
from big_vision_ext.models import resample
from big_vision_ext.models import surprise as details
from big_vision_ext.objectives import surprise as surprises
from tests.models import tiny_vit
from tests.tasks.test_tasks import PS3, _batch

OPTIONS = dict(hidden=12, side=4, share=0.2)
HEAD = ("img/prior_prompt", "img/selection_feature_proj/", "img/highres_selection/",
        "img/prompt_proj_for_highres/")


def made(weight=3.0, **options):
  return tasks.make("ps3", PS3 | dict(selection_weight=weight, surprise=OPTIONS | options))


def batch(n=8, seed=0):
  """Blocks of colours with noise that is not the same everywhere."""
  out, rng = _batch(128, n, seed), np.random.default_rng(seed)
  image = np.kron(rng.uniform(60, 190, (n, 4, 4, 3)), np.ones((1, 32, 32, 1)))
  rough = np.kron(rng.uniform(0, 40, (n, 8, 8, 1)), np.ones((1, 16, 16, 1)))
  image = image + rough * rng.normal(size=image.shape)
  return {"image": np.clip(image, 0, 255).astype(np.uint8), "text": out["text"]}


@pytest.fixture(scope="module")
def case():
  task = made()
  params = tiny_vit.randomize(jax.eval_shape(task.init, jax.random.key(0), batch()))
  value = jax.value_and_grad(lambda p, b: task.loss(p, b, None, True), has_aux=True)
  return task, params, value, *jax.device_get(jax.jit(value)(params, batch()))


def test_the_batch_has_no_boxes_and_where_it_has_they_do_not_matter(case):
  task, params, *_ = case
  assert set(task.batch_spec(8)) == {"image", "text"}
  loss = jax.jit(lambda p, b: task.loss(p, b, None, True))
  found = []
  for seed in (5, 6):
    regions = {k: v for k, v in _batch(128, seed=seed).items() if k in ("box", "is_global")}
    regions["boxes"] = np.stack([regions["box"]] * 3, axis=1)
    regions["num_boxes"] = np.full(8, seed - 4, np.int32)
    found.append(jax.device_get(loss(params, batch() | regions)))
  jax.tree.map(np.testing.assert_array_equal, *found)


def test_the_score_learns_from_surprise_alone_and_all_else_but_top_down_from_the_captions(case):
  task, params, _, (total, metrics), grads = case
  plain = made(weight=0.0)
  grad = jax.value_and_grad(lambda p: plain.loss(p, batch(), None, True)[0])
  without, plain_grads = jax.device_get(jax.jit(grad)(params))
  with_it, plain_grads = trees.flatten(grads), trees.flatten(plain_grads)
  used = {n for n, g in with_it.items() if np.any(g)}
  assert {n for n in with_it if n not in used} == {
    n for n in with_it if n.startswith("prompt_proj/")}
  for name, g in plain_grads.items():
    if name.startswith(HEAD):
      assert not np.any(g), name
    elif name.startswith("surprise/"):
      # What foretells is taught by what it foretold, and by no score. Float32 sums.
      np.testing.assert_allclose(g, with_it[name], rtol=1e-5, atol=1e-7)
    elif name in used:
      assert np.any(g), name
  terms = metrics["loss_contrastive"] + metrics["loss_foretelling"]
  np.testing.assert_allclose(without, terms, rtol=1e-6)
  np.testing.assert_allclose(total, terms + 3 * metrics["selection_bottomup_bce"], rtol=1e-6)


@pytest.mark.slow
def test_loss_and_gradients_are_the_same_on_eight_devices(case):
  _, params, value, (want, metrics), grads = case
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    rows = jax.device_put(batch(), sharding.batch_sharding(mesh, 8))
    (got, others), other = jax.device_get(jax.jit(value)(params, rows))
  # Float32 sums in another order.
  np.testing.assert_allclose(got, want, rtol=1e-5)
  for name, v in metrics.items():
    np.testing.assert_allclose(others[name], v, rtol=1e-4, atol=1e-5, err_msg=name)
  scale = max(np.abs(g).max() for g in jax.tree.leaves(grads))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), other, grads)


def test_surprise_is_that_of_the_image_alone_whatever_batch_it_is_in(case):
  task, params, *_ = case
  found = jax.jit(task.surprise)
  whole = found(params, batch())
  assert whole.shape == (8, 4, 4)
  part = found(params, {k: v[2:4] for k, v in batch().items()})
  np.testing.assert_allclose(part, whole[2:4], rtol=1e-5, atol=1e-5)


def test_what_foretells_detail_sees_the_low_view_alone():
  """Pixels that trade places within what a low-resolution pixel averages change the detail only."""
  rng = np.random.default_rng(0)
  image = np.kron(rng.uniform(60, 190, (2, 8, 8, 3)), np.ones((1, 8, 8, 1))).astype(np.float32)
  view, detail = details.views(image, 4, 16, 8)
  assert view.shape == (2, 4, 4, 48) and detail.shape == (2, 4, 4, 192)
  # By two resizes of whole images, cut by hand.
  small = np.asarray(resample.resize_antialias(image, (16, 16))) / 127.5 - 1
  large = np.asarray(resample.resize_antialias(image, (32, 32))) / 127.5 - 1
  rest = large - np.asarray(resample.resize_cubic(small, (32, 32)))
  cut = lambda x, n: x.reshape(2, 4, n, 4, n, 3).swapaxes(2, 3).reshape(2, 4, 4, -1)
  np.testing.assert_allclose(view, cut(small, 4), atol=1e-6)
  np.testing.assert_allclose(detail, cut(rest, 8), atol=1e-6)
  # A ripple of one pixel is gone at a quarter of the size, but for float32's rounding.
  ripple = image + np.where(np.add(*np.indices((64, 64))) % 2, 20, -20)[:, :, None]
  other_view, other = details.views(np.float32(ripple), 4, 16, 16)
  np.testing.assert_allclose(other_view[:, 1:3, 1:3], view[:, 1:3, 1:3], atol=2e-3)
  assert np.mean(np.asarray(other) ** 2) > 0.01


def test_a_cell_is_foretold_from_itself_and_the_eight_around_it():
  view = np.random.default_rng(0).normal(size=(2, 5, 6, 12)).astype(np.float32)
  model = details.DetailPredictor(hidden=7, detail=9)
  fresh, params = model.init_with_output(jax.random.key(0), view)
  assert fresh.shape == (2, 5, 6, 9) and not np.any(fresh)
  params = tiny_vit.randomize(params)
  before, other = jax.jit(model.apply)(params, view), view.copy()
  other[:, 2, 3] += np.arange(12)
  changed = np.any(np.asarray(before != model.apply(params, other)), axis=(0, 3))
  want = np.zeros((5, 6), bool)
  want[1:4, 2:5] = True
  np.testing.assert_array_equal(changed, want)


def test_surprise_is_the_error_in_units_of_the_errors_around():
  """By hand, in float64, borders too."""
  rng = np.random.default_rng(0)
  detail = rng.normal(size=(2, 3, 5, 12)) * rng.uniform(0.01, 1, (2, 3, 5, 1))
  foretold = 0.5 * detail + 0.01 * rng.normal(size=detail.shape)
  got = surprises.surprise(np.float32(detail), np.float32(foretold))
  error = np.mean((detail - foretold) ** 2, axis=-1) + 1e-3
  for b, y, x in np.ndindex(2, 3, 5):
    near = [error[b, i, j] for i in range(max(0, y - 1), min(3, y + 2))
            for j in range(max(0, x - 1), min(5, x + 2)) if (i, j) != (y, x)]
    # Float32 sums of nine numbers, less the middle one.
    np.testing.assert_allclose(got[b, y, x], np.log(error[b, y, x] / np.mean(near)), atol=2e-5)


def test_the_loss_is_cross_entropy_with_the_most_surprising_cells_of_each_image():
  rng = np.random.default_rng(0)
  score = rng.normal(size=(3, 4, 4)).astype(np.float32)
  value = rng.normal(size=(3, 4, 4)).astype(np.float32)
  value[0] = 0.0  # Nothing to tell: exactly as many all the same.
  grids = [(8, 8), (16, 16)]
  got, terms = surprises.teach(score, value, 3, grids)
  total, agree = 0.0, 0
  for b in range(3):
    order = np.argsort(-value[b].reshape(-1), kind="stable")[:3]
    wanted = np.isin(np.arange(16), order)
    p = 1 / (1 + np.exp(-np.float64(score[b].reshape(-1))))
    total += np.mean(-np.where(wanted, np.log(p), np.log(1 - p)))
    agree += wanted[np.argsort(-score[b].reshape(-1))[:3]].sum()
  # Every cell has as many tokens: means over tokens are means over cells.
  np.testing.assert_allclose(got, total / 3, rtol=1e-6)
  np.testing.assert_allclose(terms["surprise_found"], agree / 9, rtol=1e-6)
  each, _ = surprises.teach(np.stack([score, score], axis=1), value, 3, grids)
  np.testing.assert_allclose(each, got, rtol=1e-6)
  both, more = surprises.teach(score, value, 3, grids, "bce_dice")
  np.testing.assert_allclose(both, got + more["selection_bottomup_dice"], rtol=1e-6)


def test_small_print_is_found_and_texture_is_no_event():
  """One half is noise; a pattern that the low-resolution view cannot show lies in the quiet one."""
  image = np.full((6, 128, 128, 3), 128.0)
  rng = np.random.default_rng(0)
  image[:, :, :64] += rng.normal(0, 60, (6, 128, 64, 3))
  places = [(0, 3), (1, 3), (2, 3), (3, 3), (0, 3), (2, 3)]
  stripes = np.where(np.arange(16) % 4 < 2, 100, 156)[:, None]
  for i, (y, x) in enumerate(places):
    image[i, 32 * y + 8:32 * y + 24, 32 * x + 8:32 * x + 24] = stripes
  task = made(hidden=0, side=16)
  found = task.surprise({}, {"image": np.clip(image, 0, 255).astype(np.uint8)})
  best = np.argmax(np.asarray(found).reshape(6, 16), axis=1)
  assert [divmod(int(i), 4) for i in best] == places


def test_selection_by_surprise_is_measured_where_there_is_any(case):
  task, params, *_ = case
  size, grids = (128, 128), task.vision.grids((128, 128))
  data = {**_batch(128), **batch()}
  found = jax.jit(lambda p, b: selection_quality._found(
    task, size, [(4, 16)], ("surprise",), p, b))(params, data)
  # The tokens of the best cell, by hand: 4 and 16 of the two scales, 20 in all.
  best = np.argmax(np.asarray(jax.jit(task.surprise)(params, data)).reshape(8, 16), axis=1)
  per_cell = [np.asarray(boxes.hit_map(data["box"], size, g)).reshape(8, 4, g[0] // 4, 4, g[0] // 4)
              for g in grids]
  hits = sum(h.sum(axis=(2, 4)).reshape(8, 16) for h in per_cell)
  np.testing.assert_array_equal(found["surprise"][:, 0], hits[np.arange(8), best])
  assert found["surprise"].shape == (8, 1)
  measured = selection_quality.measure(jax.device_get(found), {20: (4, 16)})
  assert 0 <= measured["surprise/recall_at_20"] <= 1
  with pytest.raises(ValueError, match="'surprise'"):
    selection_quality.Evaluator(task=tasks.make("ps3", PS3), input_config=None, mesh=None,
                                batch_sharding=None, selections=("surprise",))


def test_what_is_exported_is_the_model_without_what_taught_it(case, tmp_path):
  task, params, *_ = case
  checkpoints = checkpoint.Checkpoints(tmp_path)
  model = config_lib.to_dict(PS3 | dict(surprise=OPTIONS))
  checkpoints.save(1, {"params": jax.tree.map(jnp.asarray, params), "step": jnp.int32(1)}, {
    "config": {"task": "ps3", "total_steps": 1, "batch_size": 8, "model": model,
               "input": dict(data="nowhere", image_size=128, text_len=8)}})
  checkpoints.wait()
  checkpoints.close()
  found = weights.read(tmp_path)
  plain = tasks.make("ps3", PS3)
  shapes = jax.eval_shape(plain.init, jax.random.key(0), _batch(128))
  assert set(found.params) == set(trees.flatten(sharding.unbox(shapes)))
  assert "surprise" not in found.model
  tasks.make("ps3", found.model)


@pytest.mark.parametrize("changes, says", [
  (dict(captions_per_image=2), "captions_per_image=2 with surprise"),
  (dict(max_boxes=3), "max_boxes=3 with surprise"),
  (dict(image=PS3["image"] | dict(look_policy=True)), "look_policy=True with surprise"),
  (dict(surprise=OPTIONS | dict(share=0.0)), "share=0.0"),
])
def test_settings_that_need_boxes_are_refused(changes, says):
  with pytest.raises(ValueError, match=says):
    tasks.make("ps3", PS3 | dict(surprise=OPTIONS) | changes)


@pytest.mark.parametrize("arg", ["surprise", "surprise,runlocal"])
def test_the_demo_without_boxes_gets_none(arg):
  config = config_lib.resolve(config_lib.load(f"configs/ps3/demo.py:{arg}"))
  task = tasks.make(config.task, config.model)
  assert set(task.batch_spec(8)) == {"image", "text"}
  assert config.input["global_share"] == 1.0 and config.input.get("max_boxes", 0) == 0
  assert config.evals["selection"].args["selections"] == ("bottomup", "random", "surprise")
