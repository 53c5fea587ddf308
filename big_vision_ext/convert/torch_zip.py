"""How is a file that PyTorch saved read, and written, without PyTorch?

`torch.save` writes a zip file: a pickle that describes the objects, and the bytes of each storage,
not compressed, so that they can be mapped. The pickle is run by an unpickler that knows plain
containers and tensors, and refuses anything else by name: such a file cannot run code here.
`torch.jit.save` writes the same with the program beside it; of its modules, attributes alone are
read, and the program never.
"""

import collections
import io
import math
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from big_vision_ext.convert import files
from big_vision_ext.convert.lazy import ConvertError, Lazy, Tensors, of

_STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32,
    "ShortStorage": np.int16, "CharStorage": np.int8, "ByteStorage": np.uint8,
    "BoolStorage": np.bool_}
# Where training programs keep the weights within what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params")
_NAMES = {np.dtype(kind): name for name, kind in _STORAGES.items()}
# A page of memory may be mapped where the bytes of an array begin.
_ALIGNMENT = 64


def read(path: str | os.PathLike) -> Tensors:
  """The tensors of a file of `torch.save`, those of a state dict within it if there is one.

  Raises:
    ConvertError: it is truncated, of the format before PyTorch 1.6, or holds other objects.
  """
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError) as error:
    raise ConvertError(
        f"{path}: is no zip file, as PyTorch 1.6 and later write, or it is truncated; save it "
        "again with torch.save, or as safetensors") from error
  infos = {info.filename: info for info in archive.infolist()}
  described = [name for name in infos if name.endswith("/data.pkl")]
  if len(described) != 1:
    raise ConvertError(f"{path}: has no data.pkl: it is no file of torch.save")
  root = described[0].removesuffix("data.pkl")
  if f"{root}byteorder" in infos and archive.read(f"{root}byteorder") != b"little":
    raise ConvertError(f"{path}: was written on a big-endian machine, which is not read")
  data = files.map_file(path)

  def storage(key: str, dtype: np.dtype, count: int) -> Lazy:
    info = infos.get(f"{root}data/{key}")
    if info is None:
      raise ConvertError(f"{path}: the bytes of its storage {key} are missing")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size < count * dtype.itemsize:
      raise ConvertError(f"{path}: its storage {key} is compressed or too short")
    return files.view(data, files.stored_offset(data, info, path), dtype, (count,),
                      f"{path}: storage {key}")

  try:
    found = _Unpickler(io.BytesIO(archive.read(described[0])), storage, path).load()
  except ConvertError:
    raise
  except Exception as error:  # A pickle that is damaged can raise anything.
    raise ConvertError(f"{path}: its description cannot be read ({error!r})") from error
  return Tensors(_flat(found, path))


def write(path: str | os.PathLike, found: Mapping[str, Any]) -> None:
  """Writes what `torch.save` would write of nested dictionaries of tensors.

  Args:
    path: the file.
    found: names -> arrays, lazy or not, or further dictionaries.
  """
  root, storages = pathlib.Path(path).stem, []
  described = b"\x80\x02" + _pickled(found, storages) + b"."
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    def put(name, data):
      # A fixed date: the same arrays give the same bytes.
      info = zipfile.ZipInfo(f"{root}/{name}", (1980, 1, 1, 0, 0, 0))
      head = archive.fp.tell() + 30 + len(info.filename)
      # Padded by a field that readers pass over.
      info.extra = struct.pack("<HH", 0x4246, pad := -(head + 4) % _ALIGNMENT) + b"Z" * pad
      archive.writestr(info, data)

    put("data.pkl", described)
    put("byteorder", b"little")
    for number, x in enumerate(storages):
      put(f"data/{number}", np.ascontiguousarray(x.read()).tobytes())
    put("version", b"3\n")


def _pickled(value: Any, storages: list[Lazy]) -> bytes:
  """Opcodes of protocol 2 that build a dictionary or a tensor; storages are numbered as they come.

  Written by hand since the pickler would want to import what it names, PyTorch.
  """
  if isinstance(value, Mapping):
    items = b"".join(_text(str(k)) + _pickled(v, storages) for k, v in value.items())
    return b"}(" + items + b"u"
  x = of(value)
  if x.dtype not in _NAMES:
    raise ConvertError(f"an array of {x.dtype}: PyTorch's files have {', '.join(map(str, _NAMES))}")
  key = str(len(storages))
  storages.append(x)
  strides = [math.prod(x.shape[i + 1:]) for i in range(len(x.shape))]
  whole = lambda numbers: b"(" + b"".join(map(_number, numbers)) + b"t"
  kind = b"ctorch\n" + _NAMES[x.dtype].encode() + b"\n"
  place = b"(" + _text("storage") + kind + _text(key) + _text("cpu") + _number(x.size) + b"tQ"
  hooks = b"ccollections\nOrderedDict\n)R"
  return (b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + _number(0) + whole(x.shape)
          + whole(strides) + b"\x89" + hooks + b"tR")


