"""What turns texts into vectors, for purification? Named in one word on the command line.

- `import:PACKAGE.MODULE:FUNCTION`: any function of a list of texts that returns their vectors: a
  text tower or a sentence encoder of yours.
- `npz:FILE`: vectors made elsewhere: arrays `texts` (n,) and `x` (n, d).
- `tfidf`: words, weighted by how rare they are among the texts of a few hundred pictures. It knows
  no meaning; for tests and for a first look.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from input_pipeline.build.captions.purify import Encoder
from input_pipeline.build.durable import BuildError


def make(name: str) -> Encoder:
  """The encoder of a name; raises BuildError if there is none."""
  kind, _, rest = name.partition(":")
  if kind == "tfidf" and not rest:
    return tfidf
  if kind == "npz" and rest:
    return _stored(rest)
  if kind == "import" and rest.count(":") == 1:
    return _imported(*rest.split(":"))
  raise BuildError(f"--encoder {name}: expected import:PACKAGE.MODULE:FUNCTION, npz:FILE or tfidf")


def tfidf(texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
  """Vectors of the words of texts."""
  from sklearn.feature_extraction import text  # Only here: other encoders do without.

  try:
    return text.TfidfVectorizer(stop_words="english").fit_transform(texts).toarray()
  except ValueError:  # Only stop words: nothing to compare.
    return np.zeros((len(texts), 1))


def _stored(path: str) -> Encoder:
  try:
    with np.load(path, allow_pickle=False) as file:
      texts, x = file["texts"], np.asarray(file["x"], np.float32)
  except (OSError, ValueError, KeyError) as error:
    raise BuildError(f"{path}: cannot be read as vectors ({error}); expected an npz with 'texts' "
                     "(n,) and 'x' (n, d)") from error
  if x.ndim != 2 or texts.shape != x.shape[:1]:
    raise BuildError(f"{path}: 'texts' has shape {texts.shape}, 'x' {x.shape}; expected (n,) and "
                     "(n, d)")
  row = {str(text): k for k, text in enumerate(texts)}

  def encode(asked: Sequence[str]) -> np.ndarray:
    if missing := [text for text in asked if text not in row]:
      raise BuildError(f"{path}: has no vector of {missing[0][:80]!r}, nor of {len(missing) - 1} "
                       "other texts")
    return x[[row[text] for text in asked]]

  return encode


def _imported(module: str, name: str) -> Encoder:
  try:
    found: Any = getattr(importlib.import_module(module), name)
  except (ImportError, AttributeError) as error:
    raise BuildError(f"--encoder import:{module}:{name}: {error}") from error
  if not callable(found):
    raise BuildError(f"--encoder import:{module}:{name}: is {type(found).__name__}, expected a "
                     "function of a list of texts")
  return found
