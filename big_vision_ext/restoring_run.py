"""How is a folder of pictures restored? One after the other, decoded ahead, written when complete.

`encode --task restore` comes here. Every picture becomes `NAME.png`, of the depth and with the
alpha of its file, and `NAME.before_after.png`. Interrupted, the same command goes on: a result says
in itself what it was made with. A picture that cannot be used is named, counted and passed over.
"""

import argparse
import concurrent.futures
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from big_vision_ext import draw, features, jobs, restoring, restoring_files
from big_vision_ext.ahead import ahead
from big_vision_ext.restoring_files import Picture
from input_pipeline.build import progress

FORMAT, VERSION = "bve-restored", 1
# Options of `encode` that mean nothing here, and what they are if they are not given.
_REFUSED = {
  "data": None, "region": None, "prompt": [], "prompts": None, "index": [], "looks": "1",
  "tokens": None, "only_first_scales": None, "aspect": "squash", "format": "npz",
  "dtype": "float32", "maps": False, "seed": 0, "tokenizer": None,
}
# Sides in pixels: of a panel of the picture, of the detail that is shown, of what it is sought in.
_PANEL, _DETAIL, _SMALL = 480, 160, 1200
# Up to so many pictures each gets a line that names its files.
_NAMED = 10


def restore(options: argparse.Namespace) -> int:
  """Restores what the command line of `encode` names; returns the exit code."""
  check(options)
  todo, ignored = jobs.of_files(options.image)
  if ignored:
    print(f"files with other endings than images, left out: {ignored}", file=sys.stderr)
  out = pathlib.Path(options.out)
  # Results within a folder that is searched are no pictures to restore.
  todo = [job for job in todo if out.resolve() not in job.source.path.resolve().parents]
  if not todo:
    raise jobs.JobError(f"--image: all pictures there are results, in --out={out}")
  model = restoring.Restorer(
    options.workdir or options.weights, step=options.step, tile=options.tile,
    overlap=options.overlap, ensemble=options.ensemble, batch_size=options.batch,
    member=options.member)
  return Run(model, out, threads=options.threads, pictures=not options.no_pictures,
             overwrite=options.overwrite)(todo)


def check(options: argparse.Namespace) -> None:
  """Raises ValueError for options that contradict each other or mean nothing."""
  for name, plain in _REFUSED.items():
    if (value := getattr(options, name)) != plain:
      raise ValueError(f"--{name.replace('_', '-')}={value}: means nothing with --task restore, "
                       "which restores whole files")
  if bool(options.workdir) == bool(options.weights):
    raise ValueError("give the model either as --workdir (a run) or as --weights (another format)")
  if options.weights and options.step is not None:
    raise ValueError(f"--step={options.step}: only a --workdir has steps to choose from")
  if not options.image:
    raise ValueError("give pictures with --image FILE_OR_FOLDER")
  out = pathlib.Path(options.out).resolve()
  for path in map(pathlib.Path, options.image):
    if out == (path if path.is_dir() else path.parent).resolve():
      raise ValueError(f"--out={options.out}: is where the pictures of --image={path} are, and "
                       "results have their names; give a folder of its own")
  for name, least in (("batch", 1), ("threads", 1), ("tile", 1), ("overlap", 0), ("member", 0)):
    if getattr(options, name) < least:
      raise ValueError(f"--{name}={getattr(options, name)}: expected a number of at least {least}")


