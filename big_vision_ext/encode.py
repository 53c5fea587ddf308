"""python -m big_vision_ext.encode --workdir D --image FILE --out DIR: images -> features, pictures.

For every image (and every prompt) DIR gets

- `NAME.npz`: the features, and what was selected (see `FEATURES` below);
- `NAME.png`: the image, the selection score as a heat map, and the selected patches outlined in
  one colour per scale, with the boxes if they are known.

Images are files (`--image`, may be repeated) or records of a data set, whose boxes and captions are
known (`--data DIR --split val --index N`; the caption of `--region` serves as the prompt).
"""

import argparse
import dataclasses
import functools
import pathlib
import re
import sys
import time
from collections.abc import Sequence

import numpy as np

from big_vision_ext.core import console

FEATURES = """Arrays in NAME.npz; t_low tokens of the low-resolution pass, t_high selected ones.
last_hidden (t_low + t_high, d)  last block's output, before the final norm; low-resolution first
pooled (d,)                      attention-pooled selected tokens; absent if nothing is selected
pooled_low (d,)                  attention-pooled low-resolution pass
selected_scale, selected_index (t_high,)  scale (0: the first above the lowest) and row-major patch
scales, grids                    size in pixels, and rows and columns of patches, of each scale
score_bottomup, score_topdown (gy, gx)  selection probability; topdown only with a prompt
text (d,)                        embedding of the prompt; only with a prompt
"""

@dataclasses.dataclass(frozen=True)
class Item:
  """One image to encode, with what is known about it. Boxes (n, 4) in pixels of `pixels`."""

  name: str
  pixels: np.ndarray
  boxes: np.ndarray
  texts: tuple[str, ...] = ()


class Encoder:
  """A trained run, ready to encode images.

  Args:
    workdir: folder of the run.
    step: checkpoint to take; default: the latest.
    num_looks: looks at high resolution, or "all"; num_tokens: a number of tokens instead.
  """

  def __init__(self, workdir: str, *, step: int | None = None, num_looks: int | str | None = 1,
               num_tokens: int | None = None):
    import jax

    from big_vision_ext import tasks
    from big_vision_ext.core import checkpoint, typed
    from input_pipeline import loader, text

    console.set_up_logging()
    config, params, self.step = checkpoint.load_workdir(workdir, step)
    self.params = jax.device_put(params)
    self.task = tasks.make(config.task, config.model)
    if "encode" not in self.task.outputs:
      raise ValueError(
          f"{workdir} holds a run of task {config.task!r}, which has no high-resolution features; "
          "expected a run of task 'ps3'")
    self._input = typed.build(loader.InputConfig, config.input, "config.input")
    self._tokenizer = text.make_tokenizer(self._input.tokenizer)
    budget = dict(num_tokens=num_tokens) if num_tokens is not None else dict(num_looks=num_looks)
    self._encode = jax.jit(functools.partial(self.task.outputs["encode"], **budget))

  def __call__(self, pixels: np.ndarray, prompt: str | None = None) -> dict[str, np.ndarray]:
    """Encodes one uint8 image (h, w, 3); see `FEATURES` for what is returned."""
    from input_pipeline import images, text

    side = self.task.image_size
    h, w = pixels.shape[:2]
    square = images.resize_region(pixels, (0, 0, w, h), side, self._input.resize)
    batch = {"image": square[None]}
    if prompt is not None:
      prompt = text.canonicalize(prompt) if self._input.canonicalize else prompt
      batch["text"] = self._tokenizer.tokenize(prompt, self._input.text_len)[None]
    out = self._encode(self.params, batch)
    grids = self.task.vision.grids((side, side))
    looks = out["looks"]
    chosen = [(i, int(j)) for look in looks for i, index in enumerate(look)
              for j in np.asarray(index)[0]]
    features = {
        "last_hidden": np.asarray(out["last_hidden"])[0],
        "pooled_low": np.asarray(out["pooled_low"])[0],
        "selected_scale": np.array([i for i, _ in chosen], np.int32),
        "selected_index": np.array([j for _, j in chosen], np.int32),
        "scales": np.array(self.task.vision.scales, np.int32),
        "grids": np.array([self.task.vision.cells, *grids], np.int32),
    }
    for name in ("pooled", "score_bottomup", "score_topdown", "text"):
      if out.get(name) is not None:
        features[name] = np.asarray(out[name])[0]
    return features


