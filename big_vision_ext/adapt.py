"""python -m big_vision_ext.adapt --weights W --pairs DIR --steps K --out W2: few-shot adaptation.

Adapts a super-resolution model (task "cdasr") to pictures of another kind: `DIR/hr/` and, if there
are any, `DIR/lr/` with pictures of the same names; low-resolution ones are else made by MATLAB's
bicubic reduction. A share of the pairs is held out, by a seed: K steps of descent on crops of the
others, and what is written is the step that was best on half of the held-out ones, K = 0 included.
Prints a table of before and after, on the other half too, which nothing was chosen by, and writes
W2, which `--weights` and `config.init` take.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from big_vision_ext.core import console as console_lib
from big_vision_ext.objectives import bicubic, image_metrics
from big_vision_ext.objectives import meta as meta_lib
from input_pipeline import resolution_pairs as pairs_lib

# Crops are of at most so many pixels of the high resolution.
_LARGEST_PATCH = 192
_RATES = {"adapter": 1e-2, "all": 1e-4}
_ADAM_RATE = 1e-4
# Side of the window of SSIM; the PSNR that a perfect picture counts with where a step is chosen.
_WINDOW, _PERFECT = 11, 100.0


@dataclasses.dataclass(frozen=True)
class Options:
  """How to adapt.

  Attributes:
    steps: K.
    shots: pairs to adapt to; None for all that are not held out.
    held_out: share of the pairs that only measures; at least one pair, unless it is 0. Of several,
      half (rounded down) choose the step, and the others are what is reported.
    rate: of the descent; None for that of the model's meta-training, else 1e-2 for the adapter and
      1e-4 for all parameters or with Adam.
    adapted: "adapter" or "all"; None for that of the meta-training, else the adapter.
    optimizer: "sgd", as in meta-training, or "adam".
    batch: crops of a step; None for one of each pair, up to 8.
    patch: side of the crops, high resolution; None for the largest up to 192.
    eval_every: steps between measurements; None for a tenth of K.
    patience: measurements without gain after which it stops.
    seed: of the held-out pairs and of the crops.
  """

  steps: int
  shots: int | None = None
  held_out: float = 0.25
  rate: float | None = None
  adapted: str | None = None
  optimizer: str = "sgd"
  batch: int | None = None
  patch: int | None = None
  eval_every: int | None = None
  patience: int = 3
  seed: int = 0

  def __post_init__(self):
    for name, least in (("steps", 0), ("shots", 1), ("batch", 1), ("patch", 1), ("eval_every", 1),
                        ("patience", 1), ("seed", 0)):
      value = getattr(self, name)
      if value is not None and value < least:
        raise ValueError(f"--{name.replace('_', '-')}={value}: expected at least {least}")
    if not 0 <= self.held_out < 1:
      raise ValueError(f"--held-out={self.held_out}: expected a share of at least 0 and below 1")
    if self.optimizer not in ("sgd", "adam"):
      raise ValueError(f"--optimizer={self.optimizer}: expected sgd or adam")
    if self.rate is not None and not self.rate >= 0:
      raise ValueError(f"--rate={self.rate}: expected at least 0")


@dataclasses.dataclass(frozen=True)
class Adapted:
  """What came out.

  Attributes:
    params: of the best step.
    step: which.
    last: the last step taken.
    measures: {group: {"bicubic", "before", "after": {"psnr_y", "ssim_y", "infinite"}}}. The groups
      are "held-out" and "support"; of those that the step was chosen by, if any, the name says so.
      `infinite` counts pictures that one of the three restores perfectly, which are in no psnr_y.
    counts: pairs of each.
  """

  params: Any
  step: int
  last: int
  measures: dict[str, dict[str, dict[str, float]]]
  counts: dict[str, int]


def divide(count: int, options: Options) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Which pairs are support, which choose the step, and which are reported.

  A single one that is held out does both. Without steps, nothing is chosen.

  Raises:
    ValueError: there are not as many as asked for.
  """
  held = 0 if not options.held_out else max(1, round(options.held_out * count))
  shots = max(count - held, 0) if options.shots is None else options.shots
  if shots < 1 or shots + held > count:
    raise ValueError(
        f"there are {count} pairs; expected at least {max(shots, 1) + held}: "
        f"{max(shots, 1)} to adapt to (--shots) and {held} held out (--held-out "
        f"{options.held_out:g})")
  order = np.random.default_rng(options.seed).permutation(count)
  # Held out are the same, however many the others.
  choose = held if held < 2 else held // 2
  report = 0 if held < 2 else choose
  if not options.steps:
    choose = report = 0
  return tuple(np.sort(part) for part in (
      order[held:held + shots], order[:choose], order[report:held]))


