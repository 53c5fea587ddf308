"""The comments that are kept are those the formula says, counted by hand."""

import numpy as np
import pytest

from input_pipeline.build.captions import encoders, purify
from input_pipeline.build.captions.purify import Rules, Statistics

# Words 2, 5, 3, 1, 5; relevance tied between the second and the last.
COMMENTS = ["nice shot", "the light falls very softly", "great sharp eyes", "wow",
            "my dog has one too"]
RELEVANCE = np.array([0.3, 0.8, 0.9, 0.1, 0.8])


def places(counts=None, cosines=RELEVANCE, comments=COMMENTS, **rules):
  kept = purify.choose(comments, cosines, Rules(**rules), counts or Statistics())
  return [k.place for k in kept], [round(k.score, 6) for k in kept]


def test_ranks_within_the_picture_are_added_ties_averaged_and_kept_in_order():
  # Ranks of relevance 1, 2.5, 4, 0, 2.5 of 4; of words 1, 3.5, 2, 0, 3.5 of 4.
  assert places() == ([1, 2, 4, 0, 3], [1.5, 1.5, 1.5, 0.5, 0])
  assert places(keep=2)[0] == [1, 2]


def test_weights_decide():
  assert places(length=0)[0] == [2, 1, 4, 0, 3]
  assert places(relevance=0, keep=3)[0] == [1, 4, 2]


def test_the_other_norms_by_hand():
  order, scores = places(norm="minmax", keep=3)
  assert order == [1, 4, 2] and scores == [1.875, 1.875, 1.5]
  order, scores = places(norm="softmax", keep=5)
  relevance = np.exp(RELEVANCE) / np.exp(RELEVANCE).sum()
  words = np.exp([2, 5, 3, 1, 5]) / np.exp([2, 5, 3, 1, 5]).sum()
  assert order == [1, 4, 2, 0, 3]
  np.testing.assert_allclose(scores, (relevance + words)[order], atol=1e-6)  # Rounded above.


def test_a_cap_takes_credit_from_rambling():
  comments = ["a b c d e f g h", "p q r", "x y z"]
  cosines = np.array([0.1, 0.2, 0.3])
  assert places(comments=comments, cosines=cosines)[0][0] == 2
  assert places(comments=comments, cosines=cosines)[1] == [1.25, 1.0, 0.75]
  order, scores = places(comments=comments, cosines=cosines, length_cap=3)
  assert order == [2, 1, 0] and scores == [1.5, 1.0, 0.5]


def test_what_is_dropped_is_counted_by_reason():
  counts = Statistics()
  kept, _ = places(counts, least_words=2, least_relevance=0.5, keep=2)
  # Ranks among the three that are left: relevance 0.25, 1, 0.25; words 0.75, 0, 0.75.
  assert kept == [1, 2]
  assert counts.dropped == {"too-few-words": 1, "too-little-relevance": 1, "beyond-the-best": 1}
  assert (counts.pictures, counts.comments, counts.kept) == (1, 5, 2)
  assert counts.lengths == {2: 1, 5: 2, 3: 1, 1: 1} and counts.kept_lengths == {5: 1, 3: 1}
  text = "\n".join(counts.lines())
  assert "5 comments: 2 kept (40.0 %)" in text and "beyond-the-best 1" in text


def test_a_single_comment_and_none_are_no_trouble():
  assert places(comments=["one two"], cosines=np.array([0.2])) == ([0], [2.0])
  assert places(comments=["one"], cosines=np.array([0.2]), least_words=2) == ([], [])


def test_relevance_is_the_cosine_of_whatever_encodes():
  vectors = {"said": [2, 0], "along": [3, 0], "across": [0, 1], "against": [-1, 0],
             "nothing": [0, 0]}
  encode = lambda texts: np.array([vectors[t] for t in texts], np.float32)
  found = list(purify.purify(
    [("1", "said", ["across", "along", "nothing", "against"]), ("2", "along", ["said"]),
     ("3", "said", [])],
    encode, Rules(length=0), Statistics(), at_once=1))
  assert [name for name, _, _ in found] == ["1", "2"]
  _, comments, kept = found[0]
  assert [comments[k.place] for k in kept] == ["along", "across", "nothing", "against"]
  assert [k.relevance for k in kept] == [1, 0, 0, -1]
  with pytest.raises(ValueError, match=r"shape \(1, 2\) for 2 texts"):
    list(purify.purify([("1", "a", ["b"])], lambda t: np.ones((1, 2)), Rules(), Statistics()))


@pytest.mark.parametrize("rules, words", [
  ({"keep": 0}, "keep 0"), ({"norm": "zscore"}, "rank, minmax, softmax"),
  ({"relevance": 0, "length": 0}, "above"), ({"relevance": -1}, "below zero"),
])
def test_rules_that_cannot_be_followed_are_refused(rules, words):
  with pytest.raises(ValueError, match=words):
    Rules(**rules)


def test_encoders_are_named_imported_or_read(tmp_path):
  np.savez(tmp_path / "v.npz", texts=np.array(["a", "b"]), x=np.eye(2))
  stored = encoders.make(f"npz:{tmp_path / 'v.npz'}")
  np.testing.assert_array_equal(stored(["b", "a", "b"]), np.eye(2)[[1, 0, 1]])
  with pytest.raises(ValueError, match="'c'"):
    stored(["a", "c"])
  assert encoders.make("import:builtins:len")("abc") == 3
  texts = ["sharp light falls", "falls", "dog"]
  vectors = encoders.make("tfidf")(texts)
  assert vectors[0] @ vectors[1] > 0.3 > 1e-9 > abs(vectors[0] @ vectors[2])
  assert encoders.tfidf(["the", "of the"]).shape[0] == 2
  for wrong in ("clip", "npz:", "import:builtins", "import:builtins:nothing", "import:no.such:x",
                f"npz:{tmp_path / 'none.npz'}"):
    with pytest.raises(ValueError):
      encoders.make(wrong)
