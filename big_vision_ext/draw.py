"""What did the model look at, and what did it make of it? Pictures of selections and predictions.

Everything here takes and gives uint8 NumPy images (h, w, 3); boxes are in pixels of the picture.
"""

from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# One colour for each high-resolution scale, coarse to fine, legible on photographs and in print.
SCALE_COLOURS = ((255, 176, 0), (0, 220, 255), (255, 80, 200), (150, 255, 90))
BOX_COLOUR = (40, 255, 60)
_INK, _PAPER = (20, 20, 20), (255, 255, 255)
# Control points of a perceptually ordered map from dark violet to yellow, low to high.
_HEAT = np.array([[13, 8, 60], [96, 10, 140], [180, 40, 110], [240, 110, 50], [250, 230, 80]])


def selection_sheet(image: np.ndarray, features: Mapping[str, np.ndarray], *, name: str,
                    prompt: str | None = None, boxes: np.ndarray | None = None,
                    highlight: int | None = None) -> np.ndarray:
  """The sheet that shows what was looked at: image, score maps, selected patches.

  Args:
    image: (h, w, 3) uint8, of any size but the aspect ratio of the image.
    features: an output of the encoder; see `features.FEATURES`.
    name, prompt: what it is of, for the title.
    boxes: (n, 4) in pixels of `image`, if they are known.
    highlight: the box that the prompt is about.
  """
  boxes = np.zeros((0, 4)) if boxes is None else boxes

  def boxed(picture):
    return draw_boxes(picture, boxes, highlight=highlight) if len(boxes) else picture

  h, w = features["image_size"].tolist()
  panels = {f"image, {w} x {h} px": boxed(image)}
  for kind in ("bottom-up", "top-down"):
    score = features.get(f"score_{kind.replace('-', '')}")
    if score is not None and score.ndim == 3:
      for px, of_scale in zip(features["scales"][1:], score):
        panels[f"{kind} score, {px} px"] = boxed(overlay_score(image, of_scale))
    elif score is not None:
      panels[f"{kind} score"] = boxed(overlay_score(image, score))
  grids = [tuple(g) for g in features["grids"][1:].tolist()]
  scale, index = features["selected_scale"], features["selected_index"]
  selected = [index[scale == i] for i in range(len(grids))]
  total = sum(y * x for y, x in grids)
  panels[f"selected: {len(index)} of {total} patches"] = boxed(
      outline_patches(image, grids, selected))
  legend = {f"{s} px: {len(at)} of {y * x} patches": SCALE_COLOURS[i % len(SCALE_COLOURS)]
            for i, (s, at, (y, x)) in enumerate(zip(features["scales"][1:], selected, grids))}
  if len(boxes):
    legend["annotated box"] = BOX_COLOUR
  title = f"{name}: \"{prompt}\"" if prompt else f"{name} (no prompt: bottom-up)"
  return sheet(panels, title=title, legend=legend)


def reconstruction_sheet(image: np.ndarray, drawn: Mapping[str, np.ndarray], *,
                         name: str) -> np.ndarray:
  """The sheet of a masked model: image, what was visible, the prediction, where the gaze went.

  Args:
    image: (h, w, 3) uint8, of any size but the aspect ratio of the image.
    drawn: `input` and `prediction` (y, x, 3) in 0..255, `hidden` (gy, gx), 1 where predicted,
      `loss`, and perhaps `scanpath` (t, 2), y and x in 0..1, and `surprise` (gy, gx).
    name: what it is of.
  """
  def pixels(key):
    square = np.clip(np.round(drawn[key]), 0, 255).astype(np.uint8)
    # The model had every image squashed to a square: back to its shape.
    return np.asarray(Image.fromarray(square).resize(image.shape[1::-1], Image.NEAREST))

  shown = 1 - float(np.mean(drawn["hidden"] > 0))
  panels = {"image": image, f"visible: {shown:.0%}": pixels("input"),
            f"prediction, loss {float(drawn['loss']):.3f}": pixels("prediction")}
  if "scanpath" in drawn:
    panels["scanpath"] = draw_scanpath(image, drawn["scanpath"])
  if "surprise" in drawn:
    panels["surprise"] = overlay_score(image, drawn["surprise"])
  return sheet(panels, title=name)


