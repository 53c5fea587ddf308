"""Copies in a batch: found on any device, and wrong, left out or right as the config says."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from big_vision_ext.core import sharding
from big_vision_ext.objectives import copies
from big_vision_ext.objectives.contrastive import Contrast, contrastive_loss
from tests.objectives.test_contrastive_ring import assert_same, batch, make_mesh

# Captions of 24 rows: one three times, one seven times, two twice, on other devices than each other
# and on the same; and images, of which some are the same with other captions.
TEXT = np.array([0, 1, 2, 3, 0, 5, 6, 7, 8, 9, 3, 3, 12, 13, 0, 3, 16, 17, 3, 3, 20, 20, 3, 12])
IMAGE = np.arange(24)
IMAGE[[2, 17, 13]] = 1, 1, 5


def reference(form, duplicates, same, zimg, ztxt, t, b):
  """Value, metrics and gradients in float64, pair by pair as the definitions say."""
  zimg, ztxt, t, b = (np.asarray(x, np.float64) for x in (zimg, ztxt, t, b))
  n, own = len(zimg), np.eye(len(zimg), dtype=bool)
  copy = same & ~own if duplicates != "negatives" else np.zeros_like(own)
  right = own | copy if duplicates == "positives" else own
  similar = zimg @ ztxt.T
  logits = similar * t + b
  counted = ~copy if duplicates == "ignore" else np.ones_like(own)
  g = np.zeros((n, n))
  loss = 0.0
  if form == "sigmoid":
    for i, j in zip(*np.nonzero(counted)):
      sign = 1.0 if right[i, j] else -1.0
      loss += np.logaddexp(0, -sign * logits[i, j]) / n
      g[i, j] = -sign / (1 + np.exp(sign * logits[i, j])) / n
  else:
    sides = (logits, g, counted, right), (logits.T, g.T, counted.T, right.T)
    for rows, grad, among, aims in sides:
      for i, row in enumerate(rows):
        top = row[among[i]].max()
        p = np.where(among[i], np.exp(row - top), 0.0)
        target = aims[i] / aims[i].sum()
        loss += (np.log(p.sum()) + top - target @ row) / (2 * n)
        grad[i] += (p / p.sum() - target) / (2 * n)
  wrong = ~(own | copy)
  best = [np.where(wrong, logits, -np.inf).max(axis) for axis in (1, 0)]
  metrics = {
    "pos_logit": np.diag(logits).mean(), "neg_logit": logits[wrong].mean(),
    "acc_i2t": (np.diag(logits) >= best[0]).mean(), "acc_t2i": (np.diag(logits) >= best[1]).mean(),
  }  # fmt: skip
  return (loss, metrics), (g @ ztxt * t, g.T @ zimg * t, (g * similar).sum(), g.sum())


def on_mesh(how, mesh, args, contents):
  """Value, metrics and gradients, with the rows cut over the mesh."""
  def loss(zimg, ztxt, t, b, contents):
    return contrastive_loss(zimg, ztxt, t, b, how, copies.of_rows(*contents))

  rows, one = NamedSharding(mesh, P(sharding.BATCH_AXES)), NamedSharding(mesh, P())
  places = (rows, rows, one, one, (rows,) * len(contents))
  with sharding.use(mesh, ()):
    fn = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True),
                 in_shardings=places)
    return fn(*jax.device_put((*args, contents), places))


@pytest.mark.parametrize("form, duplicates, sizes, chunk, implementation", [
  ("softmax", "ignore", (8, 1, 1), 2, None),
  ("softmax", "positives", (2, 2, 2), 4, None),
  ("softmax", "negatives", (8, 1, 1), 1024, None),
  ("softmax", "ignore", (1, 1, 1), 5, "dense"),
  ("softmax", "positives", (1, 1, 1), 5, "dense"),
  ("sigmoid", "ignore", (4, 2, 1), 2, None),
  ("sigmoid", "positives", (8, 1, 1), 2, None),
  ("sigmoid", "ignore", (1, 1, 1), 5, "dense"),
])  # fmt: skip
def test_copies_are_what_the_config_says(form, duplicates, sizes, chunk, implementation):
  args = batch(24, 16, seed=3)
  # Rows of ids that differ in one place only are no copies.
  ids = np.stack([np.full(24, 7), TEXT, np.zeros(24, int)], axis=1).astype(np.int32)
  same = (TEXT[:, None] == TEXT) | (IMAGE[:, None] == IMAGE)
  how = Contrast(form, implementation, chunk, duplicates)
  got = on_mesh(how, make_mesh(*sizes), args, (ids, IMAGE.astype(np.int32)))
  assert_same(got, reference(form, duplicates, same, *args))


def test_keys_are_equal_where_rows_are_and_nowhere_else():
  rng = np.random.default_rng(0)
  ids = np.zeros((3000, 77), np.int32)
  ids[:, 0], ids[:, 1:9] = 49_406, rng.integers(0, 49_406, (3000, 8))
  # As many pairs that differ in one number, or have two numbers in each other's places.
  ids[1000:2000] = ids[:1000]
  ids[np.arange(1000, 2000), rng.integers(1, 9, 1000)] += 2 ** rng.integers(0, 15, 1000)
  ids[2000:] = ids[:1000]
  ids[2000:, [2, 5]] = ids[2000:, [5, 2]]
  want = len(np.unique(ids, axis=0))
  keys = np.asarray(copies.of_rows(ids)[0])
  assert want > 2900 and len(np.unique(keys, axis=0)) == want
  # Either half alone does nearly as well.
  assert all(len(np.unique(half)) >= want - 3 for half in keys.T)
  np.testing.assert_array_equal(copies.of_rows(ids[5:6])[0][0], keys[5])


def test_without_keys_copies_cannot_be_left_out():
  with pytest.raises(ValueError, match="duplicates='ignore': the task tells of no rows"):
    contrastive_loss(*batch(4, 3), how=Contrast("softmax", duplicates="ignore"))
