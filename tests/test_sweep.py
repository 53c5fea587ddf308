"""The sweep over resolution and looks: which points there are, what they cost, how it is shown."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import sweep, tasks
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import flops, sharding
from big_vision_ext.evaluators import region_retrieval
from input_pipeline import loader
from tests.tasks.test_tasks import PS3, SIGLIP


def _random_params(task, seed=0):
  batch = {k: np.zeros(s.shape, s.dtype) for k, s in task.batch_spec(1).items()}
  shapes = sharding.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)


def test_every_scale_and_number_of_looks_is_a_point_as_far_as_tokens_last():
  """20 tokens a look; the grids are 4 x 4, 8 x 8 and 16 x 16: four looks are more than 8 x 8."""
  task = tasks.make("ps3", PS3)
  found = sweep.points(task, (1, 2, 4, 100))
  assert [(p.scales, p.pixels, p.looks, p.tokens) for p in found] == [
    (1, 32, 0, 16), (2, 64, 1, 36), (2, 64, 2, 56),
    (3, 128, 1, 36), (3, 128, 2, 56), (3, 128, 4, 96)]
  assert found[2].per_look == (20, 20)
  assert [p.pixels for p in sweep.points(task, (2,), (3, 1))] == [32, 128]


def test_a_model_of_one_scale_is_one_point():
  task = tasks.make("siglip", SIGLIP)
  assert sweep.points(task) == [sweep.Point(1, 32, 0, 16)]


@pytest.mark.parametrize("args,message", [
  (((1,), (4,)), "--scales=4: expected 1 to 3"),
  (((0,), None), "--looks=0: expected at least 1"),
])
def test_scales_and_looks_that_do_not_exist_are_refused(args, message):
  with pytest.raises(ValueError, match=message):
    sweep.points(tasks.make("ps3", PS3), *args)


@pytest.mark.slow
def test_the_formula_counts_what_the_compiler_counts():
  """At widths where matrix products outweigh what the formula leaves out."""
  tower = dict(width=192, depth=2, mlp_dim=768, num_heads=3)
  image = PS3["image"] | tower | dict(selection_hidden=64, selection_out=64, max_select_num=100)
  task = tasks.make("ps3", {"image": image, "text": PS3["text"] | tower})
  params = _random_params(task)
  low, look = sweep.points(task, (1,), (1, 3))
  for point in (low, look):
    cost = sweep.cost(task, params, point, repeats=1)
    # The compiler also counts resampling, norms, softmax and activations.
    assert 0.85 < cost["gflop"] / cost["compiled_gflop"] <= 1
    assert cost["seconds"] > 0
    assert cost["memory_mib"] > sum(x.size for x in jax.tree.leaves(params["txt"])) * 4 / 2**20
  two = dataclasses.replace(look, looks=2, per_look=(100, 100))
  # A loop over looks is counted once by the compiler: not told.
  assert sweep.cost(task, params, two, repeats=1)["compiled_gflop"] is None
  block = flops.block(100, 192, 768, cached=16)
  assert task.forward_flops((100, 100)) - task.forward_flops((100,)) == pytest.approx(
    2 * block + flops.patches(100, 192, 8) + 4 * 100 * (192**2 + 192))


@pytest.mark.slow
def test_a_sweep_finds_what_region_retrieval_finds(small_sample_data, tmp_path):
  task = tasks.make("ps3", PS3 | {"text": PS3["text"] | {"vocab_size": 259}})
  params = _random_params(task)
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:1])
  place = dict(mesh=mesh, batch_sharding=sharding.batch_sharding(mesh),
               input_config=loader.InputConfig(
                 data=str(small_sample_data), split="val", image_size=128, text_len=8))
  todo = sweep.points(task, (1,), (1, 2, 3))
  rows = sweep.run(task, params, todo=todo, repeats=1, log=lambda _: None, **place)
  assert [r["pixels"] for r in rows] == [32, 64, 128]
  usual = region_retrieval.Evaluator(task=task, selections=("topdown",), **place).run(params)
  for name in ("retrieval_top10", "selection_recall", "caption_to_region_top1"):
    assert rows[2][name] == pytest.approx(usual[f"topdown/{name}"], abs=1e-6)
  assert rows[0]["selection_recall"] is None
  # 64 tokens at 64 px, of which a look takes 20.
  assert 0 < rows[1]["selection_recall"] < 1
  text = sweep.table(rows)
  assert len(text.splitlines()) == 5 and text.count("|") == 50
  sweep.plot(rows, tmp_path / "sweep.png", "a title")
  assert Image.open(tmp_path / "sweep.png").size[0] > 800


def test_a_table_and_a_plot_need_no_recall(tmp_path):
  """As for models that select nothing."""
  row = {"scales": 1, "pixels": 32, "looks": 0, "tokens": 16, "retrieval_top1": 0.1,
         "retrieval_top10": 0.25, "caption_to_region_top1": 0.0, "selection_recall": None,
         "chance_top10": 0.1, "regions": 9, "seconds": 0.01234, "memory_mib": 3.2, "gflop": 0.5,
         "compiled_gflop": None}
  assert sweep.table([row]).splitlines()[-1] == (
    "| 32 | 0 | 16 | 10.0 % | 25.0 % | - | 0.0123 | 3 | 0.5 |")
  sweep.plot([row], tmp_path / "one.png")
  assert (tmp_path / "one.png").stat().st_size > 10_000


def test_without_looks_a_region_is_the_low_resolution_tokens_on_its_box():
  task = tasks.make("ps3", PS3)
  params = _random_params(task)
  rng = np.random.default_rng(0)
  batch = {"image": rng.integers(0, 256, (2, 128, 128, 3), np.uint8),
           "text": rng.integers(3, 40, (2, 8), dtype=np.int32),
           "box": np.float32([[0, 0, 128, 128], [40, 70, 60, 90]])}

  @jax.jit
  def fn(params, batch):
    region = task.embed_region(params, batch, num_looks=0)
    return region, task.embed_image(params, batch), task.embed_text(params, batch)

  region, image, text = fn(params, batch)
  assert set(region) == {"zimg", "ztxt"}
  # The whole image as the box is the whole image; float32, two ways to mask.
  np.testing.assert_allclose(region["zimg"][0], image[0], atol=1e-5)
  assert np.abs(region["zimg"][1] - image[1]).max() > 1e-3
  np.testing.assert_allclose(region["ztxt"], text, atol=1e-6)