def draw_scanpath(image: np.ndarray, path: np.ndarray) -> np.ndarray:
  """Marks fixations (t, 2), y and x in 0..1, with their numbers, and the saccades between them."""
  picture = Image.fromarray(shrink(image, 640) if max(image.shape[:2]) > 640 else np.asarray(
      Image.fromarray(image).resize([640 * s // max(image.shape[:2]) for s in image.shape[1::-1]],
                                    Image.NEAREST)))
  pen = ImageDraw.Draw(picture)
  at = [(float(x) * picture.width, float(y) * picture.height) for y, x in path]
  pen.line(at, fill=BOX_COLOUR, width=3)
  for i, (x, y) in enumerate(at):
    pen.ellipse([x - 7, y - 7, x + 7, y + 7], outline=_INK, fill=BOX_COLOUR)
    _tag(pen, (x + 9, y - 8), str(i + 1), picture.size)
  return np.asarray(picture)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
  """The picture with its longer side at most `side` pixels."""
  h, w = image.shape[:2]
  ratio = min(1.0, side / max(h, w))
  shape = (max(1, round(w * ratio)), max(1, round(h * ratio)))
  return np.asarray(Image.fromarray(image).resize(shape, Image.LANCZOS))


def write_png(image: np.ndarray, file: IO[bytes]) -> None:
  """Writes the picture to an open binary file."""
  Image.fromarray(image).save(file, format="PNG")


def heat(values: np.ndarray) -> np.ndarray:
  """Values in 0..1 of any shape -> uint8 colours of that shape + (3,)."""
  position = np.clip(values, 0, 1) * (len(_HEAT) - 1)
  low = np.minimum(position.astype(int), len(_HEAT) - 2)
  frac = (position - low)[..., None]
  return np.round(_HEAT[low] * (1 - frac) + _HEAT[low + 1] * frac).astype(np.uint8)


def overlay_score(image: np.ndarray, score: np.ndarray, strength: float = 0.6) -> np.ndarray:
  """The picture in grey under a heat map of a coarse score grid.

  Args:
    image: (h, w, 3) uint8.
    score: (gy, gx); stretched from its minimum to its maximum, so that order is what shows.
    strength: share of the heat colour in the result.
  """
  h, w = image.shape[:2]
  span = float(score.max() - score.min())
  unit = (score - score.min()) / span if span > 0 else np.zeros_like(score)
  fine = np.asarray(Image.fromarray(unit.astype(np.float32)).resize((w, h), Image.BILINEAR))
  grey = image.astype(np.float32).mean(-1, keepdims=True)
  return np.round(grey * (1 - strength) + heat(fine) * strength).astype(np.uint8)


def outline_patches(image: np.ndarray, grids: Sequence[tuple[int, int]],
                    selected: Sequence[np.ndarray]) -> np.ndarray:
  """Dims what was not selected and outlines the selected areas, a colour for each scale.

  Args:
    image: (h, w, 3) uint8.
    grids: (rows, columns) of each high-resolution scale, coarse to fine.
    selected: for each scale the flat row-major indices of the selected patches.
  """
  h, w = image.shape[:2]
  masks = []
  for (gy, gx), index in zip(grids, selected):
    mask = np.zeros(gy * gx, bool)
    mask[np.asarray(index, int)] = True
    masks.append(mask.reshape(gy, gx))
  out = image.astype(np.float32)
  lit = np.zeros((h, w), bool)
  for mask in masks:
    lit |= _stretch(mask, h, w)
  out = np.where(lit[..., None], out, out * 0.35 + 40)
  out = np.round(out).astype(np.uint8)
  thick = max(1, round(min(h, w) / 400))
  for i, mask in reversed(list(enumerate(masks))):
    # The finer the scale, the broader its line, which thinner ones of coarser scales then cover in
    # part: where scales end at the same edge, all their colours show side by side.
    _draw_borders(out, mask, SCALE_COLOURS[i % len(SCALE_COLOURS)], (i + 1) * thick)
  return out


def _stretch(mask: np.ndarray, h: int, w: int) -> np.ndarray:
  rows = np.arange(h) * mask.shape[0] // h
  columns = np.arange(w) * mask.shape[1] // w
  return mask[rows][:, columns]


def _draw_borders(image: np.ndarray, mask: np.ndarray, colour, thick: int) -> None:
  """Paints, in place, the edges between selected and unselected patches (inside the former)."""
  h, w = image.shape[:2]
  gy, gx = mask.shape
  ys = np.round(np.arange(gy + 1) * h / gy).astype(int)
  xs = np.round(np.arange(gx + 1) * w / gx).astype(int)
  wide = np.pad(mask, 1)
  for y, x in np.argwhere(mask):
    y0, y1, x0, x1 = ys[y], ys[y + 1], xs[x], xs[x + 1]
    if not wide[y, x + 1]:
      image[y0:y0 + thick, x0:x1] = colour
    if not wide[y + 2, x + 1]:
      image[max(y1 - thick, 0):y1, x0:x1] = colour
    if not wide[y + 1, x]:
      image[y0:y1, x0:x0 + thick] = colour
    if not wide[y + 1, x + 2]:
      image[y0:y1, max(x1 - thick, 0):x1] = colour


def draw_boxes(image: np.ndarray, boxes: np.ndarray, labels: Sequence[str] = (),
               highlight: int | None = None) -> np.ndarray:
  """Outlines boxes (n, 4); the one at `highlight` is thick, the others thin."""
  picture = Image.fromarray(image)
  pen = ImageDraw.Draw(picture)
  unit = max(1, round(min(image.shape[:2]) / 400))
  for i, box in enumerate(np.asarray(boxes, float)):
    width = 3 * unit if highlight == i else unit
    pen.rectangle([float(v) for v in box], outline=BOX_COLOUR, width=width)
    if i < len(labels) and labels[i]:
      _tag(pen, (box[0], box[3] + unit), labels[i], picture.size)
  return np.asarray(picture)


def _tag(pen: ImageDraw.ImageDraw, at, text: str, size) -> None:
  font = ImageFont.load_default(max(11, round(min(size) / 55)))
  left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
  x = min(max(at[0], 0), size[0] - (right - left) - 4)
  y = min(max(at[1], 0), size[1] - (bottom - top) - 6)
  pen.rectangle([x, y, x + right - left + 4, y + bottom - top + 6], fill=_INK)
  pen.text((x + 2 - left, y + 3 - top), text, fill=_PAPER, font=font)


def sheet(panels: Mapping[str, np.ndarray], title: str = "", legend: Mapping[str, tuple] = (),
          side: int = 640) -> np.ndarray:
  """Panels side by side under their names, a title above and colour legend below."""
  gap, head = 12, 24
  font, bold = ImageFont.load_default(15), ImageFont.load_default(18)
  sized = {}
  for name, panel in panels.items():
    picture = Image.fromarray(panel)
    ratio = side / max(picture.size)
    shape = tuple(max(1, round(s * ratio)) for s in picture.size)
    sized[name] = picture.resize(shape, Image.LANCZOS if ratio < 1 else Image.NEAREST)
  width = gap + sum(p.width + gap for p in sized.values())
  lines = _wrap(title, bold, width - 2 * gap)
  top = gap + len(lines) * 24
  height = top + head + max(p.height for p in sized.values()) + (2 * head if legend else gap)
  page = Image.new("RGB", (width, height), _PAPER)
  pen = ImageDraw.Draw(page)
  for i, line in enumerate(lines):
    pen.text((gap, gap // 2 + 24 * i), line, fill=_INK, font=bold)
  x = gap
  for name, picture in sized.items():
    pen.text((x, top), name, fill=_INK, font=font)
    page.paste(picture, (x, top + head))
    x += picture.width + gap
  x = gap
  for name, colour in dict(legend).items():
    y = height - head - 8
    pen.rectangle([x, y + 3, x + 16, y + 17], fill=tuple(colour), outline=_INK)
    pen.text((x + 24, y), name, fill=_INK, font=font)
    x += 24 + int(pen.textlength(name, font=font)) + 28
  return np.asarray(page)


def _wrap(text: str, font, width: int) -> list[str]:
  lines, line = [], ""
  for word in text.split():
    trial = f"{line} {word}".strip()
    if line and font.getlength(trial) > width:
      lines.append(line)
      trial = word
    line = trial
  return lines + [line] if line else lines
