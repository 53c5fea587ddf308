"""The fovea's filter against the published counts and a slow float64 version in loops.

The slow version works pixel by pixel from the definition: kernels of two dimensions, bilinear
interpolation of four neighbours, thresholds and transfer functions with their own constants.
"""

import functools
import math

import jax
import numpy as np
import pytest

from big_vision_ext.objectives import foveation

SIGMA = 0.248


def reflect(i, n):
  while not 0 <= i < n:
    i = -i if i < 0 else 2 * (n - 1) - i
  return i


def smooth(a):
  h, w = a.shape[:2]
  kernel = np.array([[math.exp(-(i * i + j * j) / (2 * SIGMA**2)) for j in range(-2, 3)]
                     for i in range(-2, 3)])
  kernel /= kernel.sum()
  out = np.zeros_like(a)
  for y in range(h):
    for x in range(w):
      for i in range(5):
        for j in range(5):
          out[y, x] += kernel[i, j] * a[reflect(y + i - 2, h), reflect(x + j - 2, w)]
  return out


def resize(a, size):
  h, w = a.shape[:2]
  out = np.zeros((*size, a.shape[2]))
  for y in range(size[0]):
    for x in range(size[1]):
      v = min(max((y + 0.5) * h / size[0] - 0.5, 0), h - 1)
      u = min(max((x + 0.5) * w / size[1] - 0.5, 0), w - 1)
      v0, u0 = int(v), int(u)
      v1, u1 = min(v0 + 1, h - 1), min(u0 + 1, w - 1)
      top = (u0 + 1 - u) * a[v0, u0] + (u - u0) * a[v0, u1]
      bottom = (u0 + 1 - u) * a[v1, u0] + (u - u0) * a[v1, u1]
      out[y, x] = (v0 + 1 - v) * top + (v - v0) * bottom
  return out


