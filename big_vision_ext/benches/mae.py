"""bench mae: a training step of a masked autoencoder, against transformers on PyTorch.

Encoder and decoder of the given width with random weights, `--batch` random images of 224 px, three
quarters of their patches hidden, the same ones on both sides: the loss on normalised pixels,
forward and backward with the gradients of all parameters, without optimiser. Parameters and
computation are in the row's dtype, on both sides. Our decoder takes the batch in
`--decoder-parts`, one after the other, as `model.decoder_parts` in a config: of its results only
those of one part are kept. `--accum` cuts the whole step into parts, as `optim.accum_steps`.

Both run in turn in processes of their own. Seconds are medians, after compilation and a first run,
and begin at pixels in memory: uint8 for ours, normalised and in the row's dtype for the peer. Peak
memory is that of the whole process: libraries, loading, compiling, weights. `max abs diff` is
between both sides' loss and norms of all gradients; the next column is the same by the largest
number of each. With `--visible` the number of visible patches varies, which only we can do freely:
rows of ours alone, and what of the FLOPs and the time of the first they take.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from big_vision_ext import convert
from big_vision_ext.benches import compare, random_weights
from big_vision_ext.benches.peers import exchange
from big_vision_ext.convert import vit_mae
from big_vision_ext.core import flops
from big_vision_ext.models import vit

HELP = "a training step of a masked autoencoder against transformers: time and memory"
_OPTIONS = {"scan": False, "remat_policy": "save:qkv,attention,mlp_hidden"}
_DECODER_PARTS = 8
_PEER = "transformers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  compare.add_arguments(parser, _PEER)
  add("--variant", default="B/16", help="size of the encoder; default: B/16")
  add("--px", type=int, default=224, help="side of the images; default: 224")
  add("--batch", type=int, default=16, help="images; default: 16")
  add("--accum", type=int, default=1, metavar="N", help="parts of a batch in a step of ours; "
      "default: 1")
  add("--decoder-parts", type=int, metavar="N", help="parts of a batch in our "
      f"decoder; default: {_DECODER_PARTS}, or what divides it")
  add("--visible", default="", metavar="N,...", help="measure with these numbers of visible "
      "patches instead, without the peer")
  add("--options", type=json.loads, default={}, metavar="JSON",
      help=f"fields of our model that change how it computes; default: {json.dumps(_OPTIONS)}")


def run(options: argparse.Namespace) -> int:
  """Measures and prints; returns the exit code.

  Raises:
    ValueError: an impossible option, or a process failed.
  """
  if options.child:
    from big_vision_ext.benches import mae_child

    exchange.serve(mae_child.main, options.child)
    return 0
  if options.visible and options.peer:
    raise ValueError(f"--visible={options.visible}: the peer hides a share of the patches; give "
                     "either --visible or --peer")
  if options.accum < 1 or options.batch % options.accum:
    raise ValueError(f"--accum={options.accum}: expected a divisor of --batch={options.batch}")
  part = options.batch // options.accum
  if options.decoder_parts is None:
    options.decoder_parts = math.gcd(part, _DECODER_PARTS)
  if options.decoder_parts < 1 or part % options.decoder_parts:
    raise ValueError(f"--decoder-parts={options.decoder_parts}: expected a divisor of {part}, "
                     "the images that are computed together")
  python = compare.peer_python(options, "siglip")
  model = settings(options.variant, options.px)
  total = (options.px // model["image"]["patch_size"]) ** 2
  counts = [int(n) for n in options.visible.split(",")] if options.visible else [total // 4]
  if odd := [n for n in counts if not 0 < n < total]:
    raise ValueError(f"--visible: {odd[0]} of {total} patches; expected 1 to {total - 1}")
  rows = []
  with tempfile.TemporaryDirectory(prefix="bench-") as folder:
    weights = convert.Weights(random_weights.draw("mae", model), "mae", model)
    convert.write("transformers", folder, weights)
    for dtype in options.dtypes.split(","):
      for visible in counts:
        compare.say(f"{options.variant}, {options.px} px, batch {options.batch}, {dtype}, "
                    f"{visible} of {total} patches visible ...")
        rows.append(_compare(dtype, visible, total, model, folder, python, options))
        compare.say(compare.table(rows[-1:]))
  compare.report(rows, options)
  for line in growth(rows):
    print(line)
  return 0


def growth(rows: Sequence[dict[str, Any]]) -> list[str]:
  """What fewer or more visible patches cost, against the first row of the dtype."""
  lines, first = [], {}
  for r in rows:
    start = first.setdefault(r["dtype"], r)
    if r is not start:
      flop, time = r["tflop"] / start["tflop"], r["seconds"] / start["seconds"]
      lines.append(f"{r['dtype']}: {r['visible']} visible patches take {flop:.3f} of the FLOPs and "
                   f"{time:.3f} of the time of {start['visible']}")
  return lines


def settings(variant: str, px: int) -> dict[str, Any]:
  """`config.model` of a masked autoencoder as published."""
  sizes = vit.variant(variant)
  visible = (px // sizes["patch_size"]) ** 2 // 4
  image = sizes | dict(image_size=px, act="gelu", pool_type="tok", decoder_width=512,
                       decoder_depth=8, decoder_heads=16, decoder_mlp_dim=2048)
  return {"image": image, "mask": {"num_visible": visible}, "norm_pix": True}


def _compare(dtype, visible, total, model, folder, python, options) -> dict[str, Any]:
  rng, n, px = np.random.default_rng(0), options.batch, options.px
  arrays = {"image": rng.integers(0, 256, (n, px, px, 3), np.uint8),
            "noise": rng.random((n, total)).astype(np.float32)}
  ours, theirs = compare.measure(
      "mae", "transformers_mae_step.py", python, arrays,
      dict(folder=folder, dtype=dtype, repeats=options.repeats, threads=options.threads,
           visible=visible, accum=options.accum, decoder_parts=options.decoder_parts,
           options=_OPTIONS | options.options,
           mean=list(vit_mae.MEAN), std=list(vit_mae.STD)), options)
  image = model["image"]
  parts = ("width", "depth", "mlp_dim", "patch_size", "decoder_width", "decoder_depth",
           "decoder_mlp_dim")
  forward = flops.mae(visible=visible, targets=total - visible, num_cls=1, decoder="self",
                      **{k: image[k] for k in parts})
  about = dict(name=f"MAE {options.variant}, batch {n}", mode="train", px=px, dtype=dtype,
               visible=visible, model_tflop=n * flops.train(forward) / 1e12)
  if theirs:
    ours, theirs = (compare.norms(found, vit_mae.transformers(), "mae", model, own)
                    for found, own in ((ours, True), (theirs, False)))
  return compare.row(ours, theirs, **about) | compare.differences(ours, theirs, ("loss", "norms"))
