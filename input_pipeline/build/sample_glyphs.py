"""What can be read on the sample data: which digits and words, and how do they become ink masks?

Digits are real handwriting (the UCI digits that scikit-learn ships); words are printed in the fonts
that matplotlib and Pillow ship. Both are split so that validation shows no digit instance and no
word that training shows.
"""

import dataclasses
import functools

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.build.sample_photos import package_file

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Short enough for a tag: three to five letters each.
WORDS = tuple(
  """
  ace acid acorn actor alarm album angel ankle apple april apron arch area arm arrow atlas attic
  aunt axe baby bag ball bank barn basin bat bath beach bead beak beam bean bear bed bee beef
  bell belt bench berry bike bird blade block boat bone book boot bowl box brain brake brass
  bread brick brook broom brush bus cabin cable cake camel camp candy cap car card cart cat cave
  chain chair chalk cheek chess chest chin city clay cliff cloak clock cloud clown club coach
  coal coast coat comb cook cord cork corn couch court cow crab crane crown cube cup curve daisy
  dance dawn deer desk dew diary dice dish dock dog doll door dove drum duck dust duty eagle ear
  earth echo edge egg elbow elm fairy fan farm fawn feast fence fern field fig film fire fish
  flag flame flute fog foot fork fort fox frog fruit game gate gem ghost giant gift glass globe
  glove glue goat gold goose grape guest guide gull hall ham hand harp hat hawk hay heart hedge
  hero hill hip home honey hood hook horn horse hotel house ice ink inn iron ivory ivy jam jar
  jaw jet jewel judge juice jury key king kite knee knife knot lace lake lamb lamp lane lawn
  leaf lemon lid lime lion lip list loaf lock log map maple mask mast meal melon milk mill mint
  mist moon moss moth mouse mouth mud music nail name neck nest net night noon north nose note
  novel nurse nut oak oar oats ocean olive onion opera otter oven owl paint palm pan panda paper
  park path pea peach pear pearl pen piano pie pig pilot pin pine pipe plane plant plate plum
  poem pond pony pool porch post pot prize pump queen quilt radio rail rain raven ring river
  road robe robin rock roof room root rope rose rug ruler sail salt sand scarf sea seal seed
  shark sheep shelf shell ship shirt shoe shop silk sink skirt sky sled slope smoke snail snow
  soap sock sofa song soup south spade spoon star steam stem stone stove straw sugar sun swan
  sword table tail tape tea tent tiger tile toast toe tool tooth torch towel tower town toy
  train tray tree tube tulip tuna uncle valve van vase vest vine viola voice wagon wall watch
  water wave wax web well whale wheat wheel wing wire wolf wood wool world yacht yard zebra
""".split()
)

# Kept in this order, so that the index drawn for an item means the same font everywhere.
_FONTS = (
  "DejaVuSans.ttf",
  "DejaVuSans-Bold.ttf",
  "DejaVuSerif.ttf",
  "DejaVuSerif-Bold.ttf",
  "DejaVuSansMono-Bold.ttf",
  "",  # Pillow's own, Aileron
)
FONT_COUNT = len(_FONTS)
_FONT_FOLDER = "mpl-data/fonts/ttf"

_VAL_SHARE = 0.2


@dataclasses.dataclass(frozen=True)
class Pool:
  """What one split may show.

  Attributes:
    digits: indices into `digits()`, in drawing order.
    words: the words, in drawing order.
  """

  digits: tuple[int, ...]
  words: tuple[str, ...]


@functools.lru_cache(maxsize=1)
def digits() -> tuple[np.ndarray, np.ndarray]:
  """The 1,797 handwritten digits: ink (n, 8, 8) float32 in 0..1 and labels (n,) int."""
  # Imported late: scikit-learn takes seconds, and the other builders do without it.
  from sklearn.datasets import load_digits

  bunch = load_digits()
  return (bunch.images / 16.0).astype(np.float32), bunch.target


