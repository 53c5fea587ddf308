"""Promises of the writer: whole shards or none, resumption without a trace, counted skips."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import records
from input_pipeline.build import durable, writer

ROOT = pathlib.Path(__file__).resolve().parents[3]


def sample(i, **changes):
  fields = {
    "id": f"id{i}",
    "image": bytes([i % 256]) * (100 + i),
    "width": 8,
    "height": 6,
    "boxes": np.array([[0, 1, 2, 3 + i % 2]], np.float32),
    "texts": [f"text {i}"],
  }
  return records.Sample(**{**fields, **changes})


def build(out, items=range(10), load=sample, **options):
  options = {"shard_size": 4, "progress": False, **options}
  report = writer.write_split(out, "train", items, load, **options)
  writer.finish(out, {"train": report}, {"from": "test"})
  return report


def contents(out):
  return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_what_was_written_is_read_back_in_order(tmp_path):
  report = build(tmp_path)
  source = records.open_dataset(tmp_path, "train")
  assert [source[i].id for i in range(len(source))] == [f"id{i}" for i in range(10)]
  assert source[7].image == sample(7).image
  np.testing.assert_array_equal(source[7].boxes, sample(7).boxes)
  assert [shard["records"] for shard in report.shards] == [4, 4, 2]
  assert (report.records, report.regions, report.skipped, report.resumed) == (10, 10, {}, 0)


def test_bytes_do_not_depend_on_the_number_of_threads(tmp_path):
  for threads in (1, 5):
    build(tmp_path / str(threads), threads=threads)
  assert contents(tmp_path / "1") == contents(tmp_path / "5")


@pytest.mark.parametrize("stop_at", [0, 3, 4, 9])
def test_an_interrupted_build_resumes_to_the_same_bytes(tmp_path, stop_at):
  build(tmp_path / "straight")

  def failing(i):
    if i == stop_at:
      raise KeyboardInterrupt
    return sample(i)

  out = tmp_path / "resumed"
  with pytest.raises(KeyboardInterrupt):
    build(out, load=failing, threads=1)
  assert not (out / records.MANIFEST).exists()
  loaded = []
  report = build(out, load=lambda i: loaded.append(i) or sample(i))
  assert report.resumed == stop_at // 4 * 4
  assert sorted(loaded) == list(range(report.resumed, 10))
  assert contents(out) == contents(tmp_path / "straight")


def test_a_build_killed_in_mid_shard_is_no_data_set_and_resumes(tmp_path):
  program = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import test_writer
def load(i):
  if i == 6: os.kill(os.getpid(), signal.SIGKILL)
  return test_writer.sample(i)
test_writer.build(test_writer.pathlib.Path({str(tmp_path / "killed")!r}), load=load, threads=1)
"""
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
  assert done.returncode == -signal.SIGKILL
  out = tmp_path / "killed"
  # What the killed process left of its second shard carries a name no reader looks for.
  assert [p.name for p in out.glob("*.arrayrecord")] == ["train-00000-of-00003.arrayrecord"]
  with pytest.raises(records.DatasetError, match="is not a data set"):
    records.open_dataset(out, "train")
  assert build(out).resumed == 4
  build(tmp_path / "straight")
  assert contents(out) == contents(tmp_path / "straight")


def test_a_shard_without_its_side_car_is_written_again(tmp_path):
  build(tmp_path)
  before = contents(tmp_path)
  (tmp_path / "train-00001-of-00003.json").unlink()
  (tmp_path / "train-00001-of-00003.arrayrecord").write_bytes(b"half")
  assert build(tmp_path).resumed == 6
  assert contents(tmp_path) == before


def test_a_shard_of_another_size_than_noted_is_written_again(tmp_path):
  build(tmp_path)
  before = contents(tmp_path)
  with open(tmp_path / "train-00002-of-00003.arrayrecord", "ab") as file:
    file.write(b"more")
  assert build(tmp_path).resumed == 8
  assert contents(tmp_path) == before


