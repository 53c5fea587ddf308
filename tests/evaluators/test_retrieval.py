"""Retrieval measures, against counting by hand."""

import numpy as np
import pytest

from big_vision_ext.evaluators import _ranks, image_text_retrieval, region_retrieval


def _unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def _rows(n=12, d=6, seed=0, texts=None):
  rng = np.random.default_rng(seed)
  texts = np.arange(n) if texts is None else np.asarray(texts)
  captions = _unit(rng.normal(size=(n, d)))
  return {
    "text": np.stack([texts, texts * 3 + 1], axis=1).astype(np.int32),
    # Equal texts have equal embeddings, as a text tower gives them.
    "ztxt": captions[[np.flatnonzero(texts == t)[0] for t in texts]],
    "zimg": _unit(rng.normal(size=(n, d))),
    "recall": rng.uniform(size=n),
    "budget_share": np.full(n, 0.25),
    "index": np.arange(n),
  }


SHARED = [0, 1, 0, 2, 2, 3, 4, 5, 6, 0, 7, 8]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("texts", [None, SHARED])
def test_region_top1_equals_a_loop_over_the_regions(seed, texts):
  rows = _rows(seed=seed, texts=texts)
  hits = 0
  for i in range(12):
    scores = [float(rows["zimg"][i] @ z) for z in rows["ztxt"]]
    best = int(np.argmax(scores))
    hits += tuple(rows["text"][best]) == tuple(rows["text"][i])
  assert region_retrieval.measure(rows)["retrieval_top1"] == pytest.approx(hits / 12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("texts", [None, SHARED])
def test_captions_find_their_regions_as_often_as_a_loop_over_the_captions_does(seed, texts):
  rows = _rows(seed=seed, texts=texts)
  texts = list(range(12)) if texts is None else texts
  hits = {1: [], 10: []}
  for t in sorted(set(texts)):
    z = rows["ztxt"][texts.index(t)]
    order = sorted(range(12), key=lambda i, z=z: -float(rows["zimg"][i] @ z))
    for k, found in hits.items():
      found.append(any(texts[i] == t for i in order[:k]))
  got = region_retrieval.measure(rows)
  for k, found in hits.items():
    assert got[f"caption_to_region_top{k}"] == pytest.approx(np.mean(found))


def test_region_top10_counts_captions_not_regions_and_ties_are_no_finds():
  rows = _rows(n=30, d=4)
  ranks = [sorted(range(30), key=lambda c, i=i: -rows["ztxt"][c] @ rows["zimg"][i]).index(i)
           for i in range(30)]
  got = region_retrieval.measure(rows)["retrieval_top10"]
  assert got == pytest.approx(np.mean(np.array(ranks) < 10))
  # A model that says the same of everything has found nothing, also with rounding noise on top.
  for noise in (0.0, 1e-8):
    noisy = np.random.default_rng(0).normal(size=(30, 4)) * noise
    rows["zimg"], rows["ztxt"] = 0.5 + noisy, 0.5 + noisy[::-1]
    got = region_retrieval.measure(rows)
    assert got["retrieval_top10"] == got["caption_to_region_top10"] == 0.0


def test_region_measures_are_perfect_for_a_perfect_model_and_do_not_depend_on_the_order():
  rows = _rows(texts=SHARED)
  rows["zimg"] = rows["ztxt"]
  assert region_retrieval.measure(rows)["retrieval_top1"] == 1.0
  assert region_retrieval.measure(rows)["caption_to_region_top1"] == 1.0
  order = np.random.default_rng(1).permutation(12)
  shuffled = {k: v[order] for k, v in _rows().items()}
  assert region_retrieval.measure(shuffled) == pytest.approx(region_retrieval.measure(_rows()))


def test_chance_is_what_random_embeddings_reach_on_average():
  texts = np.random.default_rng(0).integers(0, 5, 4000)
  rows = _rows(n=4000, d=3, texts=texts)
  # Images that know nothing: each one is nearest to some caption, whichever its own is.
  reached = region_retrieval.measure(rows)["retrieval_top1"]
  chance = region_retrieval.chance(rows)["retrieval_top1"]
  assert chance == pytest.approx(1 / 5)
  # Four standard deviations of a mean of 4,000 coin throws.
  assert abs(reached - chance) < 4 * np.sqrt(0.2 * 0.8 / 4000)


@pytest.mark.parametrize("k", [1, 3, 9, 10, 20])
def test_chance_equals_shuffling_the_candidates(k):
  rng = np.random.default_rng(k)
  own, candidates, tries = [1, 2, 5], 10, 4000
  found = [np.any(rng.permutation(candidates)[:k] < count) for count in own for _ in range(tries)]
  want = _ranks.chance(own, candidates, k)
  assert abs(np.mean(found) - want) <= 4 * np.sqrt(want * (1 - want) / len(found)) + 1e-12


@pytest.mark.parametrize("chunk", [2**25, 40, 1])
@pytest.mark.parametrize("seed", range(3))
def test_recall_with_several_captions_an_image_equals_the_usual_protocol(monkeypatch, seed, chunk):
  """COCO's and Flickr's: any of an image's five is a find, each caption looks for its image."""
  monkeypatch.setattr(_ranks, "_CHUNK", chunk)
  rng = np.random.default_rng(seed)
  counts = rng.integers(1, 6, 14) if seed else np.full(14, 5)
  owner = np.repeat(np.arange(14), counts)
  n = len(owner)
  zimg = _unit(rng.normal(size=(14, 8))).astype(np.float32)
  ztxt = _unit(zimg[owner] + rng.normal(size=(n, 8))).astype(np.float32)
  shuffle = rng.permutation(n)
  got = image_text_retrieval.recall_at(
    zimg, ztxt[shuffle], np.stack([owner[shuffle], np.arange(n)], 1), (1, 5, 10))
  similarity = zimg @ ztxt.T
  for k in (1, 5, 10):
    to_text = [np.any(owner[np.argsort(-similarity[i])[:k]] == i) for i in range(14)]
    to_image = [owner[c] in np.argsort(-similarity[:, c])[:k] for c in range(n)]
    assert 0 < np.mean(to_image)
    assert got[f"image_to_text/recall_at_{k}"] == pytest.approx(np.mean(to_text))
    assert got[f"text_to_image/recall_at_{k}"] == pytest.approx(np.mean(to_image))


@pytest.mark.parametrize("seed", range(3))
def test_captions_that_read_alike_are_one_that_all_their_images_own(seed):
  rows = _rows(seed=seed, texts=SHARED)
  first = [SHARED.index(t) for t in range(9)]
  pairs = np.array([(i, t) for i, t in enumerate(SHARED)])
  got = image_text_retrieval.recall_at(rows["zimg"], rows["ztxt"][first], pairs, (1, 3))
  captions = {t: rows["ztxt"][SHARED.index(t)] for t in range(9)}
  for k in (1, 3):
    to_text = [t in sorted(captions, key=lambda c, i=i: -captions[c] @ rows["zimg"][i])[:k]
               for i, t in enumerate(SHARED)]
    order = {t: sorted(range(12), key=lambda i, t=t: -captions[t] @ rows["zimg"][i])[:k]
             for t in captions}
    to_image = [any(SHARED[i] == t for i in order[t]) for t in captions]
    assert got[f"image_to_text/recall_at_{k}"] == pytest.approx(np.mean(to_text))
    assert got[f"text_to_image/recall_at_{k}"] == pytest.approx(np.mean(to_image))


def test_what_is_no_number_is_no_find():
  """A model that has diverged finds nothing, in retrieval as in classification."""
  nan = np.float32(np.nan)
  scores = np.float32([[nan, nan, nan], [2, nan, 1], [nan, 2, 1], [2, 1, 0]])
  for k in (1, 2, 3):
    found = _ranks.top_k(scores, np.array([0, 0, 1, 0]), k)
    np.testing.assert_array_equal(found, [False, False, False, True])
  zimg, ztxt = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)
  zimg[0] = nan
  pairs = np.stack([np.arange(3)] * 2, axis=1)
  got = image_text_retrieval.recall_at(zimg, ztxt, pairs, (1, 2, 5))
  for k in (1, 2, 5):
    # To image 0 nothing belongs, and it stands before the images of the other captions.
    assert got[f"image_to_text/recall_at_{k}"] == pytest.approx(2 / 3)
    assert got[f"text_to_image/recall_at_{k}"] == pytest.approx(0 if k == 1 else 2 / 3)
  ranks = _ranks.best_ranks(zimg, ztxt, pairs)
  np.testing.assert_array_equal(ranks, [_ranks.NO_RANK, 0, 0])
