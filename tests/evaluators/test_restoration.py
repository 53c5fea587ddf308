"""Restoration measured: networks whose result is known, members, batches and devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import metrics as skimage_metrics

from big_vision_ext import evaluators
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding
from big_vision_ext.objectives import degradations
from big_vision_ext.tasks import restore
from input_pipeline import loader, records
from input_pipeline.build import painters, writer

SIDE, COUNT = 24, 7
RAINS = {
  "seen": {"kind": "rain", "range": dict(amount=(0.01, 0.02), width=(1,), length=(5, 9),
                                         angle=((-9, 9),))},
  "noise": {"kind": "noise", "family": "gaussian"},
}


@dataclasses.dataclass(frozen=True)
class Mean:
  """Members that mix a picture with a known one: 0 gives it back as it is, 1 gives the clean one.

  The parameters are the share of each member; the clean pictures are known by their brightness.
  """

  clean: tuple = ()
  config: object = dataclasses.field(default_factory=lambda: restore.Config(net={}, seeds=(5, 9)))

  @property
  def outputs(self):
    return {"restore_all": self.restore_all}

  def restore_all(self, params, batch):
    known = np.float32(self.clean) / np.float32(255)
    image = restore.to_float(batch["image"])
    # Rain and noise leave the nearest of a few pictures of one colour each as it was.
    colours = np.median(known.reshape(len(known), -1), axis=-1)
    far = jnp.abs(jnp.median(image.reshape(len(image), 1, -1), -1) - colours)
    clean = jnp.asarray(known)[jnp.argmin(far, axis=1)]
    return jnp.stack([share * clean + (1 - share) * image for share in params["share"]])


def pictures(split="val"):
  """Dark pictures, each of its own brightness, with a little texture."""
  rng = np.random.default_rng(3 if split == "val" else 4)
  return np.stack([np.clip(20 + 14 * i + rng.integers(-2, 3, (SIDE, SIDE, 3)), 0, 255)
                   for i in range(COUNT)]).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  out = tmp_path_factory.mktemp("clean")

  def load(index):
    clean = pictures()[index]
    rain = np.zeros((SIDE, SIDE, 1), int)
    rain[:, index::9] = 100
    rainy = np.clip(clean.astype(int) + rain, 0, 255).astype(np.uint8)
    return records.Sample(
      id=f"{index}", image=painters.png(clean), degraded=painters.png(rainy), width=SIDE,
      height=SIDE, boxes=np.zeros((0, 4), np.float32), texts=[])

  report = writer.write_split(out, "val", range(COUNT), load, progress=False)
  writer.finish(out, {"val": report}, {})
  return str(out)


@dataclasses.dataclass(frozen=True)
class Enlarges:
  """Two times larger, every pixel four times."""

  config: object = None

  @property
  def outputs(self):
    return {"restore": lambda _, batch: batch["image"].repeat(2, 1).repeat(2, 2)}


def measures(data, devices=1, batch_size=4, rains=RAINS, task=None, **changes):
  """A function of the members' shares."""
  mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:devices])
  evaluator = evaluators.make(
    "rain", {"type": "restoration", "rains": rains, "batch_size": batch_size},
    task=task or Mean(tuple(map(tuple, pictures().tolist()))), mesh=mesh,
    batch_sharding=sharding.batch_sharding(mesh),
    input_config=loader.InputConfig(data=data, split="val", image_size=SIDE, text_len=4, threads=1,
                                    captions=False, eval_plain=True, **changes))
  return lambda *share: evaluator.run({"share": jnp.asarray(share, jnp.float32)})


@pytest.fixture(scope="module")
def measure(data):
  return measures(data)


@pytest.fixture(scope="module")
def known(measure):
  """The measures of a network that does nothing and of one that does everything."""
  return measure(0.0, 1.0)


def test_doing_nothing_changes_no_rain_and_damages_no_dry_pixel(known):
  idle = {k: v for k, v in known.items() if k.startswith("seen/seed_5/")}
  assert idle["seen/seed_5/E_R"] == 0 and idle["seen/seed_5/rho"] == 0
  # Where at most two levels of rain fall, they are all the damage.
  assert idle["seen/seed_5/E_B_strict"] <= 2 < idle["seen/seed_5/E_R_gt"]
  assert idle["seen/seed_5/E_B"] > idle["seen/seed_5/E_B_strict"]
  assert idle["seen/seed_5/psnr"] == pytest.approx(known["seen/psnr_input"], abs=1e-9)


def test_a_perfect_network_removes_all_and_damages_nothing(known):
  assert known["seen/seed_9/rho"] == 1 and known["seen/seed_9/E_R_gt"] == 0
  assert known["seen/seed_9/E_B"] == known["seen/seed_9/E_B_strict"] == 0
  # What there was to remove.
  assert known["seen/seed_9/E_R"] == known["seen/seed_5/E_R_gt"] > 0
  assert known["seen/seed_9/psnr_equal"] == COUNT and "seen/seed_9/ssim" in known
  assert known["seen/seed_9/ssim"] == pytest.approx(1, abs=1e-6)