def test_skipped_records_are_counted_and_named(tmp_path):
  def load(i):
    if i in (2, 3, 8):
      raise writer.SkipRecord("odd-one" if i == 3 else "even-one", f"number {i}")
    return sample(i)

  report = build(tmp_path, load=load, max_skip_share=0.3)
  assert report.skipped == {"even-one": 2, "odd-one": 1}
  lines = [json.loads(line) for line in open(tmp_path / "skipped-train.jsonl")]
  assert [(line["file"], line["reason"], line["detail"]) for line in lines] == [
    ("2", "even-one", "number 2"), ("3", "odd-one", "number 3"), ("8", "even-one", "number 8"),
  ]
  manifest = records.read_manifest(tmp_path)
  assert manifest["splits"]["train"]["skipped"] == report.skipped
  assert len(records.open_dataset(tmp_path, "train")) == 7
  # Counts of finished shards come back from disk.
  assert build(tmp_path, load=load, max_skip_share=0.3).skipped == report.skipped


def test_dropped_and_mended_parts_are_counted(tmp_path):
  def load(i):
    fields = vars(sample(i))
    return writer.BuiltSample(**fields, dropped=[("empty", "a")] * 2, mended=[("clipped", "b")])

  report = build(tmp_path, load=load)
  assert report.dropped == {"empty": 20}
  assert report.mended == {"clipped": 10}
  assert report.skipped == {}


def test_too_many_skips_stop_the_build_and_list_the_reasons(tmp_path):
  def load(i):
    if i >= 7:
      raise writer.SkipRecord("broken", "bytes")
    return sample(i)

  with pytest.raises(writer.BuildError, match=r"(?s)2 of 10 .*0\.1.*broken 2.*--max-skip-share"):
    build(tmp_path, load=load, max_skip_share=0.1)
  assert "broken" in (tmp_path / "skipped-train.jsonl").read_text()
  report = build(tmp_path, load=load, max_skip_share=0.5)
  assert (report.resumed, report.records, report.skipped) == (8, 7, {"broken": 3})


def test_a_share_is_counted_over_resumed_shards_too(tmp_path):
  def load(i):
    if i % 2:
      raise writer.SkipRecord("odd")
    return sample(i)

  build(tmp_path, load=load, max_skip_share=0.5)
  with pytest.raises(writer.BuildError, match="5 of 10"):
    build(tmp_path, load=load, max_skip_share=0.4)


def test_one_bad_record_does_not_stop_a_small_split_unless_none_is_allowed(tmp_path):
  def load(i):
    if i == 1:
      raise writer.SkipRecord("bad")
    return sample(i)

  assert build(tmp_path / "a", items=range(4), load=load, max_skip_share=0.01).records == 3
  with pytest.raises(writer.BuildError, match="1 of 4"):
    build(tmp_path / "b", items=range(4), load=load, max_skip_share=0)


def test_a_shard_of_skips_only_leaves_no_file(tmp_path):
  def load(i):
    if 4 <= i < 8:
      raise writer.SkipRecord("gap")
    return sample(i)

  report = build(tmp_path, load=load, max_skip_share=0.4)
  assert [shard["records"] for shard in report.shards] == [4, 2]
  assert not (tmp_path / "train-00001-of-00003.arrayrecord").exists()
  assert build(tmp_path, load=load, max_skip_share=0.4).resumed == 10
  assert records.open_dataset(tmp_path, "train")[4].id == "id8"


def test_a_split_that_is_skipped_whole_is_an_error(tmp_path):
  def load(i):
    raise writer.SkipRecord("gone")

  with pytest.raises(writer.BuildError, match="every one of 10 records was skipped .gone 10"):
    build(tmp_path, load=load, max_skip_share=1.0)


@pytest.mark.parametrize(
  "change",
  [{"items": range(11)}, {"items": list(range(1, 11))}, {"shard_size": 5},
   {"settings": {"seed": 1}}],
  ids=["more", "others", "shard-size", "settings"],
)
def test_another_build_in_the_same_directory_is_refused(tmp_path, change):
  build(tmp_path)
  before = contents(tmp_path)
  with pytest.raises(writer.BuildError, match="already holds another build of split 'train'"):
    build(tmp_path, **change)
  assert contents(tmp_path) == before


