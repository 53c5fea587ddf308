"""How do many images get through the encoder? Decoded ahead, batched by size, written behind.

Threads decode the next images while the device works, and another writes the last outputs. An image
that cannot be used is named, counted and passed over.
"""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_ext import aspect as aspect_lib
from big_vision_ext import draw, embedding, encoding, features
from big_vision_ext.ahead import ahead
from big_vision_ext.jobs import Job, Photo, Source
from input_pipeline.build import progress

_PICTURE_SIDE = 1200
# Up to so many outputs each gets a line that names its files.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class _Ready:
  """An image as the encoder takes it, and what the picture of it needs."""

  prepared: np.ndarray
  shape: tuple[int, int]
  small: np.ndarray | None
  boxes: np.ndarray


class Run:
  """Encodes jobs and writes their outputs to a folder."""

  def __init__(self, encoder: encoding.Encoder | embedding.Embedder, out: str | os.PathLike, *,
               form: str = "npz", dtype: str = "float32", maps: bool = False, pictures: bool = True,
               overwrite: bool = False, threads: int = 4):
    """See the options of `encode` of the same names; `form` is its --format.

    Raises:
      FeaturesError: the folder holds damaged lists of outputs.
    """
    self._encoder, self._out = encoder, pathlib.Path(out)
    self._dtype, self._maps, self._pictures = dtype, maps, pictures
    self._overwrite, self._threads = overwrite, threads
    self._writer = features.WRITERS[form](self._out)
    self._settings = {
        "weights": encoder.fingerprint, "step": encoder.step, **encoder.settings,
        **encoder.shape, "dtype": dtype, "maps": maps}

  def __call__(self, jobs: Sequence[Job]) -> int:
    """Makes the outputs that are not there yet.

    Returns:
      1 if images had to be passed over, else 0.

    Raises:
      FeaturesError: an output of the same name is there, and is of something else.
      OSError: writing failed.
    """
    todo = [job for job in jobs if not self._is_done(job)]
    sources: dict[Source, list[Job]] = {}
    for job in todo:
      sources.setdefault(job.source, []).append(job)
    unit = "images" if len({job.source for job in jobs}) == len(jobs) else "outputs"
    self._meter = progress.Progress(
        "encode", len(jobs), done=len(jobs) - len(todo), unit=unit,
        enabled=len(jobs) > _NAMED or sys.stderr.isatty())
    self._say_each = len(jobs) <= _NAMED
    skipped = self._encode_all(sources) if todo else 0
    self._meter.close()
    done = len(jobs) - len(todo)
    print(f"{len(todo) - skipped} outputs written to {self._out}"
          + (f", {done} were there already" if done else "")
          + (f", {skipped} left out (see above)" if skipped else "")
          + (f"; {len(self._encoder.programs)} programs compiled" if todo else ""))
    return 1 if skipped else 0

  def _encode_all(self, sources: dict[Source, list[Job]]) -> int:
    """Returns the number of jobs that were passed over."""
    skipped = 0
    waiting: dict[Any, list[tuple[Job, _Ready]]] = {}
    pool = concurrent.futures.ThreadPoolExecutor(self._threads)
    writing = concurrent.futures.ThreadPoolExecutor(1)
    self._writes: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
      for source, future in ahead(pool, self._order(pool, sources), self._load,
                                   self._threads + self._encoder.batch_size):
        try:
          ready = future.result()
        except (ValueError, OSError) as error:
          self._note(f"left out: {error}")
          for _ in sources[source]:
            self._meter.advance(skipped=True)
          skipped += len(sources[source])
          continue
        for job in sources[source]:
          group = waiting.setdefault((ready.prepared.shape, job.prompt is None), [])
          group.append((job, ready))
          if len(group) == self._encoder.batch_size:
            self._encode(group, writing)
            group.clear()
      for group in waiting.values():
        if group:
          self._encode(group, writing)
      while self._writes:
        self._writes.popleft().result()
    finally:
      pool.shutdown(cancel_futures=True)
      writing.shutdown(cancel_futures=True)
      self._writer.close()
    return skipped

  def _order(self, pool, sources: dict[Source, list[Job]]) -> list[Source]:
    """Images of one size after each other, if that fills batches; else as they come."""
    sizes = self._encoder.sizes
    if self._encoder.batch_size == 1 or len(sizes) == 1:
      return list(sources)

    def place(source: Source) -> int:
      try:
        return sizes.index(aspect_lib.nearest(source.shape(), sizes))
      except (ValueError, OSError):
        return -1  # Reading it in earnest will say what is wrong.

    places = dict(zip(sources, pool.map(place, sources)))
    return sorted(sources, key=places.__getitem__)

  def _load(self, source: Source) -> _Ready:
    photo = source.read()
    small, boxes = _small(photo) if self._pictures else (None, photo.boxes)
    return _Ready(self._encoder.prepare(photo.pixels), photo.pixels.shape[:2], small, boxes)

  def _encode(self, group: Sequence[tuple[Job, _Ready]], writing) -> None:
    job, first = group[0]
    program = ((self._encoder.batch_size, *first.prepared.shape), job.prompt is not None)
    if program not in self._encoder.programs:
      self._note("compiling for images of {1} x {0} px".format(*first.prepared.shape))
    found = self._encoder.encode_prepared(
        [ready.prepared for _, ready in group], [job.prompt for job, _ in group])
    for (job, ready), arrays in zip(group, found):
      arrays["image_size"] = np.array(ready.shape, np.int32)
      self._writes.append(writing.submit(self._write, job, ready, arrays))
    # A slow disk holds up the encoder rather than fill the memory with what is to be written.
    while len(self._writes) > 2 * self._encoder.batch_size:
      self._writes.popleft().result()

  def _write(self, job: Job, ready: _Ready, arrays: encoding.Features) -> None:
    if self._pictures:
      # A model that looks shows where, on the image; others what went through them.
      sheet = self._encoder.sheet(
          ready.prepared if ready.small is None else ready.small, arrays, name=job.source.key,
          prompt=job.prompt, boxes=ready.boxes, highlight=job.region)
      # First the picture: where there are features, there is one.
      with features.replacing(self._picture(job)) as file:
        draw.write_png(sheet, file)
    stored = features.arrays_to_write(arrays, self._dtype, self._maps)
    self._writer.write(job.name, stored, self._about(job))
    self._meter.advance()
    if self._say_each:
      print(f"{job.source.key}: {self._encoder.summary(arrays)} -> "
            f"{self._out}/: {job.name}" + (", with a picture" if self._pictures else ""))

  def _is_done(self, job: Job) -> bool:
    if self._overwrite:
      return False
    found, wanted = self._writer.about(job.name), self._about(job)
    if found is None:
      return False
    differ = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
    if differ:
      was = ", ".join(f"{key}={found.get(key)!r}" for key in differ)
      now = ", ".join(f"{key}={wanted.get(key)!r}" for key in differ)
      raise features.FeaturesError(f"{self._out}/{job.name} is there and was made with {was}; now "
                                   f"it would be {now}. Give another --out, or --overwrite")
    return not self._pictures or self._picture(job).exists()

  def _about(self, job: Job) -> dict[str, Any]:
    return {"format": features.FORMAT, "version": features.VERSION, "image": job.source.key,
            "image_bytes": job.source.size(), "prompt": job.prompt, **self._settings}

  def _picture(self, job: Job) -> pathlib.Path:
    return self._out / f"{job.name}.png"

  def _note(self, text: str) -> None:
    # The blanks wipe what is left of a live line.
    print(f"\r{text:<78}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def _small(photo: Photo) -> tuple[np.ndarray, np.ndarray]:
  """The image and its boxes at the size of a picture."""
  h, w = photo.pixels.shape[:2]
  small = draw.shrink(photo.pixels, _PICTURE_SIDE)
  return small, photo.boxes * np.array([small.shape[1] / w, small.shape[0] / h] * 2)
