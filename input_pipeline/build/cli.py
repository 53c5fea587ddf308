"""python -m input_pipeline.build: which options are there, and what is said at the end?"""

import argparse
import collections
import functools
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from input_pipeline import records
from input_pipeline.build import (
  captioned,
  coco,
  folder,
  jsonl,
  layouts,
  masks,
  progress,
  quality,
  quality_tables,
  skips,
  tfds_source,
  visual_genome,
)
from input_pipeline.build import plan as plan_lib
from input_pipeline.build.durable import BuildError
from input_pipeline.build.writer import finish, write_split

# What all data sets of rated pictures take; "all" of their images are in one split.
_RATED = (
  "images*", "annotations", "format", "mos_range", "higher_is_better", "lower_is_better", "splits",
  "exclude_ids", "short_side",
)
# What each format takes besides the common options; a star marks what it cannot do without.
_OPTIONS = {
  "sample": ("seed", "train_images", "val_images"),
  "digits": ("seed", "train_images", "val_images"),
  "distorted": ("seed", "crops", "side"),
  "backgrounds": (
    "category*", "count", "val_count", "seed", "side", "detail", "image_dir", "long_side",
  ),
  "pairs": ("clean*", "rainy*", "split", "val_share"),
  "streaks": ("clean*", "rainy*"),
  "stl10": ("images*", "limit", "shard_size", "licence"),
  "folder": ("images*", "masks"),
  "jsonl": ("images*", "annotations*", "masks"),
  "coco": ("images*", "annotations*", "captions", "masks"),
  "visual_genome": ("images*", "annotations*", "image_data", "masks"),
  "tfds": (
    "images*", "tfds_split", "image_key", "text_key", "label_key", "box_key", "box_text_key",
  ),
  "uniqa": ("images*", "annotations*", "exclude_ids"),
  "described": ("images*", "annotations*", "part", "split", "val_share", "shard_size"),
  **{name: _RATED for name in quality.NAMES},
  "flive": (*_RATED, "patches"),
  "csv": (
    *(name for name in _RATED if name != "annotations"), "annotations*", "image_column",
    "score_column", "group_column", "split_column",
  ),
}
# What these take is all that is said there: they know their splits and files.
_COMPLETE = (
  "sample", "digits", "stl10", "distorted", "described", "backgrounds", "pairs", "streaks",
)
_OF_READING = (
  "split", "val_share", "limit", "shard_size", "max_skip_share", "licence", "layout",
)


