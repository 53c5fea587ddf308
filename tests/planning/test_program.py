"""Is what is planned what would run? For that, every config has to be laid out on a pod."""

import importlib.util
import pathlib
import re

import jax
import numpy as np
import pytest

from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding, trees
from big_vision_ext.planning import program, topologies

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Layouts that a larger or a smaller one of the same kind has too.
ALIKE = ("ps3_1p5k_siglip_so400m", "ps3_1p5k_siglip2_so400m", "ps3_4k_siglip_so400m",
         "ps3_1p5k_cradio_l", "mae_l16", "pixio_h16", "crossmae_b16", "demo_lowres", "demo",
         "own_data")
CONFIGS = [pytest.param(p.relative_to(ROOT).as_posix(), id=f"{p.parent.name}_{p.stem}",
                        marks=pytest.mark.thorough if p.stem in ALIKE else ())
           for p in sorted(ROOT.glob("configs/*/*.py")) if p.stem not in ("common", "grid")]


needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs requirements-tpu.txt")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name, slices, chips", [("v5p:8x8x8", 1, 512), ("v5p:8x8x8", 2, 1024)])
def test_an_axis_may_take_a_part_of_a_side_of_the_torus(name, slices, chips):
  topologies.set_up_environment()
  devices = topologies.describe(name, slices).devices
  mesh = sharding.make_mesh(config_lib.Mesh(data=-1, fsdp=-1, max_fsdp=128), devices)
  assert dict(mesh.shape) == {"data": chips // 128, "fsdp": 128, "tensor": 1}
  assert len(set(mesh.devices.flat)) == chips
  # Those that gather parameters from each other are neighbours: they fill a box of the torus.
  for row in mesh.devices[:, :, 0]:
    spread = np.ptp([d.coords for d in row], axis=0) + 1
    assert spread.prod() == 128 and len({getattr(d, "slice_index", 0) for d in row}) == 1


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS)
def test_every_shipped_config_is_laid_out_and_traced_for_a_pod(path):
  topologies.set_up_environment()
  pod = topologies.describe("v5e:2x2")
  config = config_lib.resolve(config_lib.load(path))
  step = program.lay_out(config, pod)
  assert step.chips == 4 and step.batch_per_chip == config.batch_size / 4
  assert jax.tree.structure(step.shapes) == jax.tree.structure(step.shardings)
  count = sum(x.size for x in jax.tree.leaves(step.shapes["params"]))
  # Weights in float32, two moments of those that are trained, and a few counters; each cut over the
  # chips or whole.
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(step.shapes))
  named = trees.flatten(step.shapes["params"])
  frozen = sum(x.size for name, x in named.items()
               if any(re.fullmatch(p, name) for p in config.optim.freeze))
  moments = 1 if config.optim.name in ("lars", "sgd") else 2
  average = int(config.ema is not None)
  least = 4 * count + 4 * (moments + average) * (count - frozen)
  assert least <= whole <= (12 + 4 * average) * count + 64
  assert whole / 4 <= step.state_gib() * 2**30 <= whole
