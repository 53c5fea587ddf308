"""What may a config of the task "fixations" say, and what does not fit together?"""

import dataclasses
from typing import Any, Literal

import numpy as np

from big_vision_ext.core import typed
from big_vision_ext.objectives import scanpaths
from big_vision_ext.tasks import _teacher


@dataclasses.dataclass(frozen=True)
class Config:
  """`config.model` of the task "fixations".

  Attributes:
    image: fields of `models.fixations.FixationModel`; `variant` and `image_size` are shorthands.
    windows: sides of what a look shows, in tokens of each scale; or such a tuple for each look.
    looks: number of fixations.
    shape: of a window, see `objectives.glimpses.retina`.
    policy: where to look, one of `objectives.scanpaths.POLICIES`.
    uniform_share: share of looks of the policies "saliency" and "surprise" that go anywhere.
    temperature: of "surprise": the gaze falls on a cell in proportion to error^(1 / temperature).
    saliency: of "saliency": an .npy file with a map (rows, columns), used for every image whose
      batch has no "saliency" of its own.
    predict: "next", what the next look shows anew, or "rest", after the last look all tokens of the
      finest scale that were not shown.
    target: "norm_pix", pixels of a token, normalised by their own mean and deviation; "pix",
      pixels; "residual", their difference to the finest coarser view that was seen; "features",
      what a moving average of the encoder makes of the token when it sees it.
    teacher: how much of itself that moving average keeps at the first step. It is among the
      parameters, as `teacher`, and must be frozen: `config.optim.freeze=("teacher/.*",)`.
    teacher_steps: over so many steps that rises linearly to 1; 0: it stays. The run's length.
    surprise_weight: of the loss of the head that foretells errors, if there is one.
    pool: what evaluators take as the embedding of an image: the class tokens after the last look
      ("cls"), or the mean of all tokens seen ("mean").
  """

  image: dict[str, Any]
  windows: tuple[Any, ...]
  looks: int = 4
  shape: Literal["square", "disc"] = "square"
  policy: Literal["uniform", "centre", "walk", "coverage", "saliency", "surprise"] = "uniform"
  uniform_share: float = 0.2
  temperature: float = 0.5
  saliency: str = ""
  predict: Literal["next", "rest"] = "next"
  target: Literal["norm_pix", "pix", "residual", "features"] = "norm_pix"
  teacher: float = 0.996
  teacher_steps: int = 0
  surprise_weight: float = 1.0
  pool: Literal["cls", "mean"] = "cls"


def windows(c: Config, vision) -> tuple[tuple[int, ...], ...]:
  """Sides of each look at each scale."""
  sides = tuple(c.windows)
  if all(isinstance(side, int) for side in sides):
    sides = (sides,) * c.looks
  scales = len(vision.grids)
  fits = len(sides) == c.looks and all(
      isinstance(w, (tuple, list)) and len(w) == scales and any(w)
      and all(isinstance(side, int) and side >= 0 for side in w) for w in sides)
  if not fits:
    raise typed.ConfigError(
        f"config.model.windows={c.windows!r}: expected {scales} sides in tokens, one for each of "
        f"image.scales, not all 0; or such a tuple for each of looks={c.looks}")
  return tuple(tuple(w) for w in sides)


def check(c: Config, vision, windows) -> None:
  """Raises ConfigError if settings do not fit each other."""
  rows, columns = vision.grids[0]
  surprise = vision.surprise_hidden or c.policy == "surprise"
  finest = max(w[-1] for w in windows)
  wrong = None
  if c.looks < 1 or vision.max_looks < c.looks:
    wrong = f"looks={c.looks}: expected 1 to image.max_looks={vision.max_looks}"
  elif c.predict == "next" and (c.looks < 2 or not vision.causal):
    wrong = (f"predict='next' with looks={c.looks}, image.causal={vision.causal}: expected at "
             "least 2 looks in causal order; or take predict='rest'")
  elif not 0 < finest**2 < np.prod(vision.grids[-1]):
    wrong = (f"windows={c.windows!r}: some look, and none of them all, of the finest scale's "
             f"{vision.grids[-1]} tokens must be shown")
  elif c.policy == "surprise" and not vision.surprise_hidden:
    wrong = "policy='surprise' needs image.surprise_hidden, the width of the head that foretells it"
  elif surprise and (len(vision.grids) < 2 or windows[0][0] < max(rows, columns)):
    wrong = (f"windows={c.windows!r}: surprise is foretold from the coarsest of several scales, "
             f"whose {rows} x {columns} tokens the first look must show")
  elif c.policy == "surprise" and not scanpaths.LEAST_UNIFORM <= c.uniform_share <= 1:
    wrong = (f"uniform_share={c.uniform_share}: of a learned policy at least "
             f"{scanpaths.LEAST_UNIFORM:.0%} of the looks must go anywhere, or what it learns is "
             "true only of where it went")
  elif c.policy == "saliency" and not c.saliency:
    wrong = "policy='saliency' needs saliency, an .npy file with a map (rows, columns)"
  elif c.temperature <= 0:
    wrong = f"temperature={c.temperature}: expected a number above 0"
  elif c.target == "residual" and len(vision.grids) < 2:
    wrong = "target='residual' needs several image.scales; with one, take 'pix'"
  elif c.target == "features" and c.predict == "rest":
    wrong = "target='features' are known of what is looked at: take predict='next'"
  if wrong:
    raise typed.ConfigError(f"config.model.{wrong}")
  _teacher.check(c.teacher, c.teacher_steps, ("teacher", "teacher_steps"))


def saliency(path: str) -> np.ndarray | None:
  """A map (rows, columns) from an .npy file; None without one."""
  if not path:
    return None
  try:
    values = np.load(path, allow_pickle=False)
  except (OSError, ValueError) as error:
    raise typed.ConfigError(f"config.model.saliency={path!r} cannot be read: {error}") from error
  fits = values.ndim == 2 and values.size and np.all(np.isfinite(values)) and values.min() >= 0
  if not fits or not values.any():
    raise typed.ConfigError(
        f"config.model.saliency={path!r} holds {values.dtype}{values.shape}: expected a map "
        "(rows, columns) of finite numbers, none below 0 and some above")
  return values.astype(np.float32)
