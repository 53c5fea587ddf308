r"""python -m big_vision_ext.grid --config configs/derain/grid.py --out DIR: a study, cell by cell.

The config names another config and axes; each combination of their values is a cell, trained and
measured as `train` does it, in `DIR/cells/NAME`. `DIR/cells.jsonl` gets a line a cell, `grid.md` a
table with what follows from it, `grid.png` the curves. Interrupted anywhere, the same command does
what is left; a cell that was under way goes on from its checkpoint.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

from big_vision_ext import grid_report
from big_vision_ext.core import config as config_lib
from big_vision_ext.core import console, exit_codes, typed
from big_vision_ext.core import workdir as workdir_lib

LINES = "cells.jsonl"


class GridError(ValueError):
  """A grid that cannot be run, or not in this folder; the text says why."""


@dataclasses.dataclass(frozen=True)
class Grid:
  """What a grid's config says.

  Attributes:
    config: of a cell; its argument is made of the axes and of `fixed`.
    axes: (argument, its values) pairs, of which the last varies fastest.
    fixed: arguments that all cells have; those of 0 and "" are left out.
    overrides: KEY=VALUE settings of all cells.
    data: a folder with a data set of each category, built if it is not there.
    detail: of what is drawn; see `input_pipeline.build.backgrounds`.
  """

  config: str
  axes: tuple[tuple[str, tuple[Any, ...]], ...]
  data: str
  fixed: dict[str, Any] = dataclasses.field(default_factory=dict)
  overrides: tuple[str, ...] = ()
  detail: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cell:
  """One combination: the name of its folder, its values by axis, and the config with arguments."""

  name: str
  values: tuple[tuple[str, Any], ...]
  config: str


def load(path: str) -> Grid:
  """The grid of `FILE[:args]`; raises ConfigError naming what is wrong."""
  return typed.build(Grid, config_lib.load(path), "grid")


def cells(grid: Grid) -> list[Cell]:
  """All cells, in order.

  Raises:
    GridError: an axis of no values, or of one value twice.
  """
  for axis, values in grid.axes:
    if not values or len(set(values)) < len(values):
      raise GridError(f"grid.axes.{axis}={values}: expected different values, at least one")
  out = []
  for values in itertools.product(*(values for _, values in grid.axes)):
    chosen = dict(zip(dict(grid.axes), values))
    arg = chosen | {k: v for k, v in grid.fixed.items() if v not in (0, "", None)}
    if "backgrounds" in chosen:
      arg["data"] = os.path.join(grid.data, str(chosen["backgrounds"]))
    text = ",".join(f"{k}={v}" for k, v in arg.items())
    names = [_name(axis, value) for axis, value in chosen.items()]
    out.append(Cell("-".join(names), tuple(chosen.items()), f"{grid.config}:{text}"))
  return out


def _name(axis: str, value: Any) -> str:
  return f"{'' if value else 'no_'}{axis}" if isinstance(value, bool) else str(value)


def build_data(grid: Grid, log: Callable[[str], None] = print) -> None:
  """Builds the data sets of the categories that are not there; finished ones are left alone.

  Raises:
    ValueError: a category that cannot be drawn, or one that is there has too few crops, or others
      than the grid's.
  """
  from input_pipeline import records
  from input_pipeline.build import backgrounds

  axes = dict(grid.axes)
  most = max(axes.get("n", (0,))) or backgrounds.COUNT
  side = grid.fixed.get("size") or backgrounds.SIDE
  for category in axes.get("backgrounds", ()):
    folder = pathlib.Path(grid.data) / str(category)
    if (folder / records.MANIFEST).is_file():
      there = len(records.open_dataset(str(folder), "train"))
      # Own pictures have no detail, and data sets that were not made here say nothing.
      found = records.read_manifest(folder).get("info", {}).get("settings", {})
      for key, value in (("category", str(category)), ("side", side), ("detail", grid.detail)):
        if found.get(key, value) != value:
          raise GridError(
              f"{folder} has crops of {key}={found[key]}, the grid's are of {key}={value}; delete "
              "it to have it built anew, or choose another `data`")
      if there < most:
        raise GridError(f"{folder} has {there} crops, the grid's largest n is {most}; delete it to "
                        "have it built anew, or choose another `data`")
      continue
    log(f"Building {folder}: {most} crops")
    backgrounds.build(
        folder, category=str(category), count=most, side=side, detail=grid.detail, progress=False)


def run(grid: Grid, out: pathlib.Path, train: Callable[[Sequence[str]], int], *,
        keep_checkpoints: bool = True, log: Callable[[str], None] = print) -> int:
  """Does what is left of a grid.

  Args:
    grid: what to do.
    out: the folder; a line is there after each cell, table and curves at the end, however it
      ends, or with `--report` at any time.
    train: runs a command line of `train`, with its evaluation, returns its exit code.
    keep_checkpoints: False deletes a cell's checkpoints once its line is written.
    log: told what is being done.

  Returns:
    An exit code: that of the cell that did not end well, else 0.

  Raises:
    GridError: the folder holds lines of other settings under a cell's name.
  """
  out.mkdir(parents=True, exist_ok=True)
  todo = cells(grid)
  keys = {cell.name: _key(cell, grid) for cell in todo}
  done = {line["cell"]: line for line in read(out)}
  for cell in todo:
    line = done.get(cell.name)
    if line and line["key"] != keys[cell.name]:
      raise GridError(f"{out / LINES}: {cell.name} was run with other settings; choose another "
                      "--out, or delete the line and its folder to run it anew")
  left = [cell for cell in todo if cell.name not in done]
  log(f"{len(todo)} cells, {len(left)} to do, in {out}")
  for number, cell in enumerate(left, 1):
    workdir = out / "cells" / cell.name
    log(f"[{number}/{len(left)}] {cell.name}")
    code = train(["--config", cell.config, "--workdir", str(workdir),
                  *(f"--config.{o}" for o in grid.overrides)])
    if code != exit_codes.COMPLETE:
      log(f"{cell.name} ended with {code}; the same command goes on from there")
      report(out)
      return code
    found = workdir / workdir_lib.EVALUATION_FILE
    if not found.is_file():
      raise GridError(f"{workdir} is complete but has no {found.name}: its evaluation was cut off; "
                      "delete the folder to run the cell anew")
    metrics = json.loads(found.read_text())
    done[cell.name] = {"cell": cell.name, "key": keys[cell.name], **dict(cell.values),
                       "config": cell.config, "metrics": metrics}
    lines = [done[c.name] for c in todo if c.name in done]
    lines += [line for name, line in done.items() if name not in keys]
    _replace(out / LINES, "".join(json.dumps(line) + "\n" for line in lines))
    if not keep_checkpoints:
      shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
  report(out)
  return exit_codes.COMPLETE


def trainer(out: pathlib.Path, debug: bool = False) -> Callable[[Sequence[str]], int]:
  """What `run` trains with: `train` in this process, with compiled programs kept in the folder."""
  import jax

  from big_vision_ext import evaluate, train
  from big_vision_ext.core import checkpoint

  if not jax.config.jax_compilation_cache_dir:
    # Cells of one shape have programs in common.
    jax.config.update("jax_compilation_cache_dir", str((out / "compiled").absolute()))

  def one(argv: Sequence[str]) -> int:
    code = train.main([*argv, *(["--debug"] if debug else [])])
    workdir = pathlib.Path(argv[argv.index("--workdir") + 1])
    results = workdir / workdir_lib.EVALUATION_FILE
    if code == exit_codes.COMPLETE and not results.is_file():
      # The last thing a run writes: its end was cut off.
      averaged = json.loads((workdir / workdir_lib.CONFIG_FILE).read_text()).get("ema") is not None
      source = f"{workdir}{checkpoint.AVERAGE if averaged else ''}"
      code = evaluate.main(["--weights", source, "--out", str(results)])
    jax.clear_caches()
    return code
  return one


def read(out: pathlib.Path) -> list[dict[str, Any]]:
  """The lines of a folder; none where there is no file.

  Raises:
    GridError: a line that is not of a grid.
  """
  path = out / LINES
  lines = path.read_text().splitlines() if path.is_file() else []
  found = []
  for number, text in enumerate(lines, 1):
    try:
      line = json.loads(text)
      line["cell"], line["key"], line["metrics"]
    except (ValueError, KeyError, TypeError) as error:
      raise GridError(f"{path}, line {number} is no line of a grid ({error}); delete it, and its "
                      "cell is run anew") from error
    found.append(line)
  return found


def report(out: pathlib.Path) -> str:
  """Writes `grid.md` and `grid.png` of the lines there are; returns the text."""
  lines = read(out)
  if not lines:
    return ""
  text = grid_report.table(lines)
  if found := grid_report.trends(lines):
    text += f"\n\n{found}"
  _replace(out / "grid.md", text + "\n")
  grid_report.plot(lines, out / "grid.png")
  return text


def _key(cell: Cell, grid: Grid) -> str:
  """What a cell's results depend on, in short: its config but for how and where it is run."""
  config = config_lib.to_dict(config_lib.resolve(config_lib.load(cell.config, grid.overrides)))
  free = {*config_lib.FREE_KEYS} - {"total", "evals"}
  kept = {k: v for k, v in config.items() if _stem(k) not in free}
  kept["input"] = {k: v for k, v in kept["input"].items() if k not in config_lib.FREE_INPUT_KEYS}
  return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def _stem(key: str) -> str:
  stem, _, unit = key.rpartition("_")
  return stem if unit in typed.UNITS else key


