"""What does `encode` write, and how is it read back?

An output is what the model says of one image (and prompt): a dict of arrays, `FEATURES`, and
`about`, a dict that says what they are of. It is either one file, `NAME.npz`, or one record among
many in `features-NNNNN.arrayrecord`. Files are complete or not there: they get their names last.
"""

import contextlib
import errno
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import msgpack
import numpy as np

FEATURES = """Arrays of an output; t_low tokens of the low-resolution pass, t_high selected ones.
last_hidden (t_low + t_high, d)  last block's output, before the final norm; low-resolution first
pooled (d,)                      attention-pooled selected tokens (of the low-resolution ones, if
                                 nothing is selected)
pooled_low (d,)                  attention-pooled low-resolution pass
selected_scale, selected_index (t_high,)  scale (0: the first above the lowest) and row-major patch,
                                 look after look: the order of choice, not that of last_hidden
scales, grids                    size in pixels, and rows and columns of patches, of each scale
score_bottomup, score_topdown (gy, gx)  selection probability; topdown only with a prompt. Models
                                 with a map for each high-resolution scale have (s, gy, gx)
text (d,)                        embedding of the prompt; only with a prompt
image_size, input_size (2,)      height and width in pixels of the image, and as it was encoded
map_0 ... (d, gy, gx)            with --maps, instead of last_hidden: the tokens of each scale, the
                                 lowest first, at their places, zero where nothing was selected
about                            JSON: image, prompt, weights and settings that made the output
"""

# Those of them that a model computes.
TENSORS = ("last_hidden", "pooled", "pooled_low", "score_bottomup", "score_topdown", "text")

FORMAT, VERSION = "bve-features", 1
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
PARTIAL = ".partial"


class FeaturesError(ValueError):
  """Features that cannot be read, or written where they should go."""


def maps(features: Mapping[str, np.ndarray]) -> list[np.ndarray]:
  """Tokens at their places: for each scale, the lowest first, a map (d, gy, gx).

  Places that were not selected are zero. At 4K a map of 1,152 channels has 336 MB in float32.
  """
  tokens, grids = features["last_hidden"], features["grids"].tolist()
  (gy, gx), *high = grids
  out = [np.ascontiguousarray(tokens[: gy * gx].T).reshape(-1, gy, gx)]
  at = gy * gx
  for i, (gy, gx) in enumerate(high):
    # Tokens lie by scale and raster position, whatever look they came with.
    index = np.sort(features["selected_index"][features["selected_scale"] == i])
    empty = np.zeros((tokens.shape[1], gy * gx), tokens.dtype)
    empty[:, index] = tokens[at : at + len(index)].T
    out.append(empty.reshape(-1, gy, gx))
    at += len(index)
  return out


def arrays_to_write(features: Mapping[str, np.ndarray], dtype: str, as_maps: bool) -> dict:
  """`features` as they are stored: floats in `dtype`, tokens as maps if asked for.

  Raises:
    FeaturesError: a number is too large for the type.
  """
  out = dict(features)
  if as_maps:
    out |= {f"map_{i}": m for i, m in enumerate(maps(features))}
    del out["last_hidden"]
  kind = DTYPES[dtype]
  for name, value in out.items():
    if value.dtype in DTYPES.values() and value.dtype != kind:
      with np.errstate(over="ignore"):
        out[name] = value.astype(kind)
      if np.isinf(out[name]).any() and not np.isinf(value).any():
        raise FeaturesError(f"{name} has values up to {np.abs(value).max():.3g}, too large for "
                            f"--dtype={dtype}; write bfloat16 or float32")
  return out


def read(path: str | os.PathLike) -> dict[str, Any]:
  """One output: its arrays, and `about` as a dict.

  Plain `numpy.load` reads the file as well, but has no name for bfloat16 (it shows "V2").

  Raises:
    FeaturesError: no such file, or not one of ours.
  """
  about = read_about(path)
  with np.load(path) as file:
    arrays = {n: _named(file[n]) for n in file.files if n != "about"}
  return arrays | {"about": about}


def read_about(path: str | os.PathLike) -> dict[str, Any]:
  """What an output's file says it is of; the arrays are not read. Raises as `read` does."""
  try:
    with np.load(path) as file:
      about = json.loads(str(file["about"]))
  except FileNotFoundError as error:
    raise FeaturesError(f"{path}: there is no such file") from error
  except Exception as error:  # zipfile, zlib, struct, KeyError... on foreign or damaged bytes.
    raise FeaturesError(f"{path}: not a file of features that encode wrote, or damaged "
                        f"({error})") from error
  return _checked(about, path)


class Records:
  """Random access to the outputs of a folder of `features-*.arrayrecord`.

  `len(records)`, `records[i]` (arrays and `about`), `records.names` in the order of `i`.
  """

  def __init__(self, folder: str | os.PathLike):
    """Raises FeaturesError if there are none."""
    from grain import sources

    shards = _shards(pathlib.Path(folder))
    if not shards:
      raise FeaturesError(f"{folder}: has no features-*.arrayrecord with its .json beside it")
    self.names = [item["name"] for _, index in shards for item in index]
    self._source = sources.ArrayRecordDataSource([str(path) for path, _ in shards])

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, i: int) -> dict[str, Any]:
    if not 0 <= i < len(self):
      raise IndexError(f"there are outputs 0 to {len(self) - 1}, not {i}")
    return unpack(self._source[i])