def _text(value: str) -> bytes:
  data = value.encode()
  return b"X" + struct.pack("<I", len(data)) + data


def _number(value: int) -> bytes:
  if value < 2**31:
    return b"J" + struct.pack("<i", value)
  return b"\x8a\x08" + struct.pack("<q", value)


class _Unpickler(pickle.Unpickler):
  def __init__(self, f, storage, path):
    super().__init__(f, encoding="utf-8")
    self._storage, self._path = storage, path

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ("collections", "OrderedDict"):
      return collections.OrderedDict
    if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
      return _tensor if name == "_rebuild_tensor_v2" else _parameter
    if module == "torch" and name in _STORAGES:
      return np.dtype(_STORAGES[name])
    if (module, name) == ("torch", "Size"):
      return tuple
    if module.split(".")[0] == "__torch__":
      return _ScriptModule
    if module == "torch.jit._pickle" and name.startswith(("build_", "restore_type_tag")):
      return _first
    raise ConvertError(
        f"{self._path}: holds an object {module}.{name}; only tensors in plain dictionaries are "
        "read, as nothing else is safe. Save the model's state_dict alone")

  def persistent_load(self, pid: Any) -> Lazy:
    kind, dtype, key, _, count = pid
    if kind != "storage" or not isinstance(dtype, np.dtype):
      raise ConvertError(f"{self._path}: refers to {pid!r}, expected a storage")
    return self._storage(str(key), dtype, int(count))


class _ScriptModule:
  """An object of a TorchScript program: its parameters, buffers and submodules by name."""

  def __setstate__(self, state: Any) -> None:
    self.state = state if isinstance(state, dict) else {}


def _first(value: Any, *_: Any) -> Any:
  return value


def _state_of(module: _ScriptModule, prefix: str = "") -> dict[str, Lazy]:
  """The state dict of a module and of all below it."""
  out = {}
  for name, x in vars(module).get("state", {}).items():
    if isinstance(x, Lazy):
      out[prefix + name] = x
    elif isinstance(x, _ScriptModule):
      out |= _state_of(x, f"{prefix}{name}.")
  return out


def _tensor(storage: Lazy, offset: int, shape: tuple, strides: tuple, *_: Any) -> Lazy:
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides)) if math.prod(shape) else offset
  if min((offset, *shape, *strides), default=0) < 0 or last >= max(storage.size, 1):
    raise ConvertError(f"a tensor of {list(shape)} reaches beyond its storage of {storage.size}")

  def build():
    flat = storage.read()[offset:]
    steps = [s * flat.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False)
  return Lazy(shape, storage.dtype, build)


def _parameter(tensor: Lazy, *_: Any) -> Lazy:
  return tensor


def _flat(found: Any, path: Any) -> dict[str, Lazy]:
  found = _state_of(found) if isinstance(found, _ScriptModule) else found
  while isinstance(found, dict):
    inner = next((found[k] for k in _WRAPPERS if isinstance(found.get(k), dict)), None)
    if inner is None:
      break
    found = inner
  if not isinstance(found, dict) or not (tensors := _tensors(found)) and not (
      tensors := _parts(found)):
    raise ConvertError(f"{path}: holds no dictionary of tensors")
  return tensors


def _tensors(found: dict) -> dict[str, Lazy]:
  """The tensors of a dictionary, by name."""
  tensors = {str(name): x for name, x in found.items() if isinstance(x, Lazy)}
  # What DistributedDataParallel puts before every name.
  if all(name.startswith("module.") for name in tensors):
    tensors = {name.removeprefix("module."): x for name, x in tensors.items()}
  return tensors


def _parts(found: dict) -> dict[str, Lazy]:
  """Those of several state dicts side by side, as `PART.NAME`; I-JEPA's files have three."""
  parts = {part: _tensors(inner) for part, inner in found.items() if isinstance(inner, dict)}
  return {f"{part}.{name}": x for part, inner in parts.items() for name, x in inner.items()}