def adapt(task: Any, params: Any, pairs: Sequence[pairs_lib.Pair], options: Options,
          say: Callable[[str], None] = print) -> Adapted:
  """Adapts parameters to pairs; see the module's docstring.

  Args:
    task: a "cdasr".
    params: the model's.
    pairs: pictures, those held out among them.
    options: how.
    say: told how it goes.

  Raises:
    ValueError: too few or too small pairs.
  """
  divided = divide(len(pairs), options)
  _check_sides(pairs, task.scale)
  pairs = [_with_low(task, pair) for pair in pairs]
  mine, choosing, reported = ([pairs[i] for i in part] for part in divided)
  patch = _patch(task, mine, options.patch)
  meta = task.config.meta
  adapted = options.adapted or (meta.adapted if meta else "adapter")
  rate = options.rate
  if rate is None:
    rate = _ADAM_RATE if options.optimizer == "adam" else (
        meta.inner_rate if meta and meta.adapted == adapted else _RATES[adapted])
  phi, rest = meta_lib.split(params, task.patterns(adapted), "--adapted")
  tx = optax.adam(rate) if options.optimizer == "adam" else optax.sgd(rate)

  @jax.jit
  def update(phi, state, rest, low, high):
    rows = task.rows_of_pairs(rest, low, high)
    value, grads = jax.value_and_grad(
        lambda phi: task.loss_of(meta_lib.merge(phi, rest), rows)[0])(phi)
    updates, state = tx.update(grads, state, phi)
    return optax.apply_updates(phi, updates), state, value

  measure = functools.partial(_measured, task, jax.jit(_restored(task)))
  groups = _groups(mine, choosing, reported, bool(options.steps))
  measures = {name: {"bicubic": _measured(task, None, None, group),
                     "before": measure(params, group)} for name, group in groups.items()}
  watched = choosing or mine
  score = lambda phi: float(np.minimum(
      measure(meta_lib.merge(phi, rest), watched)["psnr_y"], _PERFECT).mean())
  best, best_step, best_score, since = phi, 0, score(phi) if options.steps else 0.0, 0
  every = options.eval_every or max(1, options.steps // 10)
  size = options.batch or min(len(mine), 8)
  state, step = tx.init(phi), 0
  for step in range(1, options.steps + 1):
    low, high = _crops(mine, size, patch, task.scale, [options.seed, step])
    phi, state, value = update(phi, state, rest, low, high)
    if not np.isfinite(value):
      raise ValueError(f"the loss of step {step} is {float(value)}: a rate of {rate:g} is too high "
                       "for this model; give a lower --rate")
    if step % every and step != options.steps:
      continue
    found = score(phi)
    say(f"step {step}: loss {float(value):.5f}, "
        f"{'held-out' if choosing else 'support'} PSNR-Y {found:.3f} dB")
    since += 1
    if found > best_score:
      best, best_step, best_score, since = phi, step, found, 0
    if since >= options.patience:
      say(f"no gain since step {best_step}: stopped")
      break
  params = meta_lib.merge(best, rest)
  for name, group in groups.items():
    measures[name]["after"] = measure(params, group)
  return Adapted(params, best_step, step, {name: _means(of) for name, of in measures.items()},
                 {name: len(group) for name, group in groups.items()})


def table(found: Adapted) -> str:
  """Before and after, on the pairs that are reported, that chose, and adapted to, in Markdown."""
  rows = {"bicubic": "bicubic", "before": "K = 0", "after": f"K = {found.step}"}
  lines = ["| pairs | model | PSNR-Y | SSIM-Y |", "|---|---|---|---|"]
  for group, of in found.measures.items():
    for key, label in rows.items():
      left_out = of[key]["infinite"]
      lines.append(f"| {found.counts[group]} {group} | {label} | {of[key]['psnr_y']:.3f}"
                   f"{f' ({left_out} infinite left out)' if left_out else ''} | "
                   f"{of[key]['ssim_y']:.4f} |")
  return "\n".join(lines)


def _groups(mine, choosing, reported, chosen: bool) -> dict[str, list]:
  """Pairs by what they are called."""
  chose = lambda name: f"{name}, chose the step"
  alone = choosing and len(choosing) == len(reported) == 1 and choosing[0] is reported[0]
  groups = {"held-out": [] if alone else reported, chose("held-out"): choosing,
            "support" if choosing or not chosen else chose("support"): mine}
  return {name: group for name, group in groups.items() if group}


def _check_sides(pairs: Sequence[pairs_lib.Pair], scale: int) -> None:
  for pair in pairs:
    if (side := min(pair.high.shape[:2])) - 2 * scale < _WINDOW:
      raise ValueError(f"{pair.name}: its shorter side has {side} pixels; expected at least "
                       f"{_WINDOW + 2 * scale}, for SSIM without a border of {scale}")


def _with_low(task, pair: pairs_lib.Pair) -> pairs_lib.Pair:
  if pair.low is not None:
    return pair
  low = bicubic.quantize(bicubic.downsample(jnp.asarray(pair.high, jnp.float32)[None] / 255.0,
                                            task.scale))
  return dataclasses.replace(pair, low=np.uint8(np.rint(np.asarray(low[0]) * 255.0)))


def _patch(task, pairs: Sequence[pairs_lib.Pair], asked: int | None) -> int:
  """Side of the crops; raises ValueError if a picture is too small for it."""
  unit = task.scale * task.net.multiple
  smallest = min(pairs, key=lambda p: min(p.high.shape[:2]))
  side = min(smallest.high.shape[:2])
  patch = asked or min(side, _LARGEST_PATCH) // unit * unit
  if patch < 1 or patch % unit or patch > side:
    raise ValueError(f"{smallest.name}: its shorter side has {side} pixels, and crops "
                     f"{patch or unit}; expected a multiple of {unit} that fits (--patch)")
  return patch


def _crops(pairs, size: int, patch: int, scale: int, seed: Sequence[int]):
  """Float crops (b, y, x, 3) in [0, 1], low and high, of different pairs as far as there are."""
  rng = np.random.default_rng(seed)
  order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-size // len(pairs)))])
  low, high, side = [], [], patch // scale
  for i in order[:size]:
    pair = pairs[i]
    y, x = (int(rng.integers(n - side + 1)) for n in pair.low.shape[:2])
    low.append(pair.low[y:y + side, x:x + side])
    y, x = y * scale, x * scale
    high.append(pair.high[y:y + patch, x:x + patch])
  return tuple(np.stack(rows).astype(np.float32) / np.float32(255) for rows in (low, high))


def _restored(task) -> Callable:
  """Whole pictures (1, y, x, 3), uint8, padded to what the network divides by."""
  unit = task.net.multiple

  def restored(params, low):
    h, w = low.shape[1:3]
    padded = jnp.pad(low, ((0, 0), (0, -h % unit), (0, -w % unit), (0, 0)), mode="edge")
    batch = {"image": padded}
    if task.align is not None:
      # Of the picture as it is.
      batch["vector"] = task.condition(params, {"image": low})
    return task.restore(params, batch)[:, :h * task.scale, :w * task.scale]

  return restored


def _measured(task, restored: Callable | None, params: Any, pairs) -> dict[str, np.ndarray]:
  """PSNR-Y and SSIM-Y of whole pictures; of bicubic enlargement without `restored`."""
  rows = []
  for pair in pairs:
    low, high = pair.low[None], jnp.asarray(pair.high[None], jnp.float32) / 255.0
    if restored is None:
      found = bicubic.upsample(jnp.asarray(low, jnp.float32) / 255.0, task.scale)
    else:
      found = restored(params, low)
    rows.append([float(image_metrics.psnr(found, high, crop=task.scale, channel="y")[0]),
                 float(image_metrics.ssim(found, high, crop=task.scale, channel="y")[0])])
  psnr, ssim = np.array(rows, np.float64).T
  return {"psnr_y": psnr, "ssim_y": ssim}


def _means(found: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, float]]:
  """Of models on the same pictures; PSNR of those that none of them restores perfectly."""
  finite = np.all([np.isfinite(of["psnr_y"]) for of in found.values()], axis=0)
  return {name: {
      "psnr_y": float(of["psnr_y"][finite].mean()) if finite.any() else float("inf"),
      "ssim_y": float(of["ssim_y"].mean()), "infinite": int((~finite).sum())}
          for name, of in found.items()}


