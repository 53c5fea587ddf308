"""What lies on the sample canvases: how are tags, their captions and the decoys made?

All sizes here are in *units*: pixels of the canvas squashed to 768 x 768, the sample data's top
scale, taken as the geometric mean of both directions. The low-resolution scale, 96, is eight times
smaller: there a tag is 4 pixels wide, enough for its colour, and a digit of 15 units is
less than 2 pixels high, too little for its shape. At the top scale it loses nothing: the digits
were scanned to a grid of 8 x 8.
"""

import dataclasses

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from input_pipeline.build import sample_glyphs, sample_photos

TOP_SCALE, LOW_SCALE = 768, 96

# Height of a digit, and of the capitals of a word.
DIGIT_HEIGHT = (14.5, 16.3)
CAP_HEIGHT = (17.0, 19.0)
_DIGIT_TAG = (28.0, 36.0)
DIGIT_SHARE = 0.7

TAG_COLOURS = {
  "white": (246, 244, 238),
  "yellow": (248, 215, 60),
  "orange": (242, 145, 45),
  "pink": (248, 172, 196),
  "red": (196, 38, 42),
  "green": (34, 122, 62),
  "blue": (40, 88, 186),
  "purple": (112, 56, 150),
  "turquoise": (70, 200, 196),
  "black": (30, 30, 34),
}
INK_COLOURS = {
  "black": (18, 18, 22),
  "white": (250, 250, 246),
  "red": (182, 16, 28),
  "green": (10, 92, 42),
  "blue": (18, 44, 162),
  "purple": (94, 24, 134),
  "yellow": (252, 226, 80),
}
_COLOUR_JITTER = 10
_SUPERSAMPLE = 1.5
# Ratio of the luminances of tag and ink as WCAG 2 defines it; its bar for large text is 3.
MIN_CONTRAST = 3.0

# The noun names the shape: rectangle, rounded rectangle, ellipse.
_SHAPES = ("label", "tag", "sticker")

_DIGIT_CAPTIONS = (
  "a handwritten {content} in {ink} on {tag} {shape}",
  "the handwritten digit {content}, written in {ink} on {tag} {shape}",
  "{tag} {shape} with a handwritten {content} in {ink}",
)
_WORD_CAPTIONS = (
  "the word {content} printed in {ink} on {tag} {shape}",
  "{tag} {shape} with the word {content} in {ink}",
  "the printed word {content}, in {ink} on {tag} {shape}",
)


def luminance(rgb: tuple[int, int, int]) -> float:
  """Relative luminance of a colour of 0..255, 0 to 1, as WCAG 2 defines it."""
  c = np.asarray(rgb) / 255
  linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
  return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(tag: str, ink: str) -> float:
  """WCAG 2 contrast ratio of a tag colour and an ink colour, 1 (same) to 21 (black on white)."""
  return ratio(TAG_COLOURS[tag], INK_COLOURS[ink])


