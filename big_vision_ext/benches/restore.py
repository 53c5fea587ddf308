"""bench restore: training steps and outputs of restoration networks, against PyTorch.

A network as published with random weights, `--batch` random pairs of pictures of `--px`, the same
ones on both sides. "train": the mean absolute error, forward and backward with the gradients of all
parameters, without optimiser; "infer": the restored pictures. Parameters and computation are in the
row's dtype, on both sides. The peer is the same network as PyTorch modules (`peers/restoration.py`)
with the same file of weights.

Both run in turn in processes of their own. Seconds are medians, after compilation and a first run,
and begin at pixels in memory: uint8 for ours, in the row's dtype for the peer. Peak memory is that
of the whole process. `max abs diff` is between both sides' loss and norms of all gradients, or
pictures; the next column is the same by the largest number of each.

With `--seeds K` a population of K networks is trained in one step, side by side (`vmap`) and one
after the other (`loop`), and the time for each is set against that of a step of one alone.
"""

import argparse
import json
import tempfile
from typing import Any

import numpy as np

from big_vision_ext import convert
from big_vision_ext.benches import compare, random_weights
from big_vision_ext.benches.peers import exchange
from big_vision_ext.convert import restoration, restoration_nets

HELP = "training steps and outputs of restoration networks against PyTorch: time and memory"
NETS = ("msrresnet", "swinir_light")
_MODES = ("train", "infer")
_PEER = "torch"


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  compare.add_arguments(parser, _PEER)
  parser.set_defaults(dtypes="float32")
  add("--net", choices=NETS, default="msrresnet", help="the network; default: msrresnet")
  add("--px", type=int, default=64, help="side of the pictures; default: 64")
  add("--batch", type=int, default=4, help="pictures; default: 4")
  add("--modes", default="train,infer", help="what is measured; default: train,infer")
  add("--seeds", type=int, metavar="K", help="measure training K networks at once instead, against "
      "one, without the peer")
  add("--fields", type=json.loads, default={}, metavar="JSON",
      help="fields of the network that are not as published, on both sides")
  add("--options", type=json.loads, default={}, metavar="JSON",
      help="fields of our network that change how it computes")


def run(options: argparse.Namespace) -> int:
  """Measures and prints; returns the exit code.

  Raises:
    ValueError: an impossible option, or a process failed.
  """
  if options.child:
    from big_vision_ext.benches import restore_child

    exchange.serve(restore_child.main, options.child)
    return 0
  modes = options.modes.split(",")
  if unknown := [m for m in modes if m not in _MODES]:
    raise ValueError(f"--modes: {unknown[0]!r} is unknown; expected some of {','.join(_MODES)}")
  if options.seeds is not None and (options.peer or options.seeds < 2):
    raise ValueError(f"--seeds={options.seeds}: expected at least 2, and no --peer")
  python = compare.peer_python(options, "siglip")
  net = {"name": options.net, "scale": 1, "fields": options.fields}
  rows = []
  with tempfile.TemporaryDirectory(prefix="bench-") as folder:
    weights = convert.Weights(random_weights.draw("restore", {"net": net}), "restore", {"net": net},
                              {"image_size": options.px})
    convert.write("restoration", folder, weights)
    file = f"{folder}/{restoration.FILE}"
    for dtype in options.dtypes.split(","):
      if options.seeds:
        rows += _populations(dtype, net, file, options)
        continue
      for mode in modes:
        compare.say(f"{options.net}, {options.px} px, batch {options.batch}, {dtype}, {mode} ...")
        rows.append(_compare(dtype, mode, net, file, python, options))
        compare.say(compare.table(rows[-1:]))
  compare.report(rows, options)
  for line in per_seed(rows):
    print(line)
  return 0


def per_seed(rows: list[dict[str, Any]]) -> list[str]:
  """What a network of a population takes, against one alone."""
  lines = []
  for r in rows:
    if "members" in r and r["members"] > 1:
      lines.append(f"{r['dtype']}, {r['mode']}: {r['per_seed_seconds']:.3f} s for each of "
                   f"{r['members']}, {r['per_seed_ratio']:.3f} of one alone")
  return lines


def peer_sizes(net: dict[str, Any], px: int) -> dict[str, Any]:
  """What the peer's class is called with."""
  f = restoration_nets.fields(net)
  if net["name"] == "msrresnet":
    return {k: f[k] for k in ("width", "depth", "scale")}
  keys = ("width", "depth", "blocks", "heads", "window", "mlp_ratio", "tail", "scale", "tail_width")
  return {k: f[k] for k in keys} | {"side": restoration.mask_side(f["window"], px)}


def _inputs(options) -> dict[str, np.ndarray]:
  rng, shape = np.random.default_rng(0), (options.batch, options.px, options.px, 3)
  return {k: rng.integers(0, 256, shape, np.uint8) for k in ("image", "degraded")}


def _settings(dtype, mode, net, file, options, **more) -> dict[str, Any]:
  return dict(file=file, dtype=dtype, mode=mode, repeats=options.repeats, threads=options.threads,
              options=options.options, members=1, population="auto",
              kind=net["name"].removesuffix("_light"), sizes=peer_sizes(net, options.px)) | more


def _compare(dtype, mode, net, file, python, options) -> dict[str, Any]:
  ours, theirs = compare.measure(
    "restore", "restoration_step.py", python, _inputs(options),
    _settings(dtype, mode, net, file, options), options)
  table = restoration_nets.rules(net)
  if theirs and mode == "train":
    ours, theirs = (compare.norms(found, table, "restore", {"net": net}, own)
                    for found, own in ((ours, True), (theirs, False)))
  row = compare.row(ours, theirs, name=f"{net['name']}, batch {options.batch}", mode=mode,
                    px=options.px, dtype=dtype)
  row["images_per_second"] = options.batch / row["seconds"]
  if theirs:
    row["peer_images_per_second"] = options.batch / row["peer_seconds"]
  names = ("loss", "norms") if mode == "train" else ("restored",)
  return row | compare.differences(ours, theirs, names)


def _populations(dtype, net, file, options) -> list[dict[str, Any]]:
  """Rows of one network, and of several in either way."""
  rows = []
  for mode, members in (("alone", 1), ("vmap", options.seeds), ("loop", options.seeds)):
    compare.say(f"{options.net}, {options.px} px, batch {options.batch}, {dtype}, {mode} ...")
    population = "auto" if members == 1 else mode
    ours, _ = compare.measure(
      "restore", "", None, _inputs(options),
      _settings(dtype, "train", net, file, options, members=members, population=population),
      options)
    row = compare.row(ours, None, name=f"{net['name']}, batch {options.batch}", mode=mode,
                      px=options.px, dtype=dtype) | {"members": members}
    row["per_seed_seconds"] = row["seconds"] / members
    row["per_seed_ratio"] = row["per_seed_seconds"] / (rows[0] if rows else row)["seconds"]
    rows.append(row)
    compare.say(compare.table(rows[-1:]))
  return rows
