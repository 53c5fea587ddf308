"""How are files of arrays read and written, a tensor at a time?

safetensors, one file or several with an index, and npz: mapped into memory on reading, streamed on
writing, so that neither needs memory for more than one array. PyTorch's zip files are read (see
`torch_zip.py`) and not written. Nothing here knows what the arrays mean.
"""

import io
import json
import math
import mmap
import os
import pathlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from big_vision_ext.convert.lazy import BFLOAT16, ConvertError, Lazy, Tensors

_SAFE = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
         "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U64": np.uint64,
         "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_,
         "F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2}
_SAFE_NAMES = {np.dtype(v): k for k, v in _SAFE.items()}
_LONGEST_HEADER = 100_000_000
# numpy cannot name bfloat16 in a file; it comes back as two bytes without a meaning.
_VOID = np.dtype("V2")
_LOCAL_HEADER = 30

Progress = Callable[[int, int], None]


def read_tensors(path: str | os.PathLike) -> Tensors:
  """The arrays of a file: .safetensors, .safetensors.index.json, .npz, .pt, .pth, .pth.tar or .bin.

  Raises:
    ConvertError: no such file, another kind of file, or a truncated or damaged one.
  """
  from big_vision_ext.convert import torch_zip

  path = pathlib.Path(path)
  if not path.is_file():
    raise ConvertError(f"{path}: there is no such file")
  if path.name.endswith(".index.json"):
    return _read_shards(path)
  readers = {".safetensors": read_safetensors, ".npz": read_npz, ".pt": torch_zip.read,
             ".pth": torch_zip.read, ".bin": torch_zip.read, ".tar": torch_zip.read}
  if path.suffix not in readers:
    raise ConvertError(f"{path}: expected a file of weights, one of {', '.join(readers)} or "
                       ".safetensors.index.json")
  return readers[path.suffix](path)


def find(folder: str | os.PathLike, *stems: str) -> pathlib.Path | None:
  """The file of weights in a folder, by the names that Hugging Face's libraries give it."""
  for stem in stems:
    for suffix in (".safetensors.index.json", ".safetensors", ".bin.index.json", ".bin"):
      if (path := pathlib.Path(folder) / f"{stem}{suffix}").is_file():
        return path
  return None