def ratio(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
  """WCAG 2 contrast ratio of two colours of 0..255."""
  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


def inks_for(tag: str) -> list[str]:
  """The inks that can be read on a tag of this colour."""
  return [ink for ink in INK_COLOURS if ink != tag and contrast(tag, ink) >= MIN_CONTRAST]


@dataclasses.dataclass(frozen=True)
class Item:
  """What one tag says and looks like.

  Attributes:
    kind: "digit" or "word".
    content: what is to be read, as in the caption: "seven", "lamp".
    tag, ink: names of colours.
    shape: "label", "tag" or "sticker".
    glyph: index of the digit instance, or of the word's font.
    caption: the sentence about it, with no place named.
  """

  kind: str
  content: str
  tag: str
  ink: str
  shape: str
  glyph: int
  caption: str


def draw_items(rng: np.random.Generator, pool: sample_glyphs.Pool, count: int) -> list[Item]:
  """Items for one canvas: no digit instance, word, or pair of colours occurs twice."""
  kinds = np.where(rng.random(count) < DIGIT_SHARE, "digit", "word")
  digit_indices = rng.choice(pool.digits, count, replace=False)
  words = rng.choice(pool.words, count, replace=False)
  labels = sample_glyphs.digits()[1]
  # Every tag colour once before any comes twice, so that a colour tells much about a place.
  names = rng.permutation(list(TAG_COLOURS))
  tags = [str(names[i % len(names)]) for i in range(count)]
  used: set[tuple[str, str]] = set()
  items = []
  for i in range(count):
    free = [ink for ink in inks_for(tags[i]) if (tags[i], ink) not in used]
    ink = str(rng.choice(free))
    used.add((tags[i], ink))
    digit = kinds[i] == "digit"
    content = sample_glyphs.DIGIT_NAMES[labels[digit_indices[i]]] if digit else str(words[i])
    shape = str(rng.choice(_SHAPES))
    article = "an" if tags[i][0] in "aeiou" else "a"
    caption = str(rng.choice(_DIGIT_CAPTIONS if digit else _WORD_CAPTIONS)).format(
      content=content, ink=ink, tag=f"{article} {tags[i]}", shape=shape
    )
    items.append(
      Item(
        kind=str(kinds[i]),
        content=content,
        tag=tags[i],
        ink=ink,
        shape=shape,
        glyph=int(digit_indices[i]) if digit else int(rng.integers(sample_glyphs.FONT_COUNT)),
        caption=f"{caption[0].upper()}{caption[1:]}.",
      )
    )
  return items


def paint_item(rng: np.random.Generator, item: Item, unit: float) -> Image.Image:
  """The tag with its glyph as an RGBA image at `unit` canvas pixels per unit.

  The picture is cropped to the tag's extent: its size is that of the item's box.
  """
  fine = _SUPERSAMPLE * unit
  if item.kind == "digit":
    height = rng.uniform(*DIGIT_HEIGHT)
    glyph = sample_glyphs.digit_mask(
      item.glyph, round(fine * height), rng.uniform(0.42, 0.6), rng.uniform(0.8, 1.3)
    )
    size = rng.uniform(*_DIGIT_TAG) * rng.uniform(0.95, 1.05, 2)
  else:
    height = rng.uniform(*CAP_HEIGHT)
    glyph = sample_glyphs.word_mask(item.content, round(fine * height), item.glyph)
    # An ellipse leaves less room at its ends.
    margin = 20.0 if item.shape == "sticker" else 11.0
    size = (glyph.width / fine + margin, height + rng.uniform(11.0, 16.0))
  return _paint_tag(rng, item.tag, item.shape, size, unit, glyph, INK_COLOURS[item.ink])


def _paint_tag(rng, tag, shape, size, unit, glyph=None, ink=None) -> Image.Image:
  """A tag of `size` units, turned a little, drawn larger than needed for smooth edges."""
  width, height = (max(4, round(_SUPERSAMPLE * unit * side)) for side in size)
  mask = Image.new("L", (width, height))
  draw = ImageDraw.Draw(mask)
  corners = (0, 0, width - 1, height - 1)
  if shape == "sticker":
    draw.ellipse(corners, fill=255)
  else:
    round_by = 0.08 if shape == "label" else 0.34
    draw.rounded_rectangle(corners, radius=round_by * min(width, height), fill=255)
  colour = _jittered(rng, TAG_COLOURS[tag])
  pixels = _shading(rng, (width, height))[..., None] * colour
  if glyph is not None:
    slack = np.array([width - glyph.width, height - glyph.height])
    x, y = np.rint(slack / 2 + rng.uniform(-0.12, 0.12, 2) * np.maximum(slack, 0)).astype(int)
    ink_mask = Image.new("L", (width, height))
    ink_mask.paste(glyph, (int(x), int(y)))
    alpha = np.asarray(ink_mask, np.float32)[..., None] / 255
    pixels = pixels * (1 - alpha) + _jittered(rng, ink) * alpha
  patch = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
  patch.putalpha(mask)
  patch = patch.rotate(rng.uniform(-9, 9), Image.Resampling.BICUBIC, expand=True)
  small = tuple(max(2, round(side / _SUPERSAMPLE)) for side in patch.size)
  patch = patch.resize(small, Image.Resampling.BILINEAR)
  return patch.crop(patch.getchannel("A").point(lambda a: 255 * (a > 127)).getbbox())


def _jittered(rng: np.random.Generator, rgb: tuple[int, int, int]) -> np.ndarray:
  return np.asarray(rgb, np.float32) + rng.uniform(-_COLOUR_JITTER, _COLOUR_JITTER, 3)


def _shading(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
  """Uneven light on the tag and the grain of its paper, (height, width), around 1."""
  coarse = Image.fromarray(rng.uniform(0.88, 1.03, (5, 5)).astype(np.float32))
  light = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC))
  grain = Image.fromarray(rng.normal(0, 0.02, (24, 24)).astype(np.float32))
  return light + np.asarray(grain.resize(size, Image.Resampling.BILINEAR))


