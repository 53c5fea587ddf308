"""python -m launch.prior_table OUT: the table of `prior_study.sh` of the runs in OUT."""

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence

import numpy as np

from big_vision_ext import grid_report

# Rows: what is said of it, the run, and under what its results are.
_ROWS = (
    ("a plain network", "network", ""),
    ("the same architecture, from pairs alone", "scratch", ""),
    ("prior, adapted", "adapted", ""),
    ("with a skip, w = 0", "fused", "w0/"),
    ("w = 0.5", "fused", "w50/"),
    ("w = 1", "fused", "w100/"),
    ("prior of another category, adapted", "adapted_other", ""),
    ("prior without codes, adapted", "adapted_plain", ""),
)
# What is said of it, and two of the rows, of which the second is taken off the first.
_PAIRS = (
    ("w = 0 less w = 1", "with a skip, w = 0", "w = 1"),
    ("adapted less from pairs alone", "prior, adapted", "the same architecture, from pairs alone"),
)
_RAINS = ("seen", "unseen")
_MEASURES = {"E_R": 1, "E_B": 1, "rho": 2, "psnr": 1}


def table(out: pathlib.Path, seeds: Sequence[int]) -> str:
  """A row for each arm: E_R, E_B (0..255), rho and PSNR (dB) under rain seen in training and not,
  and the floor; means over seeds, with deviations where there are several.

  Raises:
    ValueError: a run that has not been evaluated.
  """
  lines = [_heading("", "floor, dB", "floor, rms")]
  for label, run, prefix in _ROWS:
    found = [_results(out / f"{run}_{seed}") for seed in seeds]
    cells = [_cell(values, digits) for values, digits in _measured(found, prefix)]
    for key in ("psnr", "rms"):
      floor = [f.get(f"rain/floor/{key}") for f in found]
      cells.append("" if None in floor else _cell(floor, 1))
    lines.append(f"| {label} | {' | '.join(cells)} |")
  return "\n".join(lines)


def differences(out: pathlib.Path, seeds: Sequence[int]) -> str:
  """What two arms differ by, seed by seed: the mean, and its 95 % interval (Student's t).

  Raises:
    ValueError: a run that has not been evaluated, or fewer than two seeds.
  """
  if len(seeds) < 2:
    raise ValueError(f"seeds={list(seeds)}: an interval takes two or more")
  arms = {label: (run, prefix) for label, run, prefix in _ROWS}
  lines = [_heading("mean and 95 % interval over seeds")]
  for label, *pair in _PAIRS:
    first, second = (
        _measured([_results(out / f"{arms[arm][0]}_{seed}") for seed in seeds], arms[arm][1])
        for arm in pair)
    cells = []
    for (a, digits), (b, _) in zip(first, second):
      mean, half = grid_report.interval(np.array(a) - np.array(b))
      low, high = mean - half, mean + half
      cells.append(f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})")
    lines.append(f"| {label} | {' | '.join(cells)} |")
  return "\n".join(lines)


def _heading(first: str, *more: str) -> str:
  names = [first, *(f"{rain} {measure}" for rain in _RAINS for measure in _MEASURES), *more]
  return f"| {' | '.join(names)} |\n" + "|---" * len(names) + "|"


def _measured(found: Sequence[dict[str, float]], prefix: str) -> list[tuple[list[float], int]]:
  """(values of all seeds, digits to show) of each measure under each rain."""
  return [([f[f"rain/{prefix}{rain}/{measure}"] for f in found], digits)
          for rain in _RAINS for measure, digits in _MEASURES.items()]


def _results(workdir: pathlib.Path) -> dict[str, float]:
  try:
    return json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{workdir}: has no readable evaluation.json ({error}); finish the study "
                     "first, the same command goes on") from error


def _cell(values: Sequence[float], digits: int) -> str:
  spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.{digits}f}{spread}"


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m launch.prior_table", description=__doc__)
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0])
  options = parser.parse_args(argv)
  try:
    print(table(options.out, options.seeds))
    if len(options.seeds) > 1:
      print(f"\n{differences(options.out, options.seeds)}")
  except (ValueError, KeyError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
