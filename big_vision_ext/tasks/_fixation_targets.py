"""What is to be predicted of which tokens, in which units, when the gaze moves?"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from big_vision_ext.models import fixations
from big_vision_ext.objectives import glimpses, mim
from big_vision_ext.tasks import _teacher

# Added to a patch's variance where an error is counted in units of it: flat patches are no news.
_FLAT = 0.01


class Steps(NamedTuple):
  """Predictions to make. Steps lie one after the other along m.

  Attributes:
    tokens: of each step, raster positions at each scale.
    aims: of each step, fixations that would show its tokens, (b, 1, 2) or (b, m, 2).
    after: of each step, the number of looks before it.
    weight: (b, m) of all steps.
    before: of each step, what had been seen.
  """

  tokens: list[glimpses.Look]
  aims: list[Float[Array, "b #m 2"]]
  after: tuple[int, ...]
  weight: Float[Array, "b m"]
  before: list[glimpses.Seen]

  def errors(self, preds, truth: "Truth") -> Float[Array, "b m"]:
    """Mean squared error of each token."""
    pred = jnp.concatenate(preds, axis=1)
    return jnp.mean((pred - truth.target) ** 2, axis=-1)

  def scales(self) -> Int[np.ndarray, "m"]:
    """The scale of each token."""
    counts = [[index.shape[1] for index in step] for step in self.tokens]
    return np.concatenate([np.repeat(np.arange(len(n)), n) for n in counts])

  def number(self) -> Int[np.ndarray, "m"]:
    """How many looks there were before each token."""
    return np.repeat(self.after, [sum(i.shape[1] for i in step) for step in self.tokens])

  def seen(self, looks, grids) -> glimpses.Seen:
    """What all looks together show."""
    seen = glimpses.nothing(grids, looks[0][0].shape[0])
    for look in looks:
      seen = glimpses.see(seen, look)
    return seen

  def surprise_loss(self, surprise, error, grids):
    """How wrong errors were foretold.

    Args:
      surprise: (b, t, s - 1, y, x), see `models.fixations`.
      error: (b, m), in units that make patches comparable.
      grids: of the scales.

    Returns:
      The mean squared error of the logarithm over what counts and is not of the coarsest scale, and
      the share of the logarithm's variance there that was foretold.
    """
    foretold = []
    for step, t in zip(self.tokens, self.after):
      maps = surprise[:, t - 1].reshape(surprise.shape[0], surprise.shape[2], -1)
      cells = glimpses.cell_of(step, grids)
      # A row for the coarsest scale, which no one foretells and whose weight below is zero.
      rows = jnp.concatenate([maps[:, :1], maps], axis=1)
      scale = np.repeat(np.arange(len(step)), [index.shape[1] for index in step])
      at = jnp.asarray(scale * maps.shape[2]) + cells
      flat = rows.reshape(rows.shape[0], -1)
      foretold.append(jnp.take_along_axis(flat, at, axis=1))
    actual = glimpses.log_error(error)
    weight = self.weight * np.float32(self.scales() > 0)
    wrong = glimpses.weighted_mean((jnp.concatenate(foretold, axis=1) - actual) ** 2, weight)
    mean = glimpses.weighted_mean(actual, weight)
    spread = glimpses.weighted_mean((actual - mean) ** 2, weight)
    return wrong, 1.0 - wrong / jnp.maximum(spread, 1e-9)


class Truth(NamedTuple):
  """What tokens really are.

  Attributes:
    target: what is to be predicted, (b, m, p).
    scale, shift: normalised pixels are prediction * scale + shift, (b, m, 1) or (b, m, p).
    variance: what an error is divided by to compare patches, (b, m).
  """

  target: Float[Array, "b m p"]
  scale: Float[Array, "b m 1"]
  shift: Float[Array, "b m p"]
  variance: Float[Array, "b m"]


def truth(kind: str, image, step: glimpses.Look, before: glimpses.Seen, vision) -> Truth:
  """Pixel targets of a step; `kind` as in `tasks.fixations.Config.target`."""
  parts = []
  for s, index in enumerate(step):
    if not index.shape[1]:
      continue
    raw = pixels(image, vision, s, index)
    mean, std = mim.patch_stats(raw)
    if kind == "norm_pix":
      target, scale, shift = mim.pixel_targets(raw, True), std, mean * jnp.ones_like(raw)
    elif kind == "pix":
      target, scale, shift = raw, jnp.ones_like(std), jnp.zeros_like(raw)
    else:
      views = [pixels(image, vision, s, index, shown_at=c) for c in range(s)]
      seen = [_of_cell(before[c], vision.grids[s], index) for c in range(s)]
      target, shift = glimpses.residual(raw, views, seen)
      scale = jnp.ones_like(std)
    variance = jnp.ones_like(std) if kind == "norm_pix" else std**2 + _FLAT
    parts.append(Truth(target, scale, shift, variance[..., 0]))
  return Truth(*(jnp.concatenate(x, axis=1) for x in zip(*parts)))


def features(vision, params, image, looks, gaze) -> Truth:
  """What the teacher makes of the tokens of each look but the first, having seen all before.

  Normed over the width without parameters, as I-JEPA's targets are.
  """
  given = jax.lax.stop_gradient({**params, **params[_teacher.NAME]})
  _, out = vision.apply({"params": given}, image, looks, gaze)
  x = jnp.concatenate([x for look in out["seen"][1:] for x in look], axis=1).astype(jnp.float32)
  mean = x.mean(axis=-1, keepdims=True)
  var = jnp.mean((x - mean) ** 2, axis=-1, keepdims=True)
  x = jax.lax.stop_gradient((x - mean) / jnp.sqrt(var + 1e-5))
  one = jnp.ones_like(x[..., :1])
  return Truth(x, one, jnp.zeros_like(x), one[..., 0])


def taught(params: dict[str, Any]) -> list[str]:
  """The names of the encoder's part of a model's parameters, which a teacher follows."""
  other = ("decoder", "Decoder", "mask_token", "surprise", _teacher.NAME)
  return [name for name in params if not name.startswith(other)]


def pixels(image, vision, s: int, index, shown_at: int | None = None) -> Float[Array, "b k p"]:
  """Normalised pixels of patches of scale `s`, all of them if `index` is None.

  With `shown_at` they are as that coarser scale shows them.
  """
  grid, patch = vision.grids[s], vision.patch_size
  if index is None:
    every = jnp.arange(grid[0] * grid[1], dtype=jnp.int32)
    index = jnp.broadcast_to(every, (len(image), every.size))
  if shown_at is None or shown_at == s:
    x = fixations.patches_at(image, grid, patch, index)
  else:
    x = fixations.enlarged_at(image, vision.grids[shown_at], grid, patch, index)
  x = (x / 255.0 - np.float32(vision.mean)) / np.float32(vision.std)
  return x.reshape(*x.shape[:2], -1)


def shown(image, seen: glimpses.Seen, vision) -> Float[Array, "b n p"]:
  """Patches of the finest scale, each as sharp as it was seen, mid grey where nothing was."""
  grid = vision.grids[-1]
  every = jnp.broadcast_to(jnp.arange(grid[0] * grid[1]), (len(image), grid[0] * grid[1]))
  grey = (0.5 - np.float32(vision.mean)) / np.float32(vision.std)
  out = jnp.asarray(np.tile(grey, vision.patch_size**2))
  out = jnp.broadcast_to(out, (*every.shape, out.size))
  for s in range(len(vision.grids)):
    view = pixels(image, vision, len(vision.grids) - 1, None, shown_at=s)
    out = jnp.where(_of_cell(seen[s], grid, every)[..., None], view, out)
  return out


def put(patches, index, values, weight):
  """`patches` (b, n, p) with `values` at `index` where they count."""
  rows = jnp.arange(len(patches))[:, None]
  old = patches[rows, index]
  return patches.at[rows, index].set(jnp.where(weight[..., None] > 0, values, old))


def centres(index: Int[Array, "b k"], grid, side: int) -> Float[Array, "b k 2"]:
  """For each token the middle of the window that it lies in, if windows tile the grid."""
  out = []
  for at, count in ((index // grid[1], grid[0]), (index % grid[1], grid[1])):
    n = min(side, count)
    out.append((jnp.minimum(at // n * n, count - n) + n / 2) / count)
  return jnp.stack(out, axis=-1).astype(jnp.float32)


def _of_cell(seen, grid, index):
  """Whether the coarser token that the centre of a token lies in was seen."""
  rows, columns = seen.shape[1:]
  y = (2 * (index // grid[1]) + 1) * rows // (2 * grid[0])
  x = (2 * (index % grid[1]) + 1) * columns // (2 * grid[1])
  return jnp.take_along_axis(seen.reshape(len(seen), -1), y * columns + x, axis=1)