def paint_decoy(rng: np.random.Generator, unit: float) -> Image.Image:
  """Something that has no box, as RGBA: a blank tag, a scribble, a blob or a scrap of a photo."""
  return _DECOYS[rng.choice(len(_DECOYS), p=(0.4, 0.2, 0.2, 0.2))](rng, unit)


def _blank_tag(rng, unit) -> Image.Image:
  wide = rng.random() > DIGIT_SHARE
  # The sizes of tags that carry a word or a digit: size alone must not give a decoy away.
  size = (rng.uniform(45, 85), rng.uniform(22, 28)) if wide else rng.uniform(*_DIGIT_TAG, 2)
  return _paint_tag(rng, str(rng.choice(list(TAG_COLOURS))), str(rng.choice(_SHAPES)), size, unit)


def _scribble(rng, unit) -> Image.Image:
  """A pen line that wanders over the photograph, on no tag."""
  width, height = (round(unit * side) for side in rng.uniform(24, 60, 2))
  anchors = rng.uniform(0.1, 0.9, (7, 2)) * (width, height)
  # A moving average of the zigzag between the anchors: a line without corners.
  steps = np.linspace(0, len(anchors) - 1, 60)
  axes = [np.interp(steps, np.arange(len(anchors)), values) for values in anchors.T]
  line = np.stack([np.convolve(v, np.ones(9) / 9, "valid") for v in axes], axis=1)
  mask = Image.new("L", (2 * width, 2 * height))
  ImageDraw.Draw(mask).line(
    [tuple(point) for point in (2 * line).tolist()],
    fill=255,
    width=max(2, round(2 * unit * rng.uniform(1.6, 3.0))),
    joint="curve",
  )
  mask = mask.resize((width, height), Image.Resampling.BOX)
  return _filled(rng, mask, INK_COLOURS)


def _blob(rng, unit) -> Image.Image:
  """A soft spot of paint."""
  width, height = (round(unit * side) for side in rng.uniform(14, 34, 2))
  edge = round(4 * unit)
  mask = Image.new("L", (width + 2 * edge, height + 2 * edge))
  draw = ImageDraw.Draw(mask)
  for _ in range(3):
    x, y = edge + rng.uniform(0, 0.4, 2) * (width, height)
    draw.ellipse((x, y, x + 0.6 * width, y + 0.6 * height), fill=235)
  return _filled(rng, mask.filter(ImageFilter.BoxBlur(unit * rng.uniform(0.6, 2.0))), TAG_COLOURS)


def _filled(rng, mask: Image.Image, colours) -> Image.Image:
  colour = np.clip(_jittered(rng, colours[str(rng.choice(list(colours)))]), 0, 255)
  image = Image.new("RGB", mask.size, tuple(int(v) for v in colour))
  image.putalpha(mask)
  return image


def _scrap(rng, unit) -> Image.Image:
  """A small cut-out of another photograph with a white rim."""
  photo = sample_photos.load_photo(sample_photos.PHOTOS[rng.integers(len(sample_photos.PHOTOS))])
  width, height = (round(unit * side) for side in rng.uniform(24, 46, 2))
  share = rng.uniform(0.15, 0.4) * min(photo.size)
  x, y = (rng.uniform(0, side - share) for side in photo.size)
  picture = photo.resize(
    (width, height),
    Image.Resampling.BICUBIC,
    box=(x, y, x + share, y + share * height / width)
    if height <= width
    else (x, y, x + share * width / height, y + share),
  )
  rim = round(unit * rng.uniform(1.0, 2.5))
  image = Image.new("RGBA", (width + 2 * rim, height + 2 * rim), (238, 236, 230, 255))
  image.paste(picture, (rim, rim))
  image = image.rotate(rng.uniform(-12, 12), Image.Resampling.BICUBIC, expand=True)
  return image.crop(image.getbbox())


_DECOYS = (_blank_tag, _scribble, _blob, _scrap)
