import json
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from big_vision_ext.convert import files
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors, concat, of, stack
from tests.convert import cases

DTYPES = ("float32", "float16", "float64", "int32", "uint8", "bool")


def arrays(seed=0):
  rng = np.random.default_rng(seed)
  found = {f"a/{d}": (10 * rng.standard_normal((3, 5, 2))).astype(d) for d in DTYPES}
  found |= {"scalar": np.array(rng.standard_normal(), "f4"), "none": np.zeros((0, 4), "f4"),
            "bf16": rng.standard_normal((7, 3)).astype(ml_dtypes.bfloat16)}
  # Not in row-major order: what is written is the values, not the memory.
  return found | {"turned": rng.standard_normal((4, 6)).astype("f4").T}


def lazies(found):
  return {n: of(x) for n, x in found.items()}


def test_safetensors_are_those_of_the_library(tmp_path):
  want = arrays()
  files.write_safetensors(tmp_path / "ours.safetensors", lazies(want))
  theirs = safetensors.numpy.load_file(tmp_path / "ours.safetensors")
  cases.assert_same(theirs, want)
  safetensors.numpy.save_file({n: x.copy(order="C") for n, x in want.items()},
                              tmp_path / "theirs.safetensors")
  cases.assert_same(files.read_tensors(tmp_path / "theirs.safetensors"), want)
  # Readers map the file: numbers begin at multiples of eight.
  (length,) = struct.unpack("<Q", (tmp_path / "ours.safetensors").read_bytes()[:8])
  assert length % 8 == 0


def test_npz_is_that_of_numpy_and_keeps_bfloat16(tmp_path):
  want = arrays()
  files.write_npz(tmp_path / "ours.npz", lazies(want))
  theirs = dict(np.load(tmp_path / "ours.npz"))
  theirs["bf16"] = theirs["bf16"].view(ml_dtypes.bfloat16)
  cases.assert_same(theirs, want)
  for save in (np.savez, np.savez_compressed):
    save(tmp_path / "theirs.npz", **want)
    cases.assert_same(files.read_tensors(tmp_path / "theirs.npz"), want)


def test_the_same_arrays_give_the_same_bytes(tmp_path):
  for name in ("x", "y"):
    files.write_npz(tmp_path / f"{name}.npz", lazies(arrays()))
    files.write_safetensors(tmp_path / f"{name}.safetensors", lazies(arrays()))
  for kind in ("npz", "safetensors"):
    assert (tmp_path / f"x.{kind}").read_bytes() == (tmp_path / f"y.{kind}").read_bytes()


def test_large_weights_are_cut_into_shards_that_an_index_joins(tmp_path):
  want = {f"w{i}": np.full((10, 10), i, np.float32) for i in range(7)} | {
      "big": np.arange(1000.0, dtype=np.float32)}
  names = files.write_sharded(tmp_path, "model", lazies(want), shard_bytes=1000)
  assert names[0] == "model-00001-of-00005.safetensors" and len(names) == 6
  assert all((tmp_path / n).stat().st_size < 1400 for n in names[1:5])
  index = json.loads((tmp_path / names[-1]).read_text())
  assert index["metadata"]["total_size"] == 7 * 400 + 4000
  for name, file in index["weight_map"].items():
    np.testing.assert_array_equal(safetensors.numpy.load_file(tmp_path / file)[name], want[name])
  cases.assert_same(files.read_tensors(files.find(tmp_path, "model")), want)
  assert files.write_sharded(tmp_path, "one", lazies(want), shard_bytes=1e9) == ["one.safetensors"]


def test_writing_and_reading_take_the_memory_of_one_array(tmp_path):
  count, shape = 24, (512, 1024)
  size = 4 * 512 * 1024
  many = {f"w{i}": Lazy(shape, np.float32, lambda i=i: np.full(shape, i, np.float32))
          for i in range(count)}
  turned = {n: x.transpose().reshape(64, -1) for n, x in many.items()}
  tracemalloc.start()
  for write, file in ((files.write_safetensors, "m.safetensors"), (files.write_npz, "m.npz")):
    tracemalloc.reset_peak()
    write(tmp_path / file, turned)
    # The array, and its copy in the order that is written.
    assert tracemalloc.get_traced_memory()[1] < 2.5 * size
    tracemalloc.reset_peak()
    found = files.read_tensors(tmp_path / file)
    for name in found:
      assert found[name].max() == float(name[1:])
    assert tracemalloc.get_traced_memory()[1] < 0.5 * size
  tracemalloc.stop()


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(tmp_path, kind, share):
  path = tmp_path / f"cut.{kind}"
  write = files.write_npz if kind == "npz" else files.write_safetensors
  write(path, lazies(arrays()))
  data = path.read_bytes()
  path.write_bytes(data[:int(share * len(data))])
  with pytest.raises(ConvertError, match=f"cut.{kind}.*(truncated|too few)"):
    files.read_tensors(path)


