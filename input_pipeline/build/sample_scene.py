"""How does one sample canvas come about: a backdrop, tags that do not overlap, and decoys?"""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageFilter

from input_pipeline.build import sample_items, sample_photos
from input_pipeline.build.sample_glyphs import Pool
from input_pipeline.build.sample_items import Item

# A random crop of the shorter side, halved, still has the 768 pixels of the top scale, so that
# training decodes every canvas at half its size or less.
MIN_SIDE, MAX_SIDE = 1872, 4096
_ASPECTS = (3 / 4, 4 / 5, 1.0, 5 / 4, 4 / 3)
LEAST_MAX_SIDE = round(MIN_SIDE * max(_ASPECTS))
_ITEMS = (8, 12)
_DECOYS = (4, 8)
# Free space around every tag and decoy, and to the edge of the canvas, in units.
_GAP = 8.0


@dataclasses.dataclass
class Scene:
  """A finished canvas.

  Attributes:
    image: RGB.
    items: what is written on it, in the order of `boxes` and `texts`.
    boxes: float32 (n, 4), the extent of each item's tag, [x0, y0, x1, y1] in canvas pixels.
    texts: a caption for each item; unique within the scene.
    global_text: a caption of the backdrop.
  """

  image: Image.Image
  items: list[Item]
  boxes: np.ndarray
  texts: list[str]
  global_text: str


def render(rng: np.random.Generator, pool: Pool, max_side: int = MAX_SIDE) -> Scene:
  """Renders one canvas.

  Args:
    rng: decides everything.
    pool: the digits and words that may occur.
    max_side: of the canvas, in pixels; at least `LEAST_MAX_SIDE`.
  """
  size = _canvas_size(rng, max_side)
  canvas, global_text = sample_photos.backdrop(rng, size)
  unit = math.sqrt(size[0] * size[1]) / sample_items.TOP_SCALE
  taken: list[tuple[int, int, int, int]] = []
  items, texts = [], []
  for item in sample_items.draw_items(rng, pool, rng.integers(_ITEMS[0], _ITEMS[1] + 1)):
    patch = sample_items.paint_item(rng, item, unit)
    if (box := _free_place(rng, size, patch.size, taken, unit)) is None:
      continue
    _put(rng, canvas, patch, box, unit)
    taken.append(box)
    items.append(item)
    texts.append(item.caption)
  boxes = np.array(taken, np.float32).reshape(-1, 4)
  for _ in range(rng.integers(_DECOYS[0], _DECOYS[1] + 1)):
    patch = sample_items.paint_decoy(rng, unit)
    if box := _free_place(rng, size, patch.size, taken, unit):
      _put(rng, canvas, patch, box, unit)
      taken.append(box)
  return Scene(canvas, items, boxes, texts, global_text)


def _canvas_size(rng: np.random.Generator, max_side: int) -> tuple[int, int]:
  """Width and height; the cube of a uniform number makes large canvases the rarer ones."""
  spread = max(0, max_side / max(_ASPECTS) - MIN_SIDE)
  short = MIN_SIDE + spread * rng.random() ** 3
  aspect = _ASPECTS[rng.integers(len(_ASPECTS))]
  return round(short * max(aspect, 1)), round(short * max(1 / aspect, 1))


def _free_place(rng, size, patch_size, taken, unit) -> tuple[int, int, int, int] | None:
  """A random box for a patch that keeps its distance from those taken; None if none was found."""
  gap = round(_GAP * unit)
  for _ in range(200):
    x = int(rng.integers(gap, size[0] - patch_size[0] - gap))
    y = int(rng.integers(gap, size[1] - patch_size[1] - gap))
    box = (x, y, x + patch_size[0], y + patch_size[1])
    if not any(
      box[0] < t[2] + gap and t[0] < box[2] + gap and box[1] < t[3] + gap and t[1] < box[3] + gap
      for t in taken
    ):
      return box
  return None


def _put(rng, canvas: Image.Image, patch: Image.Image, box, unit: float) -> None:
  """Lays a patch onto the canvas, over a soft shadow."""
  reach = max(1, round(1.2 * unit))
  alpha = patch.getchannel("A")
  shadow = Image.new("L", (alpha.width + 4 * reach, alpha.height + 4 * reach))
  shadow.paste(alpha.point(lambda a: a * 0.45), (2 * reach, 2 * reach))
  shadow = shadow.filter(ImageFilter.BoxBlur(reach))
  dx, dy = (int(v) for v in np.rint(rng.uniform(-0.6, 1.0, 2) * reach))
  canvas.paste((0, 0, 0), (box[0] - 2 * reach + dx, box[1] - 2 * reach + dy), shadow)
  canvas.paste(patch, box[:2], alpha)
