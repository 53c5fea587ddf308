"""python -m big_vision_ext.bench NAME: what does it cost, and how does that compare?

Each benchmark is a module of `big_vision_ext/benches` with `HELP`, `add_arguments(parser)` and
`run(options) -> exit code`; `python -m big_vision_ext.bench NAME --help` lists its options.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import importlib
import sys
from collections.abc import Sequence

NAMES = ("resolution", "input", "ps3", "siglip", "mae", "clip", "restore")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.bench", description=__doc__.split("\n\n")[0])
  commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
  for name in NAMES:
    bench = importlib.import_module(f"big_vision_ext.benches.{name}")
    sub = commands.add_parser(name, help=bench.HELP, description=bench.__doc__, allow_abbrev=False,
                              formatter_class=argparse.RawDescriptionHelpFormatter)
    bench.add_arguments(sub)
    sub.set_defaults(run=bench.run)
  options = parser.parse_args(argv)
  try:
    return options.run(options)
  except ValueError as error:
    print(f"error: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main())
