"""python -m big_vision_ext.encode --workdir D --image FILE_OR_FOLDER --out DIR: images -> features.

For every image (and every prompt) DIR gets

- `NAME.npz`: the features, and what was selected (see below); or with `--format arrayrecord` one
  record among many in `features-NNNNN.arrayrecord`;
- `NAME.png`: the image, the selection scores as heat maps, and the selected patches outlined in
  one colour per scale, with the boxes if they are known; of a masked model (configs/mim), the
  image, what was visible of it under one mask, and the prediction of the rest.

With `--task quality` it rates pictures instead, by a CLIP (`--weights`) or an adapter's run
(`--workdir`): `--out ratings.csv` gets scores of quality and aesthetics and the shares of the five
levels, a row a file, and `ratings.png` shows the pictures from the best to the worst.

With `--task restore` it makes better pictures of pictures: `--out DIR` gets `NAME.png`, with the 8
or 16 bits and the alpha of the file (alpha is kept and enlarged, not restored), and
`NAME.before_after.png`. Pictures of any size go through the model in tiles that overlap.

Images are files and folders (`--image`, may be repeated) or records of a data set, whose boxes and
captions are known (`--data DIR --split val --index N`; the caption of `--region` is a prompt).
How long to look is a choice of the moment: `--looks`, `--tokens` and `--only-first-scales`.

Interrupted, the same command goes on; outputs that are there are not made again. `read(path)` and
`Records(folder)` of big_vision_ext.features read what is written here.

Exit codes: 0 all done; 1 done, but for images that could not be used, which are named on stderr;
2 nothing could be done, and why is said; 130 stopped by Ctrl-C.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import sys
from collections.abc import Sequence

from big_vision_ext import aspect, features
from big_vision_ext.core import console

# Options that models without looks do not have, and what they are if they are not given.
_OF_LOOKS = {"looks": "1", "tokens": None, "only_first_scales": None, "aspect": "squash",
             "tokenizer": None, "prompt": [], "prompts": None}
# Options of one task alone.
_OF_TASKS = {
    "quality": {"adapter": None, "crops": "ten_random", "short_side": 384},
    "restore": {"tile": 256, "overlap": 32, "ensemble": False, "member": 0}}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.encode", description=__doc__, epilog=features.FEATURES,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  weights = parser.add_argument_group("the model").add_argument
  weights("--workdir", help="folder of the trained run")
  weights("--weights", help="weights in another format instead: a file or folder")
  weights("--step", type=int, help="checkpoint of --workdir to take; default: the latest")
  weights("--tokenizer", help="of the prompts, for --weights that do not say")
  weights("--task", choices=("features", "quality", "restore"), default="features",
          help="quality: rate pictures; restore: make better ones; see above. Default: features")
  what = parser.add_argument_group("images and prompts").add_argument
  what("--image", action="append", default=[],
       help="image file, or folder to search for images at any depth; may be repeated")
  what("--prompt", action="append", default=[], help="text that says where to look; repeatable")
  what("--prompts", metavar="FILE", help="file of prompts, one a line, each for every image; or "
       'FILE.jsonl with lines {"image": path, "prompt": text}')
  what("--data", help="data set to take records from instead of files")
  what("--split", default="val", help="split of --data; default: val")
  what("--index", type=int, action="append", default=[], help="record of --data; repeatable")
  what("--region", type=int, help="region of the records whose caption is a prompt")
  how = parser.add_argument_group("how to look").add_argument
  how("--looks", default="1", help="looks at high resolution: a number, or all; default: 1")
  how("--tokens", type=int, help="high-resolution tokens in total, instead of looks")
  how("--only-first-scales", type=int, metavar="N",
      help="spend them on the N lowest of the high-resolution scales first")
  how("--aspect", choices=aspect.ASPECTS, default="squash",
      help="squash: every image becomes a square, as in training; keep: flat and tall images keep "
      "their shape. Default: squash")
  how("--distortion", type=float, default=0.1, help="with --aspect keep: how much an aspect ratio "
      "may change so that fewer sizes have to be compiled; default: 0.1, that is 10 %%")
  how("--seed", type=int, default=0, help="of masked models: of the mask in pictures; default: 0")
  how("--batch", type=int, default=1, help="images encoded together; default: 1")
  rated = parser.add_argument_group("with --task quality").add_argument
  rated("--adapter", metavar="FILE", help="UniQA's adapter for the CLIP of --weights; --prompts is "
        "a name or JSON file of words for levels (configs/uniqa/README.md)")
  rated("--crops", choices=("ten_random", "five_crop", "grid", "center", "whole"),
        default="ten_random", help="what is looked at: crops at the picture's own resolution, "
        "whose scores are averaged, or the whole, reduced; default: ten_random")
  rated("--short-side", type=int, default=384, metavar="PIXELS",
        help="reduce larger pictures to this shorter side first; 0: never; default: 384")
  restored = parser.add_argument_group("with --task restore").add_argument
  restored("--tile", type=int, default=256, metavar="PIXELS",
           help="longest side of the tiles that pictures go through the model in; default: 256")
  restored("--overlap", type=int, default=32, metavar="PIXELS",
           help="of neighbouring tiles, which fade into each other there; more of it, with larger "
           "tiles if need be, comes closer to the whole picture at once; default: 32")
  restored("--ensemble", action="store_true",
           help="restore every tile in its eight positions and take the mean")
  restored("--member", type=int, default=0, metavar="N",
           help="of a population: which network; default: 0, the first")
  out = parser.add_argument_group("what to write").add_argument
  out("--out", required=True, help="folder to write to; of ratings, the table")
  out("--format", choices=tuple(features.WRITERS), default="npz", help="default: npz")
  out("--dtype", choices=tuple(features.DTYPES), default="float32",
      help="type of the numbers written; default: float32")
  out("--maps", action="store_true", help="write tokens as maps: at their places, zeros elsewhere")
  out("--no-pictures", action="store_true", help="write features only")
  out("--overwrite", action="store_true", help="make outputs again that are there")
  parser.add_argument("--threads", type=int, default=4,
                      help="images decoded at the same time, ahead of the model; default: 4")
  parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  options = parse_args(argv)

  def command() -> int:
    try:
      return encode(options)
    except KeyboardInterrupt:
      print("\nStopped. The same command goes on from here.", file=sys.stderr)
      return 130

  return console.exit_code(command, options.debug)


def encode(options: argparse.Namespace) -> int:
  """Encodes what the command line names and writes the results; returns the exit code."""
  refuse_others(options)
  if options.task == "quality":
    from big_vision_ext import rating_run

    console.set_up_logging()
    return rating_run.rate(options)
  if options.task == "restore":
    from big_vision_ext import restoring_run

    console.set_up_logging()
    return restoring_run.restore(options)
  check(options)
  # Late, so that --help and mistakes in the command need not wait for jax.
  from big_vision_ext import encode_run, jobs

  ignored = 0
  if options.data:
    todo = jobs.of_records(options.data, options.split, options.index or [0], options.prompt,
                           options.prompts, options.region)
  else:
    todo, ignored = jobs.of_files(options.image, options.prompt, options.prompts)
  if ignored:
    print(f"files with other endings than images, left out: {ignored}",
          file=sys.stderr)
  console.set_up_logging()
  encoder = _open(options)
  run = encode_run.Run(
      encoder, options.out, form=options.format, dtype=options.dtype, maps=options.maps,
      pictures=encoder.has_pictures, overwrite=options.overwrite, threads=options.threads)
  return run(todo)


def _open(options: argparse.Namespace):
  """The model: one that looks around, or one of a vector per image."""
  from big_vision_ext import embedding, encoding, weights

  source = options.workdir or options.weights
  loaded = weights.load(source, options.step)
  pictures = not options.no_pictures
  if loaded.task_name == "ps3":
    if options.seed:
      raise ValueError(f"--seed={options.seed}: {source} is of task 'ps3', which draws no masks")
    return encoding.Encoder(
        loaded, num_looks="all" if options.looks == "all" else int(options.looks),
        num_tokens=options.tokens, only_first_scales=options.only_first_scales,
        aspect=options.aspect, distortion=options.distortion, batch_size=options.batch,
        tokenizer=options.tokenizer, pictures=pictures)
  for name, plain in _OF_LOOKS.items():
    if (value := getattr(options, name)) != plain:
      raise ValueError(f"--{name.replace('_', '-')}={value}: {source} is of task "
                       f"{loaded.task_name!r}, which encodes whole images and does not look around")
  model = embedding.Embedder(loaded, batch_size=options.batch, seed=options.seed,
                             pictures=pictures)
  if options.maps and "tokens" not in model.task.outputs:
    raise ValueError(f"--maps: {source} is of task {loaded.task_name!r}, of which a vector is "
                     "written and no tokens")
  return model


def refuse_others(options: argparse.Namespace) -> None:
  """Raises ValueError for options that are of another task."""
  for task, own in _OF_TASKS.items():
    for name, plain in own.items() if task != options.task else ():
      if (value := getattr(options, name)) != plain:
        raise ValueError(f"--{name.replace('_', '-')}={value}: is of --task {task}")


def check(options: argparse.Namespace) -> None:
  """Raises ValueError for options that contradict each other or mean nothing."""
  if bool(options.workdir) == bool(options.weights):
    raise ValueError("give the model either as --workdir (a run) or as --weights (another format)")
  if options.weights and options.step is not None:
    raise ValueError(f"--step={options.step}: only a --workdir has steps to choose from")
  listed = options.prompts and options.prompts.endswith(".jsonl")
  if bool(options.image or listed) == bool(options.data):
    raise ValueError("give images either as files (--image, or --prompts FILE.jsonl) or as records "
                     "(--data and --index)")
  if options.looks != "all" and not options.looks.isdecimal():
    raise ValueError(f"--looks={options.looks}: expected a number, or all")
  if options.overwrite and options.format == "arrayrecord":
    raise ValueError("--overwrite: records cannot be replaced; give another --out, or delete the "
                     "features-*.arrayrecord there")
  least = {"tokens": 0, "only_first_scales": 1, "batch": 1, "threads": 1}
  for name, low in least.items():
    value = getattr(options, name)
    if value is not None and value < low:
      raise ValueError(f"--{name.replace('_', '-')}={value}: expected a number of at least {low}")


if __name__ == "__main__":
  sys.exit(main())
