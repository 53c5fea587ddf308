"""What does a grid of deraining runs say? A table, trends with intervals, and curves.

The claims to be looked at (arXiv 2502.12600, as recalled): removal on unseen rain falls as the
number of backgrounds grows and rises as the range of training widens. Trends are computed for each
seed and told as their mean with a 95 % interval over seeds (Student's t), whatever their sign.
"""

import itertools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

Line = dict[str, Any]

# heading -> (measure below the evaluator's name, digits)
COLUMNS = {
    "rho seen": ("seen/rho", 3), "rho unseen": ("unseen/rho", 3), "E_R unseen": ("unseen/E_R", 1),
    "E_B unseen": ("unseen/E_B", 1), "strict": ("unseen/E_B_strict", 1),
    "PSNR seen": ("seen/psnr", 2), "PSNR unseen": ("unseen/psnr", 2)}
_AXES = ("net", "skip", "backgrounds", "range", "n")
# Ranges from narrow to wide, where names are those of the paper.
_WIDTH = ("small", "medium", "large")


def table(lines: Sequence[Line]) -> str:
  """Markdown with a row a cell: mean +- deviation over its seeds."""
  axes = _axes(lines)
  out = ["| " + " | ".join((*axes, *COLUMNS)) + " |", "|---" * (len(axes) + len(COLUMNS)) + "|"]
  for line in sorted(lines, key=_order):
    values = [_shown(line, *column) for column in COLUMNS.values()]
    out.append("| " + " | ".join((*(str(line.get(a, "")) for a in axes), *values)) + " |")
  return "\n".join(out)


def trends(lines: Sequence[Line]) -> str:
  """Markdown: how removal of unseen rain changes with n and with the range; "" for single seeds."""
  out = []
  for of, group in _groups(lines, without="n"):
    found = slope(group)
    if found is not None:
      out.append(f"| {of} | each doubling of n, {group[0]['n']} to {group[-1]['n']} | "
                 f"{_interval(found)} |")
  for of, group in _groups(lines, without="range"):
    found = widened(group)
    if found is not None:
      out.append(f"| {of} | range {group[0]['range']} to {group[-1]['range']} | "
                 f"{_interval(found)} |")
  if not out:
    return ""
  return "\n".join(["| where | change | rho on unseen rain, mean and 95 % interval over seeds |",
                    "|---|---|---|", *out])


def slope(group: Sequence[Line]) -> np.ndarray | None:
  """Change of rho on unseen rain for each doubling of n, of each seed; None with too little."""
  doublings = np.log2([line["n"] for line in group])
  values = _by_seed(group, "unseen/rho")
  if values is None or len(set(doublings)) < 2:
    return None
  centred = doublings - doublings.mean()
  return values @ centred / (centred @ centred)


def widened(group: Sequence[Line]) -> np.ndarray | None:
  """Rho on unseen rain of the widest range less that of the narrowest, of each seed."""
  values = _by_seed(group, "unseen/rho")
  known = all(line["range"] in _WIDTH for line in group)
  if values is None or not known or len(group) < 2:
    return None
  return values[:, -1] - values[:, 0]


def interval(values: np.ndarray) -> tuple[float, float]:
  """Mean and half of the 95 % interval of the mean over at least two values."""
  half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
  return float(values.mean()), float(half)


