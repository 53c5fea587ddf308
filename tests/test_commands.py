"""evaluate and encode on a run that train made: what a person types, and what they get."""

import json

import numpy as np
import pytest
from PIL import Image

from big_vision_ext import encode, evaluate, train

CONFIG = "configs/ps3/own_data.py:runlocal"


@pytest.fixture(scope="module")
def workdir(small_sample_data, tmp_path_factory):
  out = tmp_path_factory.mktemp("run")
  argv = ["--config", f"{CONFIG},data={small_sample_data}", "--workdir", str(out),
          "--config.mesh.data=1", "--config.mesh.fsdp=8", "--config.batch_size=8"]
  assert train.main(argv) == 0
  return out


@pytest.mark.slow
def test_evaluate_repeats_what_training_reported_at_its_end(workdir, capsys):
  kept = json.loads((workdir / "evaluation.json").read_text())
  (workdir / "evaluation.json").unlink()
  assert evaluate.main(["--workdir", str(workdir)]) == 0
  stored = json.loads((workdir / "evaluation.json").read_text())
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  reported = {k: v for line in lines for k, v in line.items() if k.startswith("regions/")}
  assert reported and stored["regions/regions"] > 15
  assert kept == pytest.approx(stored, abs=1e-6)
  for name, value in reported.items():
    assert stored[name] == pytest.approx(value, abs=1e-6), name
  assert evaluate.main(["--workdir", str(workdir), "--compare", str(workdir)]) == 0
  assert "regions/topdown/retrieval_top1" in capsys.readouterr().out


@pytest.mark.slow
def test_encode_writes_features_and_a_picture_for_files_of_any_shape(workdir, tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (90, 200, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / "photo.png")
  argv = ["--workdir", str(workdir), "--image", str(tmp_path / "photo.png"), "--out",
          str(tmp_path / "out")]
  assert encode.main([*argv, "--prompt", "a red tag!"]) == 0
  assert encode.main([*argv, "--looks", "2"]) == 0
  prompted = np.load(tmp_path / "out" / "photo_a_red_tag.npz")
  plain = np.load(tmp_path / "out" / "photo.npz")
  # Two looks of 16 tokens, over a low-resolution pass of 2 x 2.
  assert len(plain["selected_index"]) == 32 and len(prompted["selected_index"]) == 16
  assert plain["last_hidden"].shape == (4 + 32, 32)
  assert "score_topdown" in prompted and "score_topdown" not in plain
  np.testing.assert_allclose(prompted["score_bottomup"], plain["score_bottomup"], atol=1e-5)
  taken = list(zip(plain["selected_scale"].tolist(), plain["selected_index"].tolist()))
  assert len(set(taken)) == 32
  assert Image.open(tmp_path / "out" / "photo.png").size[0] > 600


@pytest.mark.slow
def test_encode_takes_records_with_their_boxes_and_captions(workdir, small_sample_data, tmp_path):
  argv = ["--workdir", str(workdir), "--data", str(small_sample_data), "--index", "1",
          "--region", "0", "--out", str(tmp_path)]
  assert encode.main(argv) == 0
  assert len(list(tmp_path.glob("val-1_*.png"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("extra,message", [
  (["--image", "absent.png"], "absent.png: there is no such file"),
  ([], "either as files"),
  (["--data", "{data}", "--index", "99"], "records 0 to 2"),
  (["--data", "{data}", "--region", "50"], "--region=50"),
  (["--data", "{data}", "--looks", "many"], "--looks=many"),
  (["--data", "{data}", "--split", "test"], "val"),
])
def test_encode_says_what_is_wrong_with_its_arguments(workdir, small_sample_data, tmp_path, capsys,
                                                      extra, message):
  argv = ["--workdir", str(workdir), "--out", str(tmp_path / "out")]
  assert encode.main(argv + [e.format(data=small_sample_data) for e in extra]) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / "out").exists()


def test_commands_name_a_workdir_that_is_none(tmp_path, capsys):
  absent = str(tmp_path / "nothing")
  assert evaluate.main(["--workdir", absent]) == 2
  assert absent in capsys.readouterr().err
  assert evaluate.main(["--workdir", absent, "--compare", absent]) == 2
  assert "evaluate --workdir" in capsys.readouterr().err
