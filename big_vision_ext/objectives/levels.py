"""How do similarities of an image to the words for levels of quality become one score?

A readout is data: groups of prompts, in each group some prompts for each level, worst level first,
and the value of each level. Within a group a softmax over all prompts says how much each level is
meant, the score of the group is the expected value, and the score of the image the mean over
groups:

    z = exp(t) <f / |f|, T / |T|>,  p = softmax(z),  score = mean over groups of sum_k p_k value_k

One formula covers UniQA (five levels), its ensemble of four groups, CLIP-IQA (pairs of antonyms
are groups of two levels, 0 and 1), and the words of Q-Align read from CLIP's towers instead of a
language model's logits.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

UNIQA_VALUES = (0.2, 0.4, 0.6, 0.8, 1.0)
LEVELS = ("bad", "poor", "fair", "good", "perfect")


@dataclasses.dataclass(frozen=True)
class Readout:
  """What is asked of an image.

  Attributes:
    groups: of each group, of each level (worst first), its prompts; all groups have as many levels,
      and all levels as many prompts.
    values: of the levels.
  """

  groups: tuple[tuple[tuple[str, ...], ...], ...]
  values: tuple[float, ...]

  def __post_init__(self):
    shapes = {(len(group), len(level)) for group in self.groups for level in group}
    if len(shapes) != 1 or not all(self.shape) or len(self.values) != self.shape[1]:
      raise ValueError(f"prompts with groups of (levels, prompts a level) {sorted(shapes)} and "
                       f"{len(self.values)} values: expected the same for all groups, at least one "
                       "prompt a level, and a value for each level")
    if len(self.values) < 2:
      raise ValueError("prompts with one level only: nothing can be told apart")
    for prompt in self.prompts:
      if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"a prompt is {prompt!r}, expected text")
    for group in self.groups:
      for level in group:
        if any(set(level) & set(other) for other in group if other is not level):
          raise ValueError(
              f"a group has {level[0]!r} for two levels, which no model can tell apart")

  @property
  def shape(self) -> tuple[int, int, int]:
    """Groups, levels, prompts a level."""
    first = self.groups[0] if self.groups else ()
    return len(self.groups), len(first), len(first[0]) if first else 0

  @property
  def prompts(self) -> tuple[str, ...]:
    """All prompts, group after group, level after level: the rows of the text embeddings."""
    return tuple(p for group in self.groups for level in group for p in level)


def _one(*prompts: str) -> tuple[tuple[str, ...], ...]:
  return tuple((prompt,) for prompt in prompts)


def _words(noun: str) -> tuple[tuple[str, ...], ...]:
  return _one(*(f"{level} {noun}" for level in LEVELS))


_ENSEMBLE = (
    _words("image"),
    _one("extremely blurry image", "blurry image", "fair image", "sharp image",
         "extremely sharp image"),
    _one("extremely noisy image", "noisy image", "fair image", "noise-free image",
         "extremely noise-free image"),
    _one("extremely low-quality image", "low-quality image", "fair image", "high-quality image",
         "extremely high-quality image"),
)

READOUTS = {
    # UniQA (arXiv 2406.01069), as released: no template, no full stop.
    "uniqa": Readout((_words("image"),), UNIQA_VALUES),
    "uniqa_ensemble": Readout(_ENSEMBLE, UNIQA_VALUES),
    "uniqa_agiqa": Readout((_words("image"), _words("content")), UNIQA_VALUES),
    # The words that its successor Gamma has for aesthetics, without the scene before them.
    "aesthetics": Readout((_one(*(f"{level}-aesthetics image" for level in LEVELS)),),
                          UNIQA_VALUES),
    # CLIP-IQA (Wang et al. 2023): one pair of antonyms, and the five pairs of pyiqa.
    "clip_iqa": Readout((_one("Bad photo.", "Good photo."),), (0.0, 1.0)),
    "clip_iqa_pairs": Readout((
        _one("Bad image", "Good image"), _one("Blurry image", "Sharp image"),
        _one("blurry edges", "sharp edges"), _one("Low resolution image", "High resolution image"),
        _one("Noisy image", "Noise-free image")), (0.0, 1.0)),
    # The levels and weights of Q-Align (Wu et al. 2024).
    "q_align": Readout((_one(*(f"The quality of the image is {level}." for level in (
        "bad", "poor", "fair", "good", "excellent"))),), (0.0, 0.25, 0.5, 0.75, 1.0)),
}


def read(spec: str | Mapping[str, Any] | Readout) -> Readout:
  """The readout of a setting.

  Args:
    spec: a name in `READOUTS`; {"groups": ..., "values": ...}, where a level is a prompt or a list
      of prompts, worst level first; or a JSON file of that.

  Raises:
    ValueError: no such name or file, or something else in it; the message says what.
  """
  if isinstance(spec, Readout):
    return spec
  where = "prompts"
  if isinstance(spec, str):
    if spec in READOUTS:
      return READOUTS[spec]
    where = f"prompts={spec}"
    spec = _parsed(spec)
  if not isinstance(spec, Mapping) or set(spec) != {"groups", "values"}:
    found = sorted(spec) if isinstance(spec, Mapping) else type(spec).__name__
    raise ValueError(f'{where}: has {found}, expected {{"groups": [[worst, ..., best], ...], '
                     '"values": [number, ...]}')
  try:
    groups = tuple(tuple((level,) if isinstance(level, str) else tuple(level) for level in group)
                   for group in spec["groups"])
    return Readout(groups, tuple(float(v) for v in spec["values"]))
  except (TypeError, ValueError) as error:
    raise ValueError(f"{where}: {error}") from error


def _parsed(path: str) -> Any:
  if not pathlib.Path(path).is_file():
    raise ValueError(f"prompts={path}: is none of {', '.join(READOUTS)}, and no file")
  try:
    return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as error:
    raise ValueError(f"prompts={path}: cannot be read as JSON ({error})") from error


def as_dict(readout: Readout) -> dict[str, Any]:
  """The inverse of `read`, of plain lists."""
  return {"groups": [[list(level) for level in group] for group in readout.groups],
          "values": list(readout.values)}


def score(features: Float[Array, "*b d"], texts: Float[Array, "g k v d"], log_scale: Any,
          values: Float[Array, "k"] | Sequence[float]) -> dict[str, Array]:
  """The score of images and what it is made of, float32.

  Args:
    features: of the images, of any length.
    texts: embeddings of the prompts of g groups of k levels with v prompts each, of any length.
    log_scale: CLIP's logit scale, before the exponential.
    values: of the levels.

  Returns:
    score (*b,); probs (*b, k), the mean over groups of how much each level is meant; by group
    group_score (*b, g) and group_probs (*b, g, k).
  """
  f, t = _unit(features), _unit(texts)
  z = jnp.exp(jnp.float32(log_scale)) * jnp.einsum(
      "...d,gkvd->...gkv", f, t, precision="highest", preferred_element_type=jnp.float32)
  p = jax.nn.softmax(z.reshape(*z.shape[:-2], -1)).reshape(z.shape).sum(-1)
  by_group = jnp.sum(p * jnp.asarray(values, jnp.float32), axis=-1)
  return {"score": by_group.mean(-1), "probs": p.mean(-2), "group_score": by_group,
          "group_probs": p}


def _unit(z):
  z = jnp.asarray(z, jnp.float32)
  square = jnp.sum(z * z, axis=-1, keepdims=True)
  # A vector of zeros stays one, with gradient zero.
  return z * jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1.0)), 0.0)
