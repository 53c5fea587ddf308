"""Selection quality, against sets of tokens formed one by one, and against what the model takes."""

import types

import jax
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.core import sharding
from big_vision_ext.evaluators import selection_quality
from big_vision_ext.models import resample
from tests.tasks.test_tasks import PS3, _batch

BUDGETS = (7, 20, 40, 0.44, 320)
SIZE = (128, 128)


@pytest.fixture(scope="module", params=[
  pytest.param(False, id="plain"), pytest.param(True, id="smooth", marks=pytest.mark.thorough)])
def measured(request):
  """The task, a batch, what the evaluator counts on it and by which maps, what the model takes."""
  image = PS3["image"] | {"smooth_selection_prob": request.param}
  task = tasks.make("ps3", PS3 | {"image": image})
  batch = _batch(128, n=5)
  shapes = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), shapes)
  counts = selection_quality.counts_of(task.vision, SIZE, BUDGETS)

  @jax.jit
  def fn(params, batch):
    found = selection_quality._found(
      task, SIZE, list(counts.values()), selection_quality.SELECTIONS, params, batch)
    maps = {name: selection_quality._maps(task, task.vision.grids(SIZE), name, params, batch)
            for name in selection_quality.SELECTIONS}
    # Two looks of the model itself; what it encodes of them is not needed and not computed.
    looks = {"topdown": task.encode(params, batch, num_tokens=40)["index"],
             "bottomup": task.encode(params, {"image": batch["image"]}, num_tokens=40)["index"]}
    return found, maps, looks

  return task, batch, counts, *jax.device_get(fn(params, batch))


def _taken(maps, counts, row):
  """Tokens (scale, raster position) by the documented order: score, cell, place in the cell."""
  out = set()
  for scale, (scores, count) in enumerate(zip(maps, counts)):
    grid = scores.shape[1]
    y, x = np.divmod(np.arange(grid * grid), grid)
    cell = y * 4 // grid * 4 + x * 4 // grid
    order = np.lexsort((np.arange(grid * grid), cell, -scores[row].reshape(-1)))
    out |= {(scale, int(t)) for t in order[:count]}
  return out


def _touches(box, side, grid, index):
  """Whether the patch at a raster position holds a pixel of the box, by painting the box."""
  painted = np.zeros((side, side), bool)
  x0, y0, x1, y1 = box
  painted[int(np.floor(y0)):int(np.ceil(y1)) + 1, int(np.floor(x0)):int(np.ceil(x1)) + 1] = True
  patch = side // grid
  y, x = divmod(int(index), grid)
  return painted[y * patch:(y + 1) * patch, x * patch:(x + 1) * patch].any()


@pytest.mark.parametrize("name", selection_quality.SELECTIONS)
def test_measures_equal_those_of_sets_of_tokens(measured, name):
  task, batch, counts, found, maps, _ = measured
  grids = [g[0] for g in task.vision.grids(SIZE)]
  got = selection_quality.measure(found, counts)
  for tokens, per_scale in counts.items():
    recalls, ious = [], []
    for i, box in enumerate(batch["box"]):
      on_box = {(s, t) for s, g in enumerate(grids) for t in range(g * g)
                if _touches(box, 128, g, t)}
      chosen = _taken(maps[name], per_scale, i)
      assert len(chosen) == tokens
      recalls.append(len(on_box & chosen) / len(on_box))
      ious.append(len(on_box & chosen) / len(on_box | chosen))
    assert got[f"{name}/recall_at_{tokens}"] == pytest.approx(np.mean(recalls))
    assert got[f"{name}/iou_at_{tokens}"] == pytest.approx(np.mean(ious))
    assert got[f"{name}/box_recall_at_{tokens}"] == pytest.approx(np.mean(np.array(recalls) >= .5))


@pytest.mark.parametrize("name", ["topdown", "bottomup"])
def test_a_budget_counts_the_tokens_that_the_model_itself_takes(measured, name):
  _, _, counts, _, maps, looks = measured
  for i in range(5):
    model = {(s, int(t)) for s, at in enumerate(looks[name]) for t in at[i]}
    assert model == _taken(maps[name], counts[40], i)