def run(weights: str, folder: str, out: str, options: Options, step: int | None = None,
        say: Callable[[str], None] = print) -> Adapted:
  """Adapts what is in `weights` to the pairs in `folder`, and writes `out`.

  Raises:
    ValueError: weights of another task, pairs that are none, or a folder with something else in it;
      nothing is written then.
  """
  from big_vision_ext import convert, tasks
  from big_vision_ext import weights as weights_lib

  convert.check_out(out)
  loaded = weights_lib.load(weights, step)
  if loaded.task_name != "cdasr":
    raise ValueError(f"{weights}: holds weights of task {loaded.task_name!r}; expected 'cdasr'")
  task = tasks.make(loaded.task_name, loaded.model)
  if task.config.condition == "shuffled":
    raise ValueError(f"{weights}: has model.condition='shuffled', a control that is steered by "
                     "other pictures than its own; expected a model with condition='encoder'")
  pairs = pairs_lib.read(folder, task.scale)
  found = adapt(task, jax.tree.map(jnp.asarray, loaded.params), pairs, options, say)
  described = weights_lib.read(weights, step)
  flat = weights_lib.loop_params(found.params)
  pairs_seen = next(n for name, n in found.counts.items() if name.startswith("support"))
  note = f"to {pairs_seen} pairs, step {found.step} of {found.last}"
  metrics = {f"{group}/{model}/{key}": value for group, of in found.measures.items()
             for model, values in of.items() for key, value in values.items()
             if np.isfinite(value)}
  start = {"path": str(weights), "licence": described.meta.get("licence", "unknown")}
  convert.write("npz", out, dataclasses.replace(described, params=flat, meta={
      **described.meta, "name": pathlib.Path(out).name, "adapted": note,
      # Those of the run are of what it began from.
      "metrics": metrics,
      "init": [start, *(described.meta.get("init") or [])]}))
  return found


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
  """The command line."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.adapt", description=__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
  add = parser.add_argument
  add("--weights", required=True, help="a run, or weights in any format, of task cdasr")
  add("--step", type=int, help="checkpoint of the run; default: the latest")
  add("--pairs", required=True, help="folder with hr/ and maybe lr/")
  add("--out", required=True, help="folder to write")
  add("--steps", type=int, required=True, help="K, most steps of descent")
  add("--shots", type=int, help="pairs to adapt to; default: all that are not held out")
  add("--held-out", type=float, default=0.25, help="share that only measures; default: 0.25")
  add("--rate", type=float, help="of the descent; default: that of the meta-training")
  add("--adapted", choices=("adapter", "all"), help="default: as in meta-training")
  add("--optimizer", choices=("sgd", "adam"), default="sgd")
  add("--batch", type=int, help="crops of a step; default: one of each pair, up to 8")
  add("--patch", type=int, help=f"side of crops; default: the largest up to {_LARGEST_PATCH}")
  add("--eval-every", type=int, help="steps between measurements; default: a tenth of K")
  add("--patience", type=int, default=3, help="measurements without gain; default: 3")
  add("--seed", type=int, default=0)
  add("--debug", action="store_true", help="show the traceback of an error")
  return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  args = parse_args(argv)

  def command() -> None:
    console_lib.set_up_logging(args.debug)
    names = [field.name for field in dataclasses.fields(Options)]
    options = Options(**{name: getattr(args, name) for name in names})
    found = run(args.weights, args.pairs, args.out, options, args.step)
    print(table(found))
    print(f"Wrote {args.out}: step {found.step} of {found.last}")

  return console_lib.exit_code(command, args.debug)


if __name__ == "__main__":
  sys.exit(main())
