"""Which of people's comments say something about a picture? (UniQA, the shape of its eq. 5)

A comment counts by two ranks within its picture's comments: how close it is to the description that
a model gave (relevance), and how long it is (informativeness). The sum of both is the score; the
best K are kept. The published text leaves open how the two are brought to one scale; `NORMS` has
ours, "rank" by default.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from input_pipeline.build.durable import BuildError

Encoder = Callable[[Sequence[str]], Float[np.ndarray, "n d"]]


@dataclasses.dataclass(frozen=True)
class Rules:
  """How comments are chosen.

  Attributes:
    keep: K, how many of a picture.
    norm: one of `NORMS`: how a measure of a picture's comments comes to [0, 1].
    relevance, length: the weights of both.
    least_words: shorter comments are not looked at.
    least_relevance: nor are those of a smaller cosine.
    length_cap: words beyond which a comment is not credited; 0 for no end. CLIP's text tower reads
      77 tokens, so what is longer than some 60 words is never seen.
  """

  keep: int = 5
  norm: str = "rank"
  relevance: float = 1.0
  length: float = 1.0
  least_words: int = 0
  least_relevance: float = -1.0
  length_cap: int = 0

  def __post_init__(self):
    if self.norm not in NORMS:
      raise BuildError(f"norm is {self.norm!r}, expected one of {', '.join(NORMS)}")
    if self.keep < 1 or self.least_words < 0 or self.length_cap < 0:
      raise BuildError(f"keep {self.keep}, least words {self.least_words} and length cap "
                       f"{self.length_cap}: expected 1, 0 and 0 or more")
    if min(self.relevance, self.length) < 0 or self.relevance + self.length == 0:
      raise BuildError(f"weights {self.relevance:g}, {self.length:g}: expected none below zero, "
                       "and one above")


@dataclasses.dataclass(frozen=True)
class Kept:
  """A comment that was kept: its place among its picture's, cosine, words, and the score."""

  place: int
  relevance: float
  words: int
  score: float


@dataclasses.dataclass
class Statistics:
  """What was kept and dropped, over all pictures.

  Attributes:
    pictures: with comments and a description.
    comments: of these.
    kept: of these.
    dropped: the others, by reason.
    lengths: {words: how many} of all comments, and `kept_lengths` of those that were kept.
  """

  pictures: int = 0
  comments: int = 0
  kept: int = 0
  dropped: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  kept_lengths: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def lines(self) -> list[str]:
    """As lines for a person, with a histogram of lengths."""
    share = 100 * self.kept / max(self.comments, 1)
    lines = [f"{self.pictures:,} pictures, {self.comments:,} comments: {self.kept:,} kept "
             f"({share:.1f} %)"]
    if self.dropped:
      lines.append("dropped: " + ", ".join(f"{why} {n:,}" for why, n in self.dropped.items()))
    ends = (3, 6, 12, 25, 50, 77)
    for low, high in zip((0, *ends), (*ends, None)):
      inside = [sum(n for words, n in counts.items() if low < words and (not high or words <= high))
                for counts in (self.lengths, self.kept_lengths)]
      name = f"{low + 1}-{high}" if high else f"over {low}"
      lines.append(f"  {name:>8} words: {inside[0]:>9,} comments, {inside[1]:>9,} kept")
    return lines


def ranks(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
  """0 for the least to 1 for the greatest, equal ones sharing the mean of their places."""
  if len(values) < 2:
    return np.ones(len(values))
  return (stats.rankdata(values) - 1) / (len(values) - 1)


def _minmax(values: np.ndarray) -> np.ndarray:
  spread = np.ptp(values) if len(values) else 0
  return (values - values.min()) / spread if spread > 0 else np.ones(len(values))


def _softmax(values: np.ndarray) -> np.ndarray:
  powers = np.exp(values - values.max(initial=-np.inf))
  return powers / powers.sum()


NORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  "rank": ranks, "minmax": _minmax, "softmax": _softmax,
}


def choose(
  comments: Sequence[str], relevance: Float[np.ndarray, "n"], rules: Rules, counts: Statistics
) -> list[Kept]:
  """The comments of one picture that are kept, best first; equals in their own order.

  Args:
    comments: n of them.
    relevance: the cosine of each with the description.
    rules: how.
    counts: to add to.
  """
  words = np.array([len(comment.split()) for comment in comments], np.int64)
  counts.pictures += 1
  counts.comments += len(comments)
  counts.lengths.update(words.tolist())
  fit = []
  for place in range(len(comments)):
    if words[place] < max(rules.least_words, 1):
      counts.dropped["too-few-words"] += 1
    elif not relevance[place] >= rules.least_relevance:
      counts.dropped["too-little-relevance"] += 1
    else:
      fit.append(place)
  chosen = np.array(fit, np.int64)
  norm = NORMS[rules.norm]
  credited = words[chosen]
  if rules.length_cap:
    credited = np.minimum(credited, rules.length_cap)
  score = rules.relevance * norm(np.asarray(relevance, np.float64)[chosen]) + (
    rules.length * norm(credited.astype(np.float64)))
  order = np.argsort(-score, kind="stable")
  best = order[: rules.keep]
  if len(order) > len(best):
    counts.dropped["beyond-the-best"] += len(order) - len(best)
  counts.kept += len(best)
  counts.kept_lengths.update(words[chosen[best]].tolist())
  return [
    Kept(int(chosen[k]), float(relevance[chosen[k]]), int(words[chosen[k]]), float(score[k]))
    for k in best
  ]


def purify(
  pictures: Iterable[tuple[str, str, Sequence[str]]],
  encoder: Encoder,
  rules: Rules,
  counts: Statistics,
  *,
  at_once: int = 256,
) -> Iterator[tuple[str, list[str], list[Kept]]]:
  """Chooses the comments of many pictures.

  Args:
    pictures: (id, description, comments) of each.
    encoder: texts -> vectors, of any length above zero.
    rules: how.
    counts: to add to.
    at_once: pictures whose texts are encoded together.

  Yields:
    (id, comments, those that are kept) of each picture with comments.

  Raises:
    BuildError: vectors that are not one for each text, or not finite.
  """
  group: list[tuple[str, str, Sequence[str]]] = []
  for picture in pictures:
    if picture[2]:
      group.append(picture)
    if len(group) == at_once:
      yield from _purified(group, encoder, rules, counts)
      group = []
  yield from _purified(group, encoder, rules, counts)


def _purified(group, encoder, rules, counts) -> Iterator[tuple[str, list[str], list[Kept]]]:
  texts = list(dict.fromkeys(text for _, said, comments in group for text in (said, *comments)))
  if not texts:
    return
  vectors = np.asarray(encoder(texts), np.float64)
  if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
    raise BuildError(f"the encoder gave an array of shape {vectors.shape} for {len(texts)} texts; "
                     "expected a row of finite numbers for each")
  lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
  # A text of no known word has no direction: it is like nothing.
  units = vectors / np.where(lengths > 0, lengths, 1)
  row = {text: k for k, text in enumerate(texts)}
  for name, said, comments in group:
    cosines = units[[row[c] for c in comments]] @ units[row[said]]
    yield name, list(comments), choose(comments, cosines, rules, counts)
