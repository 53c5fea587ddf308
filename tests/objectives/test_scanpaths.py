"""Scanpaths: inside the image, a sample's own affair, and each policy does what its name says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from big_vision_ext.objectives import masks, scanpaths

PLAIN = ("uniform", "centre", "walk", "coverage", "saliency")


def keys(n=6, seed=0):
  return masks.sample_keys(jax.random.key(seed), n)


def draw(policy, looks=5, of=None, **kw):
  of = keys() if of is None else of
  if policy == "saliency" and "saliency" not in kw:
    kw["saliency"] = jnp.broadcast_to(jnp.arange(20.0).reshape(4, 5), (len(of), 4, 5))
  return np.asarray(scanpaths.draw(policy, of, looks, **kw))


@pytest.mark.parametrize("policy", PLAIN)
def test_a_scanpath_is_inside_the_image_and_depends_on_its_own_key_alone(policy):
  gaze, order = draw(policy), np.array([3, 0, 4, 5, 1, 2])
  assert gaze.shape == (6, 5, 2) and gaze.min() >= 0 and gaze.max() <= 1
  np.testing.assert_array_equal(draw(policy, of=keys()[order]), gaze[order])
  assert len({tuple(row.ravel()) for row in gaze}) == 6
  assert not np.array_equal(draw(policy, of=keys(seed=1)), gaze)


@pytest.mark.parametrize("policy", ["uniform", "walk"])
def test_scanpaths_do_not_depend_on_the_mesh(policy):
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"))
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  make = lambda key: scanpaths.draw(policy, masks.sample_keys(key, 8), 4)
  alone = jax.jit(make)(jax.random.key(3))
  np.testing.assert_array_equal(jax.jit(make, out_shardings=rows)(jax.random.key(3)), alone)


def test_the_centre_is_looked_at_more_than_the_rim():
  gaze = draw("centre", 50, of=keys(20)).reshape(-1, 2)
  assert np.abs(gaze.mean(0) - 0.5).max() < 0.03
  # A Gaussian of 0.2, cut off at 2.5 deviations.
  assert np.all(np.abs(gaze.std(0) - 0.195) < 0.015)


def test_a_walk_does_not_come_back_and_its_saccades_have_their_length():
  gaze = draw("walk", 5, of=keys(200))
  apart = np.linalg.norm(gaze[:, :, None] - gaze[:, None], axis=-1) + np.eye(5)
  near = np.mean(apart.min(axis=(1, 2)) < scanpaths.INHIBITED)
  uniform = draw("uniform", 5, of=keys(200))
  by_chance = np.linalg.norm(uniform[:, :, None] - uniform[:, None], axis=-1) + np.eye(5)
  assert near < 0.01 < 0.3 < np.mean(by_chance.min(axis=(1, 2)) < scanpaths.INHIBITED)
  steps = np.linalg.norm(np.diff(gaze, axis=1), axis=-1)
  # Rayleigh's mean is 1.25 deviations; short steps are inhibited, long ones mirrored.
  assert 1.1 * scanpaths.SACCADE < steps.mean() < 1.8 * scanpaths.SACCADE


def test_coverage_is_more_even_than_chance():
  def empty(policy):
    gaze = draw(policy, 16, of=keys(40))
    cells = np.minimum((gaze * 4).astype(int), 3)
    return np.mean([16 - len({tuple(c) for c in row}) for row in cells])

  # Of 16 cells 16 darts miss 16 (1 - 1/16)^16 = 5.7 in expectation.
  assert empty("coverage") < 3.2 < 5 < empty("uniform")


def test_saliency_is_followed_without_repeats_and_mixed_with_uniform_looks():
  saliency = np.zeros((4, 5), np.float32)
  saliency[1, 2], saliency[3, 0], saliency[0, 4] = 1, 2, 5
  maps = jnp.broadcast_to(saliency, (400, 4, 5))
  cells = lambda gaze: (gaze * np.array([4, 5])).astype(int) @ np.array([5, 1])
  gaze = cells(draw("saliency", 3, of=keys(400), saliency=maps))
  assert all(set(row) == {7, 15, 4} for row in gaze)
  # First looks fall in proportion to the map: within four standard errors of 400 draws.
  first = np.array([np.mean(gaze[:, 0] == c) for c in (7, 15, 4)])
  assert np.all(np.abs(first - np.array([1, 2, 5]) / 8) < 0.1)
  mixed = cells(draw("saliency", 3, of=keys(400), saliency=maps, uniform_share=0.5))
  outside = np.mean(~np.isin(mixed, [7, 15, 4]))
  assert abs(outside - 0.5 * 17 / 20) < 0.06


def test_the_next_look_is_drawn_from_the_allowed_cells_in_proportion_to_exp_of_the_score():
  score = jnp.broadcast_to(jnp.log(jnp.array([[1.0, 2.0, 4.0], [8.0, 100.0, 1.0]])), (600, 2, 3))
  allowed = jnp.ones((600, 2, 3), bool).at[:, 1, 1].set(False)
  cells = lambda g: (np.asarray(g) * np.array([2, 3])).astype(int) @ np.array([3, 1])
  got = cells(scanpaths.following(keys(600), score, allowed, 0.0))
  want = np.array([1, 2, 4, 8, 0, 1]) / 16
  found = np.bincount(got, minlength=6) / 600
  assert found[4] == 0 and np.all(np.abs(found - want) < 0.08)
  uniform = np.bincount(cells(scanpaths.following(keys(600), score, allowed, 1.0)), minlength=6)
  assert np.all(np.abs(uniform / 600 - 1 / 6) < 0.07)
  # Where nothing is allowed, everything is.
  free = cells(scanpaths.following(keys(600), score, jnp.zeros((600, 2, 3), bool), 0.0))
  assert np.mean(free == 4) > 0.8


def test_gumbel_top_k_draws_without_repeats_in_proportion():
  """Two of three: the pair's probability is that of drawing one after the other."""
  weight = np.array([1.0, 2.0, 5.0])
  draws = jax.vmap(lambda k: scanpaths.gumbel_top_k(k, jnp.log(weight), 2))(keys(4000))
  pairs = {(a, b): np.mean((draws[:, 0] == a) & (draws[:, 1] == b))
           for a in range(3) for b in range(3)}
  for (a, b), share in pairs.items():
    want = 0.0 if a == b else weight[a] / 8 * weight[b] / (8 - weight[a])
    assert abs(share - want) < 4 * np.sqrt(0.25 / 4000)


def test_keys_of_looks_differ():
  a, b = (jax.random.key_data(scanpaths.look_keys(keys(), t)) for t in (1, 2))
  assert not np.any(np.all(np.asarray(a) == np.asarray(b), axis=-1))


@pytest.mark.parametrize("policy, kw, message", [
  ("surprise", {}, "'surprise' cannot be drawn"), ("gaze", {}, "'gaze' cannot be drawn"),
  ("saliency", {"saliency": None}, "needs a map"),
  ("saliency", {"saliency": jnp.ones((6, 2, 2))}, "at least as many cells"),
])
def test_what_cannot_be_drawn_is_refused(policy, kw, message):
  with pytest.raises(ValueError, match=message):
    draw(policy, **kw)
