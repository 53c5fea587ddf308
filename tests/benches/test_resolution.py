"""bench resolution: which scales it measures, and that it counts what is encoded."""

import pytest

from big_vision_ext import bench
from big_vision_ext.benches import resolution


def test_the_benchmark_knows_which_scales_a_resolution_has():
  assert resolution.scales_for(384, 384) == (384,)
  assert resolution.scales_for(3840, 384) == (384, 768, 1536, 3840)
  with pytest.raises(ValueError, match="1000 is not among"):
    resolution.scales_for(1000, 384)


@pytest.mark.slow
def test_the_benchmark_reports_the_tokens_it_encodes():
  row = resolution.measure("mu/16", 128, 32, 20, 1, 64)
  assert row["tokens"] == 4 + 20 and row["all_tokens"] == 4 + 16 + 64
  assert resolution.measure("mu/16", 32, 32, 20, 1, 64)["tokens"] == 4


def test_an_impossible_resolution_is_an_error_in_one_line(capsys):
  assert bench.main(["resolution", "--resolutions", "1000"]) == 2
  assert "1000 is not among" in capsys.readouterr().err
