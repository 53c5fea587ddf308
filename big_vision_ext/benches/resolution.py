"""bench resolution: what does encoding cost as resolution grows?

For each resolution a PS3 of one size, with random weights, encodes a square image of that many
pixels: once at its lowest scale and one look of at most `--tokens` patches of the higher ones. Each
runs in a process of its own, so that peak memory is its own. Prints a table; `--json` writes it.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Sequence

HELP = "time and memory of PS3's encoding as resolution grows"

# The scales below a resolution, as in the published models (patch 14: 378, 756, 1512, 3780).
_ZOOMS = (1, 2, 4, 10)


def scales_for(resolution: int, base: int) -> tuple[int, ...]:
  """The scales of a model that sees `resolution` px: base x 1, 2, 4, 10, up to it.

  Raises:
    ValueError: the resolution is none of these scales.
  """
  scales = tuple(base * z for z in _ZOOMS if base * z <= resolution)
  if not scales or scales[-1] != resolution:
    raise ValueError(f"--resolutions: {resolution} is not among "
                     f"{', '.join(str(base * z) for z in _ZOOMS)} (multiples of --base={base})")
  return scales


def measure(variant: str, resolution: int, base: int, tokens: int, repeats: int,
            selection_size: int) -> dict[str, float]:
  """Encodes one image `repeats` times; seconds (median), peak memory, tokens, FLOPs."""
  import jax
  import numpy as np

  from big_vision_ext.core import flops, programs, sharding
  from big_vision_ext.models import ps3, vit

  scales = scales_for(resolution, base)
  high = len(scales) > 1
  sizes = vit.variant(variant)
  # A model of one scale has nothing to select; it is given a second one and never looks at it.
  model = ps3.PS3Vision(
      **sizes, posemb_grid=(base // sizes["patch_size"],) * 2,
      scales=scales if high else (base, 2 * base), max_select_num=tokens, scan=True,
      select_layers=tuple(np.linspace(0, sizes["depth"] - 1, 4).astype(int).tolist()),
      selection_size=selection_size)
  image = np.random.default_rng(0).integers(0, 256, (1, resolution, resolution, 3), np.uint8)
  params = sharding.unbox(jax.jit(model.init)(jax.random.key(0), image[:, :2 * base, :2 * base]))
  if high:
    run = lambda p, x: model.apply(p, x, method="encode_image")["last_hidden"]
  else:
    run = lambda p, x: model.apply(p, x, method="low")["last"][-1]
  start = time.monotonic()
  compiled = programs.compiled(jax.jit(run), params, image)
  compile_seconds = time.monotonic() - start
  shape = compiled(params, image).shape
  seconds = []
  for _ in range(repeats):
    start = time.monotonic()
    jax.block_until_ready(compiled(params, image))
    seconds.append(time.monotonic() - start)
  low_tokens = (base // sizes["patch_size"]) ** 2
  parts = flops.ps3(
      scales=scales, selected=(shape[1] - low_tokens,) if high else (), width=sizes["width"],
      depth=sizes["depth"], mlp_dim=sizes["mlp_dim"], patch_size=sizes["patch_size"],
      selection_size=selection_size)
  memory = compiled.memory_analysis()
  return {
      "resolution": resolution,
      "seconds": float(np.median(seconds)),
      "temp_mib": memory.temp_size_in_bytes / 2**20,
      "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
      "tokens": shape[1],
      "all_tokens": sum((s // sizes["patch_size"]) ** 2 for s in scales),
      "tflop": (parts["total"] if high else parts["low"]) / 1e12,
      "compile_seconds": compile_seconds,
  }


def table(rows: Sequence[dict[str, float]]) -> str:
  """The rows in Markdown."""
  lines = ["| pixels | tokens encoded, of | seconds | TFLOP | temporary MiB | peak process MiB |",
           "|---|---|---|---|---|---|"]
  for r in rows:
    lines.append(f"| {r['resolution']} | {r['tokens']}, {r['all_tokens']} | {r['seconds']:.2f} | "
                 f"{r['tflop']:.2f} | {r['temp_mib']:.0f} | {r['peak_rss_mib']:.0f} |")
  return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  add = parser.add_argument
  add("--variant", default="B/16", help="size of the model; default: B/16")
  add("--resolutions", default="384,768,1536,3840", help="sides in pixels, comma-separated")
  add("--base", type=int, default=384, help="lowest scale in pixels; default: 384")
  add("--tokens", type=int, default=2560, help="most high-resolution tokens; default: 2560")
  add("--selection-size", type=int, default=1512, help="input of the selection branch, pixels")
  add("--repeats", type=int, default=5, help="timed runs, of which the median is reported")
  add("--json", help="file to write the numbers to")
  add("--child", action="store_true", help=argparse.SUPPRESS)


def run(options: argparse.Namespace) -> int:
  """Measures and prints; returns the exit code.

  Raises:
    ValueError: an impossible resolution.
  """
  sides = [int(s) for s in options.resolutions.split(",")]
  for side in sides:
    scales_for(side, options.base)
  if options.child:
    print(json.dumps(measure(options.variant, sides[0], options.base, options.tokens,
                             options.repeats, options.selection_size)))
    return 0
  rows = []
  for side in sides:
    print(f"{side} px ...", file=sys.stderr)
    command = [sys.executable, "-m", "big_vision_ext.bench", "resolution", "--child",
               "--resolutions", str(side)]
    for name in ("variant", "base", "tokens", "selection_size", "repeats"):
      command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
      print(f"error: measuring {side} px failed (see above)", file=sys.stderr)
      return 1
    rows.append(json.loads(done.stdout.splitlines()[-1]))
  print(table(rows))
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")
  return 0
