"""Complexity: simple pictures in their order, sets by what is in them and not by their size."""

import jax
import numpy as np
import pytest
from skimage import data

from big_vision_ext import complexity
from big_vision_ext.objectives import masks, rain

SIDE = 128


def photos(n, distinct=None):
  """Crops of photographs of scikit-image, in a fixed order; `distinct` ones, repeated."""
  rng = np.random.default_rng(0)
  sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
  out = []
  for i in range(distinct or n):
    x = sources[i % 4]
    top, left = (rng.integers(0, s - SIDE + 1) for s in x.shape[:2])
    out.append(x[top:top + SIDE, left:left + SIDE])
  return [out[i % len(out)] for i in range(n)]


@pytest.fixture(scope="module")
def simple():
  """Pictures of which anybody knows the order, by their measures."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:SIDE, :SIDE]
  pictures = {
    "flat": np.full((SIDE, SIDE), 99),
    "ramp": x,
    "stripes": x // 8 % 2 * 255,
    "photo": data.camera()[100:100 + SIDE, 180:180 + SIDE],
    "noise": rng.integers(0, 256, (SIDE, SIDE)),
  }
  return {name: complexity.measures([p.astype(np.uint8)]) for name, p in pictures.items()}


@pytest.mark.parametrize("measure, order", [
  ("png_bpp", ["stripes", "photo", "noise"]),
  ("zlib_bpp", ["flat", "stripes", "photo", "noise"]),
  ("jpeg_bpp", ["flat", "stripes", "photo", "noise"]),
  ("magnitude_entropy", ["ramp", "stripes", "photo", "noise"]),
  ("orientation_entropy", ["stripes", "photo", "noise"]),
  ("high_frequencies", ["ramp", "photo", "noise"]),
  ("patch_components", ["ramp", "photo", "noise"]),
])
def test_simple_pictures_are_in_their_order(simple, measure, order):
  values = [simple[name][measure] for name in order]
  assert all(b > a for a, b in zip(values, values[1:])), dict(zip(order, values))


def test_measures_are_what_is_known_of_simple_pictures(simple):
  # Random bytes cannot be compressed; a file has a header of some bytes.
  assert simple["noise"]["zlib_bpp"] == pytest.approx(8, abs=0.05)
  # White: 1 - pi / 64 of its frequencies lie above a quarter of Nyquist, and its slope is 0.
  assert simple["noise"]["high_frequencies"] == pytest.approx(1 - np.pi / 64, abs=0.01)
  assert simple["noise"]["spectrum_slope"] == pytest.approx(0, abs=0.15)
  assert simple["noise"]["orientation_entropy"] == pytest.approx(5, abs=0.02)
  # One direction, one magnitude; patches of a ramp differ in their means alone.
  assert simple["ramp"]["orientation_entropy"] == simple["ramp"]["magnitude_entropy"] == 0
  assert simple["ramp"]["patch_components"] == simple["flat"]["spectrum_slope"] == 0


@pytest.mark.parametrize("alpha", [1.0, 2.0, 3.0])
def test_the_slope_is_that_of_noise_that_was_made_with_it(alpha):
  rng = np.random.default_rng(0)
  frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.fftfreq(SIDE))
  frequency[0, 0] = 1
  x = np.fft.ifft2(np.fft.fft2(rng.normal(size=(SIDE, SIDE))) / frequency ** (alpha / 2)).real
  x = np.clip(128 + 40 * (x - x.mean()) / x.std(), 0, 255).astype(np.uint8)
  # A ring of low frequency has few numbers.
  assert complexity.spectrum(x)["spectrum_slope"] == pytest.approx(alpha, abs=0.2)


def test_sets_grow_with_the_number_of_distinct_backgrounds_and_not_of_pictures():
  grown = [complexity.components(photos(n)) for n in (1, 4, 16, 64)]
  for name in ("patch_components", "picture_components"):
    values = [g[name] for g in grown]
    assert all(b > 1.1 * a for a, b in zip(values, values[1:])) and values[-1] > 2 * values[0]
    again = complexity.components(photos(64, distinct=4))[name]
    assert again == pytest.approx(values[1], rel=1e-6)
  assert grown[0]["picture_components"] == 0 and grown[1]["picture_components"] <= 3


def test_sets_of_rain_grow_with_the_range_they_are_drawn_from():
  keys = masks.sample_keys(jax.random.key(0), 32)
  draw = jax.jit(rain.draw, static_argnums=1)
  render = jax.jit(rain.streaks_layer, static_argnums=(2, 3, 4))
  measured = []
  for name in ("small", "medium", "large"):
    layers = np.asarray(render(keys, draw(keys, (rain.RANGES[name],)), 96, 96, 60))
    measured.append(complexity.measures(np.round(layers * 255).astype(np.uint8), most=8))
  for name in ("patch_components", "jpeg_bpp"):
    values = [m[name] for m in measured]
    assert values[0] < values[1] < values[2], name
  assert measured[2]["patch_components"] > 2 * measured[0]["patch_components"]


@pytest.mark.parametrize("pictures, message", [
  ([], "no pictures"),
  ([np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.float32)], "picture 1 is float32"),
  ([np.zeros((32, 8, 3), np.uint8)], "at least 16 x 16"),
])
def test_what_is_no_set_of_pictures_is_refused(pictures, message):
  with pytest.raises(ValueError, match=message):
    complexity.measures(pictures)
