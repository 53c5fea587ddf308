"""PS3's switches beyond the original, against NumPy, and that they start as the original."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import selection
from tests.models import ps3_reference
from tests.models.test_ps3 import close, encode, make, numpy_reference, run

BOX = np.array([[5.3, 7.7, 21.2, 19.1], [0, 0, 60, 40]], np.float32)


def seen_by(looks):
  return [np.concatenate(at, axis=1) for at in zip(*looks)]


def same_looks(ours, theirs):
  assert len(ours) == len(theirs)
  for one, other in zip(ours, theirs):
    for a, b in zip(one, other):
      np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kw", [dict(low_antialias=True), dict(selection_antialias=True)])
def test_antialiased_views_equal_numpy(kw):
  model, params, image, prompt = make(5, (64, 40), **kw)
  reference = numpy_reference(model, params)
  hidden, _, pooled = reference.low(image)
  low = run(model, params, "low", image)
  close(low["pooled"], pooled)
  close(run(model, params, "score", image, low, prompt)["score"],
        reference.score(image, hidden, prompt))


@pytest.mark.parametrize("seed, hw, kw", [
  (0, (64, 64), dict(selection_maps="each")),
  (1, (64, 40), dict(budget_rule="cells")),
  (2, (48, 72), dict(budget_rule="cells", selection_maps="each", max_select_num=45)),
])  # fmt: skip
def test_features_of_two_looks_equal_numpy(seed, hw, kw):
  model, params, image, prompt = make(seed, hw, **kw)
  out = encode(model, params, image, prompt)
  counts = model.plan(hw, num_looks=2)
  hidden, looks, score = numpy_reference(model, params).encode(image, counts, prompt)
  close(out["score"], score)
  same_looks(out["looks"], looks)
  close(out["last_hidden"], hidden)
  assert out["score"].ndim == (4 if "selection_maps" in kw else 3)


@pytest.mark.parametrize("kw", [dict(selection_maps="each"), dict(budget_rule="cells")])
def test_the_training_pass_equals_numpy(kw):
  model, params, image, prompt = make(3, (48, 72), **kw)
  box = BOX * np.float32(0.7)
  is_global = np.array([False, False])
  pooled, out = run(model, params, "__call__", image, prompt, box, is_global)
  reference = numpy_reference(model, params)
  counts = model.plan((48, 72), num_looks=1)[0]
  close(pooled, reference.train(image, counts, prompt, box, is_global, True))
  hidden = reference.low(image)[0]
  prob, forced = reference.maps(reference.score(image, hidden, prompt), (48, 72), box)
  for ours, p, g in zip(out["forced_prob"], prob, forced):
    close(ours, np.where(g, 1, p))


def test_with_a_map_for_each_scale_every_output_of_the_scoring_layers_learns():
  model, params, image, prompt = make(13, selection_maps="each")

  def f(p):
    _, out = model.apply({"params": p}, image, prompt, BOX)
    return jnp.sum(out["topdown"]["score"] ** 2)

  grad = jax.jit(jax.grad(f))(params)
  for kernel in (grad["selection_feature_proj"]["fc2"]["kernel"],
                 grad["prompt_proj_for_highres"]["kernel"]):
    assert np.all(np.abs(kernel).sum(axis=0) > 0)


def follow(model, reference, image, prompt, plan, box=None):
  """The looks of a policy and their features, one after another, in NumPy."""
  hw = image.shape[1:3]
  hidden, kv, _ = reference.low(image)
  score = reference.score(image, hidden, prompt)
  looks, tokens = [], []
  for counts in plan:
    now = reference.later(score, prompt, tokens, looks, hw) if looks else score
    prob, forced = reference.maps(now, hw, box)
    for s, (p, f) in enumerate(zip(prob, forced)):
      if looks:
        # Whatever was seen goes to the end of the order.
        for b, at in enumerate(seen_by(looks)[s]):
          y, x = np.unravel_index(at, p.shape[1:])
          p[b, y, x], f[b, y, x] = -1, False
    (look,) = reference.choose(prob, forced, [counts])
    looks.append(look)
    tokens.append(reference.high(image, kv, look)[-1])
  return looks, tokens


@pytest.mark.parametrize("seed, hw, kw", [
  (0, (64, 64), {}), (1, (64, 40), dict(selection_maps="each")),
])  # fmt: skip
def test_looks_that_follow_a_policy_equal_numpy(seed, hw, kw):
  model, params, image, prompt = make(seed, hw, look_policy=True, policy_hidden=5, **kw)
  out = encode(model, params, image, prompt, num_looks=3, return_hidden=1)
  plan = model.plan(hw, num_looks=3)
  looks, tokens = follow(model, numpy_reference(model, params), image, prompt, plan)
  same_looks(out["looks"], looks)
  order, _ = selection.merge_looks([[jnp.asarray(x) for x in look] for look in looks],
                                   model.grids(hw))
  theirs = np.take_along_axis(np.concatenate(tokens, 1), np.asarray(order)[:, :, None], 1)
  close(out["last_hidden"][:, 16:], theirs)
  # The policy does change something here.
  plain = encode(model.clone(look_policy=False), params, image, prompt, num_looks=3)
  assert any(np.any(a != b) for x, y in zip(plain["looks"], out["looks"]) for a, b in zip(x, y))


@pytest.mark.parametrize("rule", ["split", "cells"])
def test_a_policy_begins_as_the_plain_ranking_and_never_sees_a_token_twice(rule):
  model, params, image, prompt = make(1, look_policy=True, budget_rule=rule, max_select_num=30)
  untrained = params | {"later_looks": params["later_looks"] | {
      "out": jnp.zeros_like(params["later_looks"]["out"])}}
  kw = dict(num_looks="all", return_hidden=1)
  out = encode(model, untrained, image, prompt, **kw)
  plain = encode(model.clone(look_policy=False), params, image, prompt, **kw)
  same_looks(out["looks"], plain["looks"])
  close(out["last_hidden"], np.float64(plain["last_hidden"]))
  trained = encode(model, params, image, prompt, **kw)
  for at, (h, w) in zip(seen_by(trained["looks"]), model.grids((64, 64))):
    np.testing.assert_array_equal(np.sort(at, axis=1), [np.arange(h * w)] * 2)
  assert [sum(x.shape[1] for x in look) for look in trained["looks"]][:-1] == [30] * 10


def test_training_looks_freely_first_and_then_at_the_region_and_the_policy_learns_alone():
  model, params, image, prompt = make(2, look_policy=True)
  box = np.array([[5.3, 7.7, 12.2, 13.1], [30, 40, 37, 45]], np.float32)

  def sums(p):
    pooled, out = model.apply({"params": p}, image, prompt, box)
    later = sum(jnp.sum(x**2) for x in out["later"].values())
    return jnp.stack([jnp.sum(pooled**2), later]), out

  jacobian, out = jax.jit(jax.jacrev(sums, has_aux=True))(params)
  # The first half of the budget goes where the score says, region or not.
  free = encode(model.clone(look_policy=False), params, image, prompt, num_tokens=20,
                num_looks=None)
  same_looks([out["first_look"]], free["looks"])
  assert [x.shape[1] for x in out["index"]] == [8, 32]
  for at, grid in zip(out["index"], model.grids((64, 64))):
    hits = ps3_reference.pool(ps3_reference.paint(box, (64, 64)), grid, np.mean) > 0
    for b in range(2):
      assert len(set(np.asarray(at[b]))) == at.shape[1]
      assert set(np.flatnonzero(hits[b])) <= set(np.asarray(at[b]))

  def norm(tree, i):
    return float(sum(jnp.sum(jnp.abs(x[i])) for x in jax.tree.leaves(tree)))

  rest = {k: v for k, v in jacobian.items() if k != "later_looks"}
  assert norm(jacobian["later_looks"], 0) == 0 and norm(rest, 1) == 0
  assert all(norm(leaf, 1) > 0 for leaf in jacobian["later_looks"].values())


def test_scores_from_outside_are_followed_whatever_is_seen():
  model, params, image, _ = make(3, look_policy=True)
  scores = np.random.default_rng(0).random((2, 4, 4)).astype(np.float32)
  out = encode(model, params, image, None, scores=scores)
  plain = encode(model.clone(look_policy=False), params, image, None, scores=scores)
  same_looks(out["looks"], plain["looks"])


@pytest.mark.parametrize("kw, said", [
  (dict(selection_maps="all"), "selection_maps"),
  (dict(budget_rule="cell"), "budget_rule"),
  (dict(budget_rule="cells", max_select_num_each_scale=(8, 32)), "max_select_num_each_scale"),
  (dict(look_policy=True, max_select_num=1), "max_select_num"),
])  # fmt: skip
def test_impossible_switches_are_explained(kw, said):
  with pytest.raises(ValueError, match=said):
    make(0, **kw)
