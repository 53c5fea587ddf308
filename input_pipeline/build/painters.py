"""What do pictures of graded complexity look like that need no data set?

Four categories after those of the deraining study (faces, natural, comics, urban; as recalled,
arXiv 2502.12600 has data sets of them, which are not here): what is drawn is ours. `detail` says
how much there is in a picture, 1 as a rule: more shapes, rougher textures, finer grids.

A painter takes a random generator, the side in pixels and the detail, and gives uint8 (side, side,
3).
"""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

Pixels = UInt8[np.ndarray, "y x 3"]
Painter = Callable[[np.random.Generator, int, float], Pixels]

# Shapes are drawn so many times larger and reduced, so that their edges are smooth.
_OVER = 3
_SKIN = ((244, 213, 188), (224, 182, 148), (190, 140, 104), (146, 98, 68), (98, 64, 44))


def faces(rng: np.random.Generator, side: int, detail: float) -> Pixels:
  """A smooth backdrop and ellipses within an ellipse, softly shaded: few edges, no texture."""
  canvas = _gradient(rng, side, rng.uniform(40, 220, (2, 3)))
  y, x = (np.mgrid[:side, :side] + 0.5) / side
  skin = np.float64(_SKIN[rng.integers(len(_SKIN))]) * rng.uniform(0.9, 1.05)
  cx, cy = rng.uniform(0.42, 0.58, 2)
  rx, ry = rng.uniform(0.2, 0.28), rng.uniform(0.28, 0.38)
  hair = rng.uniform(15, 130, 3) * np.float64((1.0, 0.8, 0.6))
  _ellipse(canvas, x, y, (cx, cy - 0.12 * ry), (1.2 * rx, 1.1 * ry), hair, 0.04)
  _ellipse(canvas, x, y, (cx, cy + 1.7 * ry), (1.9 * rx, 0.9 * ry), rng.uniform(20, 230, 3), 0.04)
  light = 1 + 0.25 * ((x - cx) * rng.choice((-1, 1)) - (y - cy)) / rx * 0.3
  _ellipse(canvas, x, y, (cx, cy), (rx, ry), skin * light[..., None], 0.05)
  for direction in (-1, 1):
    at = cx + 0.42 * direction * rx, cy - 0.15 * ry
    _ellipse(canvas, x, y, at, (0.2 * rx, 0.1 * ry), np.float64((240, 240, 235)), 0.15)
    _ellipse(canvas, x, y, at, (0.09 * rx, 0.1 * ry), rng.uniform(10, 110, 3), 0.15)
  _ellipse(canvas, x, y, (cx, cy + 0.5 * ry), (0.36 * rx, 0.09 * ry), skin * (0.8, 0.5, 0.5), 0.2)
  for _ in range(int(rng.poisson(3 * detail))):
    at = rng.uniform(0, 1, 2)
    _ellipse(canvas, x, y, at, rng.uniform(0.02, 0.08, 2), rng.uniform(20, 235, 3), 0.3)
  return _bytes(canvas)


def field(rng: np.random.Generator, side: int, detail: float) -> Pixels:
  """Noise whose spectrum falls as a power, as photographs' do; flatter with more detail."""
  alpha = float(np.clip(2.0 - 0.6 * np.log2(detail), 0.8, 3.2))
  frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
  frequency[0, 0] = 1.0
  layers = []
  for _ in range(3):
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / frequency ** (alpha / 2 + 0.5)
    spectrum[0, 0] = 0
    layer = np.fft.irfft2(spectrum, s=(side, side))
    layers.append(layer / max(layer.std(), 1e-9))
  # Colours of photographs lie near one line: brightness varies most.
  brightness = rng.uniform(30, 55) * layers[0]
  tint = [rng.uniform(3, 14) * layer for layer in layers[1:]]
  base = rng.uniform(80, 170, 3)
  return _bytes(base + np.stack(
    [brightness + tint[0], brightness - 0.5 * tint[0] + tint[1], brightness - tint[1]], axis=-1))


def comics(rng: np.random.Generator, side: int, detail: float) -> Pixels:
  """Line art: polygons with black outlines on white, flat greys, hatching, screentones, panels."""
  big = side * _OVER
  image = Image.new("RGB", (big, big), (255, 255, 255))
  draw = ImageDraw.Draw(image)
  for _ in range(max(1, round(rng.uniform(8, 14) * detail))):
    corners = _polygon(rng, big)
    fill = None if rng.random() < 0.3 else (int(rng.choice((0, 90, 170, 215, 255))),) * 3
    draw.polygon(corners, fill=fill)
    if rng.random() < 0.6:
      _hatch(rng, image, corners, detail)
    draw.line([*corners, corners[0]], fill=(0, 0, 0), width=int(rng.integers(2, 3 * _OVER)))
  for _ in range(round(rng.uniform(6, 16) * detail)):
    a, b = rng.uniform(0, big, (2, 2))
    draw.line([tuple(a), tuple(b)], fill=(0, 0, 0), width=int(rng.integers(1, 2 * _OVER)))
  if rng.random() < 0.6:
    cut, wide = rng.uniform(0.25, 0.75) * big, 3 * _OVER
    box = (cut - wide, -1, cut + wide, big) if rng.random() < 0.5 else (-1, cut - wide, big,
                                                                       cut + wide)
    draw.rectangle(box, fill=(255, 255, 255), outline=(0, 0, 0), width=_OVER)
  return np.asarray(image.resize((side, side), Image.Resampling.BOX))


