"""How is a picture described without a model? By its level, and what can be measured of it.

For tests, the demo, and for learning where labels are all there is. The same picture and prompt
give the same words. Prompts are `TASK LEVEL`, as "iqa good".
"""

import hashlib
from collections.abc import Sequence

from input_pipeline import images as images_lib
from input_pipeline.build.captions import prompts as prompts_lib
from input_pipeline.build.captions.captioner import CaptionerError, Unanswered
from input_pipeline.build.captions.measures import Measures, measure

PROMPTS = {task: f"{task} {{level}}" for task in ("iqa", "iaa")}
_VERSION = 1
_FRAMES = {
  "iqa": (
    ("{level} image", ", "),
    ("a picture of {level} quality", ", "),
    ("an image of {level} quality", " that is "),
  ),
  "iaa": (
    ("a picture of {level} aesthetics", ", "),
    ("an image with {level} aesthetics", " that is "),
    ("a photo that looks {level}", ", "),
  ),
}
# Words, and up to which value each holds. The thresholds are ours.
_SCALES = {
  "sharpness": ((15, "extremely blurry"), (120, "blurry"), (1500, "sharp"),
                (float("inf"), "extremely sharp")),
  "noise": ((1.5, "noise-free"), (6, "slightly noisy"), (18, "noisy"),
            (float("inf"), "extremely noisy")),
  "luma": ((45, "very dark"), (85, "dark"), (170, "well lit"), (210, "bright"),
           (float("inf"), "overexposed")),
  "contrast": ((18, "flat"), (45, "of moderate contrast"), (float("inf"), "of high contrast")),
  "colourfulness": ((6, "without colour"), (20, "pale"), (60, "colourful"),
                    (float("inf"), "very colourful")),
}
_BLOCKY = 1.5
_LOOKS = {
  "iqa": ("sharpness", "noise", "luma", "contrast", "colourfulness"),
  "iaa": ("luma", "contrast", "colourfulness"),
}


class TemplateCaptioner:
  """Describes by level and measurements; see `captioner.Captioner`."""

  batch, calls = 8, 1
  name = f"template {_VERSION}"

  def describe(self, images: Sequence[bytes], prompts: Sequence[str]) -> list[str]:
    return [self._describe(data, prompt) for data, prompt in zip(images, prompts, strict=True)]

  def _describe(self, data: bytes, prompt: str) -> str:
    task, _, level = prompt.partition(" ")
    if task not in _FRAMES or level not in prompts_lib.LEVELS:
      raise CaptionerError(
        f"the template's prompt is {prompt!r}, expected one of {', '.join(_FRAMES)} and one of "
        f"{', '.join(prompts_lib.LEVELS)}, as in 'iqa {{level}}'"
      )
    try:
      found = measure(images_lib.decode_image(data))
    except images_lib.ImageError as error:
      raise Unanswered(error.reason, str(error), final=True) from error
    return text(task, level, found, hashlib.sha256(data).digest()[0])


def text(task: str, level: str, found: Measures | None, variant: int = 0) -> str:
  """A description of a picture.

  Args:
    task: "iqa" or "iaa".
    level: one of `prompts.LEVELS`.
    found: what was measured; None for a description by its level alone.
    variant: chooses the words around it.
  """
  frame, then = _FRAMES[task][variant % len(_FRAMES[task])]
  begin = frame.format(level=level)
  if found is None:
    return begin
  looks = [word(name, getattr(found, name)) for name in _LOOKS[task]]
  if task == "iqa" and found.blockiness > _BLOCKY:
    looks.append("with blocks of compression")
  return f"{begin}{then}{', '.join(looks[:-1])} and {looks[-1]}"


def word(name: str, value: float) -> str:
  """The word for a measured value."""
  return next(words for limit, words in _SCALES[name] if value <= limit)
