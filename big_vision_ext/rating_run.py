"""How is a folder of pictures rated? A table, file by file, and a sheet from the best to the worst.

`encode --task quality` comes here. The table grows as pictures are rated; interrupted, the same
command goes on. Beside `NAME.csv` lie `NAME.json`, what it was made with, and `NAME.png`. A picture
that cannot be used is named, counted and passed over.
"""

import argparse
import concurrent.futures
import csv
import io
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_ext import draw, jobs, rating, rating_sheet
from big_vision_ext.ahead import ahead
from big_vision_ext.core import workdir
from input_pipeline.build import progress

FORMAT, VERSION = "bve-ratings", 1
# Pictures on a sheet; of more, so many are shown from evenly spaced ranks.
_ON_A_SHEET = 60
_THUMB = 400
_FIXED = ("file", "bytes", "width", "height", "quality", "aesthetic")
# Options of `encode` that mean nothing here, and what they are if they are not given.
_REFUSED = {
    "data": None, "region": None, "prompt": [], "index": [], "looks": "1", "tokens": None,
    "only_first_scales": None, "aspect": "squash", "format": "npz", "dtype": "float32",
    "maps": False, "seed": 0}


class RatingsError(ValueError):
  """A table that cannot be gone on with."""


def rate(options: argparse.Namespace) -> int:
  """Rates what the command line of `encode` names; returns the exit code."""
  check(options)
  todo, ignored = jobs.of_files(options.image)
  if ignored:
    print(f"files with other endings than images, left out: {ignored}", file=sys.stderr)
  towers = options.weights if options.workdir else None
  rater = rating.Rater(
      options.workdir or options.weights, step=options.step, towers=towers,
      adapter=options.adapter, prompts=options.prompts, crops=options.crops,
      short_side=options.short_side, batch_size=options.batch, tokenizer=options.tokenizer)
  table = Table(pathlib.Path(options.out), rater, overwrite=options.overwrite)
  return Run(rater, table, threads=options.threads, pictures=not options.no_pictures)(todo)


def check(options: argparse.Namespace) -> None:
  """Raises ValueError for options that contradict each other or mean nothing."""
  for name, plain in _REFUSED.items():
    if (value := getattr(options, name)) != plain:
      raise ValueError(f"--{name.replace('_', '-')}={value}: means nothing with --task quality, "
                       "which rates whole files")
  if not (options.workdir or options.weights):
    raise ValueError("give the model as --weights (a CLIP) or as --workdir (a run)")
  if not options.image:
    raise ValueError("give pictures with --image FILE_OR_FOLDER")
  if not options.out.endswith(".csv"):
    raise ValueError(f"--out={options.out}: expected the name of a table, like ratings.csv")
  for name, least in (("batch", 1), ("threads", 1), ("short_side", 0)):
    if getattr(options, name) < least:
      raise ValueError(f"--{name.replace('_', '-')}={getattr(options, name)}: expected a number of "
                       f"at least {least}")


