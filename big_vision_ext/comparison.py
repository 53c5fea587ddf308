"""Stored results of several runs beside each other: as they are, averaged, or by setting.

`evaluate --compare` prints these; nothing is measured.
"""

import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_ext.core import workdir as workdir_lib

_ABSENT = "default"


def stored(workdirs: Sequence[str]) -> dict[str, dict[str, float]]:
  """{workdir: its stored results, and of one that rates pictures those of other checkpoints}.

  Raises:
    ValueError: a workdir that has no `evaluation.json` yet.
  """
  from big_vision_ext import rating_history

  columns = {}
  for workdir in workdirs:
    path = pathlib.Path(workdir) / workdir_lib.EVALUATION_FILE
    if not path.is_file():
      raise ValueError(f"{path} does not exist; first run "
                       f"python -m big_vision_ext.evaluate --workdir {workdir}")
    columns[workdir] = json.loads(path.read_text()) | rating_history.chosen(path.parent)
  return columns


def settings(workdirs: Sequence[str]) -> dict[str, dict[str, Any]]:
  """{workdir: its config, flat, {"model.image.width": 64}}.

  Raises:
    ValueError: a workdir without `config.json`.
  """
  configs = {}
  for workdir in workdirs:
    path = pathlib.Path(workdir) / workdir_lib.CONFIG_FILE
    if not path.is_file():
      raise ValueError(f"{path} does not exist; expected the folder of a run")
    configs[workdir] = dict(_flat(json.loads(path.read_text())))
  return configs


def side_by_side(columns: Mapping[str, Mapping[str, float]]) -> str:
  """A table of results, a run in each column."""
  names = _names(columns)
  width = max(len(name) for name in names)
  wide = [max(len(c), 10) for c in columns]
  lines = [" " * width + "".join(f"  {c:>{w}}" for c, w in zip(columns, wide))]
  for name in names:
    cells = [f"{c[name]:.4g}" if name in c else "-" for c in columns.values()]
    lines.append(f"{name:<{width}}" + "".join(f"  {c:>{w}}" for c, w in zip(cells, wide)))
  return "\n".join(lines)


def mean(columns: Mapping[str, Mapping[str, float]]) -> str:
  """Mean and sample standard deviation of each result over the runs that have it."""
  names = _names(columns)
  width = max(len(name) for name in names)
  lines = []
  for name in names:
    values = [c[name] for c in columns.values() if name in c]
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    lines.append(f"{name:<{width}}  {statistics.mean(values):.4f} +- {spread:.4f}  "
                 f"({len(values)} runs)")
  return "\n".join(lines)


def summary(columns: Mapping[str, Mapping[str, float]]) -> str:
  """Mean, median and interquartile range of each result over the runs that have it."""
  from big_vision_ext.evaluators import _correlation

  names = _names(columns)
  width = max(len(name) for name in names)
  lines = [f"{'':<{width}}      mean    median       iqr  runs"]
  for name in names:
    values = [c[name] for c in columns.values() if name in c]
    found = _correlation.summary(values)
    cells = "".join(f"{found[key]:10.4f}" for key in ("mean", "median", "iqr"))
    lines.append(f"{name:<{width}}{cells}  {len(values):4d}")
  return "\n".join(lines)


def effects(columns: Mapping[str, Mapping[str, float]],
            configs: Mapping[str, Mapping[str, Any]]) -> str:
  """What each setting that the runs differ in changes of each result; see `fit_effects`."""
  keys = [key for key in dict.fromkeys(k for c in configs.values() for k in c)
          if key != "seed" and len({_text(c.get(key, _ABSENT)) for c in configs.values()}) > 1]
  names = [name for name in _names(columns) if all(name in c for c in columns.values())]
  first = next(iter(configs))
  lines = [f"Effects of settings, least squares over {len(columns)} runs; first: {first}'s"]
  for name in names:
    values = [columns[run][name] for run in configs]
    if len(set(values)) == 1:
      continue
    lines.append(name)
    for label, effect, error in fit_effects(values, [
        {key: _text(c.get(key, _ABSENT)) for key in keys} for c in configs.values()]):
      lines.append(f"  {label}: {effect:+.4f} +- {error:.4f}")
  return "\n".join(lines)


def fit_effects(values: Sequence[float], levels: Sequence[Mapping[str, str]]
                ) -> list[tuple[str, float, float]]:
  """Main effects by ordinary least squares: what a setting adds, all others as they are.

  Args:
    values: a result of each run.
    levels: the settings of each run, by name; the first run's are what the others are compared
      with. Runs that differ in nothing else than the seed say how large chance is.

  Returns:
    [("name: first -> other", effect, its standard error)]. The error comes from what main effects
    do not explain, interactions included, hence it is not too small if there are any.

  Raises:
    ValueError: as many effects as runs, or settings that were never varied apart.
  """
  columns, labels = [np.ones(len(values))], []
  for key, base in levels[0].items():
    for other in dict.fromkeys(l[key] for l in levels if l[key] != base):
      labels.append(f"{key}: {base} -> {other}")
      columns.append(np.asarray([float(l[key] == other) for l in levels]))
  design, target = np.stack(columns, axis=1), np.asarray(values, np.float64)
  if len(values) <= len(columns):
    raise ValueError(f"{len(values)} runs differ in {len(labels)} settings: {', '.join(labels)}; "
                     f"expected at least {len(columns) + 1} runs, e.g. further seeds")
  if np.linalg.matrix_rank(design) < len(columns):
    raise ValueError(f"settings {', '.join(labels)} change together in these runs, so their "
                     "effects cannot be told apart; expected runs that vary one without the other")
  solution, *_ = np.linalg.lstsq(design, target, rcond=None)
  residual = target - design @ solution
  variance = residual @ residual / (len(values) - len(columns))
  errors = np.sqrt(np.diag(np.linalg.inv(design.T @ design)) * variance)
  return [(label, float(e), float(s)) for label, e, s in zip(labels, solution[1:], errors[1:])]


def _names(columns: Mapping[str, Mapping[str, float]]) -> list[str]:
  return list(dict.fromkeys(name for column in columns.values() for name in column))


def _text(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def _flat(tree: Mapping[str, Any], prefix: str = ""):
  for key, value in tree.items():
    if isinstance(value, dict) and value:
      yield from _flat(value, f"{prefix}{key}.")
    else:
      yield prefix + key, value
