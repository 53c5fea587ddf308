"""How are two implementations compared? In turn, each in a process of its own, on the same arrays.

Ours runs first; the peer gets what it found (which tokens, say) and checks its own numbers on that.
Then both run again, so often as asked for, and the medians are compared.
"""

import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from big_vision_ext.benches.peers import environment
from big_vision_ext.convert import ours as names
from big_vision_ext.convert import tables

Arrays = dict[str, np.ndarray]


def add_arguments(parser, peer: str) -> None:
  """Options that every comparison has."""
  add = parser.add_argument
  add("--peer", choices=[peer], help="compare with this; without it, only ours is measured")
  add("--peer-python", metavar="PATH", help="a Python that has the peer; without it an environment "
      "is made in ~/.cache/big_vision_ext, once")
  add("--peer-huge-pages", action="store_true", help="the peer gets pages of 2 MiB as well, which "
      "our commands take by themselves (core/huge_pages.py)")
  add("--dtypes", default="float32,bfloat16", help="of parameters and computation, on both sides")
  add("--threads", type=int, default=os.cpu_count(), help="the peer's; ours takes the cores there "
      "are. Default: all cores")
  add("--repeats", type=int, default=3, help="timed runs of each process")
  add("--rounds", type=int, default=2, help="processes of each side, in turn")
  add("--json", metavar="FILE", help="file to write the rows to")
  add("--child", metavar="DIR", help="(used by itself)")


def peer_python(options: Any, env: str) -> str | None:
  """The Python that has the peer, if one is asked for; its environment is made if need be."""
  if not options.peer:
    return None
  if options.peer_python:
    if not pathlib.Path(options.peer_python).is_file():
      raise ValueError(f"--peer-python={options.peer_python}: there is no such file")
    return options.peer_python
  return str(environment.environment(env, say))


def say(text: str) -> None:
  """A line about progress."""
  print(text, file=sys.stderr, flush=True)


def measure(name: str, script: str, python: str | None, arrays: Arrays, settings: Mapping[str, Any],
            options: Any, timeout: float = 3600) -> tuple[Arrays, Arrays | None]:
  """What both sides give, with the `seconds` of all rounds and the largest `peak_gib`.

  Args:
    name: of the benchmark, as in `bench NAME`.
    script: of the peer, in `benches/peers`.
    python: of the peer; None leaves it out.
    arrays, settings: for both sides.
    options: of `add_arguments`.
    timeout: seconds that one process may take.

  Raises:
    PeerError: a process failed; with what it printed.
  """
  ours, theirs = [], []
  for _ in range(options.rounds):
    ours.append(_ours(name, arrays, settings, timeout))
    if python:
      found = {k: v for k, v in ours[0].items() if k.startswith("look/")}
      theirs.append(environment.run(environment.HERE / script, python=python, timeout=timeout,
                                    arrays=arrays | found, settings=settings,
                                    huge_pages=options.peer_huge_pages))
  return _join(ours), _join(theirs) if theirs else None


def row(ours: Arrays, theirs: Arrays | None, **about: Any) -> dict[str, Any]:
  """The figures of one comparison; `about` (name, mode, px, dtype) comes first."""
  out = about | {
      "seconds": float(np.median(ours["seconds"])), "peak_gib": float(ours["peak_gib"]),
      "cpu_seconds": float(np.median(ours["cpu_seconds"])), "tflop": float(ours["flops"]) / 1e12,
      "compile_seconds": float(ours["compile_seconds"])}
  if theirs is None:
    return out
  out |= {"peer_seconds": float(np.median(theirs["seconds"])),
          "peer_cpu_seconds": float(np.median(theirs["cpu_seconds"])),
          "peer_peak_gib": float(theirs["peak_gib"])}
  out["cpu_ratio"] = out["cpu_seconds"] / out["peer_cpu_seconds"]
  out["time_ratio"] = out["seconds"] / out["peer_seconds"]
  # Of a program that did the products alone, all of them at the rate of a large one.
  out["floor_ratio"] = float(ours["flops"] / ours["product_flops"]) / out["peer_seconds"]
  out["memory_ratio"] = out["peak_gib"] / out["peer_peak_gib"]
  return out


