"""Which photographs lie under the sample data, who owns them, and how a background is made?

The photographs are files inside the scikit-image and scikit-learn wheels; nothing is downloaded.
Only those are used whose owner or licence is stated in the notes of the package that ships them.
"""

import dataclasses
import functools
import importlib.util
import pathlib

import numpy as np
from PIL import Image, ImageOps

_SKIMAGE = ("skimage", "data")
_SKLEARN = ("sklearn", "datasets/images")
_NASA = "public domain (NASA)"


@dataclasses.dataclass(frozen=True)
class Photo:
  """One photograph: the package and file it comes from, what it shows, and whose it is.

  Attributes:
    where: the package, and the folder inside it.
    file: the file name.
    names: noun phrases for what it shows; the first is the plainest.
    licence: as stated by the package that ships it.
    credit: photographer or source.
    grey: whether the file has no colour.
    tileable: whether it is a texture that may be shown smaller, repeated by mirroring.
  """

  where: tuple[str, str]
  file: str
  names: tuple[str, ...]
  licence: str
  credit: str
  grey: bool = False
  tileable: bool = False


PHOTOS = (
  Photo(
    _SKIMAGE,
    "astronaut.png",
    ("an astronaut", "a woman in an orange space suit", "an astronaut in front of a flag"),
    _NASA,
    "NASA, Eileen Collins, https://flic.kr/p/r9qvLn",
  ),
  Photo(
    _SKIMAGE,
    "brick.png",
    ("a brick wall", "bricks", "a wall of bricks"),
    "CC0",
    "CC0Textures, Bricks25",
    grey=True,
    tileable=True,
  ),
  Photo(
    _SKIMAGE,
    "camera.png",
    ("a cameraman", "a man with a camera on a tripod", "a man filming on a lawn"),
    "CC0",
    "Lav Varshney",
    grey=True,
  ),
  Photo(
    _SKIMAGE,
    "chelsea.png",
    ("a cat", "a tabby cat", "the face of a ginger cat"),
    "CC0",
    "Stefan van der Walt",
  ),
  Photo(
    _SKIMAGE,
    "clock_motion.png",
    ("a blurred clock", "a wall clock in motion", "a clock seen from a moving camera"),
    "public domain",
    "Stefan van der Walt",
    grey=True,
  ),
  Photo(
    _SKIMAGE,
    "coffee.png",
    ("a cup of coffee", "an espresso in a red cup", "coffee on a wooden table"),
    "CC0",
    "Rachel Michetti, courtesy of Pikolo Espresso Bar",
  ),
  Photo(
    _SKIMAGE,
    "coins.png",
    ("old coins", "rows of greek coins", "a collection of coins"),
    "no known copyright restrictions",
    "Brooklyn Museum Collection, image 51611",
    grey=True,
  ),
  Photo(
    _SKIMAGE,
    "grass.png",
    ("grass", "a lawn from above", "blades of grass"),
    "CC0",
    "linolafett, DeviantArt, Grass 01",
    grey=True,
    tileable=True,
  ),
  Photo(
    _SKIMAGE,
    "gravel.png",
    ("gravel", "small stones", "a gravel path from above"),
    "CC0",
    "CC0Textures, Gravel04",
    grey=True,
    tileable=True,
  ),
  Photo(
    _SKIMAGE,
    "hubble_deep_field.jpg",
    ("distant galaxies", "deep space", "the night sky full of galaxies"),
    _NASA,
    "NASA, Hubble eXtreme Deep Field, HubbleSite release 2012/37",
  ),
  Photo(
    _SKIMAGE,
    "ihc.png",
    ("stained tissue", "tissue under a microscope", "cells stained in brown and blue"),
    "no known copyright restrictions",
    "Center for Microscopy And Molecular Imaging (CMMI)",
  ),
  Photo(
    _SKIMAGE,
    "retina.jpg",
    ("a retina", "the back of an eye", "the blood vessels of an eye"),
    "CC0",
    "Mikael Haggstrom, Wikimedia Commons, Fundus photograph of normal left eye",
  ),
  Photo(
    _SKIMAGE,
    "rocket.jpg",
    ("a rocket", "a rocket on its launch pad", "a rocket at night before launch"),
    "public domain",
    "SpaceX, Falcon 9 with DSCOVR, flickr 16511594820",
  ),
  Photo(
    _SKLEARN,
    "china.jpg",
    ("a chinese pagoda", "a temple above a lake", "a pagoda among trees"),
    "CC BY 2.0",
    "danielbuechele, flickr 6061409035",
  ),
  Photo(
    _SKLEARN,
    "flower.jpg",
    ("a flower", "an orange dahlia", "a dahlia in bloom"),
    "CC BY 2.0",
    "vultilion, flickr 6056698931",
  ),
)


