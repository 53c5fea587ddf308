"""Which level has a picture, and what is a model asked about it?

The five words are UniQA's and LIQE's. The prompts are ours: those of the paper are not published in
what we could read.
"""

import math
import string
from collections.abc import Sequence

import numpy as np

from input_pipeline.build.durable import BuildError

LEVELS = ("bad", "poor", "fair", "good", "perfect")
GUIDANCE = ("range", "quantile")
PROMPTS = {
  "iqa": (
    "The quality of this picture was rated as {level}. Describe its quality in two or three "
    "sentences that agree with the rating: sharpness or blur, noise, exposure, contrast, colour "
    "balance, and visible artefacts such as those of compression. Say that the quality is {level}. "
    "Do not mention the rating."
  ),
  "iaa": (
    "The aesthetics of this picture were rated as {level}. Describe its aesthetics in two or three "
    "sentences that agree with the rating: subject, composition, light, and how its colours go "
    "together. Say that the aesthetics are {level}. Do not mention the rating."
  ),
}


def levels(scores: Sequence[float], guidance: str = "range") -> list[str]:
  """The level of each score, 0 worst to 1 best.

  Args:
    scores: of all pictures that are described together.
    guidance: "range" cuts the range of scores in five equal parts (a picture of the best fifth of
      the scale is "perfect"); "quantile" cuts the pictures in five equally large parts, by the
      middle of the ranks of those with the same score.

  Raises:
    BuildError: no such guidance.
  """
  if guidance not in GUIDANCE:
    raise BuildError(f"guidance is {guidance!r}, expected {' or '.join(GUIDANCE)}")
  shares = np.asarray(scores, np.float64)
  if guidance == "quantile":
    ordered = np.sort(shares)
    below, up_to = (np.searchsorted(ordered, shares, side=side) for side in ("left", "right"))
    shares = (below + up_to) / 2 / max(len(shares), 1)
  # Scores may lie a little outside of their range. A fifth of a float is not exact: 0.6 is "good".
  numbers = [min(max(math.floor(5 * s + 1e-9), 0), len(LEVELS) - 1) for s in shares.tolist()]
  return [LEVELS[n] for n in numbers]


def fill(prompt: str, level: str | None) -> str:
  """The prompt of a picture; its level may be None where the prompt does not ask for it."""
  return prompt.format(level=level)


def asks_for_level(prompt: str) -> bool:
  """Whether a prompt has `{level}`; raises BuildError for any other name in braces."""
  try:
    names = {name for _, name, _, _ in string.Formatter().parse(prompt) if name is not None}
  except ValueError as error:
    raise BuildError(f"prompt {prompt!r}: {error}; expected {{level}} or no braces") from error
  if names - {"level"}:
    raise BuildError(f"prompt {prompt!r}: has {{{sorted(names - {'level'})[0]}}}; it can name "
                     "{level} only")
  return bool(names)