class Run:
  """Restores pictures and writes them to a folder."""

  def __init__(self, model: restoring.Restorer, out: pathlib.Path, *, threads: int = 4,
               pictures: bool = True, overwrite: bool = False):
    self._model, self._out, self._threads = model, out, threads
    self._pictures, self._overwrite = pictures, overwrite
    self._settings = {"format": FORMAT, "version": VERSION, "weights": model.fingerprint,
                      "step": model.step, **model.settings}

  def __call__(self, todo: Sequence[jobs.Job]) -> int:
    """Makes the results that are not there yet.

    Returns:
      1 if pictures had to be passed over, else 0.

    Raises:
      FeaturesError: a result of the same name is there, and is of something else.
      OSError: writing failed.
    """
    rest = [job for job in todo if not self._is_done(job)]
    shapes = {job: restoring_files.shape(job.source.path) for job in todo}
    tiles = {job: self._model.count(shape) if shape else 1 for job, shape in shapes.items()}
    self._meter = progress.Progress(
      "restore", sum(tiles.values()), done=sum(tiles[job] for job in todo if job not in rest),
      unit="tiles", enabled=bool(rest) and (len(rest) > _NAMED or sys.stderr.isatty()))
    skipped = 0
    with concurrent.futures.ThreadPoolExecutor(self._threads) as pool:
      load = lambda job: restoring_files.read(job.source.path)
      try:
        # Pictures are large: few lie decoded at a time.
        for job, future in ahead(pool, rest, load, min(self._threads, 2)):
          try:
            picture = future.result()
          except (ValueError, OSError) as error:
            self._note(f"left out: {error}")
            for _ in range(tiles[job]):
              self._meter.advance(skipped=True)
            skipped += 1
            continue
          self._restore(job, picture, len(rest) <= _NAMED)
      finally:
        pool.shutdown(cancel_futures=True)
    self._meter.close()
    made = len(rest) - skipped
    print(f"{made} pictures restored, in {self._out}"
          + (f", {len(todo) - len(rest)} were there already" if len(todo) > len(rest) else "")
          + (f", {skipped} left out (see above)" if skipped else ""))
    return 1 if skipped else 0

  def _restore(self, job: jobs.Job, before: Picture, say: bool) -> None:
    model, (h, w) = self._model, before.colour.shape[:2]
    colour = np.empty((h * model.scale, w * model.scale, 3), before.colour.dtype)
    row = 0
    for band in model.bands(before.colour, self._meter.advance):
      colour[row:row + len(band)] = restoring_files.to_depth(band, colour.dtype)
      row += len(band)
    alpha = before.alpha
    alpha = None if alpha is None else restoring_files.enlarged(alpha, model.scale)
    if self._pictures:
      # First the picture: where there is a result, there is one.
      with features.replacing(self._path(job, ".before_after")) as file:
        draw.write_png(sheet(before.colour, colour, job.source.key), file)
    restoring_files.write(self._path(job), Picture(colour, alpha), self._about(job))
    if say:
      kept = "" if alpha is None else ", alpha kept"
      print(f"{job.source.key}: {w} x {h} px -> {self._out}/{job.name}.png, {colour.shape[1]} x "
            f"{colour.shape[0]} px, {8 * colour.itemsize} bits{kept}")

  def _is_done(self, job: jobs.Job) -> bool:
    path, wanted = self._path(job), self._about(job)
    found = None if self._overwrite else restoring_files.made_with(path)
    if found is None:
      return False
    differ = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
    if differ:
      was, now = (", ".join(f"{k}={of.get(k)!r}" for k in differ) for of in (found, wanted))
      made = f"was made with {was}" if found else "is no result of this command"
      raise features.FeaturesError(f"{path} is there and {made}; now it would be {now}. Give "
                                   "another --out, or --overwrite")
    return not self._pictures or self._path(job, ".before_after").exists()

  def _about(self, job: jobs.Job) -> dict[str, Any]:
    return {"image": job.source.key, "image_bytes": job.source.size(), **self._settings}

  def _path(self, job: jobs.Job, kind: str = "") -> pathlib.Path:
    return self._out / f"{job.name}{kind}.png"

  def _note(self, text: str) -> None:
    # The blanks wipe what is left of a live line.
    print(f"\r{text:<78}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def sheet(before: np.ndarray, after: np.ndarray, name: str) -> np.ndarray:
  """Before and after, whole and where most has changed; (h, w, 3) uint8 or uint16 each."""
  before, after = (_eight_bits(x) for x in (before, after))
  (h, w), size = before.shape[:2], after.shape[:2]
  scale = size[0] // h
  shown, detail = draw.shrink(before, _SMALL), {}
  # The part in pixels of either.
  part = max(_DETAIL // scale, 1)
  if min(h, w) > part:
    y, x = most_changed(before, after, part)
    shown = draw.draw_boxes(shown, np.array([[x, y, x + part, y + part]]) * shown.shape[0] / h)
    cut = Image.fromarray(before[y:y + part, x:x + part])
    detail = {
      "the outlined part, before": np.asarray(cut.resize((part * scale,) * 2, Image.BICUBIC)),
      "and after": after[y * scale:(y + part) * scale, x * scale:(x + part) * scale]}
  panels = {f"before, {w} x {h} px": shown,
            f"after, {size[1]} x {size[0]} px": draw.shrink(after, _SMALL), **detail}
  return draw.sheet(panels, title=name, side=_PANEL)


def most_changed(before: np.ndarray, after: np.ndarray, part: int) -> tuple[int, int]:
  """Top left corner, in pixels of `before`, of the square of side `part` that has changed most."""
  h, w = before.shape[:2]
  ratio = min(1.0, _SMALL / max(h, w))
  shape = (max(1, round(w * ratio)), max(1, round(h * ratio)))
  small = [np.asarray(Image.fromarray(x).resize(shape, Image.BOX), np.float32)
           for x in (before, after)]
  change = np.abs(small[1] - small[0]).mean(-1)
  # Sums over all squares of that side, by sums over all rectangles from the corner.
  side = min(max(1, round(part * ratio)), *change.shape)
  total = np.pad(change.cumsum(0, dtype=np.float64).cumsum(1), ((1, 0), (1, 0)))
  sums = total[side:, side:] - total[:-side, side:] - total[side:, :-side] + total[:-side, :-side]
  y, x = np.unravel_index(sums.argmax(), sums.shape)
  return min(int(y / ratio), h - part), min(int(x / ratio), w - part)


def _eight_bits(x: np.ndarray) -> np.ndarray:
  return x if x.dtype == np.uint8 else ((x.astype(np.uint32) + 128) // 257).astype(np.uint8)
