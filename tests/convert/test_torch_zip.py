"""Files as torch.save writes them, put together here opcode by opcode, without PyTorch."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from big_vision_ext.convert import files
from big_vision_ext.convert.lazy import ConvertError

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage",
            "bool": "BoolStorage", "bfloat16": "BFloat16Storage"}


class Global:
  """An object that pickles as a reference to `module.name`."""

  def __init__(self, module, name):
    self.module, self.name = module, name


class Storage:
  def __init__(self, key, array):
    self.key, self.array = key, array


class Tensor:
  def __init__(self, storage, offset, shape, strides, parameter=False):
    self.parts = (storage, offset, shape, strides, False, {})
    self.parameter = parameter


class Script:
  """An object of a TorchScript program, by its attributes."""

  def __init__(self, **attributes):
    self.attributes = attributes


class Pickler(pickle._Pickler):
  """Writes the classes above the way torch.save's pickler writes tensors."""

  def persistent_id(self, obj):
    if isinstance(obj, Storage):
      kind = Global("torch", STORAGES[obj.array.dtype.name])
      return ("storage", kind, obj.key, "cpu", obj.array.size)
    return None

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Global):
      self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
    elif isinstance(obj, Tensor):
      if obj.parameter:
        self.save(Global("torch._utils", "_rebuild_parameter"))
        self.save((Tensor(*obj.parts[:4]), True, {}))
      else:
        self.save(Global("torch._utils", "_rebuild_tensor_v2"))
        self.save(obj.parts)
      self.write(pickle.REDUCE)
    elif isinstance(obj, Script):
      self.save(Global("__torch__.model.___torch_mangle_7", "Net"))
      self.write(pickle.EMPTY_TUPLE + pickle.NEWOBJ)
      self.save(obj.attributes)
      self.write(pickle.BUILD)
    else:
      super().save(obj, save_persistent_id)


def write(path, content, storages, **zipped):
  with zipfile.ZipFile(path, "w", **zipped) as archive:
    with archive.open("name/data.pkl", "w") as f:
      Pickler(f, 2).dump(content)
    archive.writestr("name/byteorder", "little")
    for storage in storages:
      archive.writestr(f"name/data/{storage.key}", storage.array.tobytes())


@pytest.fixture
def saved():
  rng = np.random.default_rng(0)
  a = Storage("0", rng.standard_normal(24).astype(np.float32))
  b = Storage("1", rng.standard_normal(3).astype(ml_dtypes.bfloat16))
  c = Storage("2", np.arange(5))
  x = a.array.reshape(6, 4)
  tensors = {"whole": Tensor(a, 0, (6, 4), (4, 1)), "turned": Tensor(a, 0, (4, 6), (1, 4)),
             "part": Tensor(a, 4, (2, 2), (4, 2)), "scalar": Tensor(a, 7, (), ()),
             "parameter": Tensor(b, 0, (3,), (1,), True), "count": Tensor(c, 0, (5,), (1,)),
             "empty": Tensor(a, 0, (0, 3), (3, 1))}
  want = {"whole": x, "turned": x.T, "part": x[1:3, ::2], "scalar": x[1, 3], "parameter": b.array,
          "count": c.array, "empty": np.zeros((0, 3), np.float32)}
  return tensors, want, (a, b, c)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
def test_tensors_come_back_without_pytorch(tmp_path, saved, suffix):
  tensors, want, storages = saved
  write(tmp_path / f"x.{suffix}", tensors, storages)
  have = files.read_tensors(tmp_path / f"x.{suffix}")
  assert list(have) == list(want)
  for name in want:
    assert have[name].dtype == want[name].dtype
    np.testing.assert_array_equal(have[name], want[name])


def test_a_state_dict_is_found_within_what_training_saved(tmp_path, saved):
  tensors, want, storages = saved
  inner = {f"module.{n}": x for n, x in tensors.items()}
  write(tmp_path / "x.pt", {"epoch": 3, "name": "n", "state_dict": inner}, storages)
  assert list(files.read_tensors(tmp_path / "x.pt")) == list(want)


def test_of_a_script_its_arrays_are_read_and_its_program_is_not(tmp_path, saved):
  tensors, want, storages = saved
  inner = Script(training=True, weight=tensors["turned"], scale=2.5)
  outer = Script(training=False, whole=tensors["whole"], block=Script(layer=inner, sizes=(1, 2)))
  write(tmp_path / "x.pt", outer, storages)
  with zipfile.ZipFile(tmp_path / "x.pt", "a") as archive:
    archive.writestr("name/code/__torch__/model.py", "raise SystemExit")
  have = files.read_tensors(tmp_path / "x.pt")
  assert list(have) == ["whole", "block.layer.weight"]
  np.testing.assert_array_equal(have["block.layer.weight"], want["turned"])


@pytest.mark.parametrize("module,name", [
    ("os", "system"), ("builtins", "eval"), ("torch.nn.modules.linear", "Linear"),
    ("numpy.core.multiarray", "scalar"), ("torch._utils", "_rebuild_device_tensor")])
def test_objects_other_than_tensors_are_refused_by_name(tmp_path, module, name):
  write(tmp_path / "x.pt", {"a": Global(module, name)}, ())
  with pytest.raises(ConvertError, match=f"x.pt: holds an object {module}.{name}"):
    files.read_tensors(tmp_path / "x.pt")


def test_damaged_files_are_refused(tmp_path, saved):
  tensors, _, storages = saved
  path = tmp_path / "x.pt"
  refusals = {
      "storage 1 are missing": lambda: write(path, tensors, storages[::2]),
      "compressed or too short": lambda: write(path, tensors, storages,
                                               compression=zipfile.ZIP_DEFLATED),
      "no dictionary of tensors": lambda: write(path, {"epoch": 3}, ()),
      "beyond its storage": lambda: write(path, {"a": Tensor(storages[0], 20, (6,), (1,))},
                                          storages),
      "is no zip file": lambda: path.write_bytes(b"\x80\x02}q\x00."),
      "no data.pkl": lambda: zipfile.ZipFile(path, "w").close(),
  }
  for message, damage in refusals.items():
    damage()
    with pytest.raises(ConvertError, match=message):
      files.read_tensors(path)
  write(path, tensors, storages)
  path.write_bytes(path.read_bytes()[:-40])
  with pytest.raises(ConvertError, match="truncated"):
    files.read_tensors(path)
