"""The command does what its help says, refuses what it would ignore, and ends with a summary."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from input_pipeline import pictures, records
from input_pipeline.build import check, cli

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def inputs(tmp_path):
  """Thirty images with a region each; one caption is empty, one image is missing."""
  images = tmp_path / "images"
  images.mkdir()
  with open(tmp_path / "a.jsonl", "w") as file:
    for i in range(30):
      if i != 7:
        Image.new("RGB", (20, 10), (i, i, i)).save(images / f"{i}.png")
      text = "" if i == 9 else f"thing {i}"
      entry = {"image": f"{i}.png", "global_text": f"picture {i}",
               "regions": [{"box": [0, 0, 5, 5 + i % 2], "text": text}]}
      file.write(json.dumps(entry) + "\n")
  return ["--from", "jsonl", "--images", str(images), "--annotations", str(tmp_path / "a.jsonl")]


def run(*args):
  return cli.main([*args, "--quiet"])


def test_the_command_builds_a_data_set_and_says_what_comes_next(tmp_path, inputs):
  out = tmp_path / "out"
  done = subprocess.run(
    [sys.executable, "-m", "input_pipeline.build", *inputs, "--out", str(out), "--val-share",
     "0.2", "--shard-size", "8", "--licence", "CC0"],
    cwd=ROOT, capture_output=True, text=True, timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert "images skipped: image-missing 1" in done.stdout
  assert "regions and captions left out: caption-empty 1" in done.stdout
  assert f"--config configs/ps3/own_data.py:data={out}" in done.stdout
  assert "records" in done.stderr
  train, val = (records.open_dataset(out, split) for split in ("train", "val"))
  assert len(train) + len(val) == 29 and len(val) > 0
  ids = [sample.id for source in (train, val) for sample in source]
  assert sorted(ids) == sorted(f"{i}.png" for i in range(30) if i != 7)
  assert train.info["train"]["licence"] == "CC0"
  skipped = [json.loads(line) for split in ("train", "val")
             for path in out.glob(f"skipped-{split}.jsonl") for line in open(path)]
  assert {(line["file"], line["reason"]) for line in skipped} == {
    ("7.png", "image-missing"), ("9.png", "caption-empty")}


def test_running_it_again_changes_nothing(tmp_path, inputs, capsys):
  out = tmp_path / "out"
  assert run(*inputs, "--out", str(out)) == 0
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  assert run(*inputs, "--out", str(out)) == 0
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_an_interruption_says_that_the_same_command_goes_on(tmp_path, inputs, capsys, monkeypatch):
  real, calls = check.sample_from, []

  def interrupted(name, *args, **kwargs):
    calls.append(name)
    if len(calls) == 20:
      raise KeyboardInterrupt
    return real(name, *args, **kwargs)

  monkeypatch.setattr(check, "sample_from", interrupted)
  out = tmp_path / "out"
  command = [*inputs, "--out", str(out), "--split", "train", "--shard-size", "4"]
  assert run(*command) == 130
  assert "the same command goes on" in capsys.readouterr().err
  assert not (out / records.MANIFEST).exists()
  monkeypatch.undo()
  assert run(*command) == 0
  assert run(*command[:-5], str(tmp_path / "straight"), *command[-4:]) == 0
  for path in (tmp_path / "straight").iterdir():
    assert (out / path.name).read_bytes() == path.read_bytes()


def test_too_many_skips_end_with_the_reasons(tmp_path, inputs, capsys):
  command = [*inputs, "--out", str(tmp_path / "out"), "--split", "train"]
  assert run(*command, "--max-skip-share", "0") == 1
  assert "image-missing 1" in capsys.readouterr().err
  assert run(*command) == 0


def test_limit_uses_the_first_images(tmp_path, inputs):
  assert run(*inputs, "--out", str(tmp_path / "out"), "--limit", "5", "--split", "few") == 0
  source = records.open_dataset(tmp_path / "out", "few")
  assert [sample.id for sample in source] == [f"{i}.png" for i in range(5)]


@pytest.mark.parametrize(
  "change, message",
  [
    (["--limit", "0"], "--limit 0"),
    (["--captions", "x"], "does not take --captions"),
    (["--seed", "1"], "does not take --seed"),
    (["--split", "a", "--val-share", "0.1"], "no meaning"),
    (["--split", "../a"], "expected a name"),
    (["--val-share", "1.5"], "val share 1.5"),
    (["--shard-size", "0"], "at least 1"),
    (["--annotations", "/nowhere.jsonl"], "/nowhere.jsonl"),
    (["--images", "/nowhere"], "/nowhere"),
    (["--from", "coco"], "not valid JSON"),
    (["--from", "folder"], "does not take --annotations"),
    (["--from", "sample"], "does not take --annotations, --images"),
  ],
)
def test_a_mistake_is_named_in_one_sentence(tmp_path, inputs, capsys, change, message):
  assert run(*inputs, "--out", str(tmp_path / "out"), *change) == 1
  error = capsys.readouterr().err
  assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_what_a_format_needs_is_asked_for(tmp_path, capsys):
  assert run("--from", "coco", "--out", str(tmp_path)) == 1
  assert "needs --images" in capsys.readouterr().err


def test_a_folder_without_captions_is_an_error_that_says_what_was_found(tmp_path, capsys):
  Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
  assert run("--from", "folder", "--images", str(tmp_path), "--out", str(tmp_path / "out")) == 1
  assert "image-without-caption 1" in capsys.readouterr().err


@pytest.fixture
def wide(tmp_path):
  """A wide picture, which becomes a pyramid, and a small one, which does not."""
  images = tmp_path / "wide"
  images.mkdir()
  Image.radial_gradient("L").resize((1200, 60)).convert("RGB").save(images / "a.jpg")
  Image.new("RGB", (20, 10)).save(images / "b.png")
  for name in "ab":
    (images / f"{name}.txt").write_text(f"picture {name}")
  return ["--from", "folder", "--images", str(images)]


def test_the_pyramid_layout_cuts_up_large_images_and_says_so_in_the_manifest(tmp_path, wide):
  plain, out = tmp_path / "plain", tmp_path / "out"
  assert run(*wide, "--out", str(plain), "--split", "train") == 0
  for _ in range(2):  # The second run finds all done.
    assert run(*wide, "--out", str(out), "--split", "train", "--layout", "pyramid") == 0
  manifest = records.read_manifest(out)
  assert manifest["version"] == 2 and records.read_manifest(plain)["version"] == 1
  assert manifest["info"]["train"]["layout"] == "pyramid"
  large, small = records.open_dataset(out, "train")
  assert large.pyramid.size(0) == (large.width, large.height) == (1200, 60) and not large.image
  was, _ = records.open_dataset(plain, "train")
  off = pictures.whole(large, "a").astype(int) - pictures.whole(was, "a")
  assert np.abs(off).mean() < 1
  assert small.pyramid is None and small.image.startswith(b"\x89PNG")


def test_a_layout_is_part_of_what_a_build_is(tmp_path, wide, capsys):
  out = str(tmp_path / "out")
  assert run(*wide, "--out", out, "--split", "train", "--layout", "pyramid") == 0
  assert run(*wide, "--out", out, "--split", "train") == 1
  assert "already holds another build" in capsys.readouterr().err
  # A plain split beside it leaves the warning to readers that know no pyramids.
  assert run(*wide, "--out", out, "--split", "val") == 0
  assert records.read_manifest(out)["version"] == 2
  assert run("--from", "sample", "--out", out, "--layout", "pyramid") == 1
  assert "--from sample does not take --layout" in capsys.readouterr().err
