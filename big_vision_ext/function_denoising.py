"""Does a small network that removes noise from functions generalise, by what it was trained on?

    python -m big_vision_ext.function_denoising --out DIR

The deraining study in small, in a minute or two on a CPU. That there is a toy task of functions is
the paper's; its design is ours. y = f(x) + n on 128 points: f a sum of K sines and cosines of
random amplitudes (how complex the content is), n one of T templates at a random strength (how
complex the degradation is). An MLP learns f from y and is asked to remove templates it has not
seen. The claim: removal there falls with K at fixed T and rises with T at fixed K.

What came out (three seeds, 1,500 steps; mean and standard deviation of removal, unseen templates):

    with the global skip            T=8             T=64            T=256
    K=2                        0.001 (.002)    0.079 (.002)    0.220 (.001)
    K=8                        0.005 (.001)    0.076 (.002)    0.187 (.002)
    K=32                       0.002 (.001)    0.046 (.001)    0.103 (.004)
    without
    K=2                        0.738 (.008)    0.749 (.003)    0.759 (.001)
    K=8                        0.523 (.004)    0.526 (.005)    0.539 (.006)
    K=32                       0.275 (.003)    0.201 (.003)    0.289 (.003)

So the claim holds with the skip from some tens of templates on; with eight nothing unseen is
removed, whatever the content. Without the skip (`--no_skip`) the fall with K is plain, and the rise
with T is small and at K=32 absent: there the network must learn the content to give anything at
all. Templates of training are removed much better (with the skip 0.92 to 1.00 at T=8 and 64, 0.74
to 0.98 at T=256): up to 64 of them what is lost is generalisation; at T=256 and K=32 the network
has not learnt all of its own either.

The measure is `rho` of `objectives.image_metrics` with noise everywhere: 1 - |g(y) - f| / |n| over
the functions of a test, 1 perfect, 0 untouched, negative if worse. It counts damage to the content
too, so that `projected`, 1 - <g(y) - f, n> / <n, n>, which does not, and `damage`, |g(f) - f| / |f|
of functions without noise, are kept beside it.
"""

if __name__ == "__main__":
  from big_vision_ext.core import huge_pages

  huge_pages.restart(__spec__)  # Before imports that take a second.

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

POINTS = 128
# Sines have 1..32 periods over the grid, of which K are drawn: a quarter to a half of Nyquist.
FREQUENCIES = 32
MEASURES = ("seen", "unseen", "projected", "damage")
_TESTS = 256
_CHUNK = 100

