"""python -m big_vision_ext.plan: will this config fit that pod, and how fast can it be?

  python -m big_vision_ext.plan --config FILE[:args] --topology v5e:16x16 [--slices N] [--json OUT]

Compiles the training step that `train` would run, for a pod that is not there: memory of each chip,
what is sent between them, and how long the chip's peaks let a step take at best. No data and no
TPU are needed, only the compiler, in the package libtpu. Takes 5 to 20 minutes for a large model; a
program that does not fit fails sooner. `planning/roofline.py` says what the times mean.

Exit codes: 0 it fits, 1 it does not, 2 an error (one line on stderr; `--debug` shows where).
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence

from big_vision_ext.core import config as config_lib
from big_vision_ext.core import hardware
from big_vision_ext.planning import topologies


def parse_args(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
  """The command line: (options, config overrides as "key=value").

  Raises:
    ConfigError: an argument that is neither.
  """
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.plan", description=__doc__.split("\n\n")[0],
      epilog="--config.KEY=VALUE overrides a setting, e.g. --config.batch_size=2048",
      allow_abbrev=False)
  parser.add_argument("--config", help="file with get_config, and :args for it")
  parser.add_argument("--topology", help=f"chip and shape, e.g. {', '.join(topologies.EXAMPLES)}")
  parser.add_argument("--slices", type=int, default=1, help="so many of them, on a slower network")
  parser.add_argument("--json", type=pathlib.Path, help="write the plan to this file as well")
  parser.add_argument("--hlo", type=pathlib.Path, help="write the compiled program's text")
  parser.add_argument("--largest_batch", action="store_true",
                      help="search for the largest batch that fits, by compiling several")
  parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
  options, overrides = config_lib.split_overrides(parser, argv)
  if not options.config or not options.topology:
    raise config_lib.ConfigError("expected --config FILE and --topology POD; --help tells more")
  return options, overrides


def plan(config: config_lib.Config, topology: topologies.Topology, console, *,
         hlo_path: pathlib.Path | None = None, search_batch: bool = False) -> dict:
  """The report on a config's training step on a pod; see `planning.report`.

  Args:
    config: what to run.
    topology: where.
    console: tells what takes long.
    hlo_path: where to write the program's text, if anywhere.
    search_batch: also compile other batch sizes, until the largest that fits is known.

  Raises:
    ValueError: the config is wrong or cannot be cut over the pod.
  """
  from big_vision_ext.planning import memory, program, report, search

  with console.doing("Tracing the training step"):
    step = program.lay_out(config, topology)
  try:
    with console.doing(f"Compiling it for {topology.name}"):
      compiled = step.compile()
    text = compiled.as_text()
    if hlo_path:
      hlo_path.write_text(text)
    out = report.fitting(step, compiled, text)
  except memory.DoesNotFit as failure:
    out = report.too_large(step, failure)
  if not search_batch:
    return out

  pieces = config.batch_size // (step.mesh.shape["data"] * step.mesh.shape["fsdp"])
  unit = config.batch_size // pieces

  def try_rows(rows: int) -> search.Trial:
    rows = max(rows // config.optim.accum_steps, 1) * config.optim.accum_steps
    with console.doing(f"Compiling a batch of {rows * unit:,}"):
      try:
        other = dataclasses.replace(config, batch_size=rows * unit)
        needed = memory.peak_gib(program.lay_out(other, topology).compile())
      except memory.DoesNotFit as failure:
        return search.Trial(rows, failure.needed_gib, False)
    return search.Trial(rows, needed, needed <= topology.chip.hbm_gib)

  first = search.Trial(pieces, out["peak_hbm_gib"], out["fits"])
  rows, trials = search.largest(try_rows, first, report.fixed_gib(step), out["hbm_gib"])
  return out | {"largest_batch": rows * unit, "trials": [
      {"batch_size": t.rows * unit, "peak_hbm_gib": t.gib, "fits": t.fits} for t in trials]}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv
  topologies.set_up_environment()
  from big_vision_ext.core import console as console_lib

  def command() -> int:
    options, overrides = parse_args(argv)
    console_lib.set_up_logging(options.debug)
    console = console_lib.Console()
    topology = topologies.describe(options.topology, options.slices)
    kind = topology.chip.kind
    config = config_lib.resolve(config_lib.load(options.config, overrides, device_kind=kind))
    if own := config.hardware.get(hardware.name(kind)):
      console.say(f"On {hardware.name(kind)} these settings are used: {own}")
    out = plan(config, topology, console, hlo_path=options.hlo,
               search_batch=options.largest_batch)
    from big_vision_ext.planning import report
    for line in report.lines(out):
      console.say(line)
    if options.json:
      options.json.write_text(json.dumps(out, indent=2) + "\n")
    return 0 if out["fits"] else 1

  return console_lib.exit_code(command, debug="--debug" in argv)


if __name__ == "__main__":
  sys.exit(main())
