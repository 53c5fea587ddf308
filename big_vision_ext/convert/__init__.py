"""Other people's weight formats, both ways, by name tables. NumPy only; no framework is needed."""

import dataclasses
import importlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from big_vision_ext.convert import card, files, tokenizer_files
from big_vision_ext.convert.lazy import BFLOAT16, ConvertError, Lazy, Tensors

__all__ = ["DTYPES", "FORMATS", "ConvertError", "Tensors", "Weights", "check_out", "detect",
           "read", "write"]

FORMATS = ("npz", "ps3_torch", "transformers", "mae", "ijepa", "focusmim", "restoration", "timm",
           "open_clip", "openai_clip", "uniqa")
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16, "float16": np.dtype(np.float16)}
# Beside the weights of every export: what formats cannot say, and that we wrote the folder.
EXPORT_FILE = "export.json"
EXPORT_KIND = "bve-export"


@dataclasses.dataclass(frozen=True)
class Weights:
  """A model's weights and what is known about it.

  Attributes:
    params: our slash names -> arrays, blocks of encoders one by one; a `Tensors` reads an array
      when it is asked for.
    task: one of `ours.TASKS`, `ours.ENCODER` for an encoder alone; "" if it cannot be told.
    model: the `config.model` that builds the task, sizes written out.
    input: what is known of preprocessing: image_size, mean, std, resize, tokenizer, text_len,
      canonicalize, eval_crop, and the names of the classes; {} if nothing is.
    meta: format, source, and whatever a card should tell: data, metrics, licence, init, step.
  """

  params: Mapping[str, np.ndarray]
  task: str
  model: dict[str, Any]
  input: dict[str, Any] = dataclasses.field(default_factory=dict)
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)


def detect(path: str | os.PathLike) -> str:
  """The format of a file or folder.

  Raises:
    ConvertError: there is nothing there, or nothing of a known format.
  """
  path = pathlib.Path(path)
  if not _file_of(path).exists():
    raise ConvertError(f"{path}: there is no such file or folder")
  for name in FORMATS:
    if _module(name).detect(path):
      return name
  raise ConvertError(
      f"{path}: its format is not recognised; expected one of {', '.join(FORMATS)} (a folder as "
      "that library saves it, with its config.json, or an .npz), or the directory of a run, with "
      "checkpoints/ in it")


def read(path: str | os.PathLike, format: str | None = None) -> Weights:
  """Weights in another format; arrays stay in the files until they are asked for.

  Args:
    path: a folder, or a file of weights in one.
    format: one of `FORMATS`; recognised from the files if None.

  Raises:
    ConvertError: no such format, an unreadable file, or arrays that are missing, extra, misshapen
      or truncated; they are listed by name.
  """
  path = pathlib.Path(path)
  if format is not None and format not in FORMATS:
    raise ConvertError(f"format {format!r} is unknown; expected one of {', '.join(FORMATS)}")
  format = format or detect(path)
  if not _file_of(path).exists():
    raise ConvertError(f"{path}: there is no such file or folder")
  weights = _module(format).read(path)
  folder = path if path.is_dir() else _file_of(path).parent
  note = _note(folder)
  if note.get("format") == format:
    # The format's own files win; ours add what they cannot say.
    weights = dataclasses.replace(
        weights, model=_merge(note.get("model", {}), weights.model),
        input=_merge(tokenizer_files.resolve(folder, note.get("input", {})),
                     {k: v for k, v in weights.input.items() if v is not None}),
        meta={**note.get("meta", {}), **weights.meta})
  meta = {**weights.meta, "format": format, "source": str(path)}
  return dataclasses.replace(weights, meta=meta)