def main(argv: Sequence[str] | None = None) -> int:
  """Builds a data set; returns the exit status: 0 done, 1 an error, 130 interrupted."""
  args = _parser().parse_args(argv)
  began = time.monotonic()
  try:
    _check_options(args)
    build = {
      "sample": _build_made, "digits": _build_made, "distorted": _build_made,
      "stl10": _build_stl10, "described": _build_described, "backgrounds": _build_backgrounds,
      "pairs": _build_pairs, "streaks": _build_streaks,
    }
    set_aside = build.get(args.source, _build)(args)
    if args.source == "streaks":
      return 0
    print(_summary(args.out, set_aside, time.monotonic() - began, args.source))
    return 0
  except KeyboardInterrupt:
    print(
      "\ninterrupted: finished shards are kept; the same command goes on from there.",
      file=sys.stderr,
    )
    return 130
  except ValueError as error:  # BuildError, RecordError, DatasetError.
    print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m input_pipeline.build",
    description="Turns images with boxes and captions into a data set of records.",
    epilog="The layouts that can be read are described in input_pipeline/build/README.md.",
    # Options that are not given are left out, so that those a format ignores can be refused.
    argument_default=argparse.SUPPRESS,
  )
  add = parser.add_argument
  add("--from", dest="source", required=True, choices=list(_OPTIONS), help="layout of the input")
  add("--out", required=True, help="directory of the new data set")
  add("--threads", type=int, default=2, help="images checked at once (default 2)")
  add("--quiet", action="store_true", default=False, help="no progress line")
  add("--images", help="directory of the images; tfds: a prepared directory or a name; stl10: "
      "stl10_binary; described: a built data set")
  add("--annotations", help="annotation file; uniqa, described: several, joined by commas")
  add("--captions", help="coco: a COCO caption file, for global captions")
  add("--image-data", help="visual_genome: image_data.json, to check image sizes")
  add("--masks", help="directory of foreground masks: a/cat.png for the image a/cat.jpg, grey")
  add("--format", choices=("native", *quality_tables.FORMS),
      help="rated pictures: who wrote the annotation file (default native; csv: csv)")
  add("--mos-range", help="rated pictures: LO,HI of the scale the scores were given on")
  add("--higher-is-better", action="store_true", help="csv: the scores grow with quality")
  add("--lower-is-better", action="store_true", help="csv: the scores fall with it, as a DMOS")
  add("--image-column", help="csv: column of the image files")
  add("--score-column", help="csv: column of the scores")
  add("--group-column", help="csv: column of what must not be on two sides of a split")
  add("--split-column", help="csv: column of train, val or test")
  add("--splits", help="rated pictures: pickle of splits (IQA-PyTorch, UniQA), by rows")
  add("--exclude-ids", help="rated pictures, uniqa: file of names not to use, one a line")
  add("--short-side", type=int,
      help="rated pictures: reduce larger ones to this shorter side; 0 for none")
  add("--part", help="described: only these of the rated pictures, as reference_1/train")
  add("--patches", action="store_true", help="flive: patches as well as pictures")
  add("--split", help="put everything into this split (default: divide into train and val; rated "
      "pictures: all)")
  add("--val-share", type=float, help="share of images that becomes val, by id (default 0.02)")
  add("--limit", type=int, help="use only the first N images (stl10: of each split)")
  add("--shard-size", type=int, help="images per shard (default 256)")
  add("--max-skip-share", type=float, help="stop if more than this is skipped (default 0.05)")
  add("--layout", choices=layouts.LAYOUTS,
      help="plain: image files as they are (default); pyramid: large images as tiles of several "
      "sizes, of which training decodes what it needs")
  add("--licence", help="licence of the data, noted in dataset.json")
  add("--tfds-split", help="tfds: split to read, slices allowed (default train)")
  add("--image-key", help="tfds: image feature (default image)")
  add("--text-key", help="tfds: caption or label of the whole image")
  add("--label-key", help="tfds: class label of the whole image, for evaluation")
  add("--box-key", help="tfds: boxes, as objects/bbox")
  add("--box-text-key", help="tfds: captions or labels of the boxes, as objects/label")
  add("--seed", type=int, help="sample, digits, distorted, backgrounds: seed (default 0)")
  add("--category", help="backgrounds: faces, natural, comics or urban; a name with --image-dir")
  add("--count", type=int, help="backgrounds: number of training crops (default 1024)")
  add("--val-count", type=int, help="backgrounds: number of validation crops (default 32)")
  add("--detail", type=float, help="backgrounds: how much there is in a drawn picture (default 1)")
  add("--image-dir", help="backgrounds: crop the pictures of this directory")
  add("--long-side", type=int,
      help="backgrounds: reduce these to this longer side first (default 0, not)")
  add("--clean", help="pairs, streaks: directory of clean pictures")
  add("--rainy", help="pairs, streaks: directory of the same pictures with rain, or anything else")
  add("--crops", type=int, help="distorted: squares of each photograph (default 12)")
  add("--side", type=int, help="distorted, backgrounds: side of a picture in pixels (default 96, "
      "128)")
  add("--train-images", type=int, help="sample, digits: number of training images")
  add("--val-images", type=int, help="sample, digits: number of validation images")
  return parser


