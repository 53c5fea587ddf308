"""python -m launch.cdasr_table OUT: the tables of `cdasr_study.sh` of the runs in OUT."""

import argparse
import json
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

import numpy as np

CONTROLS = ("none", "constant", "shuffled")
STEPS = (0, 1, 5, 10)
_GROUPS = {"seen": "domains trained on", "held_out": "domain left out"}
_DRAWS = 2000


def conditions(out: pathlib.Path, seeds: Sequence[int]) -> str:
  """PSNR-Y of the conditioned model and its controls, and what the vector adds to each.

  Raises:
    ValueError: a run that has not been evaluated picture by picture.
  """
  lines = ["| pictures | condition | PSNR-Y | encoder - this, dB | 95 % |", "|---|---|---|---|---|"]
  for group, name in _GROUPS.items():
    own = _each(out, "encoder", seeds, f"{group}/")
    rows = {c: _each(out, c, seeds, f"{group}/") for c in CONTROLS} | {"encoder": own}
    bicubic = _results(out / f"encoder_{seeds[0]}")[f"{group}/bicubic_psnr_y"]
    lines.append(f"| {name} | bicubic | {bicubic:.3f} | | |")
    for condition, values in rows.items():
      cells = " | | |" if condition == "encoder" else _difference(own, values)
      lines.append(f"| {name} | {condition} | {_spread(values)} {cells}")
  return "\n".join(lines)


def adaptation(out: pathlib.Path, seeds: Sequence[int], shots: Sequence[int]) -> str:
  """PSNR-Y on the domain left out after K steps on m pictures: meta-trained, and plainly trained.

  Raises:
    ValueError: a run that has not been evaluated picture by picture.
  """
  lines = ["| shots | K | plain | meta | meta - plain, dB | 95 % | gain of plain over K = 0 | "
           "gain of meta |", "|---" * 8 + "|"]
  for m in shots:
    key = lambda k, m=m: f"held_out/shots{m}/steps{k}/"
    start = {run: _each(out, run, seeds, key(0)) for run in ("plain", "meta")}
    for k in STEPS:
      plain, meta = (_each(out, run, seeds, key(k)) for run in ("plain", "meta"))
      gains = [_gain(v, start[run]) if k else "" for run, v in (("plain", plain), ("meta", meta))]
      lines.append(f"| {m} | {k} | {_spread(plain)} | {_spread(meta)} {_difference(meta, plain)} "
                   f"{gains[0]} | {gains[1]} |")
  return "\n".join(lines)


def interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """The central 95 % of the mean of (seeds, pictures), both drawn anew with replacement."""
  rng = np.random.default_rng(seed)
  s, n = differences.shape
  rows = rng.integers(s, size=(_DRAWS, s, 1))
  means = differences[rows, rng.integers(n, size=(_DRAWS, 1, n))].mean(axis=(1, 2))
  low, high = np.percentile(means, (2.5, 97.5))
  return float(low), float(high)


def _interval(differences) -> str:
  return "{:+.3f}, {:+.3f}".format(*interval(differences))


def _difference(a, b) -> str:
  found = _paired(a, b)
  return f"| {np.mean(found):+.3f} | {_interval(found)} |"


def _gain(after, before) -> str:
  found = _paired(after, before)
  return f"{np.mean(found):+.3f} [{_interval(found)}]"


def _paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """a - b of the pictures that both restore with an error, from every seed."""
  finite = (np.isfinite(a) & np.isfinite(b)).all(axis=0)
  if not finite.any():
    raise ValueError("no picture has a finite PSNR from every seed in both of two runs: there is "
                     "nothing to compare")
  return a[:, finite] - b[:, finite]


def _spread(values: np.ndarray) -> str:
  """Mean over all, and deviation of the seeds' means; perfect pictures are counted beside it."""
  finite = np.isfinite(values)
  if not finite.any(axis=1).all():
    raise ValueError("a run restores every picture without an error: there is no mean PSNR")
  means = np.array([row[of].mean() for row, of in zip(values, finite)])
  perfect = f" ({(~finite).sum()} infinite)" if not finite.all() else ""
  return (f"{means.mean():.3f}" + (f" +- {means.std(ddof=1):.3f}" if len(means) > 1 else "")
          + perfect)


def _each(out: pathlib.Path, run: str, seeds: Sequence[int], prefix: str) -> np.ndarray:
  """PSNR-Y of every picture (seeds, pictures)."""
  rows = []
  for seed in seeds:
    found = _results(out / f"{run}_{seed}")
    names = sorted(k for k in found if re.fullmatch(re.escape(prefix) + r"each/\d+", k))
    if not names:
      raise ValueError(f"{out / f'{run}_{seed}'}: has no {prefix}each/...; it was not evaluated "
                       "picture by picture (each=True), or not with so many shots")
    rows.append([found[name] for name in names])
  if len({len(row) for row in rows}) > 1:
    raise ValueError(f"{out}: the runs {run}_* were measured on different numbers of pictures")
  return np.array(rows)


def _results(workdir: pathlib.Path) -> Mapping[str, float]:
  try:
    return json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"{workdir}: has no readable evaluation.json ({error}); finish the study "
                     "first, the same command goes on") from error


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the tables; returns the exit code."""
  parser = argparse.ArgumentParser(prog="python -m launch.cdasr_table", description=__doc__)
  parser.add_argument("out", type=pathlib.Path)
  parser.add_argument("--shots", default="1+5+10")
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  options = parser.parse_args(argv)
  try:
    shots = [int(m) for m in options.shots.split("+")]
    print(conditions(options.out, options.seeds))
    print()
    print(adaptation(options.out, options.seeds, shots))
  except (ValueError, KeyError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
