"""How do rated data sets, as their authors release them, become rows?

Annotation files are looked for by their own names, under the image directory or the one above it;
`--annotations` names another file (or, of AADB and FLIVE, the directory that holds their lists).
"""

import os
import pathlib
from collections.abc import Callable, Iterator

import numpy as np

from input_pipeline.build import quality_tables
from input_pipeline.build.durable import BuildError
from input_pipeline.build.quality_tables import Row, cell, number, side_of

# CLIVE's first pictures were shown to people to train them.
_CLIVE_TRAINING = 7
_AVA_RATINGS = 10


def read(name: str, images: str, annotations: str | None = None) -> list[Row]:
  """The rows of a data set.

  Args:
    name: one of `READERS`.
    images: the directory of the pictures.
    annotations: the file of scores, if it is not where it is released.

  Raises:
    BuildError: files that are missing, or not as they are released.
  """
  try:
    rows = list(READERS[name](images, annotations))
  except (OSError, UnicodeDecodeError) as error:
    raise BuildError(f"the scores of {name} cannot be read: {error}") from error
  if not rows:
    raise BuildError(f"the scores of {name} have no row")
  return rows


def _find(images: str, annotations: str | None, *names: str) -> str:
  """The path of the first of some files; raises BuildError if none is there."""
  if annotations is not None and os.path.isfile(annotations):
    return annotations
  roots = [annotations] if annotations else [images, os.path.dirname(os.path.abspath(images))]
  for root in roots:
    for name in names:
      if os.path.isfile(path := os.path.join(root, name)):
        return path
  raise BuildError(
    f"{' or '.join(names)}: there is no such file in {' or '.join(roots)}; name the file of scores "
    "with --annotations"
  )


def _koniq(images: str, annotations: str | None) -> Iterator[Row]:
  path = _find(images, annotations, "koniq10k_distributions_sets.csv",
               "koniq10k_scores_and_distributions.csv")
  for where, row in quality_tables.table(path):
    side = row.get("set", "")
    splits = {"official": side_of(side, where)} if side else {}
    mos = number(cell(row, where, "MOS"), where)
    yield Row(cell(row, where, "image_name"), mos, where, splits=splits)


def _kadid(images: str, annotations: str | None) -> Iterator[Row]:
  for where, row in quality_tables.table(_find(images, annotations, "dmos.csv")):
    yield Row(cell(row, where, "dist_img"), number(cell(row, where, "dmos"), where), where)


def _tid2013(images: str, annotations: str | None) -> Iterator[Row]:
  path = _find(images, annotations, "mos_with_names.txt")
  for where, words in _words(path, 2, "a score and a file name"):
    yield Row(words[1], number(words[0], where), where)


def _csiq(images: str, annotations: str | None) -> Iterator[Row]:
  path = _find(images, annotations, "csiq_label.txt")
  for where, words in _words(path, 2, "a file name and a DMOS"):
    yield Row(words[0], number(words[1], where), where)


def _clive(images: str, annotations: str | None) -> Iterator[Row]:
  names = _mat(_find(images, annotations, "Data/AllImages_release.mat", "AllImages_release.mat"))
  # Asked for a file, its neighbour has the scores.
  beside = os.path.dirname(annotations) if annotations and os.path.isfile(annotations) else (
    annotations)
  path = _find(images, beside, "Data/AllMOS_release.mat", "AllMOS_release.mat")
  scores = _mat(path)
  files = [str(np.ravel(entry)[0]) for entry in np.ravel(names)]
  scores = np.ravel(scores)
  if len(files) != len(scores):
    raise BuildError(f"{path}: has {len(scores)} scores, but there are {len(files)} names of "
                     "pictures beside it; expected one for each")
  for k in range(_CLIVE_TRAINING, len(files)):
    where = f"{path}, entry {k + 1}"
    yield Row(files[k], number(scores[k], where), where)


def _spaq(images: str, annotations: str | None) -> Iterator[Row]:
  sheet = "MOS and Image attribute scores"
  folders = ("", "Annotations/")
  try:
    path = _find(images, annotations, *(f"{f}{sheet}.csv" for f in folders))
  except BuildError:
    # The release is a spreadsheet; its reader says what to do with it.
    path = _find(images, annotations, *(f"{f}{sheet}.xlsx" for f in folders))
  for where, row in quality_tables.table(path):
    name = cell(row, where, "Image name", "image_name", "name")
    yield Row(name, number(cell(row, where, "MOS"), where), where)