def _check_options(args: argparse.Namespace):
  """Refuses options the format would ignore, and asks for those it needs."""
  wanted = _OPTIONS[args.source]
  known = {name.rstrip("*") for name in wanted} | {"source", "out", "threads", "quiet"}
  if args.source not in _COMPLETE:
    known |= set(_OF_READING)
  given = set(vars(args))
  for name in wanted:
    if name.endswith("*") and name[:-1] not in given:
      raise BuildError(f"--from {args.source} needs {_flag(name[:-1])}")
  if args.source in quality.NAMES:
    # A picture that is cut into tiles of JPEG anew is not the one that was rated.
    known -= {"val_share", "layout"}
  if surplus := sorted(map(_flag, given - known)):
    raise BuildError(f"--from {args.source} does not take {', '.join(surplus)}")
  if "split" in given and "val_share" in given:
    raise BuildError("--split puts everything into one split, so --val-share has no meaning")
  if getattr(args, "limit", 1) < 1:
    raise BuildError(f"--limit {args.limit} must be at least 1")
  if "split" in given and not args.split.replace("_", "").replace("-", "").isalnum():
    raise BuildError(f"--split {args.split!r}: expected a name of letters, digits, '-' and '_'")


def _flag(name: str) -> str:
  return "--" + name.replace("_", "-")


def _build_made(args: argparse.Namespace) -> dict[str, int]:
  from input_pipeline.build import digits, distorted, sample

  given = {"seed": "seed", "train": "train_images", "val": "val_images", "crops": "crops",
           "side": "side"}
  options = {name: getattr(args, dest) for name, dest in given.items() if hasattr(args, dest)}
  build = {"digits": digits, "distorted": distorted, "sample": sample}[args.source].build
  build(args.out, threads=args.threads, progress=not args.quiet, **options)
  return {}


def _build_stl10(args: argparse.Namespace) -> dict[str, int]:
  from input_pipeline.build import stl10

  given = ("limit", "shard_size", "licence")
  options = {name: getattr(args, name) for name in given if hasattr(args, name)}
  stl10.build(args.out, args.images, threads=args.threads, progress=not args.quiet, **options)
  return {}


def _build_described(args: argparse.Namespace) -> dict[str, int]:
  given = ("part", "split", "val_share", "shard_size")
  options = {name: getattr(args, name) for name in given if hasattr(args, name)}
  return captioned.build_described(
    args.out, args.images, args.annotations, threads=args.threads, progress=not args.quiet,
    **options)


def _build_backgrounds(args: argparse.Namespace) -> dict[str, int]:
  from input_pipeline.build import backgrounds

  backgrounds.build(args.out, threads=args.threads, progress=not args.quiet, **_given(args))
  return {}


def _build_pairs(args: argparse.Namespace) -> dict[str, int]:
  from input_pipeline.build import paired

  paired.build(args.out, threads=args.threads, progress=not args.quiet, **_given(args))
  return {}


def _build_streaks(args: argparse.Namespace) -> dict[str, int]:
  from input_pipeline.build import paired

  file = paired.build_streaks(args.out, **_given(args))
  print(f"{file} is ready; degrade with {{'kind': 'layers', 'file': '{file}'}}")
  return {}


def _given(args: argparse.Namespace) -> dict[str, Any]:
  """The format's own options that were given."""
  return {name: getattr(args, name) for option in _OPTIONS[args.source]
          if hasattr(args, name := option.rstrip("*"))}


def _build(args: argparse.Namespace) -> dict[str, int]:
  """Reads, divides and writes; returns what was found and not used."""
  if not args.quiet:
    print(f"reading {_input_of(args)}", file=sys.stderr, flush=True)
  plan = _plan(args)
  items = plan.items[:getattr(args, "limit", None)]
  if not items:
    found = skips.by_reason(plan.set_aside) or "nothing"
    raise BuildError(f"{_input_of(args)}: no image with a caption or rating (found: {found})")
  if args.source in quality.NAMES:
    parts = {getattr(args, "split", "all"): items}
  elif hasattr(args, "split"):
    parts = {args.split: items}
  else:
    train, val = plan_lib.split_by_hash(items, getattr(args, "val_share", 0.02))
    parts = {"train": train, "val": val}
  options = {
    name: getattr(args, name) for name in ("shard_size", "max_skip_share") if hasattr(args, name)
  }
  layout, load, settings = layouts.LAYOUTS[getattr(args, "layout", "plain")], plan.load, {}
  if hasattr(args, "masks"):
    load, settings = masks.added(load, args.masks), {"masks": os.path.abspath(args.masks)}
  settings = {"from": args.source, **plan.settings, **layout.settings, **settings}
  write = functools.partial(
    write_split, args.out, load=layout.load(load), threads=args.threads,
    progress=not args.quiet, settings=settings, **options,
  )
  reports = {split: write(split, part) for split, part in parts.items() if part}
  provenance: dict[str, Any] = {
    "from": args.source,
    "input": _input_of(args),
    "set_aside": dict(plan.set_aside),
  }
  if hasattr(args, "licence"):
    provenance["licence"] = args.licence
  provenance |= layout.settings | plan.info
  finish(args.out, reports, {split: provenance for split in reports}, version=layout.version)
  return dict(plan.set_aside)


