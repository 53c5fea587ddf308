"""Names of TPUs, against what Google's and xpk's tables have."""

import pytest

from launch import tpu_types

# Accelerator type, shape, chips, hosts, chips a host, runtime, GKE's accelerator and machine: from
# Google's pages on each generation and xpk's table.
KNOWN = {
    "v4-8": ("v4-8", "2x2x1", 4, 1, 4, "tpu-ubuntu2204-base", "tpu-v4-podslice", "ct4p-hightpu-4t"),
    "v4-512": ("v4-512", "4x8x8", 256, 64, 4, "tpu-ubuntu2204-base", "tpu-v4-podslice",
               "ct4p-hightpu-4t"),
    "v5e-1": ("v5litepod-1", "1x1", 1, 1, 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice",
              "ct5lp-hightpu-1t"),
    "v5e-8": ("v5litepod-8", "2x4", 8, 1, 8, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice",
              "ct5lp-hightpu-8t"),
    "v5e-256": ("v5litepod-256", "16x16", 256, 64, 4, "v2-alpha-tpuv5-lite",
                "tpu-v5-lite-podslice", "ct5lp-hightpu-4t"),
    "v5p-8": ("v5p-8", "2x2x1", 4, 1, 4, "v2-alpha-tpuv5", "tpu-v5p-slice", "ct5p-hightpu-4t"),
    "v5p-256": ("v5p-256", "4x4x8", 128, 32, 4, "v2-alpha-tpuv5", "tpu-v5p-slice",
                "ct5p-hightpu-4t"),
    "v6e-16": ("v6e-16", "4x4", 16, 4, 4, "v2-alpha-tpuv6e", "tpu-v6e-slice", "ct6e-standard-4t"),
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_name_means_what_googles_tables_say(name):
  t = tpu_types.parse(name)
  assert (t.accelerator_type, t.shape, t.chips, t.hosts, t.chips_per_host, t.generation.runtime,
          t.generation.gke_accelerator, t.machine) == KNOWN[name]


@pytest.mark.parametrize("names", [
    ("v5e-256", "v5litepod-256", "V5E:16x16", "v5litepod:16x16"), ("v5p-256", "v5p:4x4x8")])
def test_all_names_of_a_slice_mean_the_same(names):
  assert len({tpu_types.parse(name) for name in names}) == 1


def test_every_name_of_the_table_is_understood_and_its_hosts_hold_all_chips():
  for name in tpu_types.names():
    t = tpu_types.parse(name)
    assert t.hosts * t.chips_per_host == t.chips
    assert tpu_types.parse(t.accelerator_type) == t


def test_large_slices_may_have_any_shape_of_whole_cubes():
  t = tpu_types.parse("v5p:4x4x12")
  assert not t.is_default_shape and t.chips == 192 and t.hosts == 48


@pytest.mark.parametrize("name, near", [
    ("v5e-255", "v5e-256"), ("v5p:4x4x7", "v5p:4x4x8"), ("v5lite-256", "v5litepod-256"),
    ("v5e:4x4x4", ""), ("v5p:12x4x4", ""), ("v9-8", ""), ("", ""), ("v5p:32x32x32", "")])
def test_what_does_not_exist_is_refused_with_what_is_near(name, near):
  with pytest.raises(tpu_types.TpuTypeError, match="no such TPU slice") as error:
    tpu_types.parse(name)
  assert near in str(error.value)
