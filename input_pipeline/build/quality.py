"""How do rated pictures become records? From rows of scores, whoever wrote them, to items.

`quality_native` and `quality_tables` read the rows; here scores are normalised, pictures are found
whatever the case of their names, and what must not be used is left out.
"""

import collections
import dataclasses
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image

from input_pipeline import images as images_lib
from input_pipeline import ratings
from input_pipeline.build import (
  check,
  plan,
  quality_native,
  quality_specs,
  quality_tables,
  split_files,
)
from input_pipeline.build import exclude as exclude_lib
from input_pipeline.build.durable import BuildError
from input_pipeline.build.quality_specs import DatasetSpec
from input_pipeline.build.quality_tables import Row
from input_pipeline.build.skips import SkipRecord
from input_pipeline.build.writer import BuiltSample

NAMES = (*quality_native.READERS, "csv")
# A picture with a smaller side says nothing of its quality.
LEAST_SIDE = 32


@dataclasses.dataclass(frozen=True, slots=True)
class RatedItem:
  """One rated picture: its file under the image directory, and its rating or why it has none."""

  id: str
  image: str
  rating: ratings.Rating
  problem: tuple[str, str] | None = None


def read(
  name: str,
  images: str,
  annotations: str | None,
  spec: DatasetSpec,
  *,
  form: str = "native",
  columns: quality_tables.Columns | None = None,
  split_file: str | None = None,
  exclude: str | None = None,
  patches: bool = False,
) -> plan.Plan:
  """Plans the build of a data set of rated pictures.

  Args:
    name: of the data set, one of `NAMES`.
    images: directory of the pictures, in any folders.
    annotations: the file of scores (several joined by commas); None to look for the native ones.
    spec: scale, direction and groups.
    form: "native", or one of `quality_tables.FORMS`.
    columns: of a `csv` file.
    split_file: pickle of splits, of the rows as they are counted in the files.
    exclude: file of names (without their endings), one a line, of pictures to leave out.
    patches: of FLIVE, its patches as well.

  Raises:
    BuildError: files that cannot be read, scores outside of the range, pictures found twice.
  """
  if not os.path.isdir(images):
    raise BuildError(f"{images}: no such directory of images")
  if form == "native":
    rows = quality_native.read(name, images, annotations)
  elif annotations is None:
    raise BuildError(f"--format {form} needs --annotations, the file in that format")
  else:
    rows = quality_tables.read(form, annotations.split(","), columns or quality_tables.Columns())
  splits = split_files.read(split_file, len(rows)) if split_file else [{}] * len(rows)
  files = _Files(images)
  wanted = [k for k, row in enumerate(rows) if patches or not _is_patch(row, spec)]
  items = [_item(rows[k], splits[k], spec, files) for k in wanted]
  if not items:
    raise BuildError(f"{images}: there are only patches; ask for them with --patches")
  if name in quality_specs.SPECS:
    # Of pictures that nobody knows, all may be good ones.
    spec.check_spread([item.rating.score for item in items], rows[0].where.rsplit(",", 1)[0])
  made = plan.Plan([], _loader(images, spec.short_side), {"short_side": spec.short_side})
  made.info["rated"] = {
    "dataset": name, "mos_range": list(spec.mos_range), "lower_better": spec.lower_better,
  }
  kept = exclude_lib.without(items, exclude, made) if exclude else items
  made.items = plan.only_first_of_each_id(kept)
  made.set_aside["patch"] += len(rows) - len(items)
  _count(items, files, spec, made)
  return made


def plan_of(name: str, images: str, options: Mapping[str, Any]) -> plan.Plan:
  """`read` by the options of the command line, of which some may not be given."""
  directions = [d for d in ("higher_is_better", "lower_is_better") if options.get(d)]
  if len(directions) == 2:
    raise BuildError("--higher-is-better and --lower-is-better: expected one of them")
  spec = quality_specs.make(
    name,
    mos_range=options.get("mos_range"),
    lower_better="lower_is_better" in directions if directions else None,
    short_side=options.get("short_side"),
  )
  form = options.get("format", "csv" if name == "csv" else "native")
  given = {part: options.get(f"{part}_column", "") for part in ("image", "score", "group", "split")}
  if name == "csv":
    if form == "native":
      raise BuildError("--format native: --from csv is of data sets that are not known; expected "
                       f"one of {', '.join(quality_tables.FORMS)}")
    if form == "csv" and not (given["image"] and given["score"]):
      raise BuildError("--from csv needs --image-column and --score-column, as the header of the "
                       "file names them")
    if form != "csv" and any(given.values()):
      raise BuildError(f"--format {form} knows its columns; it does not take --...-column")
  elif form == "csv":
    raise BuildError(f"--format csv with --from {name}: expected --from csv, which asks for the "
                     "columns")
  return read(
    name, images, options.get("annotations"), spec, form=form,
    columns=quality_tables.Columns(**given), split_file=options.get("splits"),
    exclude=options.get("exclude_ids"), patches=options.get("patches", False),
  )


