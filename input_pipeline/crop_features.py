"""Features of crops, computed once by a frozen model and read in place of pixels.

A folder has `features.json`, written last, and for each so many records `NAME.npy`, float32
(records, crops, d), with `NAME.json` beside it: which records they are, which of them could not be
used, and a checksum. Of each record there are so many random crops to train on, and then those that
it is rated by (`crops.boxes`). The folder says which weights, which data and which crops it is of;
what a run asks for must be that. `big_vision_ext.cache_features` writes it.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from input_pipeline import records
from input_pipeline.input_config import InputConfig, InputError
from input_pipeline.stream import Batch, News

FORMAT, VERSION = "bve-crop-features", 1
MANIFEST = "features.json"
COMMAND = "python -m big_vision_ext.cache_features --weights W --data DIR --out"


class FeatureError(ValueError):
  """A record without features; `reason` is the word it is counted under."""

  reason = "no-feature"


@dataclasses.dataclass(frozen=True)
class Settings:
  """What features are of, as `features.json` says it.

  Attributes:
    weights: path of the towers; `fingerprint`, digits that no others have.
    data, split: which records; `digest` of the data set's manifest.
    image_size, resize: of crops.
    crops: how many random ones of each record there are to train on; `flip`: half are mirrored.
    eval_crops: which it is rated by, of `crops.KINDS`; `num_eval` of them.
    seed: of the random crops.
    width: numbers in a feature.
  """

  weights: str
  fingerprint: str
  data: str
  split: str
  digest: str
  image_size: int
  crops: int
  flip: bool
  eval_crops: str
  num_eval: int
  seed: int
  width: int


class CropFeatures:
  """Reads a folder of features; threads may share one, workers open their own.

  Attributes:
    settings: what they are of.
    manifest: all that `features.json` says.
  """

  def __init__(self, folder: str | os.PathLike):
    """Opens the folder; arrays stay in their files.

    Raises:
      InputError: it is no such folder, or not whole.
    """
    self._folder = pathlib.Path(folder)
    self.manifest = read_manifest(self._folder)
    self.settings = Settings(**self.manifest["settings"])
    self._place: dict[str, tuple[int, int]] = {}
    self._bad: dict[str, str] = {}
    self._files = []
    for number, name in enumerate(self.manifest["shards"]):
      about = _about(self._folder, name)
      self._files.append(_mapped(self._folder, name, about, self.settings))
      self._place |= {record: (number, row) for row, record in enumerate(about["ids"])}
      self._bad |= about["unusable"]

  def __reduce__(self):
    return open_folder, (os.fspath(self._folder),)

  def __contains__(self, record: str) -> bool:
    return record in self._place and record not in self._bad

  def drawn(self, record: str, rng: np.random.Generator, where: str) -> Float[np.ndarray, "d"]:
    """One of the random crops of a record; raises FeatureError if it has none."""
    return self._rows(record, where)[int(rng.integers(self.settings.crops))]

  def rated(self, record: str, where: str) -> Float[np.ndarray, "n d"]:
    """The crops that a record is rated by; raises FeatureError if it has none."""
    return self._rows(record, where)[self.settings.crops :]

  def _rows(self, record: str, where: str) -> np.ndarray:
    if record in self._bad:
      raise FeatureError(f"{where}: {self._bad[record]}")
    if record not in self._place:
      raise FeatureError(f"{where}: {self._folder} has no features of {record!r}.")
    number, row = self._place[record]
    return self._files[number][row]


@functools.lru_cache(maxsize=4)
def open_folder(folder: str) -> CropFeatures:
  """The features of a folder, opened once in a process."""
  return CropFeatures(folder)


def of_config(config: InputConfig) -> CropFeatures:
  """The features that a config names, if they are of what it asks for.

  Raises:
    InputError: they are of other data, other crops, or not there.
  """
  if not isinstance(config.data, str):
    raise InputError(f"input.features is {config.features!r} with a mixture of data sets; expected "
                     "features, which are of one, with input.data a directory.")
  found = open_folder(config.features)
  has = found.settings
  wanted = {"split": config.split, "image_size": config.image_size, "flip": config.flip}
  if config.eval_crops:
    wanted["eval_crops"] = config.eval_crops
  for name, value in wanted.items():
    if getattr(has, name) != value:
      raise InputError(f"{config.features}: features are of {name}={getattr(has, name)!r}, and "
                       f"input.{name} is {value!r}. Set it so, or make features of that: {COMMAND}")
  if (digest := data_digest(config.data)) != has.digest:
    raise InputError(f"{config.features}: features are of a data set with another "
                     f"{records.MANIFEST} than {config.data} has ({has.digest} there, {digest} "
                     "here). Make them again, or name the data they were made of.")
  return found


def data_digest(directory: str) -> str:
  """Digits that the manifest of another data set would not have."""
  records.read_manifest(directory)
  data = pathlib.Path(directory, records.MANIFEST).read_bytes()
  return hashlib.sha256(data).hexdigest()[:16]


def read_manifest(folder: str | os.PathLike) -> dict[str, Any]:
  """What `features.json` says; raises InputError if there is none or it is of another kind."""
  path = pathlib.Path(folder) / MANIFEST
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except FileNotFoundError as error:
    raise InputError(f"{folder} has no {MANIFEST}, which is written last: make or finish the "
                     f"features with {COMMAND} {folder}") from error
  except (OSError, ValueError) as error:
    raise InputError(f"{path} cannot be read as JSON: {error}.") from error
  if not isinstance(found, dict) or found.get("format") != FORMAT or (
    found.get("version") != VERSION):
    raise InputError(f"{path} is not of format {FORMAT} {VERSION}; make the features again.")
  return found


class EvalBatches:
  """Evaluation batches of features: a row for each crop of each rated record, in record order."""

  def __init__(self, features: CropFeatures, images: Sequence[tuple[str, int, str]],
               batch_size: int, rows: Sequence[int]):
    """Takes (id, running number, name for messages) of each record, and the rows to make."""
    self._features, self._images = features, images
    self._batch_size, self._rows = batch_size, rows
    self._each = features.settings.num_eval

  def __len__(self) -> int:
    return -(-len(self._images) * self._each // self._batch_size)

  def __getitem__(self, k: int) -> tuple[Batch, News]:
    count, news = len(self._rows), News()
    batch = {
      "feature": np.zeros((count, self._features.settings.width), np.float32),
      "mask": np.zeros(count, bool),
      "index": np.full(count, -1, np.int32),
      "image_index": np.full(count, -1, np.int32),
    }
    last = None
    for row, number in enumerate(self._rows):
      item = int(k) * self._batch_size + number
      image, crop = divmod(item, self._each)
      if image >= len(self._images):
        continue
      record, image_index, source = self._images[image]
      if last is None or last[0] != image:
        news.seen += 1
        try:
          last = image, self._features.rated(record, f"{source}, {record}")
        except FeatureError as error:
          news.skip(error, source)
          last = image, None
      if last[1] is None:
        continue
      batch["feature"][row] = last[1][crop]
      batch["mask"][row], batch["index"][row] = True, item
      batch["image_index"][row] = image_index
    return batch, news


def shard_is_whole(folder: pathlib.Path, name: str, settings: Settings) -> bool:
  """Whether a shard is there, of these settings, and has the bytes that it was written with."""
  try:
    about = _about(folder, name)
    array = _mapped(folder, name, about, settings)
  except InputError:
    return False
  # Where the weights and the data lie may change, what they are may not.
  same = {"weights": settings.weights, "data": settings.data}
  return (about["settings"] | same == dataclasses.asdict(settings)
          and about["crc32"] == zlib.crc32(np.ascontiguousarray(array)))


def settings_of(folder: pathlib.Path, name: str) -> dict[str, Any]:
  """What a shard was made with; raises InputError."""
  return _about(folder, name)["settings"]


def unusable(folder: pathlib.Path, name: str) -> dict[str, str]:
  """The records of a shard that could not be used, and why; raises InputError."""
  return _about(folder, name)["unusable"]


def write_shard(folder: pathlib.Path, name: str, values: Float[np.ndarray, "n c d"],
                ids: Sequence[str], unusable: Mapping[str, str], settings: Settings) -> None:
  """Writes features of records, which are there when this returns and not in part before."""
  values = np.ascontiguousarray(values, np.float32)
  about = {"ids": list(ids), "unusable": dict(unusable), "shape": list(values.shape),
           "crc32": zlib.crc32(values), "settings": dataclasses.asdict(settings)}
  partial = folder / f"{name}.npy.partial"
  with open(partial, "wb") as file:
    np.lib.format.write_array(file, values)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, folder / f"{name}.npy")
  write_json(folder / f"{name}.json", about)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  """Writes a JSON file that, if it is there, is whole."""
  partial = path.with_name(f"{path.name}.partial")
  partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
  os.replace(partial, path)


def _about(folder: pathlib.Path, name: str) -> dict[str, Any]:
  path = folder / f"{name}.json"
  try:
    about = json.loads(path.read_text(encoding="utf-8"))
    if {"ids", "unusable", "shape", "crc32", "settings"} <= about.keys():
      return about
  except (OSError, ValueError, AttributeError) as error:
    raise InputError(f"{path} cannot be read ({error}); make the features again, which keeps what "
                     "is whole.") from error
  raise InputError(f"{path} does not say what it is of; make the features again.")


def _mapped(folder: pathlib.Path, name: str, about: Mapping[str, Any], settings: Settings
            ) -> np.ndarray:
  path = folder / f"{name}.npy"
  want = (len(about["ids"]), settings.crops + settings.num_eval, settings.width)
  try:
    array = np.load(path, mmap_mode="r")
  except (OSError, ValueError) as error:
    raise InputError(f"{path} cannot be read ({error}); make the features again, which keeps what "
                     "is whole.") from error
  if array.shape != want or array.dtype != np.float32:
    raise InputError(f"{path} is {array.dtype}{array.shape}, expected float32{want}; make the "
                     "features again.")
  return array
