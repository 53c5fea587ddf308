"""STL-10's binary files, made here in its layout, become the same pixels and classes."""

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline import loader, records
from input_pipeline.build import cli, stl10
from input_pipeline.build.durable import BuildError

NAMES = ("airplane", "bird", "car")


def pictures(n, seed):
  """(n, y, x, c): no two rows, columns or channels alike."""
  return np.random.default_rng(seed).integers(0, 256, (n, 96, 96, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
  root = tmp_path / "stl10_binary"
  root.mkdir()
  for seed, (stem, count) in enumerate((("unlabeled", 5), ("train", 7), ("test", 4))):
    with open(root / f"{stem}_X.bin", "wb") as file:
      for image in pictures(count, seed):
        for channel in range(3):
          for column in range(96):
            file.write(image[:, column, channel].tobytes())
    if stem != "unlabeled":
      (root / f"{stem}_y.bin").write_bytes(bytes(1 + i % 3 for i in range(count)))
  (root / "class_names.txt").write_text("\n".join(NAMES) + "\n")
  (root / "fold_indices.txt").write_text("0 1 2\n")
  return root


def test_pixels_and_classes_are_those_of_the_files(folder, tmp_path):
  assert cli.main(["--from", "stl10", "--images", str(folder), "--out", str(tmp_path / "d"),
                   "--quiet"]) == 0
  for seed, (split, count) in enumerate((("unlabeled", 5), ("train", 7), ("val", 4))):
    found = list(records.open_dataset(tmp_path / "d", split))
    assert len(found) == count
    for i, (sample, want) in enumerate(zip(found, pictures(count, seed))):
      got = np.asarray(Image.open(io.BytesIO(sample.image)))
      np.testing.assert_array_equal(got, want)
      assert sample.label == (None if split == "unlabeled" else NAMES[i % 3])
      assert (sample.width, sample.height) == (96, 96)
  # Training on pictures alone reads what has neither class nor caption.
  config = loader.InputConfig(data=str(tmp_path / "d"), split="unlabeled", image_size=96,
                              captions=False, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0),
                              resize="fast", threads=1)
  with contextlib.closing(loader.train_stream(config, batch_size=4, seed=0)) as stream:
    batch = next(stream)
  known = {image.tobytes() for image in pictures(5, 0)}
  assert list(batch) == ["image"] and all(x.tobytes() in known for x in batch["image"])


def test_fewer_files_and_fewer_images_are_fine_and_a_second_build_finds_all_done(folder, tmp_path):
  (folder / "unlabeled_X.bin").unlink()
  (folder / "test_X.bin").unlink()
  for resumed in (0, 3):
    reports = stl10.build(tmp_path / "d", folder, limit=3, progress=False)
    assert {k: (r.records, r.resumed) for k, r in reports.items()} == {"train": (3, resumed)}


def _cut(root):
  data = (root / "train_X.bin").read_bytes()
  (root / "train_X.bin").write_bytes(data[:-5])


def _fewer_labels(root):
  (root / "test_y.bin").write_bytes(b"\1\2\3")


def _zero_label(root):
  (root / "train_y.bin").write_bytes(b"\1\2\3\0\1\2\3")


@pytest.mark.parametrize("spoil, message", [
  (_cut, r"train_X.bin: has 193,531 bytes, expected a multiple of 27,648"),
  (_fewer_labels, r"test_y.bin: has 3 labels, expected 4"),
  (_zero_label, r"train_y.bin: label 3 is 0, expected 1 to 3"),
  (lambda root: (root / "class_names.txt").unlink(), "class_names.txt: cannot be read"),
  (lambda root: (root / "class_names.txt").write_text("cat\ncat"), "names of different classes"),
  (lambda root: (root / "train_y.bin").unlink(), "train_y.bin: there is no such file"),
  (lambda root: [p.unlink() for p in root.glob("*_X.bin")], "has none of STL-10's files"),
])
def test_files_that_are_not_stl10s_are_refused_before_anything_is_written(
    folder, tmp_path, spoil, message):
  spoil(folder)
  with pytest.raises(BuildError, match=message):
    stl10.build(tmp_path / "d", folder, progress=False)
  assert not (tmp_path / "d").exists()


def test_options_that_would_be_ignored_are_refused(folder, tmp_path, capsys):
  argv = ["--from", "stl10", "--images", str(folder), "--out", str(tmp_path / "d")]
  assert cli.main([*argv, "--val-share", "0.1"]) == 1
  assert "--from stl10 does not take --val-share" in capsys.readouterr().err
