"""What does a folder of rated pictures look like, from the best to the worst? A contact sheet."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_INK, _FAINT, _PAPER = (20, 20, 20), (120, 120, 120), (255, 255, 255)
# Worst to best: legible side by side, also by those who do not tell red from green.
_LEVELS = ((165, 30, 45), (235, 120, 60), (235, 210, 110), (110, 175, 215), (30, 85, 165))
_SIDE, _GAP, _TEXT = 200, 16, 62


def sheet(pictures: Sequence[np.ndarray], lines: Sequence[tuple[str, str]],
          levels: Sequence[Sequence[float]], words: Sequence[str], *, title: str,
          subtitle: str = "") -> np.ndarray:
  """Pictures in the order they are given, row by row, each with its level bar and two lines.

  Args:
    pictures: (h, w, 3) uint8, shown at most 200 pixels wide and tall.
    lines: of each, what stands below it: scores, and its name.
    levels: of each, shares of the levels, worst first.
    words: names of the levels, for the legend.
    title, subtitle: above all.
  """
  count = len(pictures)
  columns = max(1, min(8, round((count * 1.6) ** 0.5)))
  rows = -(-count // columns)
  bold, font, small = (ImageFont.load_default(size) for size in (20, 15, 13))
  # A narrow sheet still has to hold its legend.
  width = max(_GAP + columns * (_SIDE + _GAP), 620)
  top = 76
  page = Image.new("RGB", (width, top + rows * (_SIDE + _TEXT + _GAP) + 34), _PAPER)
  pen = ImageDraw.Draw(page)
  pen.text((_GAP, 12), _fit(title, bold, width - 2 * _GAP), fill=_INK, font=bold)
  pen.text((_GAP, 42), _fit(subtitle, font, width - 2 * _GAP), fill=_FAINT, font=font)
  colours = level_colours(len(words))
  for i, (picture, (scores, name), shares) in enumerate(zip(pictures, lines, levels)):
    x = _GAP + i % columns * (_SIDE + _GAP)
    y = top + i // columns * (_SIDE + _TEXT + _GAP)
    small_picture = Image.fromarray(picture)
    ratio = _SIDE / max(small_picture.size)
    size = tuple(max(1, round(s * ratio)) for s in small_picture.size)
    method = Image.Resampling.LANCZOS if ratio < 1 else Image.Resampling.NEAREST
    # On the line of its text, whatever its shape.
    small_picture = small_picture.resize(size, method)
    page.paste(small_picture, (x + (_SIDE - size[0]) // 2, y + _SIDE - size[1]))
    bar(pen, (x, y + _SIDE + 5, _SIDE, 8), shares, colours)
    pen.text((x, y + _SIDE + 17), _fit(scores, font, _SIDE), fill=_INK, font=font)
    pen.text((x, y + _SIDE + 37), _fit(name, small, _SIDE, middle=True), fill=_FAINT, font=small)
  x, y = _GAP, page.height - 30
  for word, colour in zip(words, colours):
    pen.rectangle([x, y + 3, x + 14, y + 15], fill=colour)
    pen.text((x + 20, y), word, fill=_INK, font=font)
    x += 20 + int(pen.textlength(word, font=font)) + 24
  return np.asarray(page)


def bar(pen: ImageDraw.ImageDraw, place: tuple[int, int, int, int], shares: Sequence[float],
        colours: Sequence[tuple]) -> None:
  """Draws shares that add up to one side by side in a box (x, y, width, height)."""
  x, y, width, height = place
  ends = np.round(np.cumsum(shares) / max(np.sum(shares), 1e-12) * width).astype(int)
  for start, end, colour in zip((0, *ends[:-1]), ends, colours):
    if end > start:
      pen.rectangle([x + int(start), y, x + int(end) - 1, y + height - 1], fill=colour)


def level_colours(count: int) -> list[tuple[int, int, int]]:
  """A colour for each of so many levels, worst to best."""
  table, at = np.array(_LEVELS, float), np.linspace(0, len(_LEVELS) - 1, count)
  return [tuple(int(round(np.interp(p, range(len(table)), table[:, c]))) for c in range(3))
          for p in at]


def chosen(count: int, most: int) -> list[int]:
  """Which of so many ranks are shown: all, or as many as fit, evenly, the first and last among."""
  if count <= most:
    return list(range(count))
  return np.unique(np.round(np.linspace(0, count - 1, most)).astype(int)).tolist()


def _fit(text: str, font, width: int, middle: bool = False) -> str:
  """The text, cut at its end or in its middle where it is too wide."""
  if font.getlength(text) <= width:
    return text
  for keep in range(len(text) - 1, 0, -1):
    head = (keep + 1) // 2 if middle else keep
    short = f"{text[:head]}...{text[len(text) - (keep - head):] if keep > head else ''}"
    if font.getlength(short) <= width:
      return short
  return ""