def test_files_of_another_kind_are_refused(tmp_path):
  for name, data, message in (
      ("x.safetensors", struct.pack("<Q", 4) + b"[1]" + b" " * 20, "header cannot be read"),
      ("x.safetensors", struct.pack("<Q", 1 << 60) + b"{}", "announces a header"),
      ("x.npz", b"hello, world", "cannot be read as npz"), ("x.txt", b"", "expected a file of")):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConvertError, match=message):
      files.read_tensors(tmp_path / name)
  np.savez(tmp_path / "o.npz", a=np.array([{"a": 1}], object))
  with pytest.raises(ConvertError, match="o.npz: a holds Python objects"):
    files.read_tensors(tmp_path / "o.npz")
  with pytest.raises(ConvertError, match="absent.npz: there is no such file"):
    files.read_tensors(tmp_path / "absent.npz")


@pytest.mark.parametrize("entry,message", [
    ({"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 12]}, "w is float32.* but has 12"),
    ({"dtype": "F32", "shape": [2, 2], "data_offsets": [8, 24]}, "w ends at byte .*truncated"),
    ({"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}, "w is float32"),
    ({"dtype": "F31", "shape": [2, 2], "data_offsets": [0, 16]}, "header cannot be read"),
])
def test_a_header_that_lies_is_refused(tmp_path, entry, message):
  head = json.dumps({"w": entry}).encode()
  (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(16))
  with pytest.raises(ConvertError, match=message):
    files.read_tensors(tmp_path / "x.safetensors")


def test_a_shard_that_is_missing_incomplete_or_elsewhere_is_named(tmp_path):
  want = {f"w{i}": np.ones((10, 10), np.float32) for i in range(4)}
  names = files.write_sharded(tmp_path, "model", lazies(want), shard_bytes=900)
  index = tmp_path / names[-1]
  files.write_safetensors(tmp_path / names[1], lazies({"w2": want["w2"]}))
  with pytest.raises(ConvertError, match="(?s)not in the files it names.*w3"):
    files.read_tensors(index)
  (tmp_path / names[0]).unlink()
  with pytest.raises(ConvertError, match=f"missing: {names[0]}"):
    files.read_tensors(index)
  index.write_text(json.dumps({"weight_map": {"w": "../x.safetensors"}}))
  with pytest.raises(ConvertError, match="expected one beside it"):
    files.read_tensors(index)
  index.write_text("{}")
  with pytest.raises(ConvertError, match="weight_map"):
    files.read_tensors(index)


def test_lazy_arrays_know_their_shapes_and_read_when_asked():
  x = np.random.default_rng(0).standard_normal((4, 6, 5)).astype(np.float32)
  reads = []
  lazy = Lazy(x.shape, x.dtype, lambda: reads.append(1) or x)
  made = {
      "transpose": (lazy.transpose(), x.T), "axes": (lazy.transpose(1, 2, 0), x.transpose(1, 2, 0)),
      "reshape": (lazy.reshape(-1, 10), x.reshape(-1, 10)), "take": (lazy.take(2), x[2]),
      "split": (lazy.split(3, axis=1)[1], np.split(x, 3, 1)[1]),
      "concat": (concat([lazy, lazy], axis=2), np.concatenate([x, x], 2)),
      "stack": (stack([lazy, lazy]), np.stack([x, x])), "cast": (lazy.astype("f8"), x.astype("f8"))}
  assert not reads
  for name, (have, want) in made.items():
    assert have.shape == want.shape and have.nbytes == want.nbytes, name
    np.testing.assert_array_equal(np.asarray(have), want, err_msg=name)
  assert Tensors({"x": lazy}).specs() == {"x": ((4, 6, 5), np.dtype("f4"))}
  for wrong in (lambda: lazy.reshape(7, 7), lambda: lazy.split(4, 1), lambda: lazy.reshape(-1, 7),
                lambda: concat([lazy, lazy.transpose()]),
                lambda: np.asarray(Lazy((3,), "f4", lambda: x))):
    with pytest.raises(ConvertError):
      wrong()
