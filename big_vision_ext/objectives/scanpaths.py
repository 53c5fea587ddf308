"""Where does a model look next? Policies that draw fixations, and one that learns from surprise.

A scanpath is a sequence of points of gaze (y, x) in 0..1 of the image. Each sample's is a function
of its own key, and of nothing that it has not seen: the plain policies see nothing at all, a
saliency map is given, and a learned one scores what is left after the looks so far.
b batch, t looks, y x cells of a map.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

# The last one needs a model to look with: see `following`.
POLICIES = ("uniform", "centre", "walk", "coverage", "saliency", "surprise")

# Standard deviation of the gaze around the centre, and of a saccade, and the distance around past
# fixations that a walk does not return to; in sides of the image.
SPREAD, SACCADE, INHIBITED = 0.2, 0.25, 0.15
_CANDIDATES = 16
# Of the two-dimensional low-discrepancy sequence that generalises the golden ratio (Roberts 2018):
# the real root of x^3 = x + 1.
_PLASTIC = 1.324717957244746
# Of the looks of a learned policy so many at least go anywhere, so that it stays calibrated.
LEAST_UNIFORM = 0.2


def draw(
  policy: str,
  keys: Key[Array, "b"],
  looks: int,
  *,
  saliency: Float[Array, "b y x"] | None = None,
  uniform_share: float = 0.0,
) -> Float[Array, "b t 2"]:
  """Whole scanpaths of a policy that needs no model.

  Args:
    policy: "uniform"; "centre", Gaussian around the middle of the image; "walk", steps of Gaussian
      length, mirrored at the borders, that do not come back to where the gaze has been; "coverage",
      a low-discrepancy sequence with a random shift; "saliency", cells of a map without repeats, in
      proportion to it.
    keys: one a sample.
    looks: T.
    saliency: at least 0.
    uniform_share: how many of the looks of "saliency" are uniform instead.

  Raises:
    ValueError: an unknown policy, or one that needs something else.
  """
  if policy not in POLICIES or policy == "surprise":
    raise ValueError(f"policy={policy!r} cannot be drawn; it is one of {POLICIES[:-1]}.")
  if policy == "saliency":
    if saliency is None or saliency.ndim != 3 or math.prod(saliency.shape[1:]) < looks:
      raise ValueError(
        "policy='saliency' needs a map (batch, rows, columns) of at least as many cells as there "
        f"are looks, {looks}; got {None if saliency is None else saliency.shape}."
      )
    each = lambda key, of: _salient(key, of, looks, uniform_share)
    return jax.vmap(each)(keys, saliency.astype(jnp.float32))
  one = dict(uniform=_uniform, centre=_centre, walk=_walk, coverage=_coverage)[policy]
  return jax.vmap(lambda key: one(key, looks))(keys)


def following(
  keys: Key[Array, "b"],
  score: Float[Array, "b y x"],
  allowed: Bool[Array, "b y x"],
  uniform_share: float,
) -> Float[Array, "b 2"]:
  """The next fixation: a cell drawn in proportion to exp(score), and a place in it.

  Args:
    keys: one a sample, another one for each look.
    score: of the cells of a map, from what has been seen.
    allowed: cells to choose from; all, where there is none.
    uniform_share: how often the gaze goes anywhere instead, whatever the score, so that what is
      learned from where it went stays true of the rest.
  """

  def one(key, score, allowed):
    allowed = allowed | ~allowed.any()
    choose, place, coin, anywhere = jax.random.split(key, 4)
    log = jnp.where(allowed, score.astype(jnp.float32), -jnp.inf)
    cell = gumbel_top_k(choose, log.reshape(-1), 1)
    gaze = _in_cell(place, cell, score.shape)[0]
    uniform = jax.random.uniform(coin) < uniform_share
    return jnp.where(uniform, jax.random.uniform(anywhere, (2,)), gaze)

  return jax.lax.stop_gradient(jax.vmap(one)(keys, score, allowed))


def gumbel_top_k(key: Key[Array, ""], log_weight: Float[Array, "n"], k: int) -> Int[Array, "k"]:
  """k different indices, drawn one after the other in proportion to exp(log_weight).

  The k largest of the logarithms with Gumbel noise added (Kool et al. 2019).
  """
  noisy = log_weight + jax.random.gumbel(key, log_weight.shape)
  return jax.lax.top_k(noisy, k)[1]


def look_keys(keys: Key[Array, "b"], look: int) -> Key[Array, "b"]:
  """The keys of the samples for the choice of one look."""
  return jax.vmap(lambda key: jax.random.fold_in(key, 16 + look))(keys)


def _uniform(key, looks):
  return jax.random.uniform(key, (looks, 2))


def _centre(key, looks):
  edge = 0.5 / SPREAD
  return 0.5 + SPREAD * jax.random.truncated_normal(key, -edge, edge, (looks, 2))


def _coverage(key, looks):
  step = np.arange(looks)[:, None] * np.array([1 / _PLASTIC, 1 / _PLASTIC**2])
  # The whole part is dropped in float64; the shift wraps around like the sequence itself.
  return jnp.mod(jax.random.uniform(key, (2,)) + jnp.asarray(step % 1.0, jnp.float32), 1.0)


def _walk(key, looks):
  start, steps = jax.random.split(key)
  first = jax.random.uniform(start, (2,))
  jumps = SACCADE * jax.random.normal(steps, (looks - 1, _CANDIDATES, 2))
  path = [first]
  for t in range(looks - 1):
    to = path[-1] + jumps[t]
    # Mirrored as often as need be: the period is two sides.
    to = 1.0 - jnp.abs(jnp.mod(to, 2.0) - 1.0)
    near = jnp.min(jnp.linalg.norm(to[:, None] - jnp.stack(path)[None], axis=-1), axis=1)
    # The first candidate that is far enough from where the gaze has been; failing that, the
    # farthest.
    rank = jnp.where(near >= INHIBITED, 10.0 - jnp.arange(_CANDIDATES) / _CANDIDATES, near)
    path.append(to[jnp.argmax(rank)])
  return jnp.stack(path)


def _salient(key, saliency, looks, uniform_share):
  choose, place, coin, anywhere = jax.random.split(key, 4)
  log = jnp.log(jnp.maximum(saliency, 1e-12)).reshape(-1)
  gaze = _in_cell(place, gumbel_top_k(choose, log, looks), saliency.shape)
  uniform = jax.random.uniform(coin, (looks, 1)) < uniform_share
  return jnp.where(uniform, jax.random.uniform(anywhere, (looks, 2)), gaze)


def _in_cell(key, cell, grid):
  """A uniform place in each of some cells of a grid."""
  corner = jnp.stack([cell // grid[1], cell % grid[1]], axis=-1).astype(jnp.float32)
  return (corner + jax.random.uniform(key, corner.shape)) / jnp.asarray(grid, jnp.float32)