def package_file(package: str, path: str) -> pathlib.Path:
  """The path of a data file inside an installed package, without importing the package.

  Raises:
    ValueError: if the package or the file is not there, with what to install.
  """
  spec = importlib.util.find_spec(package)
  roots = list(spec.submodule_search_locations or ()) if spec else []
  for root in roots:
    if (found := pathlib.Path(root) / path).is_file():
      return found
  state = f"the installed {package} has no file {path}" if roots else f"{package} is not installed"
  raise ValueError(
    f"The sample data needs {path} of the package {package}, but {state}. "
    "Install the versions pinned in requirements.txt."
  )


@functools.cache
def load_photo(photo: Photo) -> Image.Image:
  """The photograph as RGB, decoded once."""
  package, folder = photo.where
  with Image.open(package_file(package, f"{folder}/{photo.file}")) as image:
    return image.convert("RGB")


# Name in the caption -> (gain per channel, saturation, brightness).
_TONES = {
  "": ((1.0, 1.0, 1.0), 1.0, 1.0),
  "black and white": ((1.0, 1.0, 1.0), 0.0, 1.0),
  "warm": ((1.14, 1.0, 0.76), 1.05, 1.0),
  "cold": ((0.78, 0.97, 1.2), 0.9, 1.0),
  "dark": ((1.0, 1.0, 1.0), 0.95, 0.55),
}
# Named tones must be told apart at a glance; the jitter on top of them must not be.
_GAIN_JITTER, _BRIGHTNESS_JITTER = 0.04, 0.08


def choose_tone(rng: np.random.Generator, *photos: Photo) -> str:
  """A tone for a background. Photographs without colour are never called black and white."""
  names = [name for name in _TONES if name != "black and white" or not any(p.grey for p in photos)]
  weights = np.array([3.0 if name == "" else 1.0 for name in names])
  return names[rng.choice(len(names), p=weights / weights.sum())]


# Backgrounds get their film grain at about this many pixels on the long side, then grow to the
# canvas: grain of single canvas pixels would be gone at every scale a model sees and only make
# the files larger.
_GRAIN_SIDE = 1024


def background(
  rng: np.random.Generator, photo: Photo, tone: str, size: tuple[int, int]
) -> Image.Image:
  """A crop of a photograph, mirrored, toned and grained, filling `size` (width, height) pixels."""
  source = load_photo(photo)
  if photo.tileable and rng.random() < 0.5:
    source = _mirror_tiled(source)
  width, height = size
  # The largest crop of the canvas' aspect, then a random share of it at a random place.
  share = rng.uniform(0.72, 1.0) * min(source.width / width, source.height / height)
  crop = (width * share, height * share)
  x = rng.uniform(0, source.width - crop[0])
  y = rng.uniform(0, source.height - crop[1])
  grow = _GRAIN_SIDE / max(size)
  middle = (max(1, round(width * grow)), max(1, round(height * grow)))
  box = (x, y, min(x + crop[0], source.width), min(y + crop[1], source.height))
  image = source.resize(middle, Image.Resampling.BICUBIC, box=box)
  if rng.random() < 0.5:
    image = ImageOps.mirror(image)
  pixels = _toned(rng, np.asarray(image, np.float32), tone)
  grain = rng.standard_normal(pixels.shape[:2], np.float32) * np.float32(rng.uniform(1.0, 3.0))
  pixels += grain[..., None]
  image = Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))
  return image.resize(size, Image.Resampling.BICUBIC)


