"""python -m big_vision_ext.export --workdir D | --weights W --format F --out E: to other libraries.

Writes a folder that another library loads, with a card (README.md) that says what it is:

- `npz`            big_vision's naming, for big_vision, open_clip's converter and this project
- `ps3_torch`      `PS3Model.from_pretrained(E)` of ps3-torch; models of task "ps3"
- `transformers`   `SiglipModel.from_pretrained(E)`; `CLIPModel` of task "clip",
                   `ViTMAEForPreTraining` of "mae", `ViTForImageClassification` of "classify",
                   `IJepaModel` of "ijepa"
- `timm`           for `timm.create_model`: the image tower of task "siglip", the encoder of "mae"
                   and of "ijepa", a classifier of "classify"
- `open_clip`      both towers of it or of task "clip", for `open_clip.create_model_from_pretrained`
- `openai_clip`    openai/CLIP's state dict, which UniQA's has too; models of task "clip"
- `mae`            facebookresearch/mae's state dict; models of task "mae"
- `ijepa`          facebookresearch/ijepa's state dicts; models of task "ijepa"
- `focusmim`       RobinWeiler/FocusMIM's state dict; models of task "focusmim"
- `restoration`    BasicSR's, SwinIR's and Restormer's state dicts; models of task "restore"
- `uniqa`          UniQA's adapter file; runs of task "quality"
- `stablehlo`      the encoder as a program that any jax runs; models of task "ps3" (`serialize.py`)

`--weights` takes the same formats, so that this command also converts between them. Arrays are
written one after another; the folder appears when it is complete.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from big_vision_ext.core import console as console_lib

STABLEHLO = "stablehlo"
# The other formats are one file of weights.
_SHARDED = ("ps3_torch", "transformers")
_PROGRAM_FLAGS = ("looks", "tokens", "no_prompt", "platforms")


def export(source: str, format: str, out: str, *, step: int | None = None,
           dtype: str | None = None, shard_bytes: float = 5e9, round_to_fp16: bool = False,
           console: console_lib.Console | None = None, **options) -> list[pathlib.Path]:
  """Writes the weights of `source` into the folder `out`; returns the files.

  Args:
    source: a run's directory, or weights in any format.
    format: one of `convert.FORMATS`.
    out: a new or empty folder, or one of an earlier export, which is replaced.
    step: checkpoint of a run; default the latest.
    dtype: "float32", "bfloat16" or "float16"; default: as they are.
    shard_bytes: largest size of a safetensors file.
    round_to_fp16: of CLIP: the values that openai/CLIP computes with; see
      `convert.clip.round_to_fp16`.
    console: tells how it goes.
    **options: of the format; see the command line.

  Raises:
    ValueError: weights that cannot be read, or that the format cannot hold.
  """
  from big_vision_ext import convert, weights
  from big_vision_ext.convert import clip

  found = weights.read(source, step)
  found = clip.round_to_fp16(found) if round_to_fp16 else found
  total = sum(convert.Tensors(found.params).lazy(n).nbytes for n in found.params)
  written = 0

  def progress(nbytes, _):
    nonlocal written
    written += nbytes
    console.progress(written)
  if console:
    console = _Bytes(console, total if dtype is None else None)
  return convert.write(format, out, found, dtype=dtype, shard_bytes=shard_bytes,
                       progress=progress if console else None, **options)


def export_program(source: str, out: str, *, step: int | None = None,
                   **options) -> list[pathlib.Path]:
  """Writes the encoder of `source` as StableHLO; options are `serialize.export_encoder`'s."""
  from big_vision_ext import serialize, weights

  # As with the other formats, an earlier export of this kind is replaced, and nothing else.
  return serialize.export_encoder(weights.load(source, step), out, overwrite=True, **options)