def _replace(path: pathlib.Path, text: str) -> None:
  """Writes a file that, if it is there, is whole."""
  part = path.with_name(f"{path.name}.tmp")
  part.write_text(text)
  os.replace(part, path)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.grid", description=__doc__.split("\n\n")[0],
      allow_abbrev=False)
  add = parser.add_argument
  add("--config", help="file of a grid, and :args for it")
  add("--out", required=True, help="folder of the study")
  add("--report", action="store_true", help="train nothing, write table and curves of what is done")
  add("--drop-checkpoints", action="store_true", help="delete those of cells that are done")
  add("--debug", action="store_true", help="show the traceback of an error")
  options = parser.parse_args(argv)
  if not options.report and not options.config:
    parser.error("expected --config FILE, or --report for what is done already")
  return options


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  argv = sys.argv[1:] if argv is None else argv

  def command() -> int:
    options = parse_args(argv)
    out = pathlib.Path(options.out)
    if options.report:
      print(report(out) or f"{out} has no lines yet")
      return exit_codes.COMPLETE
    grid = load(options.config)
    build_data(grid)
    code = run(grid, out, trainer(out, options.debug),
               keep_checkpoints=not options.drop_checkpoints)
    print(report(out))
    return code

  return console.exit_code(command, "--debug" in argv)


if __name__ == "__main__":
  sys.exit(main())
