"""Is what is planned what would run? For that, every config has to be laid out on a pod."""

import importlib.util
import pathlib

import jax
import pytest

from big_vision_ext.core import config as config_lib
from big_vision_ext.planning import program, topologies

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("configs/*/*.py")
                 if p.stem not in ("__init__", "common"))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs requirements-tpu.txt")
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
  # Weights and two moments in float32, cut over the chips or whole, and a few counters.
  assert 3 * count <= step.state_gib() * 2**30 <= 12 * count + 64
