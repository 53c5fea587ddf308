"""Pods are known by name, and their links by where a group of chips stands."""

import importlib.util

import pytest

from big_vision_ext.core import flops
from big_vision_ext.planning import topologies
from tests.planning import pods


@pytest.mark.parametrize("chip", topologies.CHIPS, ids=lambda c: c.name)
def test_every_chip_has_a_peak_and_plausible_speeds(chip):
  assert chip.peak == flops.peak(chip.kind)
  # More products per byte of main memory than per byte of the network would pay is no chip.
  assert 100 < chip.peak / chip.hbm_bytes < 700
  assert chip.dcn_bytes < chip.link_bytes < chip.hbm_bytes


@pytest.mark.parametrize("name", ["v5litepod:16x16", "v5e", "v5e:", "v5e:16x", "16x16", "v9:2x2"])
def test_a_name_that_is_no_pod_is_refused_with_examples(name):
  with pytest.raises(topologies.PlanError, match="expected a chip, a colon.*v5e:16x16"):
    topologies.describe(name)


def test_without_the_compiler_one_line_says_what_to_install(monkeypatch):
  from jax.experimental import topologies as jax_topologies

  def missing(**_):
    raise RuntimeError("Failed to load libtpu.so\nlong trace")

  monkeypatch.setattr(jax_topologies, "get_topology_desc", missing)
  with pytest.raises(topologies.PlanError, match="pip install -r requirements-tpu.txt") as error:
    topologies.describe("v5e:2x2")
  assert "\n" not in str(error.value)


def _links(pod, *coords):
  group = [i for i, d in enumerate(pod.devices) if any(
    all(c is None or c == at for c, at in zip(wanted, d.coords)) for wanted in coords)]
  speed, slices = topologies.links(pod, group)
  return speed / pod.chip.link_bytes, slices


def test_a_full_ring_has_two_links_and_a_part_of_it_one():
  pod = pods.pod((16, 16))
  assert _links(pod, (0, None)) == (2, 1)
  assert _links(pod, (None, None)) == (4, 1)
  assert _links(pod, *((0, y) for y in range(8))) == (1, 1)
  # Eight of sixteen along one side, all of the other: what 128 of 256 chips are.
  assert _links(pod, *((x, None) for x in range(8))) == (3, 1)


def test_small_slices_of_some_chips_are_not_closed_to_rings():
  assert _links(pods.pod((8, 8)), (None, None)) == (2, 1)
  assert _links(pods.pod((4, 4, 8), "v5p"), (None, None, None)) == (6, 1)
  assert _links(pods.pod((2, 2, 1), "v5p"), (None, None, None)) == (2, 1)


def test_a_group_over_slices_is_told():
  pod = pods.pod((4, 4), slices=2)
  assert _links(pod, (None, None)) == (2, 2)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs requirements-tpu.txt")
@pytest.mark.slow
@pytest.mark.parametrize("name, slices, shape, chips", [
  ("v4:2x2x1", 1, (2, 2, 1), 4), ("v5e:4x4", 1, (4, 4), 16), ("v5e:2x2", 2, (2, 2), 8),
  ("v5p:2x2x1", 1, (2, 2, 1), 4), ("v6e:2x2", 1, (2, 2), 4), ("tpu7x:2x2x1", 1, (2, 2, 1), 8)])
def test_the_compiler_knows_these_pods(name, slices, shape, chips):
  topologies.set_up_environment()
  found = topologies.describe(name, slices)
  assert len(found.devices) == chips and found.chip.kind == found.devices[0].device_kind
  assert found.shape[:len(shape)] == shape
