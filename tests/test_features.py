"""What is written can be read, whole or not at all."""

import ml_dtypes
import numpy as np
import pytest

from big_vision_ext import features

GRIDS = [(2, 2), (4, 2), (8, 4)]


def output(seed=0, width=5):
  """An output as an encoder gives it: tokens by scale and raster, choices look after look."""
  rng = np.random.default_rng(seed)
  looks = [(3, 5), (2, 4)]
  orders = [rng.permutation(y * x) for y, x in GRIDS[1:]]
  scale, index = [], []
  taken = [0, 0]
  for look in looks:
    for i, n in enumerate(look):
      index += sorted(orders[i][taken[i]:taken[i] + n])
      scale += [i] * n
      taken[i] += n
  return {
      "last_hidden": rng.standard_normal((4 + sum(taken), width)).astype(np.float32),
      "selected_scale": np.array(scale, np.int32), "selected_index": np.array(index, np.int32),
      "grids": np.array(GRIDS, np.int32), "pooled": rng.standard_normal(width).astype(np.float32)}


def about(**more):
  return {"format": features.FORMAT, "version": features.VERSION, "image": "a.png"} | more


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_maps_have_each_token_at_its_place_and_zeros_elsewhere(seed):
  found = output(seed)
  tokens = iter(found["last_hidden"])
  want = [np.zeros((5, y, x), np.float32) for y, x in GRIDS]
  for at in range(4):
    want[0][:, at // 2, at % 2] = next(tokens)
  for i, (y, x) in enumerate(GRIDS[1:]):
    for at in range(y * x):  # Raster order, whatever look a token came with.
      if ((found["selected_scale"] == i) & (found["selected_index"] == at)).any():
        want[i + 1][:, at // x, at % x] = next(tokens)
  assert next(tokens, None) is None
  for ours, theirs in zip(features.maps(found), want, strict=True):
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("form", ["npz", "arrayrecord"])
@pytest.mark.parametrize("dtype", list(features.DTYPES))
def test_outputs_come_back_bit_identical_in_every_type(tmp_path, form, dtype):
  writer = features.WRITERS[form](tmp_path)
  stored = features.arrays_to_write(output(), dtype, as_maps=True)
  writer.write("deep/a", stored, about(prompt="é \"x\""))
  writer.close()
  if form == "npz":
    back = features.read(tmp_path / "deep" / "a.npz")
  else:
    records = features.Records(tmp_path)
    assert records.names == ["deep/a"] and len(records) == 1
    back = records[0]
  assert back.pop("about") == about(prompt="é \"x\"")
  assert back.keys() == stored.keys() and "last_hidden" not in back
  for name, value in stored.items():
    assert back[name].dtype == value.dtype
    np.testing.assert_array_equal(back[name].view(np.uint8), value.view(np.uint8))
  assert back["map_2"].dtype == features.DTYPES[dtype] and back["map_2"].shape == (5, 8, 4)
  assert writer.about("deep/a")["image"] == "a.png" and writer.about("deep/b") is None


def test_numbers_too_large_for_the_type_are_refused_not_stored_as_infinite():
  found = output()
  found["pooled"][2] = 1e5
  with pytest.raises(features.FeaturesError, match="pooled.*1e\\+05.*--dtype=float16"):
    features.arrays_to_write(found, "float16", as_maps=False)
  assert features.arrays_to_write(found, "bfloat16", False)["pooled"].dtype == ml_dtypes.bfloat16


def test_records_go_on_in_new_shards_and_a_shard_without_its_list_does_not_count(tmp_path):
  for start in (0, 3):
    writer = features.RecordWriter(tmp_path, per_shard=2)
    assert [writer.about(f"n{i}") is None for i in range(6)] == [i >= start for i in range(6)]
    for i in range(start, start + 3):
      writer.write(f"n{i}", {"x": np.full(2, i)}, about(i=i))
    writer.close()
  records = features.Records(tmp_path)
  assert [(name, int(records[i]["x"][0])) for i, name in enumerate(records.names)] == [
      (f"n{i}", i) for i in range(6)]
  assert not list(tmp_path.glob(f"*{features.PARTIAL}"))
  (tmp_path / "features-00003.json").unlink()
  assert features.RecordWriter(tmp_path).about("n5") is None
  assert features.Records(tmp_path).names == ["n0", "n1", "n2", "n3", "n4"]


def test_a_record_is_not_replaced_by_another_of_its_name(tmp_path):
  writer = features.RecordWriter(tmp_path)
  writer.write("a", {"x": np.zeros(1)}, about())
  writer.write("a", {"x": np.ones(1)}, about())
  with pytest.raises(features.FeaturesError, match="'a' already"):
    writer.write("a", {"x": np.ones(1)}, about(prompt="other"))
  writer.close()
  assert len(features.Records(tmp_path)) == 1


def test_a_file_appears_whole_or_not_at_all(tmp_path):
  path = tmp_path / "x.bin"
  path.write_bytes(b"old")
  with pytest.raises(RuntimeError), features.replacing(path) as file:
    file.write(b"ne")
    raise RuntimeError
  assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content,message", [
  (None, "no such file"), (b"PK nonsense", "not a file of features"), ("foreign", "not a file"),
  ("version", "version 1")])
def test_files_that_are_not_ours_are_named(tmp_path, content, message):
  path = tmp_path / "x.npz"
  if isinstance(content, bytes):
    path.write_bytes(content)
  elif content == "foreign":
    np.savez(path, x=np.ones(3))
  elif content == "version":
    features.NpzWriter(tmp_path).write("x", {}, about(version=99))
  with pytest.raises(features.FeaturesError, match=message) as error:
    features.read(path)
  assert "x.npz" in str(error.value)
  with pytest.raises(features.FeaturesError, match="no features-"):
    features.Records(tmp_path)
