"""The selection losses against the dense formulas in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.objectives import selection
from tests.models import ps3_reference

HW, GRIDS, CELLS = (64, 48), [(8, 6), (16, 12), (40, 30)], (4, 4)


def batch(seed=0, b=6):
  rng = np.random.default_rng(seed)
  x, y = np.sort(rng.uniform(0, HW[1], (b, 3, 2))), np.sort(rng.uniform(0, HW[0], (b, 3, 2)))
  boxes = np.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1).astype(np.float32)
  return dict(
    topdown=rng.uniform(-5, 5, (b, *CELLS)).astype(np.float32),
    bottomup=rng.uniform(-5, 5, (b, *CELLS)).astype(np.float32),
    box=boxes[:, 0],
    boxes=boxes,
    num_boxes=np.array([1, 3, 0, 2, 1, 3][:b]),
    is_global=np.array([False, True, False, False, True, False][:b]),
  )


def loss(d, form="bce", union=None, **kw):
  union = form == "bce_dice" if union is None else union
  args = {k: d[k] for k in ("topdown", "bottomup", "box", "is_global")} | kw
  if union:
    args |= dict(boxes=d["boxes"], num_boxes=d["num_boxes"])
  return _loss(args, form)


@functools.partial(jax.jit, static_argnums=1)
def _loss(args, form):
  return selection.selection_loss(**args, image_hw=HW, grids=GRIDS, form=form)


def dense_bce(score, mask, keep, grids=GRIDS):
  """As released: probabilities and targets on every token, mean over both, then over scales."""
  losses = []
  for grid in grids:
    p = 1 / (1 + np.exp(-np.float64(ps3_reference.nearest(score, grid))))
    t = ps3_reference.pool(mask, grid, np.mean) > 0
    losses.append(-np.mean((t * np.log(p) + ~t * np.log(1 - p))[keep]))
  return np.mean(losses)


def dense_dice(score, mask, keep, grids=GRIDS):
  losses = []
  for grid in grids:
    p = 1 / (1 + np.exp(-np.float64(ps3_reference.nearest(score, grid))))[keep]
    t = (ps3_reference.pool(mask, grid, np.mean) > 0)[keep]
    sums = [x.sum((1, 2)) / 100 for x in (p * t, p, t)]
    losses.append(np.mean(1 - (2 * sums[0] + 1e-6) / (sums[1] + sums[2] + 1e-6)))
  return np.mean(losses)


def union_mask(d):
  return np.stack([ps3_reference.paint(b[:n], HW).sum(0)
                   for b, n in zip(d["boxes"], d["num_boxes"])])  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_released_loss_equals_dense_cross_entropy_of_one_box_for_both_scores(seed):
  d = batch(seed)
  total, terms = loss(d)
  mask, local = ps3_reference.paint(d["box"], HW), ~d["is_global"]
  expected = [dense_bce(d[k], mask, local) for k in ("topdown", "bottomup")]
  # float32 sums over 1,200 tokens.
  np.testing.assert_allclose(terms["selection_topdown_bce"], expected[0], rtol=1e-5)
  np.testing.assert_allclose(terms["selection_bottomup_bce"], expected[1], rtol=1e-5)
  np.testing.assert_allclose(total, sum(expected), rtol=1e-5)
  assert len(terms) == 2


@pytest.mark.parametrize("seed", range(3))
def test_paper_loss_adds_dice_and_teaches_bottom_up_the_union(seed):
  d = batch(seed)
  total, terms = loss(d, "bce_dice")
  one, union = ps3_reference.paint(d["box"], HW), union_mask(d)
  local, has_box = ~d["is_global"], d["num_boxes"] > 0
  expected = {
    "selection_topdown_bce": dense_bce(d["topdown"], one, local),
    "selection_topdown_dice": dense_dice(d["topdown"], one, local),
    "selection_bottomup_bce": dense_bce(d["bottomup"], union, has_box),
    "selection_bottomup_dice": dense_dice(d["bottomup"], union, has_box),
  }
  assert set(terms) == set(expected)
  for key, value in expected.items():
    np.testing.assert_allclose(terms[key], value, rtol=1e-5, err_msg=key)
  np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-5)


def test_cross_entropy_with_the_union_is_a_choice():
  d = batch()
  _, terms = loss(d, "bce", union=True)
  expected = dense_bce(d["bottomup"], union_mask(d), d["num_boxes"] > 0)
  np.testing.assert_allclose(terms["selection_bottomup_bce"], expected, rtol=1e-5)


def test_gradients_equal_finite_differences():
  d = batch()

  def f(s):
    return loss(d, "bce_dice", topdown=s)[0]

  grad = jax.grad(f)(jnp.asarray(d["topdown"]))
  one, local = ps3_reference.paint(d["box"], HW), ~d["is_global"]

  def dense(s):
    return dense_bce(s, one, local) + dense_dice(s, one, local)

  for at in [(0, 1, 2), (3, 0, 0), (5, 3, 3), (1, 2, 2)]:
    step = np.zeros(d["topdown"].shape)
    step[at] = 1e-5
    slope = (dense(d["topdown"] + step) - dense(d["topdown"] - step)) / 2e-5
    np.testing.assert_allclose(grad[at], slope, rtol=1e-3, atol=1e-8)
  # The second sample has a global caption: it teaches its score nothing.
  assert not np.any(grad[1])


@pytest.mark.parametrize("form", selection.FORMS)
def test_a_batch_of_global_captions_only_has_no_loss_and_no_nan(form):
  d = batch() | dict(is_global=np.ones(6, bool), num_boxes=np.zeros(6, int))
  value, grad = jax.value_and_grad(lambda s: loss(d, form, topdown=s, bottomup=s)[0])(
    jnp.asarray(d["topdown"])
  )
  assert value == 0 and np.all(np.isfinite(grad)) and not np.any(grad)


def test_a_score_left_out_has_no_term():
  d = batch()
  assert set(loss(d, topdown=None)[1]) == {"selection_bottomup_bce"}
  assert set(loss(d, bottomup=None)[1]) == {"selection_topdown_bce"}


def test_certain_scores_stay_finite():
  d = batch()
  for sign in (-1, 1):
    value, _ = loss(d, topdown=np.full((6, *CELLS), sign * 1e4, np.float32))
    assert np.isfinite(value)


def test_missing_boxes_and_unknown_forms_are_explained():
  d = batch()
  with pytest.raises(ValueError, match="max_boxes"):
    loss(d, "bce_dice", union=False)
  with pytest.raises(ValueError, match="unknown"):
    loss(d, "focal")


def test_each_scale_may_have_a_score_of_its_own():
  d = batch()
  rng = np.random.default_rng(7)
  own = rng.uniform(-5, 5, (6, len(GRIDS), *CELLS)).astype(np.float32)
  _, terms = loss(d, "bce_dice", topdown=own)
  mask, local = ps3_reference.paint(d["box"], HW), ~d["is_global"]
  for name, dense in (("bce", dense_bce), ("dice", dense_dice)):
    expected = np.mean([dense(own[:, i], mask, local, [grid]) for i, grid in enumerate(GRIDS)])
    np.testing.assert_allclose(terms[f"selection_topdown_{name}"], expected, rtol=1e-5)


def dense_later(score, mask, index, keep):
  """Cross-entropy over the tokens that are not in `index`, sample by sample."""
  losses = []
  for b in np.flatnonzero(keep):
    scales, left = [], 0
    for i, grid in enumerate(GRIDS):
      s = score[b, i] if score.ndim == 4 else score[b]
      p = 1 / (1 + np.exp(-np.float64(ps3_reference.nearest(s[None], grid)))).ravel()
      t = (ps3_reference.pool(mask[b][None], grid, np.mean) > 0).ravel()
      unseen = np.setdiff1d(np.arange(t.size), index[i][b])
      p, t = p[unseen], t[unseen]
      left += t.sum()
      scales.append(-np.sum(t * np.log(p) + ~t * np.log(1 - p)) / max(len(unseen), 1))
    if left:
      losses.append(np.mean(scales))
  return np.mean(losses) if losses else 0.0


@pytest.mark.parametrize("union", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_a_later_look_is_taught_what_is_still_unseen(union, each):
  d = batch(1)
  rng = np.random.default_rng(2)
  if each:
    d |= {k: rng.uniform(-5, 5, (6, 3, *CELLS)).astype(np.float32) for k in ("topdown", "bottomup")}
  # The coarsest scale is seen whole, and the first sample's box at all scales.
  index = [np.stack([rng.permutation(h * w)[:n] for _ in range(6)])
           for (h, w), n in zip(GRIDS, (48, 100, 700))]
  d["box"][0] = [0, 0, 3, 3]
  for i, (_, w) in enumerate(GRIDS):
    on_box = [y * w + x for y in range(3) for x in range(3)]
    index[i][0] = np.concatenate([on_box, np.setdiff1d(index[i][0], on_box),
                                  np.setdiff1d(np.arange(GRIDS[i][0] * w), [*on_box, *index[i][0]])
                                  ])[: index[i].shape[1]]
  args = {k: d[k] for k in ("topdown", "bottomup", "box", "is_global")} | dict(index=index)
  if union:
    args |= dict(boxes=d["boxes"], num_boxes=d["num_boxes"])

  def f(topdown):
    a = args | dict(topdown=topdown)
    return selection.look_loss(**a, image_hw=HW, grids=GRIDS)

  (total, terms), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(jnp.asarray(d["topdown"]))
  one, local = ps3_reference.paint(d["box"], HW), ~d["is_global"]
  want = {"later_topdown_bce": dense_later(d["topdown"], one, index, local),
          "later_bottomup_bce": dense_later(d["bottomup"], one, index, local)}
  if union:
    want["later_bottomup_bce"] = dense_later(
      d["bottomup"], union_mask(d), index, d["num_boxes"] > 0)
  assert set(terms) == set(want)
  for key, value in want.items():
    np.testing.assert_allclose(terms[key], value, rtol=1e-5, err_msg=key)
  np.testing.assert_allclose(total, sum(want.values()), rtol=1e-5)
  assert np.all(np.isfinite(grad))
  # Nothing to teach where all was found, or where the caption is of the whole image.
  assert not np.any(grad[0]) and not np.any(grad[1]) and np.any(grad[2])