def _plan(args: argparse.Namespace) -> plan_lib.Plan:
  def optional(name):
    return getattr(args, name, None)

  if args.source in quality.NAMES:
    return quality.plan_of(args.source, args.images, vars(args))
  if args.source == "uniqa":
    return captioned.read_uniqa(args.images, args.annotations, optional("exclude_ids"))
  if args.source == "folder":
    return folder.read(args.images)
  if args.source == "jsonl":
    return jsonl.read(args.images, args.annotations)
  if args.source == "coco":
    return coco.read(args.images, args.annotations, optional("captions"))
  if args.source == "visual_genome":
    return visual_genome.read(args.images, args.annotations, optional("image_data"))
  keys = tfds_source.Keys(
    image=getattr(args, "image_key", "image"),
    text=getattr(args, "text_key", ""),
    label=getattr(args, "label_key", ""),
    box=getattr(args, "box_key", ""),
    box_text=getattr(args, "box_text_key", ""),
  )
  return tfds_source.read(args.images, getattr(args, "tfds_split", "train"), keys)


def _input_of(args: argparse.Namespace) -> str:
  return " with ".join(filter(None, (getattr(args, "annotations", ""), args.images)))


def _summary(out: str, set_aside: dict[str, int], seconds: float, source: str) -> str:
  """What the data set now holds, what was left out, and what to type next."""
  manifest = records.read_manifest(out)
  lines = [f"{out} is ready ({progress.duration(seconds)})"]
  left_out = collections.defaultdict(collections.Counter)
  for split, entry in manifest["splits"].items():
    size = sum(shard["bytes"] for shard in entry["shards"]) / 1e6
    lines.append(
      f"  {split:<8} {entry['records']:>9,} images {entry['regions']:>11,} regions "
      f"{len(entry['shards']):>5,} shards {size:>10,.1f} MB"
    )
    for kind in ("skipped", "dropped", "mended"):
      left_out[kind].update(entry.get(kind, {}))
  for name, counts in (
    ("images skipped", left_out["skipped"]),
    ("regions and captions left out", left_out["dropped"]),
    ("changed", left_out["mended"]),
    ("not used", set_aside),
  ):
    if counts:
      lines.append(f"{name}: {skips.by_reason(counts)}")
  if left_out["skipped"] or left_out["dropped"] or left_out["mended"]:
    lines.append(f"each is named in {os.path.join(out, 'skipped-SPLIT.jsonl')}")
  config = {
    "digits": f"configs/mim/focusmim.py:data={out},small",
    "stl10": f"configs/mim/focusmim.py:data={out}",
    "distorted": f"configs/uniqa/demo.py:data={out}",
    "backgrounds": f"configs/derain/train.py:data={out}",
    "pairs": f"configs/derain/train.py:data={out},pairs",
    **{name: f"configs/uniqa/pretrain.py:data={out}" for name in ("uniqa", "described")},
    **{name: f"configs/uniqa/adapter.py:dataset={'other' if name == 'csv' else name},data={out},"
             "weights=W,tokenizer=clip:VOCABULARY" for name in quality.NAMES},
  }.get(source, f"configs/ps3/own_data.py:data={out}")
  system = config.split("/")[1]
  workdirs = {"mim": "runs/focusmim", "uniqa": "runs/uniqa", "derain": "runs/derain"}
  workdir = workdirs.get(system, "runs/own_data")
  lines.append(f"next: python -m big_vision_ext.train --config {config} --workdir {workdir}")
  return "\n".join(lines)
