"""How good are pictures, by the words for levels of quality and what an adapter has learned?

`Rater` gives each picture a score of its quality and one of its aesthetics, 0 worst to 1 best, and
how much each level of quality is meant. It reads crops at the picture's own resolution, as in
training and evaluation, and averages over them.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from big_vision_ext import convert, weights
from big_vision_ext.clip_model import ClipTowers
from big_vision_ext.core import trees
from big_vision_ext.objectives import levels
from big_vision_ext.tasks import quality
from input_pipeline import crops as crops_lib
from input_pipeline import images

# Beside the kinds of `crops`: CLIP's own view, the shorter side to its size and the middle square.
WHOLE = "whole"
CROPS = (*crops_lib.KINDS, WHOLE)
# What is said of a picture, and what it is asked with where nothing was trained for it.
PROMPTS = {"quality": "uniqa_ensemble", "aesthetic": "aesthetics"}
# Enlarged to a crop, fewer pixels than these would show the enlarging and not the picture.
LEAST_SIDE = 32
# Crops of a picture that a program is made for, where their number is not fixed.
_ROUGHLY = 10
_score = jax.jit(levels.score)


class TooSmallError(images.ImageError):
  """A picture of too few pixels to be rated."""


@dataclasses.dataclass(frozen=True)
class Rating:
  """What is said of a picture.

  Attributes:
    quality, aesthetic: 0 worst to 1 best; an adapter may go a little beyond.
    levels: how much each level of quality is meant, worst first; they add up to 1.
    crops: how many crops were looked at.
  """

  quality: float
  aesthetic: float
  levels: tuple[float, ...]
  crops: int


@dataclasses.dataclass(frozen=True)
class Head:
  """What turns features into scores: `rate(features (n, d)) -> {score (n,), probs (n, k)}`.

  Attributes:
    name: what it is, for settings and titles: prompts, or an adapter with its prompts.
    words: names of the levels, worst first.
  """

  name: str
  words: tuple[str, ...]
  rate: Any


class Rater:
  """A CLIP with prompts, or with an adapter, ready to rate.

  Example:
    ```
    from big_vision_ext.rating import Rater
    rater = Rater("runs/adapter")
    print(rater(rater.open("photo.jpg")).quality)
    ```

  Attributes:
    heads: a `Head` for each of `PROMPTS`.
    settings: what decides the numbers, for files that are continued.
    towers: the model.
  """

  def __init__(self, source: str | os.PathLike, *, step: int | None = None,
               towers: str | os.PathLike | None = None, adapter: str | os.PathLike | None = None,
               prompts: str | None = None, crops: str = "ten_random", short_side: int = 384,
               batch_size: int = 1, tokenizer: str | None = None):
    """Loads the weights; nothing is compiled yet.

    Args:
      source: a CLIP in any format or a run of it, or a run of the task "quality".
      step: checkpoint of a run; default: the latest.
      towers: where the CLIP of a run on cached features is, if it has moved.
      adapter: a file of UniQA's adapter for a CLIP.
      prompts: what quality is asked with, see `objectives.levels.read`; default: the ensemble, or
        what the adapter was trained with.
      crops: one of `CROPS`.
      short_side: pictures with a longer shorter side are reduced to it first, as the published
        recipes do; 0: never.
      batch_size: pictures at a time.
      tokenizer: of the prompts, for weights that do not say.

    Raises:
      ValueError: no such weights, or ones that do not go together; the message says what.
    """
    if crops not in CROPS:
      raise ValueError(f"crops={crops!r}: expected one of {', '.join(CROPS)}")
    if short_side < 0 or batch_size < 1:
      raise ValueError(
          f"short_side={short_side}, batch_size={batch_size}: expected at least 0 and 1")
    self._crops, self._short_side, self.batch_size = crops, short_side, batch_size
    each = {"five_crop": 5, "center": 1, WHOLE: 1}.get(crops, _ROUGHLY)
    loaded = weights.load(source, step)
    run = loaded if loaded.task_name == "quality" else None
    if run is not None and adapter is not None:
      raise ValueError(f"{source}: is an adapter itself; --adapter={adapter} is for a CLIP")
    where: Any = loaded
    if run is not None and not run.model.get("clip"):
      where = towers or _towers_of(run)
    elif towers is not None:
      raise ValueError(f"{towers}: {source} has towers of its own; give one of them")
    self.towers = ClipTowers(where, step=None, batch_size=batch_size * each, tokenizer=tokenizer)
    if where is not loaded and self.towers.fingerprint != run.model["towers"].get("fingerprint"):
      raise ValueError(
          f"{where}: are not the weights that {source} was trained on ({self.towers.fingerprint}, "
          f"expected {run.model['towers'].get('fingerprint')}); give the right ones with --weights")
    self.size = self.towers.size
    if prompts is not None and run is not None:
      raise ValueError(f"--prompts={prompts}: {source} was trained with prompts of its own")
    self.heads = {name: self._zero_shot(spec) for name, spec in PROMPTS.items()}
    if run is not None:
      self.heads[run.model.get("measures", "quality")] = _adapted(run)
    elif adapter is not None:
      self.heads["quality"] = self._with_adapter(adapter, prompts or "uniqa")
    elif prompts is not None:
      self.heads["quality"] = self._zero_shot(prompts)
    self.settings = {
        "weights": self.towers.fingerprint, "crops": crops, "short_side": short_side,
        **{name: head.name for name, head in self.heads.items()}}

  def open(self, path: str | os.PathLike) -> np.ndarray:
    """The pixels (h, w, 3) of a picture's file, upright; raises ImageError or OSError."""
    return self.towers.open(path)

  def __call__(self, pixels: UInt8[np.ndarray, "y x 3"], name: str = "") -> Rating:
    """Rates a picture; `name` decides where random crops lie."""
    return self.rate([self.cut(pixels, name)])[0]

  def cut(self, pixels: UInt8[np.ndarray, "y x 3"], name: str) -> UInt8[np.ndarray, "n s s 3"]:
    """The crops of a picture that are looked at; raises TooSmallError."""
    h, w = pixels.shape[:2]
    if min(h, w) < LEAST_SIDE:
      raise TooSmallError(f"{name}: the picture has {w} x {h} pixels, expected at least "
                          f"{LEAST_SIDE} x {LEAST_SIDE}", "image-too-small")
    short = self.size if self._crops == WHOLE else self._short_side
    if short and (min(h, w) > short or self._crops == WHOLE):
      size = tuple(max(short, round(side * short / min(h, w))) for side in (h, w))
      pixels = images.resize_region(pixels, (0, 0, w, h), size, "bicubic")
      h, w = size
    kind = "center" if self._crops == WHOLE else self._crops
    boxes = crops_lib.boxes(kind, name, w, h, self.size)
    return np.stack([crops_lib.cut(pixels, box, self.size) for box in boxes])

  def rate(self, cut: Sequence[UInt8[np.ndarray, "n s s 3"]]) -> list[Rating]:
    """Rates pictures by their crops."""
    features = self.towers.image_features(np.concatenate(cut))
    found = {name: jax.device_get(head.rate(features)) for name, head in self.heads.items()}
    out, start = [], 0
    for crops in cut:
      rows = slice(start, start + len(crops))
      mean = lambda name, key, rows=rows: np.mean(
          np.asarray(found[name][key], np.float64)[rows], axis=0)
      out.append(Rating(
          float(mean("quality", "score")), float(mean("aesthetic", "score")),
          tuple(mean("quality", "probs").tolist()), len(crops)))
      start += len(crops)
    return out

  def _zero_shot(self, spec: str) -> Head:
    readout = levels.read(spec)
    (texts,) = self.towers.prompts([readout])
    rate = functools.partial(
        _score, texts=texts, log_scale=self.towers.log_scale, values=np.float32(readout.values))
    return Head(f"prompts {_digest(spec, readout)}", _words(readout), rate)

  def _with_adapter(self, path: str | os.PathLike, spec: str) -> Head:
    read = convert.read(path)
    if read.task != "quality":
      raise ValueError(f"--adapter={path}: holds weights of task {read.task or 'unknown'!r}; "
                       "expected UniQA's adapter (\"adapter.fc.0.weight\", ...)")
    width = read.model["width"]
    if width != self.towers.width:
      raise ValueError(f"--adapter={path}: is for features of {width} numbers, and those of "
                       f"{self.towers.source} have {self.towers.width}")
    readout = levels.read(spec)
    params = trees.nest({n: np.asarray(read.params[n], np.float32) for n in read.params})
    if params["adapter"]["levels"].shape != (len(readout.values),):
      raise ValueError(f"--adapter={path}: has {len(params['adapter']['levels'])} levels, and "
                       f"prompts={spec} has {len(readout.values)}")
    (texts,) = self.towers.prompts([readout])
    params |= {"texts": texts, "t": np.array([self.towers.log_scale], np.float32)}
    task = quality.make({"width": width, "prompts": levels.as_dict(readout)})
    digest = _array_digest(params["adapter"])
    return Head(f"adapter {digest}, prompts {_digest(spec, readout)}", _words(readout),
                functools.partial(task.rate_features, params))