Params = list[tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Study:
  """What is trained: every K with every T, `seeds` times, all at once.

  Attributes:
    contents: values of K, the number of frequencies of the content, up to 32.
    templates: values of T, the number of noise templates.
    seeds: how often; a seed draws frequencies, templates, parameters and samples. Of one seed, the
      frequencies of a small K are among those of a large one, and so are templates.
    steps, batch, lr: of Adam with a cosine to 0, on the mean squared error; samples are new each
      step.
    width, layers: of the MLP.
    global_skip: whether the network's output is taken from its input, so that 0 leaves it as it is.
    strength: interval of the noise's root mean square; that of the content is 1 on average.
  """

  contents: tuple[int, ...] = (2, 8, 32)
  templates: tuple[int, ...] = (8, 64, 256)
  seeds: int = 3
  steps: int = 1500
  batch: int = 32
  lr: float = 1e-3
  width: int = 256
  layers: int = 4
  global_skip: bool = True
  strength: tuple[float, float] = (0.5, 1.5)

  def __post_init__(self):
    if not self.contents or not all(1 <= k <= FREQUENCIES for k in self.contents):
      raise ValueError(f"contents={self.contents}: expected numbers of sines, 1 to {FREQUENCIES}.")
    if not self.templates or min(self.templates) < 1:
      raise ValueError(f"templates={self.templates}: expected numbers of templates, at least 1.")
    for key in ("seeds", "steps", "batch", "width", "layers"):
      if getattr(self, key) < 1:
        raise ValueError(f"{key}={getattr(self, key)}: expected at least 1.")


def run(study: Study, say: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
  """Trains every cell and seed under one `vmap`; a row for each: K, T, seed and `MEASURES`."""
  cells = [(seed, k, t) for seed in range(study.seeds) for k in study.contents
           for t in study.templates]
  seed, k, t = (jnp.asarray(column, jnp.int32) for column in zip(*cells))
  worlds = jax.jit(jax.vmap(functools.partial(_world, study)))(seed, k, t)
  optimizer = optax.adam(optax.cosine_decay_schedule(study.lr, study.steps))
  state = jax.jit(jax.vmap(lambda w: _start(study, optimizer, w)))(worlds)

  @functools.partial(jax.jit, donate_argnums=0)
  def advance(state, worlds, first):
    one = functools.partial(_train, study, optimizer)
    return jax.vmap(one, in_axes=(0, 0, None))(state, worlds, first)

  # Whole chunks of one size, one compilation; steps beyond the last change nothing.
  for first in range(0, study.steps, _CHUNK):
    state = advance(state, worlds, first)
    jax.block_until_ready(state)
    say(f"{min(first + _CHUNK, study.steps)} of {study.steps} steps of {len(cells)} networks")
  measured = jax.jit(jax.vmap(functools.partial(_measure, study)))(state[0], worlds)
  measured = jax.tree.map(np.asarray, measured)
  return [{"sines": k, "templates": t, "seed": s} | {m: float(measured[m][i]) for m in MEASURES}
          for i, (s, k, t) in enumerate(cells)]


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Mean and standard deviation over seeds of every measure, in Markdown."""
  templates = sorted({r["templates"] for r in rows})
  names = {"unseen": "removal, unseen templates", "seen": "removal, templates of training",
           "projected": "removal along the noise, unseen", "damage": "damage without noise"}
  lines = []
  for measure, name in names.items():
    lines += ["", f"| {name} | " + " | ".join(f"T={t}" for t in templates) + " |",
              "|" + "---|" * (len(templates) + 1)]
    for k in sorted({r["sines"] for r in rows}):
      cells = [_of(rows, measure, k, t) for t in templates]
      lines.append(f"| K={k} | " + " | ".join(
          f"{np.mean(c):.3f} ({np.std(c):.3f})" for c in cells) + " |")
  return "\n".join(lines[1:])


def plot(rows: Sequence[dict[str, Any]], path: str | pathlib.Path, title: str = "") -> None:
  """Draws removal of unseen and of seen templates against K, a line for each T, with its spread."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(10, 4.2), layout="constrained")
  FigureCanvasAgg(figure)
  panels = zip(figure.subplots(1, 2, sharex=True), (
      ("unseen", "unseen templates"), ("seen", "templates of training")))
  sines = sorted({r["sines"] for r in rows})
  for axis, (measure, name) in panels:
    for t in sorted({r["templates"] for r in rows}):
      cells = [_of(rows, measure, k, t) for k in sines]
      axis.errorbar(sines, [np.mean(c) for c in cells], [np.std(c) for c in cells], fmt="o-",
                    capsize=3, label=f"{t}")
    axis.set(xscale="log", xlabel="sines of the content, K", title=name,
             ylabel="removal: 1 perfect, 0 untouched")
    axis.set_xticks(sines, [str(k) for k in sines])
    axis.minorticks_off()
    axis.axhline(0, color="gray", linewidth=0.8)
    axis.grid(alpha=0.3)
  axis.legend(title="noise templates, T", fontsize=8, title_fontsize=8)
  figure.suptitle(title)
  figure.savefig(path, dpi=120)


def _of(rows, measure, k, t):
  return [r[measure] for r in rows if r["sines"] == k and r["templates"] == t]


def _world(study: Study, seed: Int[Array, ""], k: Int[Array, ""], t: Int[Array, ""]):
  """Everything of a cell that does not change while it trains."""
  of_sines, of_bank, of_unseen, rest = jax.random.split(jax.random.key(seed), 4)
  order = jax.random.permutation(of_sines, FREQUENCIES)
  # Each template has a key: how many there are changes none of them.
  bank = lambda key, n: jax.vmap(lambda i: _template(jax.random.fold_in(key, i)))(jnp.arange(n))
  return {"amplitude": jnp.where(order < k, jnp.sqrt(1.0 / k), 0.0), "count": t, "key": rest,
          "bank": bank(of_bank, max(study.templates)), "unseen": bank(of_unseen, _TESTS)}


def _template(key: Key[Array, ""]) -> Float[Array, "128"]:
  x = jax.random.normal(key, (POINTS,))
  return x / jnp.sqrt(jnp.mean(x**2))


def _contents(key, n: int, amplitude: Float[Array, "32"]) -> Float[Array, "n 128"]:
  phase = 2 * np.pi * np.arange(1, FREQUENCIES + 1)[:, None] * np.arange(POINTS) / POINTS
  waves = jnp.asarray(np.concatenate([np.sin(phase), np.cos(phase)]), jnp.float32)
  return (jax.random.normal(key, (n, 2 * FREQUENCIES)) * jnp.tile(amplitude, 2)) @ waves


def _noise(key, n: int, bank, count, strength) -> Float[Array, "n 128"]:
  which, how = jax.random.split(key)
  scale = jax.random.uniform(how, (n, 1), minval=strength[0], maxval=strength[1])
  return scale * bank[jax.random.randint(which, (n,), 0, count)]


def _start(study: Study, optimizer, world):
  """Parameters, small in the last layer, and the optimiser's state."""
  sizes = [POINTS, *[study.width] * (study.layers - 1), POINTS]
  params = []
  for i, (n_in, n_out) in enumerate(zip(sizes, sizes[1:])):
    scale = np.sqrt(2 / n_in) * (0.1 if i == study.layers - 1 else 1)
    key = jax.random.fold_in(world["key"], i)
    params.append((scale * jax.random.normal(key, (n_in, n_out)), jnp.zeros(n_out)))
  return params, optimizer.init(params)


def _restored(study: Study, params: Params, y: Float[Array, "n 128"]) -> Float[Array, "n 128"]:
  h = y
  for i, (weight, bias) in enumerate(params):
    h = (jax.nn.relu(h) if i else h) @ weight + bias
  return y - h if study.global_skip else h


def _train(study: Study, optimizer, state, world, first):
  """A chunk of steps from `first` on, none beyond the last."""

  def step(state, i):
    params, moments = state
    of_content, of_noise = jax.random.split(jax.random.fold_in(world["key"], 1000 + i))
    f = _contents(of_content, study.batch, world["amplitude"])
    y = f + _noise(of_noise, study.batch, world["bank"], world["count"], study.strength)
    grads = jax.grad(lambda p: jnp.mean((_restored(study, p, y) - f) ** 2))(params)
    updates, moments = optimizer.update(grads, moments)
    new = (optax.apply_updates(params, updates), moments)
    return jax.tree.map(lambda a, b: jnp.where(i < study.steps, a, b), new, state), None

  return jax.lax.scan(step, state, first + jnp.arange(_CHUNK))[0]


def _measure(study: Study, params: Params, world) -> dict[str, Float[Array, ""]]:
  # No step has this number.
  of_content, of_noise = jax.random.split(jax.random.fold_in(world["key"], 999))
  f = _contents(of_content, _TESTS, world["amplitude"])
  norm = lambda x: jnp.sqrt(jnp.sum(x**2))

  def removal(bank, count):
    n = _noise(of_noise, _TESTS, bank, count, study.strength)
    left = _restored(study, params, f + n) - f
    return 1 - norm(left) / norm(n), 1 - jnp.sum(left * n) / jnp.sum(n**2)

  unseen, projected = removal(world["unseen"], _TESTS)
  return {"seen": removal(world["bank"], world["count"])[0], "unseen": unseen,
          "projected": projected, "damage": norm(_restored(study, params, f) - f) / norm(f)}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line; returns its exit code."""
  parser = argparse.ArgumentParser(
      prog="python -m big_vision_ext.function_denoising", allow_abbrev=False,
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  numbers = lambda text: tuple(int(n) for n in text.split(","))
  default = Study()
  parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR",
                      help="for function_denoising.jsonl, a line per network, and .png")
  for name in ("contents", "templates"):
    value = ",".join(map(str, getattr(default, name)))
    parser.add_argument(f"--{name}", type=numbers, default=getattr(default, name),
                        metavar="N,N,...", help=f"numbers of them (default: {value})")
  for name in ("seeds", "steps", "batch", "width"):
    parser.add_argument(f"--{name}", type=int, default=getattr(default, name), metavar="N",
                        help="(default: %(default)s)")
  parser.add_argument("--no_skip", action="store_true", help="the network has no global skip")
  options = parser.parse_args(argv)
  try:
    study = Study(contents=options.contents, templates=options.templates, seeds=options.seeds,
                  steps=options.steps, batch=options.batch, width=options.width,
                  global_skip=not options.no_skip)
    options.out.mkdir(parents=True, exist_ok=True)
  except (ValueError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  rows = run(study, say=lambda text: print(text, file=sys.stderr, flush=True))
  lines = [json.dumps(row | {"global_skip": study.global_skip, "steps": study.steps})
           for row in rows]
  (options.out / "function_denoising.jsonl").write_text("\n".join(lines) + "\n")
  skip = "with" if study.global_skip else "without"
  plot(rows, options.out / "function_denoising.png",
       f"noise removed from functions by an MLP {skip} a global skip, {study.seeds} seeds")
  print(table(rows))
  print(f"\nwritten: {options.out / 'function_denoising.jsonl'} and .png")
  return 0


if __name__ == "__main__":
  sys.exit(main())