def read_json(path: str | os.PathLike) -> dict:
  """A JSON object.

  Raises:
    ConvertError: there is no such file, or it holds something else.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConvertError(f"{path}: there is no such file")
  try:
    found = json.loads(path.read_text())
  except ValueError as error:
    raise ConvertError(f"{path}: is not JSON ({error})") from error
  if not isinstance(found, dict):
    raise ConvertError(f"{path}: expected a JSON object, found {type(found).__name__}")
  return found


def read_safetensors(path: str | os.PathLike) -> Tensors:
  """One safetensors file.

  Raises:
    ConvertError: it is truncated, or is not in that format.
  """
  data = map_file(path)
  if len(data) < 8:
    raise ConvertError(f"{path}: has {len(data)} bytes, too few for a safetensors file")
  (length,) = struct.unpack("<Q", data[:8])
  if length > min(_LONGEST_HEADER, len(data) - 8):
    raise ConvertError(f"{path}: announces a header of {length} bytes and has {len(data)} in all: "
                       "it is truncated, or no safetensors file")
  try:
    header = json.loads(data[8:8 + length])
    entries = {name: (np.dtype(_SAFE[e["dtype"]]), [int(n) for n in e["shape"]],
                      *map(int, e["data_offsets"]))
               for name, e in header.items() if name != "__metadata__"}
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ConvertError(f"{path}: its safetensors header cannot be read ({error!r})") from error
  out, start = {}, 8 + length
  for name, (dtype, shape, begin, end) in entries.items():
    if min(shape, default=0) < 0 or end - begin != math.prod(shape) * dtype.itemsize:
      raise ConvertError(f"{path}: {name} is {dtype}{shape} but has {end - begin} bytes")
    out[name] = view(data, start + begin, dtype, shape, f"{path}: {name}")
  return Tensors(out)


def read_npz(path: str | os.PathLike) -> Tensors:
  """One npz file; bfloat16 that numpy has lost the name of is given it back.

  Raises:
    ConvertError: it is truncated, no npz file, or holds Python objects.
  """
  try:
    archive = zipfile.ZipFile(path)
  except (zipfile.BadZipFile, OSError) as error:
    raise ConvertError(f"{path}: cannot be read as npz, it is truncated or of another kind "
                       f"({error})") from error
  data = map_file(path)
  out = {}
  for info in archive.infolist():
    name = info.filename.removesuffix(".npy")
    start = _npy_header(archive, info, f"{path}: {name}")
    shape, fortran, dtype, header = start
    named = BFLOAT16 if dtype == _VOID else dtype
    if info.compress_type == zipfile.ZIP_STORED:
      at = stored_offset(data, info, path) + header
      shape_there = shape[::-1] if fortran else shape
      lazy = view(data, at, named, shape_there, f"{path}: {name}")
      out[name] = lazy.transpose() if fortran and len(shape) > 1 else lazy
    else:
      def read(info=info, named=named):
        with archive.open(info) as f:
          x = np.lib.format.read_array(f, allow_pickle=False)
        return x.view(named) if x.dtype == _VOID else x
      out[name] = Lazy(shape, named, read)
  return Tensors(out)


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, Lazy], *,
                      progress: Progress | None = None) -> None:
  """Writes one safetensors file, header first, then array by array."""
  # The largest alignment first, then by name: what the format's own library does.
  order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
  header, at = {"__metadata__": {"format": "pt"}}, 0
  for name in order:
    x = tensors[name]
    header[name] = {"dtype": _SAFE_NAMES[x.dtype], "shape": list(x.shape),
                    "data_offsets": [at, at + x.nbytes]}
    at += x.nbytes
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open(path, "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text)
    for i, name in enumerate(order):
      _write_values(f, tensors[name])
      if progress:
        progress(tensors[name].nbytes, i)
    sync(f)


def write_sharded(folder: str | os.PathLike, stem: str, tensors: Mapping[str, Lazy], *,
                  shard_bytes: float, progress: Progress | None = None) -> list[str]:
  """Writes STEM.safetensors, or numbered shards with an index if it would be larger than a shard.

  Returns:
    The names of the files.
  """
  folder = pathlib.Path(folder)
  shards, room = [{}], float(shard_bytes)
  for name in sorted(tensors):
    if tensors[name].nbytes > room and shards[-1]:
      shards.append({})
      room = float(shard_bytes)
    shards[-1][name] = tensors[name]
    room -= tensors[name].nbytes
  if len(shards) == 1:
    write_safetensors(folder / f"{stem}.safetensors", shards[0], progress=progress)
    return [f"{stem}.safetensors"]
  where, names = {}, []
  for i, shard in enumerate(shards):
    names.append(f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors")
    write_safetensors(folder / names[-1], shard, progress=progress)
    where |= dict.fromkeys(shard, names[-1])
  index = {"metadata": {"total_size": sum(x.nbytes for x in tensors.values())},
           "weight_map": where}
  names.append(f"{stem}.safetensors.index.json")
  write_text(folder / names[-1], json.dumps(index, indent=1) + "\n")
  return names


def write_npz(path: str | os.PathLike, tensors: Mapping[str, Lazy], *,
              progress: Progress | None = None) -> None:
  """Writes one npz file, not compressed, array by array."""
  with open(path, "wb") as f:
    with zipfile.ZipFile(f, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
      for i, (name, x) in enumerate(tensors.items()):
        dtype = _VOID if x.dtype == BFLOAT16 else x.dtype
        # A fixed date: the same arrays give the same bytes.
        info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
        with archive.open(info, "w", force_zip64=True) as entry:
          np.lib.format.write_array_header_1_0(entry, {
              "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False,
              "shape": x.shape})
          _write_values(entry, x)
        if progress:
          progress(x.nbytes, i)
    sync(f)


def write_text(path: str | os.PathLike, text: str) -> None:
  """Writes a text file that is on disk when this returns."""
  with open(path, "w", encoding="utf-8") as f:
    f.write(text)
    sync(f)


def sync(f: Any) -> None:
  """Waits until what was written to an open file is on disk."""
  f.flush()
  os.fsync(f.fileno())


def map_file(path: str | os.PathLike) -> mmap.mmap | bytes:
  """The bytes of a file, mapped into memory for reading."""
  with open(path, "rb") as f:
    if not os.fstat(f.fileno()).st_size:
      return b""
    return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


def _forget_pages(data: Any) -> None:
  """Lets go of what was read of a file: as long as it is mapped it counts as this process's memory.

  Arrays of it that are still in use are read once more, from the system's cache as a rule.
  """
  if hasattr(mmap, "MADV_DONTNEED") and isinstance(data, mmap.mmap):
    data.madvise(mmap.MADV_DONTNEED)


def view(data: Any, start: int, dtype: np.dtype, shape: Any, where: str) -> Lazy:
  """An array that begins at byte `start` of `data`.

  Raises:
    ConvertError: `data` ends before it does.
  """
  end = start + math.prod(shape) * dtype.itemsize
  if end > len(data) or start < 0:
    raise ConvertError(f"{where} ends at byte {end} and the file at {len(data)}: it is truncated")

  def read():
    count = math.prod(shape)
    if not count:
      return np.zeros(shape, dtype)
    _forget_pages(data)
    x = np.frombuffer(data, np.uint8, count * dtype.itemsize, start).view(dtype)
    return x.reshape(tuple(shape))
  return Lazy(shape, dtype, read)


def stored_offset(data: Any, info: zipfile.ZipInfo, path: Any) -> int:
  """Where the bytes of an entry of a zip file begin, if they are not compressed."""
  head = data[info.header_offset:info.header_offset + _LOCAL_HEADER]
  if len(head) < _LOCAL_HEADER or head[:4] != b"PK\x03\x04":
    raise ConvertError(f"{path}: {info.filename} has no header where one should be: the file is "
                       "damaged")
  name, extra = struct.unpack("<HH", head[26:30])
  return info.header_offset + _LOCAL_HEADER + name + extra


def _npy_header(archive, info, where):
  """(shape, fortran order, dtype, bytes of the header) of a .npy entry."""
  try:
    with archive.open(info) as f:
      head = io.BytesIO(f.read(1 << 16))
      version = np.lib.format.read_magic(head)
      reader = (np.lib.format.read_array_header_1_0 if version == (1, 0)
                else np.lib.format.read_array_header_2_0)
      shape, fortran, dtype = reader(head)
  except (ValueError, zipfile.BadZipFile, OSError) as error:
    raise ConvertError(f"{where} cannot be read: it is damaged, or no array ({error})") from error
  if dtype.hasobject:
    raise ConvertError(f"{where} holds Python objects, which are not read; expected numbers")
  return shape, fortran, dtype, head.tell()


def _read_shards(index: pathlib.Path) -> Tensors:
  where = read_json(index).get("weight_map")
  if not isinstance(where, dict) or not where:
    raise ConvertError(f"{index}: has no \"weight_map\" that says which file holds which array")
  shards, absent = {}, []
  for name in sorted(set(where.values())):
    path = index.parent / name
    # A name in a file that came from elsewhere must not lead out of its folder.
    if pathlib.PurePath(name).name != name:
      raise ConvertError(f"{index}: names the file {name!r}, expected one beside it")
    if path.is_file():
      shards[name] = read_tensors(path)
    else:
      absent.append(name)
  if absent:
    raise ConvertError(f"{index}: these of its files are missing: {', '.join(absent)}")
  lost = sorted(n for n, file in where.items() if n not in shards[file])
  if lost:
    raise ConvertError(f"{index}: these arrays are not in the files it names:\n  "
                       + "\n  ".join(f"{n} (in {where[n]})" for n in lost))
  return Tensors({n: shards[file].lazy(n) for n, file in where.items()})


def _write_values(f, lazy: Lazy, chunk: int = 1 << 24) -> None:
  x = lazy.read()
  if not x.flags.c_contiguous:
    x = np.ascontiguousarray(x)
  raw = x.reshape(-1).view(np.uint8)
  for at in range(0, raw.size, chunk):
    f.write(raw[at:at + chunk].data)
