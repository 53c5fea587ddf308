"""python -m launch.uniqa_table OUT: the table of `uniqa_study.sh` of the runs in OUT."""

import argparse
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence

# Columns, and the evaluator of an adapter's run that each is of.
_COLUMNS = {"zero-shot": "zero_shot", "adapter": "test", "linear probe": "linear"}
_TOWERS = ("pretrained", "random")


def table(out: pathlib.Path, labels: Sequence[int], seeds: Sequence[int],
          measure: str = "srcc") -> str:
  """A row for each kind of towers and number of labels: mean and deviation over seeds, and seeds.

  Raises:
    ValueError: a run that has not been evaluated.
  """
  lines = [f"| towers | labels | {' | '.join(_COLUMNS)} | adapter of seeds "
           f"{', '.join(map(str, seeds))} |", "|---" * (len(_COLUMNS) + 3) + "|"]
  for towers in _TOWERS:
    for count in labels:
      found = [_results(out / f"adapter_{towers}_{count}_{seed}") for seed in seeds]
      cells = [_cell([f[f"{name}/{measure}"] for f in found]) for name in _COLUMNS.values()]
      each = ", ".join(f"{f[f'test/{measure}']:.3f}" for f in found)
      lines.append(f"| {towers} | {count} | {' | '.join(cells)} | {each} |")
  return "\n".join(lines)


def _results(workdir: pathlib.Path) -> dict[str, float]:
  try:
    return json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{workdir}: has no readable evaluation.json ({error}); finish the study "
                     "first, the same command goes on") from error


def _cell(values: Sequence[float]) -> str:
  spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.3f}{spread}"


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m launch.uniqa_table", description=__doc__)
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--labels", type=int, nargs="+", default=[50, 200])
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--measure", default="srcc")
  options = parser.parse_args(argv)
  try:
    print(table(options.out, options.labels, options.seeds, options.measure))
  except (ValueError, KeyError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