def _budget(options: argparse.Namespace) -> dict:
  if options.dtype:
    raise ValueError(f"--dtype={options.dtype} is not for --format {STABLEHLO}: the program keeps "
                     "the parameters as they are")
  if options.looks is not None and options.tokens is not None:
    raise ValueError("give --looks or --tokens, not both")
  found = {"prompt": not options.no_prompt}
  if options.looks is not None:
    found["num_looks"] = options.looks
  if options.tokens is not None:
    found |= {"num_looks": None, "num_tokens": options.tokens}
  if options.platforms:
    found["platforms"] = tuple(options.platforms.split(","))
  return found


def _refuse_program_flags(options: argparse.Namespace) -> None:
  for flag in _PROGRAM_FLAGS:
    if getattr(options, flag) not in (None, False):
      raise ValueError(f"--{flag.replace('_', '-')} is for --format {STABLEHLO}, not "
                       f"{options.format}")


class _Bytes:
  """Shows how much has been written, now and then."""

  def __init__(self, console: console_lib.Console, total: int | None):
    self._console, self._total, self._said = console, total, 0

  def progress(self, written: int) -> None:
    """Says so every GB."""
    if written - self._said >= 1e9:
      self._said = written
      of = f" of {self._total / 1e9:.1f}" if self._total else ""
      self._console.say(f"  {written / 1e9:.1f}{of} GB")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.export", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--workdir", help="directory of a run")
  source.add_argument("--weights", help="weights in any of the formats")
  parser.add_argument("--step", type=int, help="checkpoint of the run; default: the latest")
  parser.add_argument("--format", required=True, help="format to write, see above")
  parser.add_argument("--out", required=True, help="folder to write")
  parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: as they are")
  parser.add_argument("--shard_gb", type=float,
                      help="largest size of a file of ps3_torch or transformers; default: 5")
  parser.add_argument("--layout", help="of npz: loop (one array per block, the default) or scan")
  parser.add_argument("--member", type=int, metavar="N", help="of restoration: which network of a "
                      "population, by its place in config.model.seeds")
  parser.add_argument("--round_to_fp16", action="store_true", help="of CLIP: round matrices as "
                      "openai/CLIP does before it computes with them, to compare with it")
  program = parser.add_argument_group("of stablehlo, fixed when it is written")
  program.add_argument("--looks", type=int, help="looks at high resolution; default: 1")
  program.add_argument("--tokens", type=int, help="high-resolution tokens in total, instead")
  program.add_argument("--no-prompt", action="store_true", help="take no text: bottom-up selection")
  program.add_argument("--platforms", help="comma-separated; default: cpu,tpu,cuda")
  parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  options = parse_args(argv)

  def command() -> None:
    if options.layout and options.format != "npz":
      raise ValueError(f"--layout is for --format npz, not {options.format}")
    if options.member is not None and options.format != "restoration":
      raise ValueError(f"--member is for --format restoration, not {options.format}")
    extra = {"layout": options.layout} if options.layout else {}
    extra |= {} if options.member is None else {"member": options.member}
    if options.round_to_fp16 and options.format == STABLEHLO:
      raise ValueError(f"--round_to_fp16 is for formats of weights, not {STABLEHLO}")
    source = options.workdir or options.weights
    if options.shard_gb is not None and options.format not in _SHARDED:
      raise ValueError(f"--shard_gb is for {' and '.join(_SHARDED)}; {options.format} is one file")
    shard_gb = 5.0 if options.shard_gb is None else options.shard_gb
    if shard_gb <= 0:
      raise ValueError(f"--shard_gb={shard_gb}: expected a size above 0")
    console_lib.set_up_logging(options.debug)
    console = console_lib.Console()
    if options.format == STABLEHLO:
      paths = export_program(source, options.out, step=options.step, **_budget(options))
    else:
      _refuse_program_flags(options)
      paths = export(source, options.format, options.out, step=options.step, dtype=options.dtype,
                     shard_bytes=shard_gb * 1e9, round_to_fp16=options.round_to_fp16,
                     console=console, **extra)
    size = sum(p.stat().st_size for p in paths) / 1e6
    console.say(f"Wrote {options.out}: {len(paths)} files, {size:,.1f} MB")
  return console_lib.exit_code(command, options.debug)


if __name__ == "__main__":
  sys.exit(main())