def test_shards_of_unknown_origin_are_not_overwritten(tmp_path):
  (tmp_path / "train-00000-of-00001.arrayrecord").write_bytes(b"precious")
  with pytest.raises(writer.BuildError, match="unknown origin"):
    build(tmp_path)
  assert (tmp_path / "train-00000-of-00001.arrayrecord").read_bytes() == b"precious"


def test_a_second_writer_of_a_directory_is_refused(tmp_path):
  with durable.only_writer_of(tmp_path):
    with pytest.raises(writer.BuildError, match="another build is writing here"):
      build(tmp_path)
  build(tmp_path)


def test_splits_are_added_to_a_data_set_that_exists(tmp_path):
  build(tmp_path)
  report = writer.write_split(tmp_path, "val", range(3), sample, progress=False)
  writer.finish(tmp_path, {"val": report}, {"more": 1})
  manifest = records.read_manifest(tmp_path)
  assert manifest["info"] == {"from": "test", "more": 1}
  assert len(records.open_dataset(tmp_path, "train")) == 10
  assert len(records.open_dataset(tmp_path, "val")) == 3


def test_a_full_disk_is_explained_and_leaves_no_half_shard(tmp_path, monkeypatch):
  real = os.fsync

  def full(handle):
    if "arrayrecord" in os.readlink(f"/proc/self/fd/{handle}"):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    real(handle)

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(writer.BuildError, match=r"No space left.*run the same command again"):
    build(tmp_path)
  assert not list(tmp_path.glob("*.arrayrecord*"))
  monkeypatch.undo()
  assert build(tmp_path).records == 10


def test_a_write_the_library_lost_is_noticed(tmp_path, monkeypatch):
  class Forgetful:
    """A writer of which one record never reaches the disk, as when it is full."""

    def __init__(self, path, options):
      self._real = real(path, options)
      self._left = 3

    def write(self, data):
      self._left -= 1
      if self._left >= 0:
        self._real.write(data)

    def close(self):
      self._real.close()

  real = writer.array_record_module.ArrayRecordWriter
  monkeypatch.setattr(writer.array_record_module, "ArrayRecordWriter", Forgetful)
  with pytest.raises(writer.BuildError, match="4 records were written, 3 arrived"):
    build(tmp_path)
  assert not list(tmp_path.glob("*.arrayrecord*"))


def test_a_full_disk_reported_by_the_library_is_explained(tmp_path, monkeypatch):
  class Full:
    """As ArrayRecord's writer behaves on a full disk."""

    def __init__(self, path, options):
      pathlib.Path(path).write_bytes(b"some")

    def write(self, data):
      pass

    def close(self):
      raise RuntimeError("write() failed: No space left on device")

  monkeypatch.setattr(writer.array_record_module, "ArrayRecordWriter", Full)
  with pytest.raises(writer.BuildError, match=r"No space left.*run the same command again"):
    build(tmp_path)
  assert not list(tmp_path.glob("*.arrayrecord*"))


def test_finish_refuses_a_shard_that_changed(tmp_path):
  report = build(tmp_path)
  (tmp_path / "train-00001-of-00003.arrayrecord").write_bytes(b"cut")
  with pytest.raises(writer.BuildError, match=r"00001-of-00003.*found 3"):
    writer.finish(tmp_path, {"train": report}, {})


def test_an_error_in_load_says_which_record(tmp_path):
  def load(i):
    return sample(i) if i < 5 else 1 / 0

  with pytest.raises(ZeroDivisionError) as caught:
    build(tmp_path, load=load)
  assert caught.value.__notes__ == ["This happened while building the record of 5."]
  assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
  "options, message",
  [({"items": []}, "no record to write"), ({"shard_size": 0}, "at least 1"),
   ({"threads": 0}, "at least 1"), ({"max_skip_share": 2}, "share"),
   ({"max_skip_share": float("nan")}, "share")],
)
def test_impossible_arguments_are_refused(tmp_path, options, message):
  with pytest.raises(writer.BuildError, match=message):
    build(tmp_path, **options)


def test_items_a_later_run_cannot_compare_are_refused(tmp_path):
  with pytest.raises(TypeError, match="plain data"):
    build(tmp_path, items=[object()])