def test_members_are_told_each_and_by_mean_and_deviation(known):
  for name in ("seen/rho", "seen/E_R", "noise/ssim"):
    rain, _, measure = name.partition("/")
    own = [known[f"{rain}/seed_{seed}/{measure}"] for seed in (5, 9)]
    assert known[name] == pytest.approx(np.mean(own))
    assert known[f"{name}_std"] == pytest.approx(np.std(own, ddof=1))
  # The pictures are flat everywhere: all of the noise is left, or none.
  assert known["noise/seed_5/flat_noise"] > 10 and known["noise/seed_9/flat_noise"] == 0
  # Noise is everywhere: no layer says where.
  assert not any(k.startswith("noise/") and k.endswith(("E_R", "rho")) for k in known)


def test_numbers_are_those_of_numpy_and_scikit_image(measure):
  """From the same degraded pictures, in float64."""
  found = measure(0.6, 0.3)
  make = degradations.make(RAINS["seen"])
  key = evaluators.make(
    "x", {"type": "restoration", "rains": RAINS}, task=Mean(), mesh=None, batch_sharding=None,
    input_config=None)._keys["seen"]
  clean = pictures().astype(np.float32) / 255
  keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(COUNT))
  degraded, aux = jax.jit(make)(keys, clean)
  level = lambda x: np.rint(np.clip(np.float64(x), 0, 1) * 255)
  degraded, layer = level(degraded), level(aux["layer"])
  restored = level(0.6 * np.float32(clean) + np.float32(0.4) * np.float32(degraded / 255))
  wet = layer > 50
  over = lambda x, mask: np.sqrt((x[mask] ** 2).mean())
  # A restored value may lie at an edge of rounding, one level of some thousand pixels.
  close = functools.partial(pytest.approx, rel=2e-3)
  target = level(clean)
  assert found["seen/seed_5/E_R"] == close(over(restored - degraded, wet))
  assert found["seen/seed_5/E_R_gt"] == close(over(restored - target, wet))
  assert found["seen/seed_5/E_B"] == close(over(restored - target, ~wet))
  assert found["seen/seed_5/E_B_strict"] == close(over(restored - target, layer <= 2))
  assert found["seen/seed_5/rho"] == close(
    1 - np.linalg.norm((restored - target)[wet]) / np.linalg.norm((degraded - target)[wet]))
  psnr = [skimage_metrics.peak_signal_noise_ratio(a, b, data_range=255)
          for a, b in zip(target, restored)]
  assert found["seen/seed_5/psnr"] == pytest.approx(np.mean(psnr), abs=5e-3)
  assert found["images"] == COUNT


def test_neither_batches_nor_devices_change_a_number(data, known):
  other = measures(data, devices=8, batch_size=3)(0.0, 1.0)
  assert other.keys() == known.keys()
  for name, value in other.items():
    # Rain is rounded to 8 bits: another cut may move a value across an edge, by one level.
    assert value == pytest.approx(known[name], rel=1e-3, abs=1e-3, nan_ok=True), name


def test_pairs_of_a_data_set_are_degraded_as_they_came(data):
  found = measures(data, rains={"own": {"kind": "pairs"}}, pairs=True)(0.0, 1.0)
  # Lines of 100 levels, more than the mask asks for; no other pixel differs.
  assert found["own/seed_5/E_R_gt"] == pytest.approx(100, abs=1e-3)
  assert found["own/seed_5/E_B"] == 0 and found["own/seed_9/rho"] == 1
  with pytest.raises(ValueError, match="input.pairs=True with a data set"):
    measures(data, rains={"own": {"kind": "pairs"}})


def test_pictures_made_smaller_are_measured_for_networks_of_their_scale(data):
  bicubic = lambda scale: {"x": {"kind": "bicubic", "scale": scale}}
  found = measures(data, rains=bicubic(2), task=Enlarges())()
  # What of pictures of one brightness a texture of two levels leaves.
  assert 40 < found["x/psnr"] < 60 and "x/psnr_input" not in found
  with pytest.raises(ValueError, match="makes 6 pixels of 24, of which this task makes 12; expec"):
    measures(data, rains=bicubic(4), task=Enlarges())()


@pytest.mark.parametrize("rains, message", [
  ({}, "rains={}: expected"), ({"x": {"kind": "rian"}}, r"rains\['x'\].kind='rian'")])
def test_degradations_that_are_none_are_named(data, rains, message):
  with pytest.raises(ValueError, match=message):
    measures(data, rains=rains)
