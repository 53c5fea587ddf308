"""bench ps3: time, peak memory and arithmetic of a PS3, against ps3-torch on the same weights.

A model of the given width with random weights (no text tower) looks at one image of random smooth
content: `look1` and `look2` encode it, bottom-up, at the lowest scale and with one or two looks of
`--tokens` patches; `train` is the released objective on one image with one local caption (given as
vectors), forward and backward with the gradients of all parameters, without optimiser.

Both sides get the same weights, image and caption, run in turn in processes of their own, with
parameters and computation in the row's dtype. Seconds are medians, after compilation and a first
run, and begin at pixels in memory: uint8 for ours, normalised and in the row's dtype for the peer.
Peak memory is that of the whole process: libraries, loading, compiling, weights. `max abs diff` is
between both sides' features (of the pooled vector, the loss and the norms of all gradients for
`train`) on the tokens that ours took; the next column is the same by the largest number of each.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_ext import convert
from big_vision_ext.benches import compare, random_weights, resolution
from big_vision_ext.benches.peers import exchange
from big_vision_ext.convert import ps3_torch
from big_vision_ext.core import flops
from big_vision_ext.models import selection, vit

HELP = "PS3 against ps3-torch: time, memory, arithmetic"
MODES = ("look1", "look2", "train")
# One program for all blocks; in training each its own, which need not stack gradients, and what is
# dear to compute is kept.
_OPTIONS = {"scan": True}
_TRAIN_OPTIONS = {"scan": False, "remat_policy": "save:attention"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  compare.add_arguments(parser, "ps3_torch")
  add("--variants", default="B/16", help="sizes of the trunk; default: B/16")
  add("--px", default="1536,3840", help="sides of the image and largest scales, comma-separated")
  add("--modes", default=",".join(MODES), help="which of look1, look2, train")
  add("--base", type=int, default=384, help="lowest scale in pixels; default: 384")
  add("--tokens", type=int, default=2560, help="high-resolution tokens of a look; default: 2560")
  add("--selection-size", type=int, default=1512, help="input of the selection branch, pixels")
  add("--options", type=json.loads, default={}, metavar="JSON",
      help="fields of our model that change how it computes, as {\"scan\": false}; default: "
      f"{json.dumps(_OPTIONS)}, and for train also {json.dumps(_TRAIN_OPTIONS)}")


def run(options: argparse.Namespace) -> int:
  """Measures and prints; returns the exit code.

  Raises:
    ValueError: an impossible option, or a process failed.
  """
  if options.child:
    from big_vision_ext.benches import ps3_child

    exchange.serve(ps3_child.main, options.child)
    return 0
  modes = options.modes.split(",")
  if odd := sorted(set(modes) - set(MODES)):
    raise ValueError(f"--modes: {odd[0]!r} is not among {', '.join(MODES)}")
  python = compare.peer_python(options, "ps3")
  rows = []
  for variant in options.variants.split(","):
    for px in map(int, options.px.split(",")):
      model = settings(variant, px, options.base, options.tokens, options.selection_size)
      with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        weights = convert.Weights(random_weights.draw("ps3", model), "ps3", model)
        convert.write("ps3_torch", folder, weights)
        for dtype in options.dtypes.split(","):
          for mode in modes:
            compare.say(f"{variant}, {px} px, {dtype}, {mode} ...")
            rows.append(_compare(variant, px, dtype, mode, model, folder, python, options))
            compare.say(compare.table(rows[-1:]))
  compare.report(rows, options)
  for line in growth(rows):
    print(line)
  return 0


def growth(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """What more pixels cost in arithmetic: lines on compiled programs that differ in `px` alone."""
  lines, first = [], {}
  for r in rows:
    smallest = first.setdefault((r["name"], r["mode"], r["dtype"]), r)
    if r is not smallest:
      lines.append(f"{r['name']}, {r['mode']}, {r['dtype']}: {r['px']} px take "
                   f"{r['tflop'] / smallest['tflop']:.4f} of the FLOPs of {smallest['px']} px")
  return lines


def settings(variant: str, px: int, base: int, tokens: int, selection_size: int) -> dict[str, Any]:
  """`config.model` of a PS3 whose largest scale is `px`, with a text tower of next to no size."""
  sizes = vit.variant(variant)
  side = base // sizes.get("patch_size", 16)
  layers = np.linspace(0, sizes["depth"] - 1, 4).astype(int).tolist()
  image = sizes | dict(
      act="gelu", posemb_grid=[side, side], scales=list(resolution.scales_for(px, base)),
      select_layers=sorted(set(layers)), max_select_num=tokens, selection_size=selection_size)
  # What rounding leaves of a budget goes to the last scale here, but not in ps3-torch 0.1.3.
  image["max_select_num_each_scale"] = list(selection.split_budget(image["scales"], tokens))
  text = dict(width=32, depth=1, mlp_dim=64, num_heads=2, vocab_size=32, text_len=8, act="gelu",
              out_dim=sizes["width"])
  return {"image": image, "text": text}


def inputs(px: int, width: int) -> dict[str, np.ndarray]:
  """An image of random smooth content, a region of it and a caption as vectors."""
  rng = np.random.default_rng(px)
  # Coarse noise over fine: the scores differ from cell to cell.
  coarse = rng.integers(0, 224, (px // 32, px // 32, 3), np.uint8)
  image = np.kron(coarse, np.ones((32, 32, 1), np.uint8))
  image += rng.integers(0, 32, image.shape, np.uint8)
  text = rng.standard_normal(width).astype(np.float32)
  # An eighth of the image, in whole pixels: both sides see the same region.
  box = np.array([px // 4, px // 4, px // 4 + px // 3, px // 4 + 3 * px // 8], np.float32)
  prompt = rng.standard_normal(width).astype(np.float32)
  return {"image": image, "box": box, "prompt": prompt, "text": text / np.linalg.norm(text)}


def _compare(variant, px, dtype, mode, model, folder, python, options) -> dict[str, Any]:
  image, train = model["image"], mode == "train"
  looks = 1 if train else MODES.index(mode) + 1
  ours, theirs = compare.measure(
      "ps3", "ps3_torch.py", python, inputs(px, image["width"]),
      dict(folder=folder, dtype=dtype, mode="train" if train else "look", looks=looks,
           repeats=options.repeats, threads=options.threads,
           options=_OPTIONS | (_TRAIN_OPTIONS if train else {}) | options.options,
           mean=[0.5] * 3, std=[0.5] * 3),
      options)
  parts = ("width", "depth", "mlp_dim", "patch_size", "scales", "selection_size")
  count = flops.ps3(selected=[options.tokens] * looks, num_prompts=1 + train,
                    num_select_layers=len(image["select_layers"]), **{k: image[k] for k in parts})
  about = dict(name=f"PS3 {variant}", mode=mode, px=px, dtype=dtype,
               model_tflop=(flops.train(count["total"]) if train else count["total"]) / 1e12)
  if train and theirs:
    ours, theirs = (compare.norms(found, ps3_torch.TABLE, "ps3", model, own, only="img/")
                    for found, own in ((ours, True), (theirs, False)))
  compared = ("pooled", "loss", "norms") if train else ("last",)
  return compare.row(ours, theirs, **about) | compare.differences(ours, theirs, compared)