class Table:
  """A CSV file of ratings, a row a picture, that can be gone on with.

  Attributes:
    rows: {file: its row}, of strings as they are written.
    names: of the columns.
  """

  def __init__(self, path: pathlib.Path, rater: rating.Rater, *, overwrite: bool = False):
    """Opens the table; rows of an earlier run are kept.

    Raises:
      RatingsError: it was made with something else, or is no table of ours.
    """
    self.path, self._about = path, path.with_suffix(".json")
    self.words = rater.heads["quality"].words
    self.names = [*_FIXED, *(f"p_{word.replace(' ', '_')}" for word in self.words)]
    settings = {"format": FORMAT, "version": VERSION, **rater.settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    self.rows: dict[str, list[str]] = {}
    if path.exists() and not overwrite:
      self._compare(settings)
      self.rows = self._read()
    workdir.write_json(self._about, settings)
    # An unfinished last line goes, and so may rows that were twice there.
    self.write(list(self.rows))

  def done(self, source: jobs.Source) -> bool:
    """Whether a picture is in the table, as it is now."""
    row = self.rows.get(source.key)
    return row is not None and row[1] == str(source.size())

  def add(self, source: jobs.Source, shape: tuple[int, int], found: rating.Rating) -> None:
    """Appends a row."""
    numbers = (found.quality, found.aesthetic, *found.levels)
    row = [source.key, str(source.size()), str(shape[1]), str(shape[0]),
           *(f"{x:.6f}" for x in numbers)]
    self.rows[source.key] = row
    self._file.write(_line(row))
    self._file.flush()

  def number(self, key: str, column: str) -> float:
    """A number of a row."""
    return float(self.rows[key][self.names.index(column)])

  def levels(self, key: str) -> list[float]:
    """How much each level is meant."""
    return [float(x) for x in self.rows[key][len(_FIXED):]]

  def write(self, order: Sequence[str]) -> None:
    """Writes the table anew, with these rows in this order, and stays open for more."""
    self.close()
    self.rows = {key: self.rows[key] for key in order}
    partial = self.path.with_name(f"{self.path.name}.partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
      file.write(_line(self.names))
      file.writelines(map(_line, self.rows.values()))
    os.replace(partial, self.path)
    self._file = open(self.path, "a", encoding="utf-8", newline="")

  def close(self) -> None:
    """Lets go of the file."""
    if getattr(self, "_file", None) is not None:
      self._file.close()
      self._file = None

  def _compare(self, settings: dict[str, Any]) -> None:
    try:
      found = json.loads(self._about.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
      raise RatingsError(f"{self.path} is there without a readable {self._about.name}, which says "
                         "what it was made with; give another --out, or --overwrite") from error
    differ = sorted(k for k in found.keys() | settings.keys() if found.get(k) != settings.get(k))
    if differ:
      was, now = (", ".join(f"{k}={of.get(k)!r}" for k in differ) for of in (found, settings))
      raise RatingsError(f"{self.path} is there and was made with {was}; now it would be {now}. "
                         "Give another --out, or --overwrite")

  def _read(self) -> dict[str, list[str]]:
    text = self.path.read_text(encoding="utf-8")
    # Cut off in the middle of a line, the table ends with the one before.
    whole = text[:text.rfind("\n") + 1]
    rows = list(csv.reader(io.StringIO(whole, newline="")))
    if rows and rows[0] != self.names:
      raise RatingsError(f"{self.path}: its columns are {', '.join(rows[0])}, expected "
                         f"{', '.join(self.names)}; give another --out, or --overwrite")
    return {row[0]: row for row in rows[1:] if len(row) == len(self.names)}


class Run:
  """Rates pictures and fills a table."""

  def __init__(self, rater: rating.Rater, table: Table, *, threads: int, pictures: bool):
    self._rater, self._table = rater, table
    self._threads, self._pictures = threads, pictures

  def __call__(self, todo: Sequence[jobs.Job]) -> int:
    """Rates what is not in the table yet; returns 1 if pictures had to be passed over, else 0."""
    table, every = self._table, [job.source for job in todo]
    rest = [source for source in every if not table.done(source)]
    meter = progress.Progress("rate", len(every), done=len(every) - len(rest), unit="pictures",
                              enabled=len(every) > 10 or sys.stderr.isatty())
    try:
      skipped = self._rate(rest, meter)
    finally:
      table.close()
    meter.close()
    # In the order of the files, without those that are not asked for any more.
    table.write([source.key for source in every if source.key in table.rows])
    table.close()
    made = len(rest) - skipped
    print(f"{made} pictures rated, in {table.path}"
          + (f", {len(every) - len(rest)} were there already" if len(every) > len(rest) else "")
          + (f", {skipped} left out (see above)" if skipped else ""))
    if self._pictures and table.rows:
      self._sheet({source.key: source for source in every})
    return 1 if skipped else 0

  def _rate(self, sources: Sequence[jobs.Source], meter: progress.Progress) -> int:
    """Returns the number of pictures that were passed over."""
    skipped, waiting = 0, []

    def flush():
      found = self._rater.rate([cut for _, _, cut in waiting])
      for (source, shape, _), one in zip(waiting, found):
        self._table.add(source, shape, one)
        meter.advance()
      waiting.clear()

    with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
      try:
        for source, future in ahead(pool, sources, self._load,
                                    self._threads + self._rater.batch_size):
          try:
            shape, cut = future.result()
          except (ValueError, OSError) as error:
            text = f"left out: {error}"
            print(f"\r{text:<78}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
            meter.advance(skipped=True)
            skipped += 1
            # What an earlier run has said of it is of another file.
            self._table.rows.pop(source.key, None)
            continue
          waiting.append((source, shape, cut))
          if len(waiting) == self._rater.batch_size:
            flush()
        if waiting:
          flush()
      finally:
        pool.shutdown(cancel_futures=True)
    return skipped

  def _load(self, source: jobs.Source) -> tuple[tuple[int, int], np.ndarray]:
    pixels = source.read().pixels
    return pixels.shape[:2], self._rater.cut(pixels, source.key)

  def _sheet(self, sources: dict[str, jobs.Source]) -> None:
    table = self._table
    ranked = sorted(table.rows, key=lambda key: -table.number(key, "quality"))
    shown = rating_sheet.chosen(len(ranked), _ON_A_SHEET)
    pictures, lines, shares = [], [], []
    for rank in shown:
      key = ranked[rank]
      try:
        pictures.append(draw.shrink(sources[key].read().pixels, _THUMB))
      except (ValueError, OSError):
        continue  # It has gone since it was rated.
      lines.append((f"quality {table.number(key, 'quality'):.3f}   "
                    f"aesth. {table.number(key, 'aesthetic'):.3f}", f"{rank + 1}. {key}"))
      shares.append(table.levels(key))
    if not pictures:
      return
    of = f"{len(ranked)} pictures" if len(shown) == len(ranked) else (
        f"{len(shown)} of {len(ranked)} pictures, from evenly spaced ranks")
    heads = self._rater.heads
    page = rating_sheet.sheet(
        pictures, lines, shares, table.words, title=f"{of}, best quality first",
        subtitle=f"quality: {heads['quality'].name};  aesthetics: {heads['aesthetic'].name}")
    path = table.path.with_suffix(".png")
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
      draw.write_png(page, file)
    os.replace(partial, path)
    print(f"The sheet: {path}")


def _line(row: Sequence[str]) -> str:
  out = io.StringIO(newline="")
  csv.writer(out, lineterminator="\n").writerow(row)
  return out.getvalue()
