"""RandAugment: every operation against its definition in NumPy, magnitudes against timm's table."""

import math

import numpy as np
import pytest
from PIL import Image

from input_pipeline import input_config, randaugment

BILINEAR, BICUBIC = Image.Resampling.BILINEAR, Image.Resampling.BICUBIC


def picture(seed=0, shape=(20, 26)):
  rng = np.random.default_rng(seed)
  # Neither black nor white occurs, so that contrast has something to do.
  return rng.integers(30, 221, (*shape, 3), np.uint8)


def equalized(channel):
  """The histogram made flat, by the rule that Pillow documents: steps of all but the last bin."""
  count = np.bincount(channel.ravel(), minlength=256)
  step = (count.sum() - count[np.flatnonzero(count)[-1]]) // 255
  table = np.minimum((step // 2 + np.concatenate([[0], np.cumsum(count)[:-1]])) // step, 255)
  return table[channel]


def stretched(channel):
  low, high = channel.min(), channel.max()
  return np.clip(((channel.astype(float) - low) * 255 / (high - low)).astype(int), 0, 255)


def grey(pixels):
  """ITU-R 601-2 luma in Pillow's fixed point."""
  r, g, b = np.moveaxis(pixels.astype(np.int64), -1, 0)
  return (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16


def smooth(pixels):
  """The 3 x 3 kernel of Pillow's SMOOTH; the border stays."""
  out = pixels.astype(float)
  padded = pixels.astype(float)
  total = 4 * padded[1:-1, 1:-1]
  for y in (0, 1, 2):
    for x in (0, 1, 2):
      total = total + padded[y : y + padded.shape[0] - 2, x : x + padded.shape[1] - 2]
  out[1:-1, 1:-1] = np.floor(total / 13 + 0.5)
  return out


CHANNELS = lambda fn: lambda p, _: np.stack([fn(p[..., c]) for c in range(3)], axis=-1)
BASE = {
  "color": lambda p: np.repeat(grey(p)[..., None], 3, axis=-1),
  "contrast": lambda p: np.full(p.shape, math.floor(grey(p).mean() + 0.5)),
  "brightness": lambda p: np.zeros(p.shape),
  "sharpness": smooth,
}
WANT = {
  "auto_contrast": CHANNELS(stretched),
  "equalize": CHANNELS(equalized),
  "invert": lambda p, _: 255 - p,
  "posterize": lambda p, bits: p >> (8 - bits) << (8 - bits),
  "solarize": lambda p, at: np.where(p < at, p, 255 - p),
  "solarize_add": lambda p, add: np.where(p < 128, np.minimum(p.astype(int) + add, 255), p),
}


@pytest.mark.parametrize("name, argument", [
  ("auto_contrast", None), ("equalize", None), ("invert", None), ("posterize", 4),
  ("posterize", 1), ("posterize", 0), ("solarize", 256), ("solarize", 100), ("solarize", 0),
  ("solarize_add", 0), ("solarize_add", 110)])
def test_operations_on_values_are_their_definitions(name, argument):
  for seed in range(3):
    pixels = picture(seed, (40, 50))
    got = randaugment.apply(name, pixels, argument)
    want = WANT[name](pixels, argument)
    # Pillow stretches by a factor in floating point: one step where that falls on an integer.
    assert np.abs(got.astype(int) - want).max() <= (1 if name == "auto_contrast" else 0)


@pytest.mark.parametrize("name", list(BASE))
@pytest.mark.parametrize("factor", [0.1, 0.55, 1.0, 1.45, 1.9])
def test_enhancements_blend_with_what_they_take_away(name, factor):
  pixels = picture(1)
  base = BASE[name](pixels)
  want = np.clip(base + factor * (pixels.astype(float) - base), 0, 255)
  got = randaugment.apply(name, pixels, factor)
  # Cut off to a whole number there.
  assert np.abs(got - want).max() <= 1.0


def nearest_source(name, argument, shape):
  """Where each pixel of the result comes from, (y, x), centres of pixels at halves."""
  h, w = shape
  y, x = np.mgrid[:h, :w] + 0.5
  if name == "shear_x":
    return y, x + argument * y
  if name == "shear_y":
    return y + argument * x, x
  if name == "translate_x":
    return y, x + argument * w
  if name == "translate_y":
    return y + argument * h, x
  turn = math.radians(argument)
  dy, dx = y - h / 2, x - w / 2
  # Counter-clockwise as it is seen, with y downwards.
  return (h / 2 + math.sin(turn) * dx + math.cos(turn) * dy,
          w / 2 + math.cos(turn) * dx - math.sin(turn) * dy)


@pytest.mark.parametrize("resample", [BILINEAR, BICUBIC])
@pytest.mark.parametrize("name, argument", [
  ("shear_x", 0.27), ("shear_x", -0.3), ("shear_y", 0.2), ("translate_x", 0.4),
  ("translate_x", -0.33), ("translate_y", 0.405), ("rotate", 27.0), ("rotate", -11.0)])
def test_operations_on_places_move_every_pixel_where_they_should(name, argument, resample):
  """On a plane, which both kernels reproduce exactly, the value of a pixel is its place."""
  h, w = 30, 44
  y, x = np.mgrid[:h, :w] + 0.5
  plane = lambda y, x: 40 + 3 * y + 2 * x
  pixels = np.repeat(np.round(plane(y, x)).astype(np.uint8)[..., None], 3, axis=-1)
  got = randaugment.apply(name, pixels, argument, resample)
  from_y, from_x = nearest_source(name, argument, (h, w))
  inside = (from_y > 2) & (from_y < h - 2) & (from_x > 2) & (from_x < w - 2)
  outside = (from_y < -1) | (from_y > h + 1) | (from_x < -1) | (from_x > w + 1)
  assert inside.sum() > 300 and (name == "shear_y" or outside.sum() > 20)
  want = plane(from_y, from_x)
  # The plane is rounded, what is made of it cut off, and weights of the bicubic add up to 1.25^2.
  assert np.abs(got[..., 0].astype(float) - want)[inside].max() <= 2.0
  assert np.all(got[outside] == randaugment.FILL)


# level: rotate, posterize, solarize, solarize_add, shear, translate, blends; by timm's formulas.
TABLE = {
  0: (0.0, 4, 256, 0, 0.0, 0.0, (1.0, 1.0)),
  4: (12.0, 3, 154, 44, 0.12, 0.18, (0.64, 1.36)),
  9: (27.0, 1, 26, 99, 0.27, 0.405, (0.19, 1.81)),
  9.7: (29.1, 1, 8, 106, 0.291, 0.4365, (0.127, 1.873)),
  10: (30.0, 0, 0, 110, 0.3, 0.45, (0.1, 1.9)),
}


@pytest.mark.parametrize("magnitude", TABLE)
def test_magnitudes_are_those_of_the_increasing_variant(magnitude):
  policy = randaugment.RandAugment(magnitude=magnitude)
  rotate, posterize, solarize, add, shear, translate, blend = TABLE[magnitude]
  both = lambda v: {round(v, 6), round(-v, 6) + 0.0}
  want = {
    "rotate": both(rotate), "posterize": {posterize}, "solarize": {solarize},
    "solarize_add": {add}, "shear_x": both(shear), "shear_y": both(shear),
    "translate_x": both(translate), "translate_y": both(translate),
    **dict.fromkeys(BASE, set(blend)), **dict.fromkeys(("auto_contrast", "equalize", "invert"),
                                                       {None})}
  assert want.keys() == randaugment.ARGUMENTS.keys() and len(want) == 15
  for name, values in want.items():
    rng = np.random.default_rng(0)
    found = {policy._argument(name, rng) for _ in range(40)}
    found = {v if v is None else round(v, 6) + 0.0 for v in found}
    assert found == {v if v is None else v + 0.0 for v in values}, name


def test_magnitudes_are_normal_and_stay_between_zero_and_ten():
  policy = randaugment.parse("rand-m9-mstd0.5-inc1")
  rng = np.random.default_rng(0)
  drawn = np.array([abs(policy._argument("rotate", rng)) / 3 for _ in range(4000)])
  assert drawn.max() == 10.0 and abs(np.mean(drawn == 10.0) - 0.0228) < 0.01
  below = drawn[drawn < 10]
  assert abs(np.median(drawn) - 9) < 0.05 and abs(np.mean(below < 8.5) - 0.1587 / 0.977) < 0.03


def test_an_image_gets_so_many_operations_each_half_of_the_time(monkeypatch):
  done = []
  monkeypatch.setattr(randaugment, "apply", lambda name, p, *a: done.append((name, *a)) or p)
  rng = np.random.default_rng(0)
  policy = randaugment.parse("rand-m9-n3-mstd0.5-inc1")
  for _ in range(1000):
    policy(picture(), rng)
  # 3,000 draws of which half are carried out: 1,500 +- 27, of each operation 100 +- 10.
  assert abs(len(done) - 1500) < 110
  names = [name for name, *_ in done]
  assert set(names) == set(randaugment.ARGUMENTS)
  assert all(60 < names.count(name) < 145 for name in set(names))
  assert {resample for *_, resample in done} == {BILINEAR, BICUBIC}
  done.clear()
  for _ in range(50):
    randaugment.parse("rand-m9-mstd0.5-inc1-bicubic")(picture(), rng)
  assert {resample for *_, resample in done} == {BICUBIC}


def test_pixels_depend_on_the_generator_alone_and_do_change():
  policy = randaugment.parse("rand-m9-mstd0.5-inc1")
  pixels = picture()
  a, b = (policy(pixels, np.random.default_rng(3)) for _ in range(2))
  np.testing.assert_array_equal(a, b)
  changed = [not np.array_equal(policy(pixels, np.random.default_rng(i)), pixels)
             for i in range(60)]
  assert 0.6 < np.mean(changed) < 0.95  # Three quarters have an operation or two.
  np.testing.assert_array_equal(pixels, picture())


@pytest.mark.parametrize("spec, says", [
  ("rand-m9", "input.augment is 'rand-m9', expected RandAugment as in"),
  ("rand-m9-inc0", "inc1 for the increasing variant"),
  ("rand-m9-mm5-inc1", "expected RandAugment"), ("rand-m9-m8-inc1", "expected RandAugment"),
  ("augmix-m3", "expected RandAugment"), ("rand-m11-inc1", "a magnitude m of 0 to 10"),
  ("rand-m9-n0-inc1", "a whole number n"), ("rand-m9-n1.5-inc1", "a whole number n")])
def test_a_policy_that_cannot_be_read_is_named(spec, says):
  with pytest.raises(ValueError, match=says):
    input_config.InputConfig("/d", captions=False, augment=spec)
