"""bench input: that all pipelines make the same rows, and that it would notice if they did not."""

import numpy as np
import pytest

from big_vision_ext import bench
from big_vision_ext.benches import input as bench_input
from big_vision_ext.benches import input_photos
from input_pipeline import pyramid

CASE = bench_input.Case(
  "small", dict(image_size=64, tile_size=16, view_size=32, global_share=0.5), (160, 120), 3,
  ("plain", "pyramid"), tiles=6)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  """Small photographs in both layouts."""
  paths = {}
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pyramid, "WORTH_IT", 100)
    for layout in CASE.layouts:
      paths[layout] = str(tmp_path_factory.mktemp("photos") / layout)
      input_photos.write(paths[layout], CASE.stored, CASE.count, layout)
  return paths


def test_all_pipelines_agree_on_boxes_and_tokens_and_nearly_on_pixels(data):
  results = bench_input.run_case(CASE, data, "train", 1, threads=0)
  names = [r["pipeline"] for r in results]
  assert names[:2] == ["PIL, as torchvision", "OpenCV, as big_vision"]
  assert set(names[2:]) == {f"{layout}, {resize}{tiles}" for layout in CASE.layouts
                            for resize in ("bicubic", "fast") for tiles in ("", ", 6 tiles")}
  off = {r["pipeline"]: r["pixels"]["mean"] for r in results}
  assert off["PIL, as torchvision"] == 0
  # At a zoom of about two from a file, Pillow's own kernel: nothing but the decoder's reduction.
  assert off["plain, bicubic"] < 3 and off["pyramid, bicubic"] < 5
  for r in results:
    assert r["ms"]["total"] == pytest.approx(sum(r["ms"][part] for part in bench_input.PARTS))
  table = bench_input.table(results)
  assert table.count("\n| ") == len(results) + 1 and "plain, fast, 6 tiles" in table


@pytest.mark.parametrize("name", ["text", "box", "is_global"])
def test_a_pipeline_with_other_boxes_or_tokens_is_an_error(name):
  batch = {"text": np.arange(4), "box": np.ones((1, 4)), "is_global": np.zeros(1, bool)}
  other = batch | {name: batch[name].copy()}
  other[name].flat[0] = 1 - other[name].flat[0]
  with pytest.raises(ValueError, match=f"the {name} of the pipelines differ"):
    bench_input.difference(other, batch)


def test_the_loader_is_measured_with_its_transfer(data):
  rows = bench_input._rows(CASE, data["pyramid"], "train", tiles=6)
  got = bench_input.end_to_end(rows.config, 2, 2)
  # A view, six tiles and their places, 64 ids, a box, and whether it is the whole.
  assert got["bytes"] == 32 * 32 * 3 + 6 * (16 * 16 * 3 + 4) + 64 * 4 + 16 + 1
  assert got["images_per_second"] > 0 and 0 <= got["wait_share"] <= 1


def test_an_unknown_case_or_an_impossible_number_is_an_error_in_one_line(capsys):
  assert bench.main(["input", "--cases", "siglip,ps4"]) == 2
  assert "'ps4' is not among siglip, siglip_4k, ps3_4k" in capsys.readouterr().err
  assert bench.main(["input", "--images", "0"]) == 2
  assert "--images 0 must be at least 1" in capsys.readouterr().err
