"""Who describes pictures, and what may go wrong with an answer?"""

import re
from collections.abc import Sequence
from typing import Protocol

from input_pipeline.build.durable import BuildError


class Unanswered(Exception):
  """One picture was not described.

  Attributes:
    reason: the short word it is counted under.
    detail: a sentence about this picture.
    final: asking again would give the same.
  """

  def __init__(self, reason: str, detail: str = "", *, final: bool = False):
    super().__init__(f"{reason}: {detail}" if detail else reason)
    self.reason, self.detail, self.final = reason, detail, final


class CaptionerError(BuildError):
  """Nothing will be described: the service is gone, a package is missing, a key is refused."""


class Captioner(Protocol):
  """Something that describes pictures.

  Attributes:
    name: what the answers depend on besides picture and prompt: the backend, the model, its
      settings.
    batch: how many pictures are best given at once.
    calls: how many calls may run at the same time.
  """

  name: str
  batch: int
  calls: int

  def describe(self, images: Sequence[bytes], prompts: Sequence[str]) -> list[str]:
    """Describes pictures.

    Args:
      images: encoded files (JPEG, PNG, WebP).
      prompts: what to say about each.

    Returns:
      an answer each.

    Raises:
      Unanswered: no answer to a call with a single picture.
      CaptionerError: no call will be answered.
    """
    ...


# How models begin an answer that is none.
_REFUSALS = re.compile(
  r"^\W*(i'?m (very )?sorry|i am (very )?sorry|sorry,|i apologi[sz]e|i can(no|')t\b|i cannot\b|"
  r"i can not\b|i'?m (not able|unable)|i am (not able|unable)|as an ai\b|unfortunately, i)",
  re.IGNORECASE,
)


def checked(answer: str) -> str:
  """An answer without outer blanks; raises Unanswered for an empty one and for a refusal."""
  text = " ".join(answer.split()) if isinstance(answer, str) else ""
  if not re.search(r"\w", text):
    raise Unanswered("empty", "the answer has no words")
  if _REFUSALS.match(text.replace("\u2019", "'")):
    raise Unanswered("refused", text[:120])
  return text