def _adapted(run: weights.Loaded) -> Head:
  """The head of a run."""
  task = quality.make(run.model)
  name = f"adapter {_array_digest(run.params['adapter'])}, step {run.step}"
  params = {k: run.params[k] for k in ("adapter", "texts", "t")}
  return Head(name, _words(task.readout), functools.partial(task.rate_features, params))


def _towers_of(run: weights.Loaded) -> str:
  path = (run.model.get("towers") or {}).get("path")
  if not path or not os.path.exists(path.removesuffix(":ema")):
    raise ValueError(f"{run.source}: was trained on features of {path or 'unnamed weights'}, which "
                     "are not there; give them with --weights")
  return path


def _words(readout: levels.Readout) -> tuple[str, ...]:
  count = len(readout.values)
  if count == len(levels.LEVELS):
    return levels.LEVELS
  return tuple(f"level {k + 1} of {count}" for k in range(count))


def _digest(spec: str, readout: levels.Readout) -> str:
  """A name for prompts; a file may change, so that its content is in it."""
  return spec if spec in levels.READOUTS else f"{os.path.basename(spec)} {_hash(repr(readout))}"


def _array_digest(adapter: Any) -> str:
  flat = trees.flatten(adapter)
  return _hash(*(np.ascontiguousarray(flat[name]).tobytes() for name in sorted(flat)))


def _hash(*parts: str | bytes) -> str:
  digest = hashlib.blake2b(digest_size=6)
  for part in parts:
    digest.update(part.encode() if isinstance(part, str) else part)
  return digest.hexdigest()