def plot(lines: Sequence[Line], path: str | pathlib.Path) -> None:
  """Removal and background against n: a column a category, a colour a range, a style a net.

  Without the picture added to what the network gives, markers are hollow.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  categories = list(dict.fromkeys(line.get("backgrounds", "") for line in lines))
  ranges = sorted({line.get("range", "") for line in lines}, key=_rank)
  nets = list(dict.fromkeys(line.get("net", "") for line in lines))
  skips = list(dict.fromkeys(line.get("skip", "") for line in lines))
  rows = (("unseen/rho", "removal of unseen rain, rho"), ("seen/rho", "removal of seen rain, rho"),
          ("unseen/E_B_strict", "background damage, 0..255"))
  figure = Figure(figsize=(3.4 * len(categories) + 1, 8), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots(len(rows), len(categories), squeeze=False, sharex=True, sharey="row")
  for (row, (measure, label)), (column, category) in itertools.product(
      enumerate(rows), enumerate(categories)):
    axis = axes[row, column]
    for (i, name), (j, net), skip in itertools.product(
        enumerate(ranges), enumerate(nets), skips):
      wanted = dict(backgrounds=category, range=name, net=net, skip=skip)
      line = sorted((x for x in lines if all(x.get(k, "") == v for k, v in wanted.items())
                     and _value(x, measure) is not None), key=lambda x: x["n"])
      if line:
        label_of = " ".join(filter(None, (
          name, net if len(nets) > 1 else "", "without skip" if skip is False else "")))
        colour = f"C{i}"
        axis.errorbar(
            [x["n"] for x in line], [_value(x, measure) for x in line],
            [_value(x, f"{measure}_std") or 0.0 for x in line], color=colour, marker="o",
            markerfacecolor="none" if skip is False else colour, capsize=3,
            linestyle=("-", "--", ":", "-.")[j % 4], label=label_of)
    axis.set_xscale("log", base=2)
    axis.grid(alpha=0.3)
    if not row:
      axis.set_title(category)
    if row == len(rows) - 1:
      axis.set_xlabel("backgrounds n")
    if not column:
      axis.set_ylabel(label)
  handles, labels = axes[0, 0].get_legend_handles_labels()
  if handles:
    axes[0, 0].legend(handles, labels, title="range", fontsize=8, title_fontsize=8)
  figure.suptitle("mean and deviation over seeds")
  figure.savefig(path, dpi=110)


def _groups(lines: Sequence[Line], without: str):
  """(name, lines in the order of an axis) of all lines that differ in that axis only."""
  if any(without not in line for line in lines):
    return
  axes = [a for a in _axes(lines) if a != without]
  key = lambda line: tuple(str(line.get(a, "")) for a in axes)
  ordered = sorted(lines, key=_order)
  for of in dict.fromkeys(map(key, ordered)):
    group = [line for line in ordered if key(line) == of]
    along = (lambda x: x["n"]) if without == "n" else (lambda x: _rank(x["range"]))
    names = [f"{a}={v}" if v and a in ("n", "skip") else v for a, v in zip(axes, of)]
    yield ", ".join(filter(None, names)), sorted(group, key=along)


def _axes(lines: Sequence[Line]) -> list[str]:
  """Those that any line has: of other grids in the folder some may have fewer."""
  return [a for a in _AXES if any(a in line for line in lines)]


def _order(line: Line):
  rank = {"range": _rank, "n": int}
  return tuple(rank.get(a, str)(line.get(a, 0 if a == "n" else "")) for a in _AXES)


def _rank(name: str) -> tuple[int, str]:
  return (_WIDTH.index(name), name) if name in _WIDTH else (len(_WIDTH), name)


def _by_seed(group: Sequence[Line], measure: str) -> np.ndarray | None:
  """(seeds, lines) of a measure; None unless all lines have the same seeds, two or more."""
  found = [_of_seeds(line, measure) for line in group]
  if len(found[0]) < 2 or any(f.keys() != found[0].keys() for f in found):
    return None
  values = np.array([[f[seed] for f in found] for seed in found[0]])
  return values if np.isfinite(values).all() else None


def _of_seeds(line: Line, measure: str) -> dict[str, float]:
  rain, _, name = measure.partition("/")
  out = {}
  for key, value in line["metrics"].items():
    parts = key.split("/")
    if len(parts) == 4 and parts[1] == rain and parts[2].startswith("seed_") and parts[3] == name:
      out[parts[2]] = value
  return out


def _value(line: Line, measure: str) -> float | None:
  """A measure of a line, whatever its evaluator is called."""
  return next((v for k, v in line["metrics"].items() if k.partition("/")[2] == measure), None)


def _shown(line: Line, measure: str, digits: int) -> str:
  value, spread = _value(line, measure), _value(line, f"{measure}_std")
  if value is None:
    return "-"
  text = f"{value:.{digits}f}"
  return text if spread is None else f"{text} +- {spread:.{digits}f}"


def _interval(values: np.ndarray) -> str:
  mean, half = interval(values)
  return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"
