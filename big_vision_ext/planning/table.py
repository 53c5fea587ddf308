"""python -m big_vision_ext.planning.table PLAN.json...: plans side by side, as a Markdown table.

The files are what `python -m big_vision_ext.plan --json` writes; `launch/plan_targets.sh` makes
those of the README.
"""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

_HEAD = ("plan", "pod", "mesh", "batch", "a chip", "peak GiB of", "sent GiB a chip", "bound",
         "step s", "examples/s", "MFU at best")


def row(name: str, plan: dict[str, Any]) -> list[str]:
  """The cells of one plan."""
  mesh = " x ".join(str(n) for n in plan["mesh"].values())
  slices = f", {plan['slices']} slices" if plan["slices"] > 1 else ""
  cells = [name, plan["topology"] + slices, mesh, f"{plan['batch_size']:,}",
           f"{plan['batch_per_chip']:g}", f"{plan['peak_hbm_gib']:.2f} {plan['hbm_gib']:.2f}"]
  if not plan["fits"]:
    return cells + ["does not fit"] + [""] * (len(_HEAD) - len(cells) - 1)
  return cells + [
    f"{plan['collective_bytes_per_chip'] / 2**30:.2f}", plan["bound"],
    f"{plan['step_seconds']:.3f}", f"{plan['examples_per_second']:,.0f}",
    f"{plan['mfu_ceiling']:.0%}"]


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table of the files named on the command line; returns the exit code."""
  paths = [pathlib.Path(a) for a in (sys.argv[1:] if argv is None else argv)]
  if not paths:
    print("error: expected files that `python -m big_vision_ext.plan --json` wrote",
          file=sys.stderr)
    return 2
  rows = []
  for path in paths:
    try:
      rows.append(row(path.stem, json.loads(path.read_text())))
    except (OSError, json.JSONDecodeError, KeyError) as error:
      print(f"error: {path} is no plan: {type(error).__name__} {error}", file=sys.stderr)
      return 2
  for cells in (_HEAD, ["---"] * len(_HEAD), *rows):
    print(f"| {' | '.join(cells)} |")
  return 0


if __name__ == "__main__":
  sys.exit(main())
