"""Comparisons with peers: what is reported, and that both sides compute the same."""

import json
import types

import numpy as np
import pytest

from big_vision_ext import bench
from big_vision_ext.benches import compare, ps3, restore

TINY = ["ps3", "--variants", "mu/16", "--base", "32", "--tokens", "8", "--selection-size", "56",
        "--repeats", "1", "--rounds", "1"]
KEYS = {"name", "mode", "px", "dtype", "seconds", "peak_gib", "tflop"}
PEER_KEYS = {"peer_seconds", "time_ratio", "peer_peak_gib", "memory_ratio", "max_abs_diff"}


def test_without_a_peer_only_ours_is_measured(tmp_path, capsys):
  file = tmp_path / "rows.json"
  assert bench.main([*TINY, "--px", "64", "--modes", "look1", "--dtypes", "float32",
                     "--json", str(file)]) == 0
  (row,) = json.loads(file.read_text())
  assert set(row) > KEYS and not set(row) & PEER_KEYS
  assert (row["mode"], row["px"], row["dtype"]) == ("look1", 64, "float32")
  # What is selected and attended to, by the formula and in the compiled program.
  assert row["tflop"] == pytest.approx(row["model_tflop"], rel=0.35)
  assert "| PS3 mu/16 | look1 | 64 | float32 |" in capsys.readouterr().out


def test_ratios_are_of_medians_and_differences_of_the_largest_number():
  ours = {"seconds": np.array([1.0, 5.0, 2.0]), "cpu_seconds": np.array([3.0]), "peak_gib": 1.0,
          "compile_seconds": 9.0, "flops": 2e12, "product_flops": 4e12, "x": np.array([1.0, -8.0])}
  theirs = ours | {"seconds": np.array([4.0]), "peak_gib": 2.0, "x": np.array([1.5, -8.0])}
  row = compare.row(ours, theirs, name="n") | compare.differences(ours, theirs, ["x"])
  assert row["time_ratio"] == row["memory_ratio"] == row["max_abs_diff"] == 0.5
  assert row["max_rel_diff"] == 0.5 / 8 and row["tflop"] == 2.0
  # Half a second of products against four of the peer.
  assert row["floor_ratio"] == 0.125


def test_growth_compares_programs_that_differ_in_pixels_alone():
  rows = [dict(name="n", mode=m, dtype="float32", px=px, tflop=t)
          for px, m, t in ((64, "look1", 2.0), (64, "train", 6.0), (128, "look1", 2.1))]
  assert ps3.growth(rows) == ["n, look1, float32: 128 px take 1.0500 of the FLOPs of 64 px"]


@pytest.mark.parametrize("argv, said", [
    (["--px", "65"], "65 is not among"),
    (["--px", "64", "--modes", "look3"], "look3"),
    (["--px", "64", "--peer", "ps3_torch", "--peer-python", "nowhere"], "nowhere"),
])
def test_impossible_options_are_errors_in_one_line(argv, said, capsys):
  assert bench.main([*TINY, *argv]) == 2
  err = capsys.readouterr().err
  assert said in err and "Traceback" not in err


def test_a_process_that_fails_is_an_error_with_what_it_said():
  with pytest.raises(ValueError, match="there is no such file or folder"):
    compare.measure("ps3", "", None, {}, {"folder": "nowhere"}, types.SimpleNamespace(rounds=1))


@pytest.mark.slow
@pytest.mark.oracle
def test_both_sides_of_bench_ps3_compute_the_same(tmp_path):
  file = tmp_path / "rows.json"
  assert bench.main([*TINY, "--px", "64", "--peer", "ps3_torch", "--dtypes", "float32",
                     "--json", str(file)]) == 0
  rows = json.loads(file.read_text())
  assert len(rows) == 3
  for row in rows:
    assert set(row) >= KEYS | PEER_KEYS
    # float32 on both sides, in another order.
    assert row["max_rel_diff"] < 2e-5, row


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("argv", [
    ["siglip", "--batch", "3", "--vocab", "50", "--peer", "open_clip"],
    ["mae", "--batch", "4", "--accum", "2", "--peer", "transformers", "--peer-huge-pages"],
], ids=lambda argv: argv[0])
def test_both_sides_of_a_training_step_compute_the_same(tmp_path, argv):
  file = tmp_path / "rows.json"
  assert bench.main([*argv, "--variant", "mu/16", "--px", "64", "--repeats", "1", "--rounds", "1",
                     "--dtypes", "float32", "--json", str(file)]) == 0
  (row,) = json.loads(file.read_text())
  assert set(row) >= KEYS | PEER_KEYS and row["max_rel_diff"] < 2e-5, row


@pytest.mark.slow
@pytest.mark.oracle
def test_both_sides_of_bench_clip_compute_the_same(tmp_path, capsys):
  file = tmp_path / "rows.json"
  assert bench.main(["clip", "--variant", "mu/16", "--px", "64", "--batch", "3", "--repeats", "1",
                     "--rounds", "1", "--peer", "transformers", "--dtypes", "float32", "--json",
                     str(file)]) == 0
  (row,) = json.loads(file.read_text())
  assert set(row) >= KEYS | PEER_KEYS and row["max_rel_diff"] < 2e-5, row
  assert row["images_per_second"] == pytest.approx(3 / row["seconds"])
  # The formula knows that the last block is computed for the class token alone.
  assert row["tflop"] == pytest.approx(row["model_tflop"], rel=0.02)
  assert "| CLIP mu/16, batch 3 | features | 64 | float32 |" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("net, mode, fields", [
    ("msrresnet", "infer", dict(width=8, depth=2)),
    ("swinir_light", "train", dict(width=12, depth=1, blocks=2, heads=2))])
def test_both_sides_of_bench_restore_compute_the_same(tmp_path, net, mode, fields):
  file = tmp_path / "rows.json"
  assert bench.main(["restore", "--net", net, "--fields", json.dumps(fields), "--px", "16",
                     "--batch", "2", "--repeats", "1", "--rounds", "1", "--peer", "torch",
                     "--modes", mode, "--json", str(file)]) == 0
  (row,) = json.loads(file.read_text())
  assert row["mode"] == mode and row["images_per_second"] == pytest.approx(2 / row["seconds"])
  assert set(row) >= KEYS | PEER_KEYS and row["max_rel_diff"] < 2e-5, row


def test_a_population_is_set_against_one_alone(capsys):
  rows = [dict(mode=m, dtype="float32", members=n, per_seed_seconds=t, per_seed_ratio=t / 2)
          for m, n, t in (("alone", 1, 2.0), ("vmap", 3, 1.0))]
  assert restore.per_seed(rows) == ["float32, vmap: 1.000 s for each of 3, 0.500 of one alone"]
  assert bench.main(["restore", "--seeds", "1"]) == 2
  assert "--seeds=1: expected at least 2" in capsys.readouterr().err
  assert bench.main(["restore", "--modes", "look1"]) == 2
  assert "'look1' is unknown" in capsys.readouterr().err
