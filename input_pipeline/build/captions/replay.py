"""How are pictures described as before? By a file of descriptions: same picture, same prompt."""

import hashlib
from collections.abc import Sequence

from input_pipeline.build.captions import caption_file
from input_pipeline.build.captions.captioner import CaptionerError, Unanswered


class ReplayCaptioner:
  """Repeats what a file says; see `captioner.Captioner`.

  Args:
    path: file of descriptions with "image" and "prompt", as `describe` writes it.

  Raises:
    BuildError: the file cannot be read.
    CaptionerError: it does not say of which pictures it speaks.
  """

  batch, calls = 64, 1

  def __init__(self, path: str):
    self._path = path
    self._texts = {
      (line["image"], line["prompt"]): line["text"]
      for line in caption_file.read_lines(path) if "image" in line and "prompt" in line
    }
    if not self._texts:
      raise CaptionerError(
        f"{path}: no line has 'image' and 'prompt', by which to find an answer again. Captions "
        "known by their ids need no captioner: build --from described takes the file as it is"
      )
    self.name = f"replay of {len(self._texts)}"

  def describe(self, images: Sequence[bytes], prompts: Sequence[str]) -> list[str]:
    answers = []
    for data, prompt in zip(images, prompts, strict=True):
      key = hashlib.sha256(data).hexdigest(), prompt
      if key not in self._texts:
        raise Unanswered(
          "not-in-replay", f"{self._path} has no answer to {prompt[:60]!r} for it", final=True)
      answers.append(self._texts[key])
    return answers