def picture(item: Item, features: dict[str, np.ndarray], prompt: str | None,
            highlight: int | None = None) -> np.ndarray:
  """The sheet that shows what was looked at: image, score maps, selected patches."""
  from PIL import Image

  from big_vision_ext import draw

  side = 1200
  h, w = item.pixels.shape[:2]
  ratio = min(1.0, side / max(h, w))
  shape = (max(1, round(w * ratio)), max(1, round(h * ratio)))
  image = np.asarray(Image.fromarray(item.pixels).resize(shape, Image.LANCZOS))
  boxes = item.boxes * np.array([shape[0] / w, shape[1] / h] * 2)

  def boxed(picture):
    return draw.draw_boxes(picture, boxes, highlight=highlight) if len(boxes) else picture

  panels = {f"image, {w} x {h} px": boxed(image)}
  panels["bottom-up score"] = boxed(draw.overlay_score(image, features["score_bottomup"]))
  if "score_topdown" in features:
    panels["top-down score"] = boxed(draw.overlay_score(image, features["score_topdown"]))
  grids = [tuple(g) for g in features["grids"][1:]]
  scale, index = features["selected_scale"], features["selected_index"]
  selected = [index[scale == i] for i in range(len(grids))]
  total = sum(y * x for y, x in grids)
  panels[f"selected: {len(index)} of {total} patches"] = boxed(
      draw.outline_patches(image, grids, selected))
  legend = {f"{s} px: {len(selected[i])} patches": draw.SCALE_COLOURS[i % len(draw.SCALE_COLOURS)]
            for i, s in enumerate(features["scales"][1:])}
  if len(boxes):
    legend["annotated box"] = draw.BOX_COLOUR
  title = f"{item.name}: \"{prompt}\"" if prompt else f"{item.name} (no prompt: bottom-up)"
  return draw.sheet(panels, title=title, legend=legend)


def items_of_files(paths) -> list[Item]:
  """Decoded image files; raises ValueError naming a file that is not there or no image."""
  from input_pipeline import images

  items = []
  for path in map(pathlib.Path, paths):
    if not path.is_file():
      raise ValueError(f"--image={path}: there is no such file")
    pixels = images.decode_image(path.read_bytes(), str(path))
    items.append(Item(path.stem, pixels, np.zeros((0, 4), np.float32)))
  return items


def items_of_records(data: str, split: str, indices) -> list[Item]:
  """Records of a data set; raises ValueError for an index that is not there."""
  from input_pipeline import images, records

  source = records.open_dataset(data, split)
  items = []
  for i in indices:
    if not 0 <= i < len(source):
      raise ValueError(f"--index={i}: split {split!r} of {data} has records 0 to {len(source) - 1}")
    sample = source[i]
    pixels = images.decode_image(sample.image, f"record {i} of {data}")
    items.append(Item(f"{split}-{i}", pixels, sample.boxes, tuple(sample.texts)))
  return items


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.encode", description=__doc__.split("\n\n")[0],
      epilog=FEATURES, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add("--workdir", required=True, help="folder of the trained run")
  add("--step", type=int, help="checkpoint to take; default: the latest")
  add("--image", action="append", default=[], help="image file; may be repeated")
  add("--prompt", action="append", default=[], help="text that says where to look; repeatable")
  add("--data", help="data set to take records from instead of files")
  add("--split", default="val", help="split of --data; default: val")
  add("--index", type=int, action="append", default=[], help="record of --data; repeatable")
  add("--region", type=int, help="region of the records whose caption is the prompt")
  add("--looks", default="1", help="looks at high resolution: a number, or all; default: 1")
  add("--tokens", type=int, help="high-resolution tokens in total, instead of looks")
  add("--out", required=True, help="folder to write to")
  add("--no-pictures", action="store_true", help="write features only")
  add("--debug", action="store_true", help="show the traceback of an error")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  options = parse_args(argv)
  return console.exit_code(lambda: encode(options), options.debug)


def encode(options: argparse.Namespace) -> None:
  """Encodes what the command line names and writes the results."""
  from PIL import Image

  if bool(options.image) == bool(options.data):
    raise ValueError("give images either as files (--image) or as records (--data and --index)")
  if options.looks != "all" and not options.looks.isdecimal():
    raise ValueError(f"--looks={options.looks}: expected a number, or all")
  if options.tokens is not None and options.tokens < 0:
    raise ValueError(f"--tokens={options.tokens}: expected a number of at least 0")
  looks = "all" if options.looks == "all" else int(options.looks)
  items = (items_of_files(options.image) if options.image
           else items_of_records(options.data, options.split, options.index or [0]))
  jobs = [(item, *pair) for item in items for pair in prompts(item, options)]
  encoder = Encoder(options.workdir, step=options.step, num_looks=looks, num_tokens=options.tokens)
  out = pathlib.Path(options.out)
  out.mkdir(parents=True, exist_ok=True)
  for item, prompt, region in jobs:
    start = time.monotonic()
    features = encoder(item.pixels, prompt)
    name = re.sub(r"[^\w-]+", "_", f"{item.name} {prompt or ''}").strip("_")[:100]
    np.savez(out / f"{name}.npz", **features)
    written = f"{name}.npz"
    if not options.no_pictures:
      Image.fromarray(picture(item, features, prompt, region)).save(out / f"{name}.png")
      written += f", {name}.png"
    print(f"{item.name}: {len(features['selected_index'])} patches selected in "
          f"{time.monotonic() - start:.1f} s -> {out}/: {written}")


def prompts(item: Item, options: argparse.Namespace) -> list[tuple[str | None, int | None]]:
  """(prompt, region) pairs to encode an item with; one without a prompt if none is given."""
  pairs = [(p, None) for p in options.prompt]
  if options.region is not None:
    if not 0 <= options.region < len(item.texts):
      raise ValueError(f"--region={options.region}: {item.name} has {len(item.texts)} regions")
    pairs.append((item.texts[options.region], options.region))
  return pairs or [(None, None)]


if __name__ == "__main__":
  sys.exit(main())
