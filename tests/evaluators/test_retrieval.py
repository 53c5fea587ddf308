"""Retrieval measures, against counting by hand."""

import numpy as np
import pytest

from big_vision_ext.evaluators import image_text_retrieval, region_retrieval


def _rows(n=12, d=6, seed=0, texts=None):
  rng = np.random.default_rng(seed)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  texts = np.arange(n) if texts is None else np.asarray(texts)
  captions = unit(rng.normal(size=(n, d)))
  return {
    "text": np.stack([texts, texts * 3 + 1], axis=1).astype(np.int32),
    # Equal texts have equal embeddings, as a text tower gives them.
    "ztxt": captions[[np.flatnonzero(texts == t)[0] for t in texts]],
    "zimg": unit(rng.normal(size=(n, d))),
    "recall": rng.uniform(size=n),
    "budget_share": np.full(n, 0.25),
    "index": np.arange(n),
  }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("texts", [None, [0, 1, 0, 2, 2, 3, 4, 5, 6, 0, 7, 8]])
def test_region_top1_equals_a_loop_over_the_regions(seed, texts):
  rows = _rows(seed=seed, texts=texts)
  hits = 0
  for i in range(12):
    scores = [float(rows["zimg"][i] @ z) for z in rows["ztxt"]]
    best = int(np.argmax(scores))
    hits += tuple(rows["text"][best]) == tuple(rows["text"][i])
  assert region_retrieval.measure(rows)["retrieval_top1"] == pytest.approx(hits / 12)


def test_region_top10_counts_captions_not_regions_and_ties_are_no_finds():
  rows = _rows(n=30, d=4)
  ranks = [sorted(range(30), key=lambda c, i=i: -rows["ztxt"][c] @ rows["zimg"][i]).index(i)
           for i in range(30)]
  got = region_retrieval.measure(rows)["retrieval_top10"]
  assert got == pytest.approx(np.mean(np.array(ranks) < 10))
  # A model that says the same of everything has found nothing.
  rows["zimg"][:] = rows["ztxt"][:] = 0.5
  assert region_retrieval.measure(rows)["retrieval_top10"] == 0.0


def test_region_measures_are_perfect_for_a_perfect_model_and_do_not_depend_on_the_order():
  rows = _rows(texts=[0, 1, 0, 2, 2, 3, 4, 5, 6, 0, 7, 8])
  rows["zimg"] = rows["ztxt"]
  assert region_retrieval.measure(rows)["retrieval_top1"] == 1.0
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


@pytest.mark.parametrize("seed", range(5))
def test_whole_image_recall_equals_sorting_the_candidates(seed):
  texts = [0, 1, 0, 2, 2, 3, 4, 5, 6, 0, 7, 8]
  rows = _rows(seed=seed, texts=texts)
  got = image_text_retrieval.recall_at(rows, (1, 3))
  unique = sorted(set(texts))
  captions = {t: rows["ztxt"][texts.index(t)] for t in unique}
  for k in (1, 3):
    to_text = [t in sorted(unique, key=lambda c, i=i: -captions[c] @ rows["zimg"][i])[:k]
               for i, t in enumerate(texts)]
    order = {t: sorted(range(12), key=lambda i, t=t: -captions[t] @ rows["zimg"][i])[:k]
             for t in unique}
    to_image = [any(texts[i] == t for i in order[t]) for t in unique]
    assert got[f"image_to_text/recall_at_{k}"] == pytest.approx(np.mean(to_text))
    assert got[f"text_to_image/recall_at_{k}"] == pytest.approx(np.mean(to_image))
