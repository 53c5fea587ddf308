"""What does more resolution buy, or another look? Quality and cost of a model by both.

A model with several scales can stop at any of them (`only_first_n_scales`) and look as often as
one likes. For each combination: region retrieval and selection recall over a data set, and what
encoding one image for one prompt costs: time, memory and arithmetic.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from big_vision_ext.core import programs
from big_vision_ext.evaluators import region_retrieval

# Measures of quality, as region_retrieval names them.
_QUALITY = ("retrieval_top1", "retrieval_top10", "caption_to_region_top1", "selection_recall")


@dataclasses.dataclass(frozen=True)
class Point:
  """One combination.

  Attributes:
    scales: how many scales are used, the lowest counted.
    pixels: side of the largest of them.
    looks: sets of high-resolution tokens encoded; 0 for the lowest scale alone.
    tokens: tokens encoded, of all scales.
    per_look: high-resolution tokens of each look.
  """

  scales: int
  pixels: int
  looks: int
  tokens: int
  per_look: tuple[int, ...] = ()


def points(task, looks: Sequence[int] = (1, 2, 4), scales: Sequence[int] | None = None
           ) -> list[Point]:
  """The combinations to measure, cheapest first; the lowest scale has no looks.

  Looks that the scales in use have no tokens left for are left out.

  Args:
    task: a task; one without scales has one point.
    looks: numbers of looks.
    scales: how many scales to use, the lowest counted; None for each possible number.

  Raises:
    ValueError: numbers the task does not have.
  """
  vision = task.vision
  if not hasattr(vision, "plan"):
    y, x = vision.posemb_grid
    return [Point(1, task.image_size, 0, y * x)]
  known = range(1, len(vision.scales) + 1)
  if bad := [n for n in scales or () if n not in known]:
    raise ValueError(f"--scales={bad[0]}: expected 1 to {len(vision.scales)}, how many of the "
                     f"scales {', '.join(map(str, vision.scales))} to use")
  if bad := [n for n in looks if n < 1]:
    raise ValueError(f"--looks={bad[0]}: expected at least 1; --scales=1 is the encoding without")
  size = (task.image_size, task.image_size)
  low = vision.cells[0] * vision.cells[1]
  out = []
  for n in sorted(set(scales or known)):
    if n == 1:
      out.append(Point(1, vision.scales[0], 0, low))
      continue
    for count in sorted(set(looks)):
      plan = vision.plan(size, num_looks=count, only_first_n_scales=n - 1)
      # What a scale has no tokens for goes to larger ones; a single token per look always may.
      beyond = [sum(p[n - 1:]) for p in plan]
      if len(plan) == count and max(beyond) < len(vision.scales):
        per_look = tuple(map(sum, plan))
        out.append(Point(n, vision.scales[n - 1], count, low + sum(per_look), per_look))
  return out


def run(task, params, input_config, *, mesh, batch_sharding, todo: Sequence[Point],
        selection: str = "topdown", batch_size: int = 32, repeats: int = 5,
        log: Callable[[str], None] = print) -> list[dict[str, Any]]:
  """Measures each point; returns a row of numbers for each.

  Args:
    task: the task.
    params: its parameters, on the mesh.
    input_config: the regions to measure on.
    mesh, batch_sharding: for the quality; costs are of one device and one image.
    todo: from `points`.
    selection: how patches are selected, as the task's `region` output names it.
    batch_size: regions at a time.
    repeats: timed runs, of which the median is reported.
    log: told what is being done.
  """
  alone = jax.device_put(params, jax.devices()[0])
  rows = []
  for point in todo:
    log(f"  {point.pixels} px, {point.looks} look(s), {point.tokens} tokens ...")
    chosen, options = "low", {}
    if hasattr(task.vision, "plan"):
      chosen, options = selection, {"num_looks": point.looks}
      if point.looks:
        options["only_first_n_scales"] = point.scales - 1
    evaluator = region_retrieval.Evaluator(
        task=task, input_config=input_config, mesh=mesh, batch_sharding=batch_sharding,
        selections=(chosen,), options=options, batch_size=batch_size)
    found = evaluator.run(params)
    row = {k: v for k, v in dataclasses.asdict(point).items() if k != "per_look"}
    row |= {name: found.get(f"{chosen}/{name}") for name in _QUALITY}
    row |= {"chance_top10": found["chance/retrieval_top10"], "regions": int(found["regions"])}
    rows.append(row | cost(task, alone, point, repeats))
  return rows


def cost(task, params, point: Point, repeats: int = 5) -> dict[str, float | None]:
  """What encoding one image for one prompt costs on one device.

  Returns:
    seconds, the median of `repeats`; memory_mib, of the compiled program with its parameters;
    gflop, counted by formula (`core.flops`); compiled_gflop, counted by the compiler, None where
    it counts the body of a loop once (scanned layers, or several looks).
  """
  spec = task.batch_spec(1)
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, spec["image"].shape, np.uint8)
  text = np.ones(spec["text"].shape, np.int32)
  device = jax.devices()[0]
  batch = jax.device_put({"image": image, "text": text}, device)
  compiled = programs.compiled(jax.jit(_program(task, point)), params, batch)
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    jax.block_until_ready(compiled(params, batch))
    seconds.append(time.perf_counter() - start)
  memory = compiled.memory_analysis()
  used = (memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
          - memory.alias_size_in_bytes)
  loops = any(getattr(tower, "scan", False) for tower in (task.vision, task.text))
  analysis = compiled.cost_analysis() or {}
  # The first run may still set things up.
  return {
      "seconds": float(np.median(seconds[1:])),
      "memory_mib": used / 2**20,
      "gflop": task.forward_flops(point.per_look) / 1e9,
      "compiled_gflop": (None if loops or point.looks > 1 or "flops" not in analysis
                         else analysis["flops"] / 1e9),
  }


def _program(task, point):
  if not point.looks:
    return lambda p, b: (task.outputs["image"](p, b), task.outputs["text"](p, b))

  def program(params, batch):
    out = task.outputs["encode"](
        params, batch, num_looks=point.looks, only_first_n_scales=point.scales - 1)
    return {k: out[k] for k in ("last_hidden", "pooled", "index", "text")}
  return program


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The rows in Markdown."""
  percent = lambda v: "-" if v is None else f"{100 * v:.1f} %"
  lines = ["| pixels | looks | tokens | retrieval top-1 | top-10 | selection recall | seconds | "
           "MiB | GFLOP |", "|" + "---|" * 9]
  for r in rows:
    lines.append(
        f"| {r['pixels']} | {r['looks']} | {r['tokens']} | {percent(r['retrieval_top1'])} | "
        f"{percent(r['retrieval_top10'])} | {percent(r['selection_recall'])} | "
        f"{r['seconds']:.3g} | {r['memory_mib']:.0f} | {r['gflop']:.3g} |")
  return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], path: str | pathlib.Path, title: str = "") -> None:
  """Draws quality against arithmetic, and cost against looks, a line for each resolution."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 7.5), layout="constrained")
  FigureCanvasAgg(figure)
  axes = figure.subplots(2, 2)
  panels = (
      (axes[0, 0], "gflop", "retrieval_top10", "GFLOP of one image", "region retrieval top-10, %"),
      (axes[0, 1], "gflop", "selection_recall", "GFLOP of one image",
       "selection recall at the scales used, %"),
      (axes[1, 0], "looks", "seconds", "looks", "seconds for one image"),
      (axes[1, 1], "looks", "memory_mib", "looks", "memory, MiB"))
  colours = {p: f"C{i}" for i, p in enumerate(sorted({r["pixels"] for r in rows}))}
  for axis, x, y, x_label, y_label in panels:
    factor = 100 if y_label.endswith("%") else 1
    for pixels, colour in colours.items():
      line = [r for r in rows if r["pixels"] == pixels and r[y] is not None]
      if not line:
        continue
      axis.plot([r[x] for r in line], [factor * r[y] for r in line], "o-", color=colour,
                label=f"{pixels} px")
      for r in line if x != "looks" else ():
        axis.annotate(f"{r['looks']}", (r[x], factor * r[y]), textcoords="offset points",
                      xytext=(5, 5), fontsize=8, color=colour)
    axis.set(xlabel=x_label, ylabel=y_label)
    axis.margins(0.1)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    if x == "looks":
      axis.set_xticks(sorted({r["looks"] for r in rows}))
  chance = axes[0, 0].axhline(100 * rows[0]["chance_top10"], color="gray", linestyle=":")
  chance.set_label("chance")
  axes[0, 0].legend(title="largest scale; numbers: looks", fontsize=8, title_fontsize=8)
  figure.suptitle(title)
  figure.savefig(path, dpi=120)