def differences(ours: Arrays, theirs: Arrays | None, names: Sequence[str]) -> dict[str, float]:
  """`max_abs_diff` over the named arrays; `max_rel_diff`, that of each by its largest number."""
  if theirs is None:
    return {}
  pairs = [(np.float64(ours[n]), np.float64(theirs[n])) for n in names]
  far = [np.abs(a - b).max() for a, b in pairs]
  return {"max_abs_diff": float(max(far)),
          "max_rel_diff": float(max(d / np.abs(b).max() for d, (_, b) in zip(far, pairs)))}


def norms(found: Arrays, table: Sequence[tables.Rule], task: str, model: Mapping[str, Any],
          own: bool, only: str = "") -> Arrays:
  """What was found, and `norms`: of the gradients of each rule's arrays together.

  A rule of a table of names stands for the same numbers on both sides, however they are cut.

  Args:
    found: with the norm of every array's gradient as `norm/NAME`.
    table: the rules.
    task, model: as of `convert.ours.shapes`.
    own: whether the names are ours.
    only: prefix of our names that were found, and which they are found without.
  """
  rules = tables.matches(table, names.shapes(task, model), task)
  sides = [m.ours if own else m.theirs for m in rules if next(iter(m.ours)).startswith(only)]
  prefix = only if own else ""
  squares = [sum(float(found[f"norm/{n.removeprefix(prefix)}"]) ** 2 for n in s) for s in sides]
  return found | {"norms": np.sqrt(squares)}


def report(rows: Sequence[Mapping[str, Any]], options: Any) -> None:
  """Prints the table and writes `--json`."""
  print(table(rows))
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(list(rows), indent=1) + "\n")


_COLUMNS: dict[str, Callable[[Any], str]] = {
    "name": str, "mode": str, "px": str, "dtype": str, "visible": str, "members": str,
    "per_seed_seconds": "{:.3f}".format, "per_seed_ratio": "{:.3f}".format,
    "images_per_second": "{:.1f}".format, "peer_images_per_second": "{:.1f}".format,
    "seconds": "{:.2f}".format,
    "peer_seconds": "{:.2f}".format, "time_ratio": "{:.2f}".format,
    "floor_ratio": "{:.2f}".format, "cpu_seconds": "{:.1f}".format,
    "cpu_ratio": "{:.2f}".format, "peak_gib": "{:.2f}".format,
    "peer_peak_gib": "{:.2f}".format, "memory_ratio": "{:.2f}".format,
    "model_tflop": "{:.3f}".format, "tflop": "{:.3f}".format,
    "max_abs_diff": "{:.1e}".format, "max_rel_diff": "{:.1e}".format}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """Rows in Markdown."""
  names = [n for n in _COLUMNS if any(n in r for r in rows)]
  lines = ["| " + " | ".join(n.replace("_", " ") for n in names) + " |", "|---" * len(names) + "|"]
  for r in rows:
    cells = [_COLUMNS[n](r[n]) if n in r else "-" for n in names]
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines)


def _ours(name: str, arrays: Arrays, settings: Mapping[str, Any], timeout: float) -> Arrays:
  with tempfile.TemporaryDirectory(prefix="bench-") as where:
    np.savez(f"{where}/input.npz", **arrays)
    pathlib.Path(where, "settings.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "big_vision_ext.bench", name, "--child", where]
    environment.call(command, "Our side", timeout)
    with np.load(f"{where}/output.npz") as out:
      return dict(out)


def _join(rounds: Sequence[Arrays]) -> Arrays:
  times = {k: np.concatenate([r[k] for r in rounds]) for k in ("seconds", "cpu_seconds")}
  if "product_flops" in rounds[0]:
    times["product_flops"] = np.median([r["product_flops"] for r in rounds])
  return rounds[0] | times | {"peak_gib": np.max([r["peak_gib"] for r in rounds])}
