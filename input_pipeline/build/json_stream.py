"""How is a JSON file of a gigabyte read without holding it in memory?

Annotation files are one array of records, or one object whose long values are such arrays. The
elements are parsed one at a time by the standard library's own scanner; at any time only a few
megabytes of text are held.
"""

import json
import os
from collections.abc import Iterator
from typing import Any, TextIO

from input_pipeline.build.durable import BuildError

_CHUNK = 1 << 20
_BLANK = " \t\r\n"
# An unfinished literal or escape is noticed at its start: at most so far from the end.
_LONGEST_TOKEN = 16


def iterate(path: str | os.PathLike) -> Iterator[tuple[str | None, Any]]:
  """Yields (None, element) of a top-level array, or (key, element) of an object's values.

  An array under a key yields its elements one by one, anything else is one element. Bytes that
  are not UTF-8 arrive as lone surrogates, so that only the text they are in is lost.

  Raises:
    BuildError: no such file, not JSON, or cut off in the middle.
  """
  try:
    # "utf-8-sig" forgives the mark some Windows programs put in front.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
      yield from _Scanner(file, os.fspath(path)).document()
  except OSError as error:
    raise BuildError(f"{os.fspath(path)}: cannot be read ({error.strerror})") from error


class _Scanner:
  """A window on the text, and the position in it."""

  def __init__(self, file: TextIO, path: str):
    self._file = file
    self._path = path
    self._decoder = json.JSONDecoder()
    self._text = ""
    self._at = 0
    self._before = 0  # Characters that have left the window.

  def document(self) -> Iterator[tuple[str | None, Any]]:
    opening = self._take("[{")
    if opening == "[":
      yield from ((None, element) for element in self._elements())
    else:
      yield from self._members()
    if self._peek():
      self._fail("text after the end of the document")

  def _members(self) -> Iterator[tuple[str, Any]]:
    if self._peek() == "}":
      self._take("}")
      return
    while True:
      if self._peek() != '"':
        self._fail("expected a key in quotes")
      key = self._value()
      self._take(":")
      if self._peek() == "[":
        self._take("[")
        yield from ((key, element) for element in self._elements())
      else:
        yield key, self._value()
      if self._take(",}") == "}":
        return

  def _elements(self) -> Iterator[Any]:
    if self._peek() == "]":
      self._take("]")
      return
    while True:
      yield self._value()
      if self._take(",]") == "]":
        return

  def _value(self) -> Any:
    self._peek()
    while True:
      try:
        value, end = self._decoder.raw_decode(self._text, self._at)
      except json.JSONDecodeError as error:
        cut = error.pos >= len(self._text) - _LONGEST_TOKEN or "Unterminated" in error.msg
        if cut and self._more():
          continue
        self._at = error.pos
        self._fail(error.msg, ended=cut)
      # A number near the end of the window may go on behind it: "1.", "1e-".
      if len(self._text) - end < 3 and self._more():
        continue
      self._at = end
      return value

  def _take(self, choices: str) -> str:
    found = self._peek()
    if not found or found not in choices:
      self._fail(f"expected {' or '.join(choices)}")
    self._at += 1
    return found

  def _peek(self) -> str:
    """The next character that is not blank, or "" at the end."""
    while True:
      while self._at < len(self._text):
        if self._text[self._at] not in _BLANK:
          return self._text[self._at]
        self._at += 1
      if not self._more():
        return ""

  def _more(self) -> bool:
    # Doubling with what is held keeps a huge element from being parsed over and over.
    chunk = self._file.read(max(_CHUNK, len(self._text) - self._at))
    if not chunk:
      return False
    self._before += self._at
    self._text = self._text[self._at:] + chunk
    self._at = 0
    return True

  def _fail(self, message: str, ended: bool = False):
    ended = ended or (self._at >= len(self._text) and not self._file.read(1))
    hint = " The file ends there: was it cut off while downloading?" if ended else ""
    raise BuildError(
      f"{self._path}: not valid JSON at character {self._before + self._at:,}: {message}.{hint}"
    )