def _mirror_tiled(image: Image.Image) -> Image.Image:
  """Two by two copies, mirrored at the seams so that these do not show."""
  pixels = np.asarray(image)
  rows = np.concatenate([pixels, pixels[:, ::-1]], axis=1)
  return Image.fromarray(np.concatenate([rows, rows[::-1]], axis=0))


def _toned(rng: np.random.Generator, pixels: np.ndarray, tone: str) -> np.ndarray:
  """Saturation, brightness and colour cast of a tone, and a little of chance, as one matrix."""
  gain, saturation, brightness = _TONES[tone]
  saturation *= rng.uniform(0.9, 1.1)
  brightness *= rng.uniform(1 - _BRIGHTNESS_JITTER, 1 + _BRIGHTNESS_JITTER)
  # A picture without colour stays so: one jitter for all channels.
  jitter = rng.uniform(1 - _GAIN_JITTER, 1 + _GAIN_JITTER, 1 if saturation == 0 else 3)
  luma = np.tile(np.array([[0.299], [0.587], [0.114]]), 3)
  matrix = (saturation * np.eye(3) + (1 - saturation) * luma) * gain * brightness * jitter
  return pixels @ matrix.astype(np.float32)


_SINGLE = ("a {tone}photo of {x}", "{x} in a {tone}picture", "a {tone}photograph showing {x}")
_PAIR = {
  "beside": ("a {tone}photo of {x} next to {y}", "a {tone}collage with {x} left of {y}"),
  "above": ("a {tone}photo of {x} above {y}", "a {tone}collage with {x} on top of {y}"),
}


def backdrop(
  rng: np.random.Generator, size: tuple[int, int], pair_share: float = 0.5
) -> tuple[Image.Image, str]:
  """A whole background of `size` (width, height) pixels and its caption.

  One photograph, or two of them side by side or one above the other.
  """
  width, height = size
  if rng.random() >= pair_share:
    photo = PHOTOS[rng.integers(len(PHOTOS))]
    tone = choose_tone(rng, photo)
    canvas = background(rng, photo, tone, size)
    template, names = rng.choice(_SINGLE), {"x": rng.choice(photo.names)}
  else:
    first, second = (PHOTOS[i] for i in rng.choice(len(PHOTOS), 2, replace=False))
    tone = choose_tone(rng, first, second)
    cut = rng.uniform(0.4, 0.6)
    canvas = Image.new("RGB", size)
    if side := rng.random() < 0.5:
      x = round(width * cut)
      parts = ((first, (0, 0), (x, height)), (second, (x, 0), (width - x, height)))
    else:
      y = round(height * cut)
      parts = ((first, (0, 0), (width, y)), (second, (0, y), (width, height - y)))
    for photo, corner, part_size in parts:
      canvas.paste(background(rng, photo, tone, part_size), corner)
    template = rng.choice(_PAIR["beside" if side else "above"])
    names = {"x": rng.choice(first.names), "y": rng.choice(second.names)}
  caption = template.format(tone=f"{tone} " if tone else "", **names)
  return canvas, f"{caption[0].upper()}{caption[1:]}."


def provenance() -> list[dict[str, str]]:
  """Source and licence of every photograph, for the data set's manifest."""
  return [
    {
      "photo": f"{p.where[0]}/{p.where[1]}/{p.file}",
      "shows": p.names[0],
      "licence": p.licence,
      "credit": p.credit,
    }
    for p in PHOTOS
  ]
