"""bench input: what does a row of a batch cost on one core, and what do other pipelines need?

Each pipeline makes the same rows (record, crop, caption) in one thread: SigLIP's at 224 pixels, and
PS3's at 4K with a region caption. Time is that of the thread on its core, divided into parts; boxes
and tokens must be identical, and the difference of the pixels from Pillow's is reported. Then the
loader runs as in training, and a batch is put on the device. Without `--data` it makes photographs.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image

from big_vision_ext.benches import input_peers as peers
from big_vision_ext.benches import input_photos
from input_pipeline import examples, images, loader, pyramid, records, tiles

HELP = "cost of the input per image and core, by part, beside PIL and big_vision's operations"

PARTS = ("read", "decode", "crop", "resize", "tokenise", "batch", "other")
_SEED = 0


@dataclasses.dataclass(frozen=True)
class Case:
  """What is measured together: one size of batch images on one kind of stored image."""

  title: str
  config: dict[str, Any]
  stored: tuple[int, int]
  count: int
  layouts: tuple[str, ...] = ("plain",)
  tiles: int = 0


# What the two systems' configs read (configs/siglip/b16_224.py, configs/ps3/ps3_4k_*.py).
_SIGLIP = dict(image_size=224, global_share=1.0, sentence_sampling=False)
_PS3 = dict(image_size=3780, global_share=0.0)
CASES = {
    "siglip": Case("SigLIP 224, photographs of 640 x 480", _SIGLIP, (640, 480), 48),
    "siglip_4k": Case("SigLIP 224, photographs of 4032 x 3024", _SIGLIP, (4032, 3024), 4,
                      ("plain", "pyramid")),
    "ps3_4k": Case("PS3 3780 with a region caption, photographs of 4032 x 3024", _PS3, (4032, 3024),
                   4, ("plain", "pyramid"), tiles=64),
}


class Clock:
  """Seconds that the calling thread has computed, by part."""

  def __init__(self):
    self.seconds = dict.fromkeys(PARTS, 0.0)

  @contextlib.contextmanager
  def part(self, name: str) -> Iterator[None]:
    start = time.thread_time()
    yield
    self.seconds[name] += time.thread_time() - start

  @contextlib.contextmanager
  def watching(self, owner: Any, name: str, part: str) -> Iterator[None]:
    """Counts calls of a function of a module (or class) as a part."""
    original = getattr(owner, name)

    def timed(*args, **kwargs):
      with self.part(part):
        return original(*args, **kwargs)

    setattr(owner, name, timed)
    try:
      yield
    finally:
      setattr(owner, name, original)


@dataclasses.dataclass(frozen=True)
class Rows:
  """The rows that all pipelines make: where records are, and what chance decides."""

  source: records.RecordSource
  config: loader.InputConfig
  count: int

  def rng(self, i: int) -> np.random.Generator:
    return np.random.default_rng([_SEED, i, 0])


def ours(rows: Rows, clock: Clock, batch: dict[str, np.ndarray]) -> None:
  """Fills a batch as the loader does."""
  maker = examples.ExampleMaker(rows.config)
  with contextlib.ExitStack() as watched:
    # Cutting is part of resizing here; what remains of cropping is to draw it.
    for owner, name, part in ((images, "decode_image", "decode"), (pyramid, "read", "decode"),
                              (maker, "draw", "crop"), (images, "resize_region", "resize"),
                              (maker._tokenizer, "tokenize", "tokenise"), (tiles, "cut", "batch")):
      watched.enter_context(clock.watching(owner, name, part))
    for i in range(rows.count):
      with clock.part("read"):
        sample = rows.source[i]
      maker.write_train(batch, i, sample, rows.rng(i), key=i, where=f"record {i}")


def theirs(pixels: Callable[..., np.ndarray], rows: Rows, clock: Clock,
           batch: dict[str, np.ndarray]) -> None:
  """Fills a batch by one of the peers."""
  maker, side = examples.ExampleMaker(rows.config), rows.config.image_size
  for i in range(rows.count):
    with clock.part("read"):
      sample = rows.source[i]
    with clock.part("crop"):
      drawn = maker.draw(sample, rows.rng(i), f"record {i}")
    square = pixels(sample.image, drawn.crop, side, clock)
    with clock.part("batch"):
      batch["image"][i] = square
    with clock.part("tokenise"):
      batch["text"][i] = peers.byte_tokens(drawn.caption, rows.config.text_len)
    batch["box"][i] = peers.box(sample, drawn, side)
    batch["is_global"][i] = drawn.region is None


def measure(fill: Callable[..., None], rows: Rows, repeats: int) -> tuple[dict[str, float], dict]:
  """Fills a batch several times; parts of the fastest in milliseconds a row, and the batch."""
  batch = examples.ExampleMaker(rows.config).allocate(rows.count)
  fill(rows, Clock(), batch)  # Loads code, and touches the memory of the batch.
  best = None
  for _ in range(repeats):
    clock, start = Clock(), time.thread_time()
    fill(rows, clock, batch)
    total = time.thread_time() - start
    if best is None or total < best["total"]:
      other = total - sum(clock.seconds.values())
      best = clock.seconds | {"other": other, "total": total}
  return {part: 1e3 * seconds / rows.count for part, seconds in best.items()}, batch


def difference(batch: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, float]:
  """Mean and root mean square difference in grey levels from the reference's pixels.

  Of tiles: from the same places of the whole, and `view` is that of the view from Pillow's bicubic
  reduction of the reference.

  Raises:
    ValueError: boxes or tokens differ.
  """
  for name in ("text", "box", "is_global"):
    if not np.array_equal(batch[name], reference[name]):
      raise ValueError(f"the {name} of the pipelines differ: {batch[name]}, {reference[name]}")
  whole = reference["image"]
  if "tiles" not in batch:
    return _levels(batch["image"], whole)
  side, columns = batch["tiles"].shape[2], whole.shape[2] // batch["tiles"].shape[2]
  pairs = [(tile, image[at // columns * side:][:side, at % columns * side:][:, :side])
           for image, tiles, places in zip(whole, batch["tiles"], batch["tile_at"])
           for tile, at in zip(tiles, places) if at >= 0]
  size = batch["image"].shape[2:0:-1]
  views = [np.asarray(Image.fromarray(im).resize(size, Image.Resampling.BICUBIC)) for im in whole]
  return _levels(*map(np.stack, zip(*pairs))) | {
      "view": _levels(batch["image"], np.stack(views))["mean"]}


def _levels(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
  off = cv2.absdiff(a.reshape(-1), b.reshape(-1))
  return {"mean": float(off.mean()), "rms": float(np.square(off, dtype=np.float32).mean()**0.5),
          "p99": float(np.percentile(off, 99))}


def end_to_end(config: loader.InputConfig, batch_size: int, batches: int) -> dict[str, float]:
  """Runs the loader, and puts its batches on a device."""
  import jax

  stream = loader.train_stream(config, batch_size=batch_size, seed=_SEED)
  next(stream)
  start, cpu, waited, transfer = time.monotonic(), _cpu(), stream.wait_seconds, 0.0
  for _ in range(batches):
    batch = next(stream)
    begin = time.monotonic()
    jax.block_until_ready(jax.device_put(batch))
    transfer += time.monotonic() - begin
  rows = batches * batch_size
  wall, cpu, waited = time.monotonic() - start, _cpu() - cpu, stream.wait_seconds - waited
  stream.close()
  return {"images_per_second": rows / wall, "cpu_ms": 1e3 * cpu / rows,
          "wait_share": waited / wall, "transfer_ms": 1e3 * transfer / rows,
          "bytes": sum(v.nbytes for v in batch.values()) / batch_size}


def pil_end_to_end(rows: Rows, threads: int) -> dict[str, float]:
  """The PIL pipeline in as many threads as the loader has."""
  def one(i):
    part = dataclasses.replace(rows, count=1, source=[rows.source[i]])
    theirs(peers.pil_pixels, part, Clock(), examples.ExampleMaker(rows.config).allocate(1))

  start, cpu = time.monotonic(), _cpu()
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    list(pool.map(one, range(rows.count)))
  return {"images_per_second": rows.count / (time.monotonic() - start),
          "cpu_ms": 1e3 * (_cpu() - cpu) / rows.count}


def _cpu() -> float:
  used = resource.getrusage(resource.RUSAGE_SELF)
  return used.ru_utime + used.ru_stime


def run_case(case: Case, data: dict[str, str], split: str, repeats: int,
             threads: int) -> list[dict[str, Any]]:
  """Measures all pipelines of a case on data sets by layout; without threads, not the loader."""
  plain = next(iter(data.values()))
  rows_of = lambda path, **settings: _rows(case, path, split, **settings)
  base = rows_of(plain)
  todo = {}
  if "plain" in data:
    todo["PIL, as torchvision"] = (lambda *a: theirs(peers.pil_pixels, *a), base)
    todo["OpenCV, as big_vision"] = (lambda *a: theirs(peers.big_vision_pixels, *a), base)
  for layout, path in data.items():
    for count in (0, case.tiles) if case.tiles else (0,):
      for resize in images.RESIZE_METHODS:
        name = f"{layout}, {resize}" + (f", {count} tiles" if count else "")
        todo[name] = (ours, rows_of(path, resize=resize, tiles=count))
  out, reference = [], None
  for name, (fill, rows) in todo.items():
    print(f"{case.title}: {name} ...", file=sys.stderr)
    parts, batch = measure(fill, rows, repeats)
    reference = batch if reference is None else reference
    row = {"case": case.title, "pipeline": name, "ms": parts,
           "images_per_second_core": 1e3 / parts["total"], "pixels": difference(batch, reference)}
    row["speedup"] = out[0]["ms"]["total"] / parts["total"] if out else 1.0
    if threads and fill is ours:
      config = dataclasses.replace(rows.config, threads=threads, prefetch=threads)
      row["loader"] = end_to_end(config, min(rows.count, 4), max(2, 2 * rows.count // 4))
    elif threads and not out:
      row["loader"] = pil_end_to_end(rows, threads)
    out.append(row)
  return out


def _rows(case: Case, path: str, split: str, **settings) -> Rows:
  config = loader.InputConfig(data=path, split=split, **case.config | settings)
  source = records.open_dataset(path, split)
  return Rows(source, config, min(case.count, len(source)))


def table(results: Sequence[dict[str, Any]]) -> str:
  """The results in Markdown, one table a case."""
  lines = []
  for title in dict.fromkeys(r["case"] for r in results):
    lines += [f"{title}; milliseconds an image on one core:", "",
              "| pipeline | " + " | ".join(PARTS) + " | all | images/s | speed | off by, levels | "
              "loader, images/s | to device | MB |", "|---" * (len(PARTS) + 8) + "|"]
    for r in (r for r in results if r["case"] == title):
      view = f", view {r['pixels']['view']:.2f}" if "view" in r["pixels"] else ""
      run = r.get("loader", {})
      numbers = [f"{r['ms'][part]:.2f}" for part in PARTS]
      lines.append(" | ".join([
          f"| {r['pipeline']}", *numbers, f"{r['ms']['total']:.2f}",
          f"{r['images_per_second_core']:.1f}", f"{r['speedup']:.1f} x",
          f"{r['pixels']['mean']:.2f}{view}",
          f"{run['images_per_second']:.1f}" if run else "",
          f"{run['transfer_ms']:.2f}" if "transfer_ms" in run else "",
          f"{run['bytes'] / 1e6:.2f} |" if "bytes" in run else " |"]))
    lines.append("")
  return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}; default: all")
  add("--data", help="a data set of yours instead of made photographs")
  add("--split", default="train", help="its split; default: train")
  add("--images", type=int, help="images per case; default: 48 small or 4 large ones")
  add("--repeats", type=int, default=3, help="timed runs, of which the fastest is reported")
  add("--threads", type=int, default=os.cpu_count(),
      help="of the loader; default: all cores; 0 leaves the loader out")
  add("--json", help="file to write the numbers to")


def run(options: argparse.Namespace) -> int:
  """Measures and prints; returns the exit code.

  Raises:
    ValueError: an unknown case, no data set, or pipelines that disagree about boxes or tokens.
  """
  names = options.cases.split(",")
  if unknown := sorted(set(names) - set(CASES)):
    raise ValueError(f"--cases: {unknown[0]!r} is not among {', '.join(CASES)}")
  for name, least in (("images", 1), ("repeats", 1), ("threads", 0)):
    if (value := getattr(options, name)) is not None and value < least:
      raise ValueError(f"--{name} {value} must be at least {least}")
  # A core is one core: OpenCV would take all of them for one image.
  cv2.setNumThreads(1)
  results = []
  for case in (CASES[name] for name in names):
    case = dataclasses.replace(case, count=options.images or case.count)
    with tempfile.TemporaryDirectory() as directory:
      if options.data:
        version = records.read_manifest(options.data)["version"]
        data = {"plain" if version == records.VERSION else "pyramid": options.data}
        case = dataclasses.replace(case, title=f"{case.title.split(',')[0]}, {options.data}")
      else:
        data = {layout: os.path.join(directory, layout) for layout in case.layouts}
        for layout, path in data.items():
          input_photos.write(path, case.stored, case.count, layout)
      results += run_case(case, data, options.split, options.repeats, options.threads)
  print(table(results))
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(results, indent=1) + "\n")
  return 0