class _Files:
  """The image files of a directory, found by their path or bare name in any case."""

  def __init__(self, images: str):
    self._images = images
    self.names = plan.image_files(images)
    self._exact = set(self.names)
    self._by_path: dict[str, list[str]] = {}
    self._by_name: dict[str, list[str]] = {}
    for name in self.names:
      self._by_path.setdefault(name.lower(), []).append(name)
      self._by_name.setdefault(os.path.basename(name).lower(), []).append(name)

  def find(self, asked: str, where: str) -> str:
    """The file that is meant, or what was asked for if there is none; raises for several."""
    asked = asked.replace("\\", "/")
    if asked in self._exact:
      return asked
    path = asked.lower()
    found = self._by_path.get(path) or self._by_name.get(os.path.basename(path), [])
    if len(found) > 1:
      # A table's paths start above the image directory, or below it.
      best = max(_same_ending(path, name) for name in found)
      found = [name for name in found if _same_ending(path, name) == best]
    if len(found) > 1:
      raise BuildError(
        f"{where}: {asked} may be {found[0]} or {found[1]} of {self._images}; give the directory "
        "of one of them as --images"
      )
    return found[0] if found else asked


def _same_ending(path: str, name: str) -> int:
  """How many folders, from the file up, two paths have in common."""
  count = 0
  for one, other in zip(reversed(path.split("/")), reversed(name.lower().split("/"))):
    if one != other:
      break
    count += 1
  return count


def _item(row: Row, extra: dict[str, str], spec: DatasetSpec, files: _Files) -> RatedItem:
  file = files.find(row.image, row.where)
  name = os.path.splitext(plan.readable(file))[0]
  rating = ratings.Rating(
    score=spec.score(row.mos, row.where),
    mos=row.mos,
    group=plan.readable(row.group or spec.group(file) or name),
    splits={**row.splits, **extra},
    votes=row.votes,
  )
  return RatedItem(id=name, image=file, rating=rating)


def _is_patch(row: Row, spec: DatasetSpec) -> bool:
  return spec.name == "flive" and "_patch_" in os.path.basename(row.image)


def _count(
  items: Sequence[RatedItem], files: _Files, spec: DatasetSpec, made: plan.Plan
) -> None:
  """Counts what is there and not used, and what was published and is not there."""
  mentioned = {item.image for item in items}
  groups = {item.rating.group.lower() for item in items} if spec.reference else set()
  for file in files.names:
    if file in mentioned:
      continue
    stem = os.path.splitext(os.path.basename(file))[0].lower()
    if not (spec.name == "flive" and "_patch_" in stem):
      kind = "reference-image" if stem in groups else "image-file-without-annotation"
      made.set_aside[kind] += 1
  made.set_aside["row-published-but-not-there"] += max(spec.expected - len(items), 0)
  made.set_aside += collections.Counter()  # Drops counts of none.


def _loader(images: str, short_side: int) -> Callable[[RatedItem], BuiltSample]:
  def load(item: RatedItem) -> BuiltSample:
    if item.problem is not None:
      raise SkipRecord(*item.problem)
    data = check.read_file(images, (item.image,))
    mended = []
    if short_side:
      data, mended = _reduced(data, item.image, short_side)
    sample = check.sample_from(
      item.id, data, (), None, source=item.image, rating=item.rating, least_side=LEAST_SIDE,
    )
    return dataclasses.replace(sample, mended=[*sample.mended, *mended])

  return load


def _reduced(data: bytes, where: str, short_side: int) -> tuple[bytes, list[tuple[str, str]]]:
  """A file with its shorter side reduced to so many pixels, as PNG; as it is if that is no more."""
  try:
    width, height = images_lib.image_size(data, where)
    if min(width, height) <= short_side:
      return data, []
    pixels = images_lib.decode_image(data, where)
  except images_lib.ImageError as error:
    raise SkipRecord(error.reason, str(error)) from error
  factor = short_side / min(width, height)
  size = tuple(max(short_side, round(side * factor)) for side in (height, width))
  small = images_lib.resize_region(pixels, (0, 0, width, height), size)
  out = io.BytesIO()
  Image.fromarray(small).save(out, "PNG")
  # Losslessly: the marks of a second JPEG are what is to be rated.
  return out.getvalue(), [("image-reduced", f"was {width} x {height}")]
