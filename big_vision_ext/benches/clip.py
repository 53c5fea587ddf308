"""bench clip: how many pictures a second CLIP's image tower takes, against transformers on PyTorch.

The image tower with its projection, random weights, `--batch` random images of 224 px, the same
ones on both sides: what rating or embedding pictures costs. Parameters and computation are in the
row's dtype, on both sides; nothing is differentiated.

Both run in turn in processes of their own. Seconds are medians of a batch, after compilation and a
first run, and begin at pixels in memory: uint8 for ours, normalised and in the row's dtype for the
peer. Peak memory is that of the whole process: libraries, loading, compiling, weights. `max abs
diff` is between both sides' features, before they are normalised; the next column is the same by
the largest number.
"""

import argparse
import json
import tempfile
from typing import Any

import numpy as np

from big_vision_ext import convert
from big_vision_ext.benches import compare, random_weights
from big_vision_ext.benches.peers import exchange
from big_vision_ext.convert import clip
from big_vision_ext.core import flops
from big_vision_ext.models import vit

HELP = "CLIP's image tower against transformers: images a second and memory"
_OPTIONS = {"scan": False, "pooled_only": True}
_PEER = "transformers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  compare.add_arguments(parser, _PEER)
  add("--variant", default="B/16", help="size of the image tower; default: B/16")
  add("--px", type=int, default=224, help="side of the images; default: 224")
  add("--batch", type=int, default=32, help="images; default: 32")
  add("--options", type=json.loads, default={}, metavar="JSON",
      help="fields of our tower that change how it computes; default: "
      f"{json.dumps(_OPTIONS)}")


def run(options: argparse.Namespace) -> int:
  """Measures and prints; returns the exit code.

  Raises:
    ValueError: an impossible option, or a process failed.
  """
  if options.child:
    from big_vision_ext.benches import clip_child

    exchange.serve(clip_child.main, options.child)
    return 0
  if options.batch < 1:
    raise ValueError(f"--batch={options.batch}: expected at least 1")
  python = compare.peer_python(options, "siglip")
  model = settings(options.variant, options.px)
  rows = []
  with tempfile.TemporaryDirectory(prefix="bench-") as folder:
    weights = convert.Weights(random_weights.draw("clip", model), "clip", model)
    convert.write("transformers", folder, weights)
    for dtype in options.dtypes.split(","):
      compare.say(f"{options.variant}, {options.px} px, batch {options.batch}, {dtype} ...")
      rows.append(_compare(dtype, model, folder, python, options))
      compare.say(compare.table(rows[-1:]))
  compare.report(rows, options)
  return 0


def settings(variant: str, px: int) -> dict[str, Any]:
  """`config.model` of a CLIP as published, with a text tower of one block, which is not run."""
  image = clip.IMAGE | vit.variant(variant) | dict(image_size=px, num_classes=512)
  text = clip.TEXT | dict(width=64, depth=1, mlp_dim=64, num_heads=1, vocab_size=64, text_len=4,
                          out_dim=512)
  return {"image": image, "text": text, "bias_init": None}


def _compare(dtype, model, folder, python, options) -> dict[str, Any]:
  rng, n, px = np.random.default_rng(0), options.batch, options.px
  arrays = {"image": rng.integers(0, 256, (n, px, px, 3), np.uint8)}
  how = _OPTIONS | options.options
  ours, theirs = compare.measure(
      "clip", "transformers_clip_features.py", python, arrays,
      dict(folder=folder, dtype=dtype, repeats=options.repeats, threads=options.threads,
           options=how, mean=list(clip.MEAN), std=list(clip.STD)), options)
  image = model["image"]
  parts = ("width", "depth", "mlp_dim", "patch_size", "pool_type", "num_classes")
  forward = flops.vit(tokens=(px // image["patch_size"]) ** 2,
                      pooled_only=how["pooled_only"] and not how["scan"],
                      **{k: image[k] for k in parts})
  row = compare.row(ours, theirs, name=f"CLIP {options.variant}, batch {n}", mode="features", px=px,
                    dtype=dtype, model_tflop=n * forward / 1e12)
  row["images_per_second"] = n / row["seconds"]
  if theirs:
    row["peer_images_per_second"] = n / row["peer_seconds"]
  return row | compare.differences(ours, theirs, ("features",))
