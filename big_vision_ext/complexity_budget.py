r"""Which backgrounds and which rain to train on, so that the rain is not the easier one to learn?

  python -m big_vision_ext.complexity_budget --data data/backgrounds/natural --ratio 1
  python -m big_vision_ext.complexity_budget --sweep --config configs/derain/grid.py --out DIR \
    --backgrounds natural

The deraining study (arXiv 2502.12600) advises to balance the complexity of backgrounds and of rain.
How it measures them is not known to us: here the ratio is that of a measure of sets
(`complexity.components`), the same for both. The first form chooses by measuring alone: the range
is widened first, for that costs no background, then crops are left out until the ratio is reached.
The second trains: the range is widened as long as more is removed of a rain that is held out, then
the number of crops is cut until that stops improving. Both rules are ours, after the advice. The
first form also tells all other measures of `complexity`, of every choice.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_ext import complexity
from big_vision_ext.core import console

RANGES = ("small", "medium", "large")
MEASURES = ("picture_components", "patch_components")
_LAYERS = 256


@dataclasses.dataclass(frozen=True)
class Choice:
  """What was chosen.

  Attributes:
    n: backgrounds.
    range: of rain.
    backgrounds, rain: their complexities.
    reached: whether the ratio is not above the one asked for.
  """

  n: int
  range: str
  backgrounds: float
  rain: float
  reached: bool

  @property
  def ratio(self) -> float:
    return self.backgrounds / self.rain if self.rain else float("inf")


@dataclasses.dataclass(frozen=True)
class Trial:
  """One training of a sweep: removal of the rain that is held out, and damage to backgrounds."""

  n: int
  range: str
  removal: float
  damage: float


def choose(backgrounds: Mapping[int, float], rain: Mapping[str, float], ratio: float) -> Choice:
  """The most backgrounds and the narrowest range whose complexities are in a ratio.

  Args:
    backgrounds: complexity of the first n, for each n.
    rain: complexity of each range, from the one that is wanted to the widest allowed.
    ratio: of backgrounds to rain, not to be exceeded.

  Returns:
    With all backgrounds, the first range that is complex enough; else the last range that is the
    most complex, with as many as the ratio allows; else with as few as there are, `reached` False.

  Raises:
    ValueError: nothing to choose from, or a ratio that is not above 0.
  """
  if not backgrounds or not rain or not ratio > 0:
    raise ValueError(f"ratio={ratio} of {len(backgrounds)} numbers of backgrounds and {len(rain)} "
                     "ranges: expected a ratio above 0 and at least one of each")
  most = max(backgrounds)
  widest = max(rain, key=lambda name: (rain[name], list(rain).index(name)))
  found = [Choice(most, name, backgrounds[most], value, True) for name, value in rain.items()]
  found += [Choice(n, widest, backgrounds[n], rain[widest], True)
            for n in sorted(backgrounds, reverse=True)]
  fitting = [choice for choice in found if choice.ratio <= ratio]
  return fitting[0] if fitting else dataclasses.replace(found[-1], reached=False)


def of_backgrounds(data: str, counts: Sequence[int], split: str = "train"
                   ) -> dict[int, dict[str, float]]:
  """`complexity.measures` of the first n crops of a data set, for each n.

  Raises:
    ValueError: no such data set, or fewer crops than asked for.
  """
  from input_pipeline import pictures, records
  source = records.open_dataset(data, split)
  if max(counts) > len(source):
    raise ValueError(f"{data}: --n {max(counts)}, but there are {len(source)} crops")
  crops = [pictures.whole(source[i], source.where(i)) for i in range(max(counts))]
  return {n: complexity.measures(crops[:n]) for n in counts}


def of_rain(ranges: Sequence[str], side: int, seed: int = 0) -> dict[str, dict[str, float]]:
  """`complexity.measures` of some layers of rain of each range, of side x side pixels.

  Raises:
    ValueError: an unknown range.
  """
  import jax

  from big_vision_ext.objectives import rain
  keys = jax.random.split(jax.random.key(seed), _LAYERS)
  found = {}
  for name in ranges:
    if name not in rain.RANGES:
      raise ValueError(f"range {name!r} is none of {', '.join(rain.RANGES)}")
    layers = jax.jit(lambda k, name=name: rain.render(k, side, side, rain.RANGES[name]))(keys)
    levels = np.rint(np.asarray(layers) * 255).astype(np.uint8)
    found[name] = complexity.measures(levels)
  return found


def sweep(evaluate: Callable[[int, str], tuple[float, float]], counts: Sequence[int],
          ranges: Sequence[str], tolerance: float = 0.01) -> tuple[Trial, list[Trial]]:
  """Raises the diversity of rain first, then cuts n until removal stops improving.

  Args:
    evaluate: (n, range) -> removal of a rain that is held out, and damage to backgrounds.
    counts: numbers of backgrounds; the largest is the first.
    ranges: from narrow to wide.
    tolerance: what removal has to gain for a step to count as an improvement.

  Returns:
    The best, and all trials in their order.
  """
  trials = []

  def trial(n, name):
    trials.append(Trial(n, name, *evaluate(n, name)))
    return trials[-1]

  def improved(best, steps):
    for n, name in steps:
      found = trial(n, name)
      if not found.removal > best.removal + tolerance:
        break
      best = found
    return best

  most, *fewer = sorted(set(counts), reverse=True)
  best = improved(trial(most, ranges[0]), [(most, name) for name in ranges[1:]])
  return improved(best, [(n, best.range) for n in fewer]), trials


def table(choice: Choice, backgrounds: Mapping[int, float], rain: Mapping[str, float]) -> str:
  """Markdown: complexities, and the ratio of each combination; the chosen one in bold."""
  lines = ["| n | C backgrounds | " + " | ".join(f"{r} ({c:.1f})" for r, c in rain.items()) + " |",
           "|---" * (2 + len(rain)) + "|"]
  for n, value in sorted(backgrounds.items()):
    cells = []
    for name, of_rain_ in rain.items():
      text = f"{value / of_rain_:.2f}" if of_rain_ else "-"
      cells.append(f"**{text}**" if (n, name) == (choice.n, choice.range) else text)
    lines.append(f"| {n} | {value:.1f} | " + " | ".join(cells) + " |")
  return "\n".join(lines)


def all_measures(backgrounds: Mapping[int, Mapping[str, float]],
                 rain: Mapping[str, Mapping[str, float]]) -> str:
  """Markdown: a row for each measure, a column for each number of backgrounds and each range."""
  columns = {f"n={n}": found for n, found in sorted(backgrounds.items())} | dict(rain)
  lines = ["| measure | " + " | ".join(columns) + " |", "|---" * (1 + len(columns)) + "|"]
  for name in next(iter(columns.values())):
    values = [f"{found[name]:.3g}" for found in columns.values()]
    lines.append(f"| {name} | " + " | ".join(values) + " |")
  return "\n".join(lines)


def sweep_of_grid(config: str, out: pathlib.Path, backgrounds: str, measure: str,
                  tolerance: float, train: Callable[[Sequence[str]], int]
                  ) -> tuple[Trial, list[Trial]] | int:
  """A sweep whose trainings are cells of a grid, and resume as those do.

  Returns:
    As `sweep`, or the exit code of the training that did not end well.

  Raises:
    ValueError: the grid has no such backgrounds, or its cells no such measure.
  """
  from big_vision_ext import grid as grid_lib
  grid = grid_lib.load(config)
  axes = dict(grid.axes)
  if backgrounds not in axes.get("backgrounds", ()):
    raise ValueError(f"--backgrounds {backgrounds}: {config} has "
                     f"{', '.join(map(str, axes.get('backgrounds', ())))}")
  grid_lib.build_data(dataclasses.replace(grid, axes=tuple((
    axes | {"backgrounds": (backgrounds,)}).items())))

  class Ended(Exception):
    pass

  def evaluate(n, name):
    chosen = {k: v[:1] for k, v in axes.items()} | {
      "backgrounds": (backgrounds,), "range": (name,), "n": (n,)}
    one = dataclasses.replace(grid, axes=tuple(chosen.items()))
    if code := grid_lib.run(one, out, train):
      raise Ended(code)
    (cell,) = grid_lib.cells(one)
    metrics = next(x for x in grid_lib.read(out) if x["cell"] == cell.name)["metrics"]
    found = [v for k, v in metrics.items() if k.partition("/")[2] == f"{measure}/rho"]
    damage = [v for k, v in metrics.items() if k.partition("/")[2] == f"{measure}/E_B_strict"]
    if not found:
      raise ValueError(f"--held-out {measure}: {cell.name} was not measured on it")
    return found[0], damage[0]

  try:
    return sweep(evaluate, axes["n"], axes["range"], tolerance)
  except Ended as ended:
    return ended.args[0]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.complexity_budget", description=__doc__.split("\n\n")[0],
      allow_abbrev=False)
  add = parser.add_argument
  add("--data", help="data set of clean crops")
  add("--ratio", type=float, help="complexity of backgrounds over that of rain, at most")
  add("--n", default="8+16+32+64+128+256", help="numbers of crops to choose from, as 8+16+32")
  add("--ranges", default="+".join(RANGES), help="ranges to choose from, narrow ones first")
  add("--measure", default=MEASURES[0], choices=MEASURES, help="of sets; see big_vision_ext."
      "complexity")
  add("--sweep", action="store_true", help="train, by the stated rule")
  add("--config", help="with --sweep: a grid, whose ranges and n are gone through")
  add("--backgrounds", help="with --sweep: which of its backgrounds")
  add("--held-out", default="unseen", help="with --sweep: name of the rain that decides; what is "
      "reached on it was selected, so measure on another too")
  add("--tolerance", type=float, default=0.01, help="with --sweep: least gain in rho")
  add("--out", help="folder of the sweep; else a JSON file to write")
  add("--debug", action="store_true", help="show the traceback of an error")
  options = parser.parse_args(argv)
  wanted = ("config", "backgrounds", "out") if options.sweep else ("data", "ratio")
  if missing := [name for name in wanted if getattr(options, name) is None]:
    parser.error(f"expected --{missing[0]}")
  return options


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv

  def command() -> int:
    options = parse_args(argv)
    if not options.sweep:
      return _choose(options)
    from big_vision_ext import grid as grid_lib
    out = pathlib.Path(options.out)
    found = sweep_of_grid(options.config, out, options.backgrounds, options.held_out,
                          options.tolerance, grid_lib.trainer(out, options.debug))
    if isinstance(found, int):
      return found
    best, trials = found
    result = {"best": dataclasses.asdict(best), "trials": [dataclasses.asdict(t) for t in trials]}
    (out / f"sweep-{options.backgrounds}.json").write_text(json.dumps(result, indent=1) + "\n")
    for t in trials:
      print(f"n={t.n},range={t.range}: rho {t.removal:.3f} on {options.held_out}, damage "
            f"{t.damage:.1f}" + (" <- kept" if t == best else ""))
    return 0

  return console.exit_code(command, "--debug" in argv)


def _choose(options: argparse.Namespace) -> int:
  from input_pipeline import records
  try:
    counts = [int(n) for n in options.n.split("+")]
  except ValueError as error:
    raise ValueError(f"--n {options.n}: expected whole numbers, as 8+16+32") from error
  if min(counts) < 1 or not options.ratio > 0:
    raise ValueError(f"--n {options.n}, --ratio {options.ratio:g}: expected numbers of at least 1, "
                     "and a ratio above 0")
  side = records.open_dataset(options.data, "train")[0].height
  found = {"backgrounds": of_backgrounds(options.data, counts),
           "rain": of_rain(options.ranges.split("+"), side)}
  backgrounds, rain = ({k: v[options.measure] for k, v in of.items()} for of in found.values())
  choice = choose(backgrounds, rain, options.ratio)
  print(f"{table(choice, backgrounds, rain)}\n\n{all_measures(*found.values())}\n")
  print(f"n={choice.n},range={choice.range}: complexity of backgrounds {choice.backgrounds:.1f}, "
        f"of rain {choice.rain:.1f}, ratio {choice.ratio:.2f}"
        + ("" if choice.reached else f", above the {options.ratio:g} that was asked for"))
  if options.out:
    result: dict[str, Any] = dataclasses.asdict(choice) | {
      "ratio": choice.ratio, "measure": options.measure, "measures": found}
    pathlib.Path(options.out).write_text(json.dumps(result, indent=1) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