def write(format: str, out_dir: str | os.PathLike, weights: Weights, *,
          dtype: str | None = None, shard_bytes: float = 5e9,
          progress: Callable[[int, int], None] | None = None, **options: Any) -> list[pathlib.Path]:
  """Writes a folder in another format, with a card; all of it appears at once.

  Args:
    format: one of `FORMATS`.
    out_dir: a folder that is not there, is empty, or is an earlier export, which is replaced.
    weights: what to write.
    dtype: "float32", "bfloat16" or "float16"; None keeps each array's.
    shard_bytes: largest size of a safetensors file.
    progress: called with (bytes, count) after each array.
    **options: of the format.

  Returns:
    The files.

  Raises:
    ConvertError: the format cannot hold this model, arrays are missing, extra or misshapen, values
      do not fit the dtype, or the folder holds something else.
  """
  if format not in FORMATS:
    raise ConvertError(f"format {format!r} is unknown; expected one of {', '.join(FORMATS)}")
  if dtype is not None and dtype not in DTYPES:
    raise ConvertError(f"dtype {dtype!r} is unknown; expected one of {', '.join(DTYPES)}")
  out = check_out(out_dir)
  params = Tensors(weights.params)
  if dtype:
    params = Tensors({n: _cast(n, params.lazy(n), DTYPES[dtype]) for n in params})
  weights = dataclasses.replace(weights, params=params)
  out.parent.mkdir(parents=True, exist_ok=True)
  building = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
  try:
    module = _module(format)
    # A format may hold a part of a model only, and says so.
    weights = module.write(building, weights, shard_bytes=shard_bytes, progress=progress,
                           final=out, **options) or weights
    note = {"kind": EXPORT_KIND, "version": 1, "format": format, "task": weights.task,
            "model": weights.model, "input": tokenizer_files.within(building, weights.input),
            "meta": weights.meta}
    files.write_text(building / EXPORT_FILE, json.dumps(note, indent=1, default=str) + "\n")
    files.write_text(building / "README.md", card.text(format, weights, building, module))
    # mkdtemp's folder is for its owner alone; an export is as open as any new folder.
    umask = os.umask(0)
    os.umask(umask)
    building.chmod(0o777 & ~umask)
    _put_in_place(building, out)
  except BaseException:
    shutil.rmtree(building, ignore_errors=True)
    raise
  return sorted(p for p in out.rglob("*") if p.is_file())


def check_out(out_dir: str | os.PathLike) -> pathlib.Path:
  """The folder's absolute path, if an export may be written there.

  Raises:
    ConvertError: it is a file, or holds something else than an earlier export.
  """
  out = pathlib.Path(out_dir).absolute()
  if out.exists() and not out.is_dir():
    raise ConvertError(f"{out}: is a file, expected a folder")
  if out.is_dir() and any(out.iterdir()) and _note(out).get("kind") != EXPORT_KIND:
    raise ConvertError(f"{out}: holds files that are no earlier export; name a new folder")
  return out


def _put_in_place(building: pathlib.Path, out: pathlib.Path) -> None:
  """Gives a finished folder its name; an earlier one is moved away first and then deleted."""
  if not out.exists() or not any(out.iterdir()):
    os.replace(building, out)
    return
  old = pathlib.Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
  os.replace(out, old)
  try:
    os.replace(building, out)
  except BaseException:
    os.replace(old, out)
    raise
  shutil.rmtree(old, ignore_errors=True)


def _module(name: str) -> Any:
  return importlib.import_module(f"{__name__}.{name}")


def _file_of(path: pathlib.Path) -> pathlib.Path:
  """`x.npz` of `x.npz:img`, big_vision's way to name a part of a file."""
  head, colon, _ = str(path).rpartition(".npz:")
  return pathlib.Path(f"{head}.npz") if colon else path


def _note(folder: pathlib.Path) -> dict:
  path = folder / EXPORT_FILE
  return files.read_json(path) if path.is_file() else {}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
  out = dict(base)
  for key, value in over.items():
    nested = isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
    out[key] = _merge(out[key], value) if nested else value
  return out


def _cast(name: str, x: Lazy, dtype: np.dtype) -> Lazy:
  if x.dtype == dtype:
    return x

  def read():
    before = x.read()
    with np.errstate(over="ignore"):
      after = before.astype(dtype)
    if not np.isfinite(after).all() and np.isfinite(before).all():
      raise ConvertError(f"{name}: has values up to {np.abs(before).max():.3g}, which {dtype} "
                         "cannot hold; use bfloat16 or float32")
    return after
  return Lazy(x.shape, dtype, read)