def _ava(images: str, annotations: str | None) -> Iterator[Row]:
  path = _find(images, annotations, "AVA.txt")
  lists = os.path.join(os.path.dirname(path), "aesthetics_image_lists", "generic_test.jpgl")
  test = frozenset(pathlib.Path(lists).read_text().split()) if os.path.isfile(lists) else None
  for where, words in _words(path, 15, "15 whole numbers"):
    if not all(word.isdecimal() for word in words):
      raise BuildError(f"{where}: is {' '.join(words)!r}, expected 15 whole numbers")
    name, votes = words[1], tuple(int(word) for word in words[2 : 2 + _AVA_RATINGS])
    if not sum(votes):
      raise BuildError(f"{where}: nobody has voted for picture {name}")
    splits = {} if test is None else {"official": "test" if name in test else "train"}
    yield Row(f"{name}.jpg", mean_vote(votes), where, splits=splits, votes=votes)


def mean_vote(votes: tuple[int, ...]) -> float:
  """The mean of votes for 1, 2, ..."""
  return sum(k * count for k, count in enumerate(votes, 1)) / sum(votes)


def _aadb(images: str, annotations: str | None) -> Iterator[Row]:
  for part, side in (("Train", "train"), ("Validation", "val"), ("TestNew", "test")):
    name = f"imgList{part}Regression_score.txt"
    path = _find(images, annotations, f"imgListFiles_label/{name}", name)
    for where, words in _words(path, 2, "a file name and a score"):
      yield Row(words[0], number(words[1], where), where, splits={"official": side})


def _flive(images: str, annotations: str | None) -> Iterator[Row]:
  def find(name: str) -> str:
    return _find(images, annotations, name, f"database/{name}")

  folder = os.path.dirname(find("labels_image.csv"))
  sides = {}
  # Padded to 640 x 640 are those to train on, of which some validate; the others test.
  for name, side in (("labels=640_padded.csv", "val"), ("labels640.csv", "test")):
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      for where, row in quality_tables.table(path):
        valid = side == "test" or cell(row, where, "is_valid").lower() in ("true", "1", "1.0")
        sides |= {cell(row, where, "name_image"): side} if valid else {}
  known = {os.path.basename(picture): side for picture, side in sides.items()}
  for name in ("labels_image.csv", "labels_patch.csv"):
    path = os.path.join(folder, name)
    # Patches are an addition that is not always there.
    for where, row in quality_tables.table(path) if os.path.isfile(path) else ():
      picture = cell(row, where, "name")
      base = os.path.basename(picture).split("_patch_")[0]
      splits = {"official": known.get(base, "train")} if known else {}
      mos = number(cell(row, where, "mos"), where)
      yield Row(picture, mos, where, group=base, splits=splits)


def _agiqa3k(images: str, annotations: str | None) -> Iterator[Row]:
  for where, row in quality_tables.table(_find(images, annotations, "data.csv")):
    mos = number(cell(row, where, "mos_quality"), where)
    # Pictures of one prompt show the same.
    yield Row(cell(row, where, "name"), mos, where, group=row.get("prompt", "").strip())


READERS: dict[str, Callable[..., Iterator[Row]]] = {
  "koniq": _koniq,
  "kadid": _kadid,
  "tid2013": _tid2013,
  "csiq": _csiq,
  "clive": _clive,
  "spaq": _spaq,
  "ava": _ava,
  "aadb": _aadb,
  "flive": _flive,
  "agiqa3k": _agiqa3k,
}


def _words(path: str, count: int, expected: str) -> Iterator[tuple[str, list[str]]]:
  """The lines of a text as words; raises BuildError for a line of another number of them."""
  with open(path, encoding="utf-8-sig") as file:
    for number_, line in enumerate(file, 1):
      words = line.split()
      if words and len(words) != count:
        raise BuildError(f"{path}, line {number_}: is {line.strip()!r}, expected {expected}")
      if words:
        yield f"{path}, line {number_}", words


def _mat(path: str) -> np.ndarray:
  """The one variable of a MATLAB file."""
  from scipy import io  # Only here: the others are text.

  try:
    found = io.loadmat(path)
  except Exception as error:  # Damaged files make SciPy raise a dozen types.
    raise BuildError(f"{path}: cannot be read as a MATLAB file ({error})") from error
  name = os.path.basename(path).split(".")[0]
  if name not in found:
    known = ", ".join(key for key in found if not key.startswith("__"))
    raise BuildError(f"{path}: has no variable {name!r}; it has {known or 'none'}")
  return found[name]