def test_budgets_are_tokens_or_shares_and_never_more_than_there_are(measured):
  task, _, counts, found, _, _ = measured
  assert list(counts) == [7, 20, 40, round(0.44 * 320), 320]
  assert counts[320] == (64, 256)
  # A whole number of looks is spent as the looks are.
  assert selection_quality.counts_of(task.vision, SIZE, (20,)) == {20: task.vision.budget()}
  assert list(selection_quality.counts_of(task.vision, SIZE, None)) == [5, 10, 20, 40, 80]
  assert list(selection_quality.counts_of(task.vision, SIZE, (10_000,))) == [320]
  got = selection_quality.measure(found, counts)
  assert got["topdown/recall_at_320"] == got["random/box_recall_at_320"] == 1.0
  assert got["chance/recall_at_20"] == 20 / 320


@pytest.mark.slow
@pytest.mark.parametrize("rule", [
  pytest.param("split", marks=pytest.mark.thorough), "cells"])
def test_a_policys_looks_are_counted_as_it_takes_them_and_its_ranking_beside_them(rule):
  image = PS3["image"] | {"look_policy": True, "budget_rule": rule}
  task = tasks.make("ps3", PS3 | {"image": image})
  batch = _batch(128, n=4)
  shapes = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
  counts = selection_quality.counts_of(task.vision, SIZE, (20, 60))
  plain = tasks.make("ps3", PS3 | {"image": PS3["image"] | {"budget_rule": rule}})
  without = {**params, "img": {k: v for k, v in params["img"].items() if k != "later_looks"}}

  def found(task, params):
    return jax.jit(lambda p, b: selection_quality._found(
        task, SIZE, list(counts.values()), ("topdown", "random"), p, b))(params, batch)

  own, other = found(task, params), found(plain, without)
  np.testing.assert_array_equal(own["ranked_topdown"], other["topdown"])
  np.testing.assert_array_equal(own["random"], other["random"])
  # One look is the first look of both; at three they part.
  np.testing.assert_array_equal(own["topdown"][:, 0], other["topdown"][:, 0])
  assert np.any(own["topdown"][:, 1] != other["topdown"][:, 1])
  looked = jax.jit(lambda p, b: task.encode(p, b, num_looks=3)["index"])(
      params, {k: batch[k] for k in ("image", "text")})
  for i, box in enumerate(batch["box"]):
    hits = sum(_touches(box, 128, g[0], t) for g, at in zip(task.vision.grids(SIZE), looked)
               for t in at[i])
    assert hits == own["topdown"][i, 1]


def test_the_maps_are_those_that_random_selection_of_regions_uses():
  vision = types.SimpleNamespace(cells=(4, 4), smooth_selection_prob=False)
  task = types.SimpleNamespace(vision=vision)
  maps = selection_quality._maps(task, [(8, 8)], "random", None, {"index": np.arange(3)})
  keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
  want = np.stack([jax.random.uniform(k, (4, 4)) for k in keys])
  np.testing.assert_allclose(maps[0], resample.nearest(want, (8, 8)))


@pytest.mark.parametrize("args,message", [
  ({"budgets": (0.5, "many")}, "'many'"), ({"budgets": (2.5,)}, "2.5"), ({"budgets": (-1,)}, "-1"),
  ({"selections": ("topdwn",)}, "'topdwn'"),
])
def test_a_wrong_budget_or_selection_is_named(args, message):
  task = tasks.make("ps3", PS3)
  with pytest.raises(ValueError, match=message):
    selection_quality.Evaluator(
      task=task, input_config=None, mesh=None, batch_sharding=None, **args)


def test_a_model_of_one_scale_is_refused(task):
  with pytest.raises(ValueError, match="selects nothing"):
    selection_quality.Evaluator(task=task, input_config=None, mesh=None, batch_sharding=None)
