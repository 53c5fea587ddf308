"""bench siglip: a SigLIP training step against open_clip on PyTorch, on the same weights and batch.

Image and text tower of the given width with random weights, `--batch` random images of 224 px and
texts of 64 tokens: the sigmoid loss, forward and backward with the gradients of all parameters,
without optimiser. Parameters and computation are in the row's dtype, on both sides.

Both run in turn in processes of their own. Seconds are medians, after compilation and a first run,
and begin at pixels in memory: uint8 for ours, normalised and in the row's dtype for the peer. Peak
memory is that of the whole process: libraries, loading, compiling, weights. `max abs diff` is
between both sides' loss, embeddings and norms of all gradients; the next column is the same by the
largest number of each.
"""

import argparse
import json
import tempfile
from typing import Any

import numpy as np

from big_vision_ext import convert
from big_vision_ext.benches import compare, random_weights
from big_vision_ext.benches.peers import exchange
from big_vision_ext.convert import open_clip
from big_vision_ext.core import flops
from big_vision_ext.models import vit

_OPTIONS = {"scan": False, "remat_policy": "save:attention_out,mlp_hidden"}
HELP = "a SigLIP training step against open_clip: time and memory"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  compare.add_arguments(parser, "open_clip")
  add("--variant", default="B/16", help="sizes of both towers; default: B/16")
  add("--px", type=int, default=224, help="side of the images; default: 224")
  add("--batch", type=int, default=8, help="images and texts; default: 8")
  add("--vocab", type=int, default=32_000, help="size of the vocabulary; default: 32000")
  add("--options", type=json.loads, default={}, metavar="JSON",
      help="fields of our towers that change how they compute, as {\"scan\": false}; default: "
      f"{json.dumps(_OPTIONS)}")


def run(options: argparse.Namespace) -> int:
  """Measures and prints; returns the exit code.

  Raises:
    ValueError: an impossible option, or a process failed.
  """
  if options.child:
    from big_vision_ext.benches import siglip_child

    exchange.serve(siglip_child.main, options.child)
    return 0
  python = compare.peer_python(options, "siglip")
  model = settings(options.variant, options.px, options.vocab)
  rows = []
  with tempfile.TemporaryDirectory(prefix="bench-") as folder:
    weights = convert.Weights(random_weights.draw("siglip", model), "siglip", model)
    convert.write("open_clip", folder, weights)
    for dtype in options.dtypes.split(","):
      compare.say(f"{options.variant}, {options.px} px, batch {options.batch}, {dtype} ...")
      rows.append(_compare(dtype, model, folder, python, options))
      compare.say(compare.table(rows[-1:]))
  compare.report(rows, options)
  return 0


def settings(variant: str, px: int, vocab: int) -> dict[str, Any]:
  """`config.model` of SigLIP as open_clip has it: exact GELU, learned positions."""
  sizes = vit.variant(variant)
  text = {k: sizes[k] for k in ("width", "depth", "mlp_dim", "num_heads")}
  side = px // sizes["patch_size"]
  return {
      "image": sizes | dict(posemb_grid=[side, side], image_size=px, act="gelu"),
      "text": text | dict(vocab_size=vocab, text_len=64, act="gelu", out_dim=sizes["width"])}


def _compare(dtype, model, folder, python, options) -> dict[str, Any]:
  rng, n, px = np.random.default_rng(0), options.batch, options.px
  arrays = {"image": rng.integers(0, 256, (n, px, px, 3), np.uint8),
            "text": rng.integers(0, options.vocab, (n, 64)).astype(np.int32)}
  ours, theirs = compare.measure(
      "siglip", "open_clip_step.py", python, arrays,
      dict(folder=folder, dtype=dtype, repeats=options.repeats, threads=options.threads,
           options=_OPTIONS | options.options, mean=[0.5] * 3, std=[0.5] * 3), options)
  image, text = model["image"], model["text"]
  forward = flops.vit(
      tokens=image["posemb_grid"][0] ** 2, rep_size=0,
      **{k: image[k] for k in ("width", "depth", "mlp_dim", "patch_size")})
  sizes = ("text_len", "width", "depth", "mlp_dim", "out_dim")
  forward += flops.text(**{k: text[k] for k in sizes})
  about = dict(name=f"SigLIP {options.variant}, batch {n}", mode="train", px=px, dtype=dtype,
               model_tflop=n * flops.train(forward) / 1e12)
  if theirs:
    ours, theirs = (compare.norms(found, open_clip.TABLE, "siglip", model, own)
                    for found, own in ((ours, True), (theirs, False)))
  return compare.row(ours, theirs, **about) | compare.differences(
      ours, theirs, ("loss", "zimg", "ztxt", "norms"))
