"""python -m big_vision_ext.cache_features --weights W --data DIR --out F: a frozen model, run once.

Writes the features of CLIP's image tower of every rated picture of a data set: so many random crops
to train on, and those that it is rated by; and the embeddings of the prompts. Runs of
`configs/uniqa/adapter.py:features=F` then read vectors of some hundred numbers in place of pixels,
whatever their split, labels and seed: minutes, not hours.

Interrupted, the same command goes on; what is there is checked and kept. Another model, data set or
number of crops is refused. `input_pipeline/crop_features.py` has the format.

Exit codes: 0 all done; 1 done, but for pictures that could not be used, which are named on stderr;
2 nothing could be done, and why is said; 130 stopped by Ctrl-C.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import concurrent.futures
import dataclasses
import hashlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_ext.core import console
from input_pipeline import crop_features, crops, pictures, records
from input_pipeline.build import durable, progress
from input_pipeline.examples import UNUSABLE, ExampleMaker
from input_pipeline.input_config import InputConfig

# Memory for pictures of which several crops are cut.
_CACHE_MB = 256
# Kinds of evaluation crops that have as many for every picture.
_KINDS = {"ten_random": 10, "five_crop": 5, "center": 1}
PROMPTS = "prompts"


class Cutter:
  """The crops of a record, as training and evaluation would see them."""

  def __init__(self, source: records.RecordSource, settings: crop_features.Settings, resize: str):
    self.source, self._settings = source, settings
    self._maker = ExampleMaker(InputConfig(
        data=settings.data, split=settings.split, image_size=settings.image_size, captions=False,
        crop="plain", flip=settings.flip, resize=resize, cache_mb=_CACHE_MB))

  def __call__(self, index: int) -> tuple[str, np.ndarray]:
    """The id of a record and its crops (n, s, s, 3), those to train on first.

    Raises:
      one of `UNUSABLE`: the record or its picture cannot be read.
    """
    s, where = self._settings, self.source.where(index)
    sample = self.source[index]
    batch = self._maker.allocate(s.crops)
    # The place among the records does not matter, so that a part of a data set has the same.
    name = int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:8], "big")
    for row in range(s.crops):
      rng = np.random.default_rng([s.seed, name, row])
      self._maker.write_train(batch, row, sample, rng, key=index, where=where)
    boxes = crops.boxes(s.eval_crops, sample.id, sample.width, sample.height, s.image_size)
    pixels = pictures.whole(sample, where)
    rated = [crops.cut(pixels, box, s.image_size) for box in boxes]
    return sample.id, np.concatenate([batch["image"], np.stack(rated)])


def run(options: argparse.Namespace) -> int:
  """Makes what is not there yet; returns the exit code."""
  # Late, so that --help and mistakes in the command need not wait for jax.
  from big_vision_ext import clip_model

  out = pathlib.Path(options.out)
  source = records.open_dataset(options.data, options.split)
  if not len(source):
    raise ValueError(f"{source.name}: there are no records")
  towers = clip_model.ClipTowers(
      options.weights, step=options.step, batch_size=options.batch, tokenizer=options.tokenizer)
  if towers.task_name != "clip":
    raise ValueError(f"{options.weights}: is a run of task {towers.task_name!r}; expected the CLIP "
                     "that it began from")
  settings = crop_features.Settings(
      weights=str(options.weights), fingerprint=towers.fingerprint, data=options.data,
      split=options.split, digest=crop_features.data_digest(options.data), image_size=towers.size,
      crops=options.crops, flip=not options.no_flip, eval_crops=options.eval_crops,
      num_eval=_KINDS[options.eval_crops], seed=options.seed, width=towers.width)
  out.mkdir(parents=True, exist_ok=True)
  with durable.only_writer_of(out), durable.space_explained(out):
    _refuse_others(out, settings)
    skipped = _features(out, source, towers, settings, options)
    names = sorted(p.stem for p in out.glob("shard-*.json"))
    prompts = _prompts(out, towers, options.prompts)
    crop_features.write_json(out / crop_features.MANIFEST, {
        "format": crop_features.FORMAT, "version": crop_features.VERSION,
        "settings": dataclasses.asdict(settings), "records": len(source), "unusable": skipped,
        "shards": names, PROMPTS: prompts})
  print(f"{len(source) - skipped} of {len(source)} pictures, {settings.crops} + "
        f"{settings.num_eval} features of {settings.width} numbers each, in {out}")
  return 1 if skipped else 0


def _features(out: pathlib.Path, source, towers, settings: crop_features.Settings,
              options: argparse.Namespace) -> int:
  """Writes the shards that are not there; returns how many pictures could not be used in all."""
  per = options.shard
  firsts = range(0, len(source), per)
  width = len(str(len(firsts)))
  names = {first: f"shard-{i:0{max(width, 5)}d}" for i, first in enumerate(firsts)}
  todo = [f for f in firsts if not crop_features.shard_is_whole(out, names[f], settings)]
  done = len(source) - sum(min(per, len(source) - first) for first in todo)
  meter = progress.Progress("features", len(source), done=done, unit="pictures")
  cutter = Cutter(source, settings, towers.preprocessing["resize"])
  with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
    try:
      for first in todo:
        indices = range(first, min(first + per, len(source)))
        found = _shard(pool, cutter, towers, indices, settings, meter, options.threads)
        crop_features.write_shard(out, names[first], *found, settings)
    finally:
      pool.shutdown(cancel_futures=True)
  meter.close()
  # Shards of an earlier run of more records are none of these.
  for stale in set(out.glob("shard-*")) - {
      out / f"{name}{end}" for name in names.values() for end in (".npy", ".json")}:
    stale.unlink()
  return sum(len(crop_features.unusable(out, name)) for name in names.values())


def _shard(pool, cutter: Cutter, towers, indices: Sequence[int],
           settings: crop_features.Settings, meter: progress.Progress, threads: int
           ) -> tuple[np.ndarray, list[str], dict[str, str]]:
  """Features (n, c, d) of records, their ids, and what was wrong with some."""
  from big_vision_ext.ahead import ahead

  each = settings.crops + settings.num_eval
  values = np.full((len(indices), each, settings.width), np.nan, np.float32)
  ids, bad = [], {}
  rows, pixels, waiting = [], [], 0

  def flush():
    nonlocal waiting
    if rows:
      found = towers.image_features(np.concatenate(pixels))
      values[rows] = found.reshape(len(rows), each, -1)
    rows.clear()
    pixels.clear()
    waiting = 0

  for index, future in ahead(pool, indices, cutter, threads):
    try:
      record, cut = future.result()
    except UNUSABLE as error:
      # Its id may not be known; it has none of its own then.
      record = _id(cutter, index)
      bad[record] = str(error)
      print(f"\rleft out: {error}", file=sys.stderr)
      meter.advance(skipped=True)
      ids.append(record)
      continue
    ids.append(record)
    rows.append(len(ids) - 1)
    pixels.append(cut)
    waiting += each
    meter.advance()
    if waiting >= 2 * towers.batch_size:
      flush()
  flush()
  return values, ids, bad


def _id(cutter: Cutter, index: int) -> str:
  try:
    return cutter.source[index].id
  except UNUSABLE:
    return f"record {index}"


def _prompts(out: pathlib.Path, towers, extra: Sequence[str]) -> dict[str, Any]:
  """Writes the embeddings of prompts, each readout a start of training; returns what they are."""
  from big_vision_ext.objectives import levels

  readouts = dict(levels.READOUTS)
  for path in extra:
    name = pathlib.Path(path).stem
    if name in levels.READOUTS:
      raise ValueError(f"--prompts={path}: {name!r} is the name of known prompts; rename the file")
    readouts[name] = levels.read(path)
  folder = out / PROMPTS
  folder.mkdir(exist_ok=True)
  embedded = towers.prompts(list(readouts.values()))
  scale = np.array([towers.log_scale], np.float32)
  for name, texts in zip(readouts, embedded):
    partial = folder / f"{name}.npz.partial"
    with open(partial, "wb") as file:
      np.savez(file, texts=texts, t=scale)
    partial.replace(folder / f"{name}.npz")
  return {name: levels.as_dict(readout) for name, readout in readouts.items()}


def _refuse_others(out: pathlib.Path, settings: crop_features.Settings) -> None:
  """Raises if the folder holds features of something else."""
  found = next(iter(sorted(out.glob("shard-*.json"))), None)
  if found is None:
    if others := [p.name for p in out.iterdir() if p.name != PROMPTS]:
      raise ValueError(f"{out}: holds {others[0]} and is no folder of features; name a new one")
    return
  was, now = crop_features.settings_of(out, found.stem), dataclasses.asdict(settings)
  # Where weights and data lie does not matter, what they are does.
  differ = [k for k in now if was.get(k) != now[k] and k not in ("weights", "data")]
  if differ:
    raise ValueError(f"{out}: holds features of " + ", ".join(
        f"{k}={was.get(k)!r} (asked for: {now[k]!r})" for k in differ) + "; name another --out")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.cache_features", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add("--weights", required=True, help="CLIP's towers: a run, or a file or folder of weights")
  add("--step", type=int, help="checkpoint of a run to take; default: the latest")
  add("--tokenizer", help="of the prompts, for weights that do not say")
  add("--data", required=True, help="a data set of rated pictures")
  add("--split", default="all", help="its split; default: all, which parts are cut from later")
  add("--out", required=True, help="folder to write to")
  add("--crops", type=int, default=20, help="random crops of each picture to train on; default: "
      "20, as many as the published recipe for KonIQ has epochs")
  add("--no-flip", action="store_true", help="mirror none of them; default: half of them")
  add("--eval-crops", choices=tuple(_KINDS), default="ten_random",
      help="crops that a picture is rated by; default: ten_random")
  add("--prompts", action="append", default=[], metavar="FILE",
      help="further prompts, as JSON (see configs/uniqa); may be repeated")
  add("--seed", type=int, default=0, help="of the random crops; default: 0")
  add("--batch", type=int, default=64, help="crops encoded together; default: 64")
  add("--shard", type=int, default=512, help="pictures in a file; default: 512")
  add("--threads", type=int, default=4, help="pictures decoded at the same time; default: 4")
  add("--debug", action="store_true", help="show the traceback of an error")
  options = parser.parse_args(argv)
  for name in ("crops", "batch", "shard", "threads"):
    if getattr(options, name) < 1:
      parser.error(f"--{name}={getattr(options, name)}: expected at least 1")
  if options.seed < 0:
    parser.error(f"--seed={options.seed}: expected at least 0")
  return options


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  options = parse_args(argv)

  def command() -> int:
    console.set_up_logging(options.debug)
    try:
      return run(options)
    except KeyboardInterrupt:
      print("\nStopped. The same command goes on from here.", file=sys.stderr)
      return 130

  return console.exit_code(command, options.debug)


if __name__ == "__main__":
  sys.exit(main())