def pack(name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
  """The record of an output: a msgpack map, arrays as {"dtype", "shape", "data"} in C order."""
  stored = {n: {"dtype": x.dtype.name, "shape": list(x.shape),
                "data": np.ascontiguousarray(x).tobytes()} for n, x in arrays.items()}
  return msgpack.packb({"name": name, "about": dict(about), "arrays": stored})


def unpack(record: bytes) -> dict[str, Any]:
  """Arrays and `about` of a record that `pack` made; raises FeaturesError for other bytes."""
  try:
    fields = msgpack.unpackb(record)
    about = _checked(fields["about"], "the record")
    arrays = {n: np.frombuffer(a["data"], _dtype(a["dtype"])).reshape(a["shape"])
              for n, a in fields["arrays"].items()}
  except FeaturesError:
    raise
  except Exception as error:  # msgpack raises a dozen unrelated types on foreign bytes.
    raise FeaturesError(f"{len(record)} bytes that are no record of features ({error})") from error
  return arrays | {"about": about}


class NpzWriter:
  """One file for each output."""

  def __init__(self, folder: pathlib.Path):
    self._folder = folder

  def about(self, name: str) -> dict[str, Any] | None:
    """What a finished output of that name is of; None if there is none."""
    path = self._folder / f"{name}.npz"
    return read_about(path) if path.exists() else None

  def write(self, name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Stores an output in place of any earlier one of its name."""
    with replacing(self._folder / f"{name}.npz") as file:
      np.savez(file, about=np.array(json.dumps(about)), **arrays)

  def close(self) -> None:
    """Nothing is pending."""


class RecordWriter:
  """Outputs as records, so many to a shard, each with a JSON file that lists them.

  A shard counts once its JSON is there: what an interruption left half-written is done again.
  """

  def __init__(self, folder: pathlib.Path, per_shard: int = 256):
    self._folder, self._per_shard = folder, per_shard
    self._known = {item["name"]: item["about"] for _, index in _shards(folder) for item in index}
    self._next = 1 + max((_number(path) for path, _ in _shards(folder)), default=-1)
    self._writer, self._index = None, []

  def about(self, name: str) -> dict[str, Any] | None:
    """As `NpzWriter.about`."""
    return self._known.get(name)

  def write(self, name: str, arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> None:
    """Adds an output, unless the same is there; another of its name cannot be replaced."""
    from array_record.python import array_record_module

    if self._known.get(name) == about:
      return
    if name in self._known:
      raise FeaturesError(f"{self._folder}: has a record {name!r} already, and records cannot be "
                          "replaced; give another --out or delete its features-*.arrayrecord")
    if self._writer is None:
      self._folder.mkdir(parents=True, exist_ok=True)
      with _disk_errors():
        self._writer = array_record_module.ArrayRecordWriter(
            f"{self._path()}{PARTIAL}", "group_size:1")
    with _disk_errors():
      self._writer.write(pack(name, arrays, about))
    self._known[name] = dict(about)
    self._index.append({"name": name, "about": dict(about)})
    if len(self._index) == self._per_shard:
      self.close()

  def close(self) -> None:
    """Finishes the shard that is open, if any."""
    if self._writer is None:
      return
    writer, self._writer = self._writer, None
    with _disk_errors():
      writer.close()
    path = self._path()
    os.replace(f"{path}{PARTIAL}", path)
    with replacing(path.with_suffix(".json")) as file:
      file.write(json.dumps(self._index, indent=1).encode())
    self._index = []
    self._next += 1

  def _path(self) -> pathlib.Path:
    return self._folder / f"features-{self._next:05d}.arrayrecord"


WRITERS = {"npz": NpzWriter, "arrayrecord": RecordWriter}


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[Any]:
  """A binary file to write that takes the name `path` when it is whole, and never before."""
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + PARTIAL)
  try:
    with open(partial, "wb") as file:
      yield file
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
  """The record library tells of a full disk by RuntimeError; everywhere else it is OSError."""
  try:
    yield
  except (RuntimeError, ValueError) as error:
    raise OSError(errno.EIO, str(error)) from error


def _shards(folder: pathlib.Path) -> list[tuple[pathlib.Path, list[dict[str, Any]]]]:
  """Finished shards with what is in them, by number."""
  found = []
  for path in sorted(folder.glob("features-*.arrayrecord"), key=_number):
    listing = path.with_suffix(".json")
    if not listing.is_file():
      continue
    try:
      index = json.loads(listing.read_text())
      for item in index:
        _checked(item["about"], listing)
        item["name"]
    except (ValueError, KeyError, TypeError) as error:
      raise FeaturesError(f"{listing}: not a list of outputs ({error}); delete it and "
                          f"{path.name} to have them made again") from error
    found.append((path, index))
  return found


def _number(path: pathlib.Path) -> int:
  digits = path.stem.removeprefix("features-")
  return int(digits) if digits.isdecimal() else -1


def _checked(about: Any, where: Any) -> dict[str, Any]:
  found = (about.get("format"), about.get("version")) if isinstance(about, dict) else about
  if found != (FORMAT, VERSION):
    raise FeaturesError(f"{where}: is {found!r}, expected {FORMAT!r} version {VERSION}")
  return about


def _dtype(name: str) -> np.dtype:
  return np.dtype(DTYPES.get(name, name))


def _named(array: np.ndarray) -> np.ndarray:
  """NumPy's files forget what bfloat16 is called; two bytes of no type are nothing else here."""
  return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array
