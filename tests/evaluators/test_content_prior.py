"""The content prior measured: priors whose floor and restorations are known."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image

from big_vision_ext import evaluators
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding
from big_vision_ext.tasks import restore
from input_pipeline import loader, records
from input_pipeline.build import writer

SIDE, COUNT = 16, 5
RAIN = {"seen": {"kind": "rain", "range": dict(
  amount=(0.01, 0.02), width=(1,), length=(5, 9), angle=((-9, 9),))}}


@dataclasses.dataclass(frozen=True)
class Known:
  """A prior that draws everything ten levels too bright, and restores nothing or a little.

  With `keeps` it draws those as they are whose first value is even.
  """

  weighted: bool = True
  keeps: bool = False
  config: object = None

  @property
  def outputs(self):
    move = lambda levels: lambda params, batch: (
      restore.to_float(batch["image"]) + params["on"] * levels / 255.0)
    out = {"restore": move(0), "reconstruct": move(10)}
    if self.keeps:
      out["reconstruct"] = lambda params, batch: jax.numpy.where(
        batch["image"][:, :1, :1, :1] % 2, move(10)(params, batch), move(0)(params, batch))
    return out | ({"restore_w0": move(0), "restore_w100": move(-3)} if self.weighted else {})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  out = tmp_path_factory.mktemp("clean")

  def load(index):
    pixels = np.random.default_rng(index).integers(20, 200, (SIDE, SIDE, 3)).astype(np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return records.Sample(id=f"{index}", image=png.getvalue(), width=SIDE, height=SIDE,
                          boxes=np.zeros((0, 4), np.float32), texts=[])

  report = writer.write_split(out, "val", range(COUNT), load, progress=False)
  writer.finish(out, {"val": report}, {})
  return str(out)


def run(data, task, rains, batch_size=4):
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:1])
  evaluator = evaluators.make(
    "rain", {"type": "content_prior", "rains": rains, "batch_size": batch_size}, task=task,
    mesh=mesh, batch_sharding=sharding.batch_sharding(mesh),
    input_config=loader.InputConfig(
      data=data, split="val", image_size=SIDE, captions=False, eval_plain=True, threads=1))
  return evaluator.run({"on": np.float32(1)})


def test_the_floor_is_what_the_prior_loses_of_clean_pictures_and_each_weight_has_its_own(data):
  found = run(data, Known(), RAIN)
  assert found["images"] == COUNT
  # Ten levels everywhere: nothing is rounded or clipped.
  np.testing.assert_allclose(found["floor/rms"], 10, rtol=1e-6)
  np.testing.assert_allclose(found["floor/psnr"], 20 * np.log10(255 / 10), rtol=1e-6)
  assert 0.8 < found["floor/ssim"] < 1
  assert found["w0/seen/E_R"] == found["w0/seen/rho"] == 0
  np.testing.assert_allclose(found["w100/seen/E_R"], 3, rtol=1e-6)
  assert found["w0/seen/psnr"] == found["w0/seen/psnr_input"] == found["w100/seen/psnr_input"]
  assert not [k for k in found if k.startswith("seen/")]


def test_without_weights_there_is_one_restoration_and_without_rain_the_floor_alone(data):
  assert run(data, Known(weighted=False), RAIN)["seen/E_R"] == 0
  floor = run(data, Known(), {}, batch_size=2)
  assert set(floor) == {"images", "floor/psnr", "floor/ssim", "floor/rms"}
  np.testing.assert_allclose(floor["floor/rms"], 10, rtol=1e-6)


def test_pictures_that_the_prior_keeps_are_counted_and_not_averaged(data):
  source = records.open_dataset(data, "val")
  first = [np.asarray(Image.open(io.BytesIO(s.image)))[0, 0, 0] for s in source]
  kept = sum(x % 2 == 0 for x in first)
  assert 0 < kept < COUNT
  found = run(data, Known(keeps=True), {})
  assert found["floor/psnr_equal"] == kept
  np.testing.assert_allclose(found["floor/psnr"], 20 * np.log10(255 / 10), rtol=1e-6)


def test_a_task_without_a_prior_is_refused(data):
  class Restores:
    outputs = {"restore": None}

  with pytest.raises(ValueError, match="content_prior: this task has restore; expected"):
    run(data, Restores(), RAIN)