def split_pools(seed: int) -> dict[str, Pool]:
  """Disjoint pools for "train" and "val": a fifth of each digit class and of the words is val's."""
  rng = np.random.default_rng([seed, 0])
  labels = digits()[1]
  parts: dict[str, list[int]] = {"train": [], "val": []}
  for label in range(10):
    members = rng.permutation(np.flatnonzero(labels == label)).tolist()
    cut = round(len(members) * _VAL_SHARE)
    parts["val"] += members[:cut]
    parts["train"] += members[cut:]
  words = rng.permutation(WORDS).tolist()
  cut = round(len(words) * _VAL_SHARE)
  chosen = {"train": words[cut:], "val": words[:cut]}
  return {
    name: Pool(tuple(rng.permutation(parts[name]).tolist()), tuple(chosen[name])) for name in parts
  }


def digit_mask(index: int, height: int, weight: float = 0.52, stretch: float = 1.0) -> Image.Image:
  """Ink of one handwritten digit as a smooth stroke.

  The 8x8 original is enlarged with a bicubic kernel and cut softly at a level of ink, which gives a
  stroke with clean edges instead of blurred squares.

  Args:
    index: into `digits()`.
    height: of the glyph itself, in pixels.
    weight: the level of ink (0..1) at which the stroke's edge lies; lower is bolder.
    stretch: factor on the width alone.

  Returns:
    An "L" image cropped to the glyph, 255 where there is ink.
  """
  ink = np.pad(digits()[0][index], 2)
  side = 12 * 12
  smooth = np.asarray(
    Image.fromarray(ink).resize((side, side), Image.Resampling.BICUBIC), np.float32
  )
  stroke = np.clip((smooth - weight) * 6 + 0.5, 0, 1)
  mask = Image.fromarray((stroke * 255).astype(np.uint8))
  mask = mask.crop(mask.point(lambda v: 255 * (v > 96)).getbbox())
  width = max(1, round(stretch * mask.width * height / mask.height))
  return mask.resize((width, height), Image.Resampling.BICUBIC)


def word_mask(word: str, cap_height: int, font: int) -> Image.Image:
  """Ink of a word in capitals.

  Args:
    word: what to print.
    cap_height: height of a flat capital, in pixels.
    font: 0..FONT_COUNT - 1.

  Returns:
    An "L" image cropped to the ink, 255 where there is ink.
  """
  reference = _font(font, 200).getbbox("H")
  face = _font(font, max(4, round(200 * cap_height / (reference[3] - reference[1]))))
  left, top, right, bottom = face.getbbox(word.upper())
  mask = Image.new("L", (right - left, bottom - top))
  ImageDraw.Draw(mask).text((-left, -top), word.upper(), fill=255, font=face)
  return mask


def _font(index: int, size: int) -> ImageFont.FreeTypeFont:
  # The basic layout engine gives the same widths whether or not the system has libraqm.
  basic = ImageFont.Layout.BASIC
  if name := _FONTS[index]:
    path = package_file("matplotlib", f"{_FONT_FOLDER}/{name}")
    return ImageFont.truetype(str(path), size, layout_engine=basic)
  return ImageFont.load_default(size).font_variant(layout_engine=basic)


def provenance() -> list[dict[str, str]]:
  """Source and licence of the digits and the fonts, for the data set's manifest."""
  return [
    {
      "glyphs": "scikit-learn load_digits: Optical Recognition of Handwritten Digits, UCI",
      "licence": "CC BY 4.0",
      "credit": "E. Alpaydin, C. Kaynak, 1998",
    },
    {
      "glyphs": "DejaVu fonts as shipped by matplotlib",
      "licence": "Bitstream Vera and Arev licences, changes in the public domain",
      "credit": "Bitstream, Tavmjong Bah, the DejaVu fonts team",
    },
    {
      "glyphs": "Aileron Regular as shipped by Pillow",
      "licence": "CC0",
      "credit": "Sora Sagano",
    },
  ]