def urban(rng: np.random.Generator, side: int, detail: float) -> Pixels:
  """Facades: grids of windows that repeat exactly, a few of them side by side, sheared."""
  big = side * _OVER
  sky = _bytes(_gradient(rng, big, rng.uniform((120, 140, 170), (220, 230, 250), (2, 3))))
  image = Image.fromarray(sky)
  edges = np.sort(rng.uniform(0, big, int(rng.integers(1, 4))))
  for left, right in zip([-big // 4, *edges], [*edges, big + big // 4]):
    _facade(rng, image, int(left), int(right), detail)
  shear = rng.uniform(-0.35, 0.35)
  turned = image.transform(
    (big, big), Image.Transform.AFFINE, (1, 0, 0, shear, 1, -shear * big / 2),
    resample=Image.Resampling.BILINEAR, fillcolor=tuple(int(v) for v in sky[0, 0]))
  return np.asarray(turned.resize((side, side), Image.Resampling.BOX))


def png(pixels: Pixels) -> bytes:
  """The picture as a PNG file."""
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, "PNG")
  return data.getvalue()


def _facade(rng, image, left, right, detail):
  big = image.height
  wall = rng.uniform(60, 215) * rng.uniform(0.85, 1.15, 3)
  glass = np.clip(wall * rng.uniform(0.25, 0.6), 0, 255)
  frame = np.clip(wall * rng.uniform(1.1, 1.4), 0, 255)
  top = int(rng.uniform(-0.2, 0.35) * big)
  draw = ImageDraw.Draw(image)
  colour = lambda c: tuple(int(v) for v in np.clip(c, 0, 255))
  draw.rectangle((left, top, right, big), fill=colour(wall))
  # The period, and in it the window, in pixels of the picture: at least four of them.
  period = np.maximum(rng.uniform((9, 11), (22, 26)) / detail, 4.0) * _OVER
  size = period * rng.uniform(0.4, 0.75, 2)
  bars = rng.random() < 0.6
  for y in np.arange(top + 0.3 * period[1], big, period[1]):
    if rng.random() < 0.5:
      draw.line((left, y - 0.15 * period[1], right, y - 0.15 * period[1]), fill=colour(frame),
                width=_OVER)
    for x in np.arange(left + 0.2 * period[0], right - size[0], period[0]):
      box = (x, y, x + size[0], y + size[1])
      draw.rectangle(box, fill=colour(glass), outline=colour(frame), width=_OVER)
      if bars:
        middle = x + size[0] / 2
        draw.line((middle, y, middle, y + size[1]), fill=colour(frame), width=_OVER // 2 + 1)


def _polygon(rng, big):
  centre, radius = rng.uniform(0, big, 2), rng.uniform(0.08, 0.32) * big
  angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 8))))
  reach = radius * rng.uniform(0.5, 1.0, len(angles))
  return [(float(centre[0] + r * np.cos(a)), float(centre[1] + r * np.sin(a)))
          for a, r in zip(angles, reach)]


def _hatch(rng, image, corners, detail):
  """Parallel lines or dots within a polygon."""
  big = image.height
  mask = Image.new("L", (big, big), 0)
  ImageDraw.Draw(mask).polygon(corners, fill=255)
  ink = Image.new("L", (big, big), 0)
  draw = ImageDraw.Draw(ink)
  step = max(rng.uniform(3, 7) / detail, 2.0) * _OVER
  if rng.random() < 0.5:
    slope = rng.uniform(-1, 1)
    for at in np.arange(-big, 2 * big, step):
      draw.line((0, at, big, at + slope * big), fill=255, width=_OVER // 2 + 1)
  else:
    radius = 0.28 * step
    for row, y in enumerate(np.arange(0, big, step)):
      for x in np.arange((row % 2) * step / 2, big, step):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
  both = Image.fromarray(np.minimum(np.asarray(mask), np.asarray(ink)))
  image.paste((0, 0, 0), (0, 0), both)


def _gradient(rng, side, colours: Float[np.ndarray, "2 c"]) -> Float[np.ndarray, "y x c"]:
  """From one colour to another along a random direction."""
  y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
  angle = rng.uniform(0, 2 * np.pi)
  along = np.clip(0.5 + x * np.cos(angle) + y * np.sin(angle), 0, 1)[..., None]
  return colours[0] * (1 - along) + colours[1] * along


def _ellipse(canvas, x, y, centre, radii, colour, soft):
  """Paints an ellipse whose edge fades over a share of its radius."""
  distance = np.hypot((x - centre[0]) / radii[0], (y - centre[1]) / radii[1])
  cover = np.clip((1 - distance) / soft + 0.5, 0, 1)[..., None]
  canvas[:] = canvas * (1 - cover) + colour * cover


def _bytes(values) -> Pixels:
  return np.clip(np.rint(values), 0, 255).astype(np.uint8)


PAINTERS: dict[str, Painter] = {"faces": faces, "natural": field, "comics": comics, "urban": urban}