def pyramid(image, levels):
  out, a = [image], image
  for i in range(1, levels):
    a = smooth(a)
    a = resize(a, (a.shape[0] // 2, a.shape[1] // 2))
    b = a
    for k in range(i):
      b = resize(b, image.shape[:2] if k == i - 1 else (2 * b.shape[0], 2 * b.shape[1]))
    out.append(b)
  return out


def slow(image, fixation, blend):
  """One image (y, x, c) -> the filtered one, and its levels."""
  h, w = image.shape[:2]
  # Where a transfer function of the levels 1 to 6 is a half, brought to 0..1.
  omega = [SIGMA * math.sqrt(math.log(2)) / (2 ** (i - 3) * math.sqrt(0.5)) for i in range(1, 6)]
  omega = [o / omega[0] for o in omega] + [0.0]
  levels = np.zeros((h, w), int)
  out = np.zeros_like(image)
  planes = pyramid(image, 5)
  for y in range(h):
    for x in range(w):
      theta = math.hypot(y - fixation[0], x - fixation[1]) / 3.5
      r = 2.5 / (theta + 2.5)
      level = max(i for i in range(1, 6) if omega[i] <= r <= omega[i - 1])
      t = [math.exp(-0.5 * (2 ** (i - 3) * r / SIGMA) ** 2) for i in range(1, 6)] + [0.0]
      levels[y, x] = level
      if level == 1:
        out[y, x] = image[y, x]
        continue
      b = (0.5 - t[level]) / (t[level - 1] - t[level] + 1e-5)
      b = min(max(b, 0), 1) if blend == "clamped" else b
      out[y, x] = b * planes[level - 2][y, x] + (1 - b) * planes[level - 1][y, x]
  return np.clip(out, 0, 1), levels


@functools.cache
def filtered(size, blend):
  return jax.jit(lambda image, at: foveation.foveate(image, at, blend))


def maps(size, fixation):
  at = np.float32([fixation])
  return np.asarray(foveation.level_map(foveation.resolution_map(size, at)))[0]


def test_the_published_map_has_the_published_counts():
  level = maps((96, 96), (48, 48))
  y, x = np.mgrid[:96, :96]
  distance = np.hypot(y - 48, x - 48)
  assert np.bincount(level.reshape(-1), minlength=7).tolist() == [0, 241, 1936, 6858, 181, 0, 0]
  for i, (low, high) in {1: (0, 8.61), 2: (8.94, 26.25), 3: (26.3, 61.25)}.items():
    assert low <= distance[level == i].min() and distance[level == i].max() <= high
  _, mask = filtered((96, 96), "reference")(np.zeros((1, 96, 96, 3), np.float32), [[48.0, 48.0]])
  np.testing.assert_array_equal(mask[0], level > 1)


@pytest.mark.parametrize("size, fixation", [
  ((96, 96), (10, 80)), ((40, 96), (0, 95)), ((96, 40), (70, 3)), ((24, 56), (12, 28)),
])
def test_levels_follow_the_distance_off_the_centre_and_where_an_image_is_not_square(size, fixation):
  level = maps(size, fixation)
  y, x = np.mgrid[:size[0], :size[1]]
  distance = np.hypot(y - fixation[0], x - fixation[1])
  # R = 2^-i at a distance of 8.75 (2^i - 1) pixels.
  want = 1 + sum(distance > 8.75 * (2**i - 1) for i in range(1, 5))
  np.testing.assert_array_equal(level, want)
  assert level[fixation] == 1 and level.max() > 1


@pytest.mark.parametrize("blend", foveation.BLENDS)
@pytest.mark.parametrize("size, fixations", [
  ((32, 32), [(16, 16), (3, 30)]), ((24, 40), [(20, 2), (0, 39)]),
])
def test_images_are_those_of_the_definition(size, fixations, blend):
  rng = np.random.default_rng(size[1])
  image = rng.random((2, *size, 3))
  got, mask = filtered(size, blend)(image.astype(np.float32), np.float32(fixations))
  for i, fixation in enumerate(fixations):
    want, level = slow(image[i], fixation, blend)
    # float32 against float64; weights reach 1.4, so nothing is magnified.
    np.testing.assert_allclose(got[i], want, atol=4e-6)
    np.testing.assert_array_equal(mask[i], level > 1)
  assert 0 < mask.mean() < 1


def test_what_is_fixated_is_sharp_and_the_rest_loses_its_fine_detail():
  y, x = np.mgrid[:96, :96]
  board = np.repeat(((y + x) % 2)[None, ..., None], 3, axis=-1).astype(np.float32)
  for blend in foveation.BLENDS:
    seen, mask = jax.device_get(filtered((96, 96), blend)(board, [[20.0, 70.0]]))
    np.testing.assert_array_equal(seen[mask == 0], board[mask == 0])
    contrast = np.abs(seen[0, ..., 0] - 0.5)
    assert contrast[60:, :30].max() < 0.02
    # Level 2 has up to 0.77 of the image itself.
    assert 0.2 < contrast[(mask[0] > 0) & (np.hypot(y - 20, x - 70) < 10)].max() < 0.4


def test_mixing_weights_of_the_released_code_leave_the_range_and_clamped_ones_do_not():
  r = foveation.resolution_map((96, 96), np.float32([[48, 48]]))
  level = foveation.level_map(r)
  shares = {}
  for blend in foveation.BLENDS:
    weights = np.stack(foveation._weights(r, level, blend))
    np.testing.assert_allclose(weights.sum(0), 1.0, atol=1e-5)
    shares[blend] = weights[0][np.asarray(level) == 2]
  assert shares["reference"].min() == pytest.approx(-0.36, abs=0.01)
  assert shares["reference"].max() == pytest.approx(0.77, abs=0.01)
  assert shares["clamped"].min() == 0 and shares["clamped"].max() == shares["reference"].max()


def test_an_unknown_blend_is_named():
  with pytest.raises(ValueError, match="blend='soft' is unknown"):
    foveation.foveate(np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 2), np.float32), "soft")
