"""Masks of pixels: the published counts, fills that leak what they say and no more."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import ndimage

from big_vision_ext.objectives import masks, pixel_masks
from big_vision_ext.objectives.pixel_masks import PixelMask

SIZE = (96, 96)


def keys(n=5, seed=0):
  return masks.sample_keys(jax.random.key(seed), n)


def images(n=5, size=SIZE, seed=0):
  return np.random.default_rng(seed).random((n, *size, 3), np.float32)


def hidden(mask, n=5, size=SIZE, seed=0, foreground=None):
  return np.asarray(mask.hidden(keys(n, seed), size, foreground))


@pytest.mark.parametrize("ratio, radius, percent", [
  (0.5, 38, 48.97), (0.6, 34, 39.3), (0.7, 29, 28.5), (0.75, 27, 24.8), (0.8, 24, 19.46),
  (0.85, 20, 13.6), (0.9, 17, 9.8), (0.95, 12, 4.8),
])
def test_discs_have_the_published_radii_and_counts(ratio, radius, percent):
  assert pixel_masks.disc_radius(SIZE, ratio) == radius
  seen = 1 - hidden(PixelMask("periphery", ratio), n=2)
  # Lattice points of a disc, counted by rows.
  count = sum(2 * int((radius**2 - y**2) ** 0.5) + 1 for y in range(-radius, radius + 1))
  assert seen.sum(axis=(1, 2)).tolist() == [count, count]
  assert 100 * count / 9216 == pytest.approx(percent, abs=0.05)
  if ratio == 0.8:
    assert count == 1793


@pytest.mark.parametrize("ratio, count", [
  (0.5, 72), (0.6, 86), (0.7, 100), (0.75, 108), (0.8, 115), (0.9, 129), (1.0, 144),
])
def test_patches_are_hidden_whole_in_the_published_number(ratio, count):
  out = hidden(PixelMask("random_patches", ratio)).reshape(5, 12, 8, 12, 8)
  np.testing.assert_array_equal(out, np.broadcast_to(out[:, :, :1, :, :1], out.shape))
  assert out[:, :, 0, :, 0].sum(axis=(1, 2)).tolist() == [count] * 5
  if ratio < 1:
    assert len({row.tobytes() for row in out}) == 5


def test_every_patch_is_hidden_as_often_as_any_other():
  share = hidden(PixelMask("random_patches", 0.5), n=2000)[:, ::8, ::8].mean(0)
  # 2,000 draws of a half: a standard error of 0.011.
  assert np.abs(share - 0.5).max() < 0.05


def test_an_exact_disc_has_the_area_that_is_asked_for():
  for size, ratio in ((SIZE, 0.8), (SIZE, 0.55), ((80, 136), 0.7)):
    share = hidden(PixelMask("periphery", ratio, radius="exact"), n=1, size=size).mean()
    # Gauss's circle problem: a disc's lattice points differ from its area by far below 1 %.
    assert share == pytest.approx(ratio, abs=0.004)


@pytest.mark.parametrize("size", [(40, 64), (64, 40)])
def test_discs_are_where_they_should_be_in_images_that_are_not_square(size):
  out = hidden(PixelMask("periphery", 0.8), n=1, size=size)[0]
  y, x = np.mgrid[:size[0], :size[1]]
  radius = int((size[0] * size[1] * 0.2 / np.pi) ** 0.5)
  np.testing.assert_array_equal(
    out, (y - size[0] // 2) ** 2 + (x - size[1] // 2) ** 2 > radius**2)
  moved = np.asarray(pixel_masks.outside_disc(size, np.float32([[3, 30]]), 9.0))[0]
  np.testing.assert_array_equal(moved, (y - 3) ** 2 + (x - 30) ** 2 > 81)


def test_a_second_disc_is_seen_around_any_pixel():
  out = hidden(PixelMask("periphery", 0.9, attention="random"), n=64, size=(40, 64))
  first = hidden(PixelMask("periphery", 0.9), n=1, size=(40, 64))
  assert np.all(out <= first) and len({m.tobytes() for m in out}) > 60
  radius = pixel_masks.disc_radius((40, 64), 0.9)
  centres = np.asarray(jax.vmap(lambda k: pixel_masks.random_pixel(k, (40, 64)))(keys(300)))
  assert np.all(centres.min(0) <= 1) and np.all(centres.max(0) >= (38, 61))
  assert np.all(centres.max(0) <= (39, 63)) and np.all(centres == np.round(centres))
  # What is seen beyond the first disc is one disc, cut at the border.
  for one in (first[0] - out)[:10]:
    ys, xs = np.nonzero(one)
    assert np.ptp(ys) <= 2 * radius and np.ptp(xs) <= 2 * radius


def test_a_second_disc_goes_to_a_pixel_of_largest_weight_each_as_often():
  weight = np.full((400, 40, 64), 0.3, np.float32)
  spots = [(5, 50), (30, 7), (38, 62)]
  for spot in spots:
    weight[:, *spot] = 0.9
  out = hidden(PixelMask("periphery", 0.95, attention="foreground"), n=400, size=(40, 64),
               foreground=weight)
  at = np.stack([out[:, *spot] == 0 for spot in spots], axis=1)
  assert np.all(at.sum(1) == 1)
  # A third of 400 with a standard deviation of 9.4.
  assert np.all(np.abs(at.sum(0) - 400 / 3) < 40)


@pytest.mark.parametrize("mask", [
  PixelMask("random_patches", 0.6), PixelMask("periphery", 0.8, attention="random"),
  pytest.param(PixelMask("foveate", fixation="random"), marks=pytest.mark.thorough),
  pytest.param(PixelMask("periphery", 0.8, fixation="random"), marks=pytest.mark.thorough),
])
def test_a_mask_depends_on_its_own_key_and_on_neither_order_nor_mesh(mask):
  image, order = images(8, (24, 40)), np.array([3, 0, 4, 1, 2, 7, 6, 5])
  seen, out = jax.device_get(mask.apply(keys(8), image))
  assert len({m.tobytes() for m in out}) > 1
  mixed = jax.device_get(mask.apply(keys(8)[order], image[order]))
  np.testing.assert_array_equal(mixed[1], out[order])
  np.testing.assert_allclose(mixed[0], seen[order], atol=1e-6)
  assert not np.array_equal(mask.apply(keys(8, 1), image)[1], out)
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
  make = jax.jit(lambda key, x: mask.apply(masks.sample_keys(key, 8), x), out_shardings=rows)
  np.testing.assert_array_equal(make(jax.random.key(0), jax.device_put(image, rows))[1], out)


def scipy_blur(image):
  taps = np.exp(-0.5 * (np.arange(-16, 17) / 100) ** 2)
  for axis in (1, 2):
    # scipy's "mirror" does not repeat the border pixel, as a reflected padding does not.
    image = ndimage.convolve1d(image, taps / taps.sum(), axis=axis, mode="mirror")
  return image


@pytest.mark.parametrize("size", [(96, 96), (40, 64)])
def test_fills_are_what_they_are_called(size):
  image = images(3, size).astype(np.float64)
  cover = hidden(PixelMask("random_patches", 0.6), n=3, size=size)[..., None] > 0
  fill = lambda kind: np.asarray(pixel_masks.fill_in(
    image.astype(np.float32), cover[..., 0].astype(np.float32), kind))
  mean = image.mean(axis=(1, 2), keepdims=True)
  blurred = scipy_blur(image)
  mixed = np.where(cover, blurred, image)
  want = {"zero": np.where(cover, 0, image), "mean": np.where(cover, mean, image), "blur": mixed,
          "blur_as_released": np.where(cover, mixed.mean(axis=(1, 2), keepdims=True), image)}
  for kind, expected in want.items():
    # float32 sums of up to 9,216 numbers.
    np.testing.assert_allclose(fill(kind), expected, atol=2e-6)
    np.testing.assert_array_equal(fill(kind)[~cover[..., 0]], image.astype(np.float32)[
      ~cover[..., 0]])
  # Blurred, really, and not flat either: what the released code made of it.
  assert fill("blur")[0][cover[0, ..., 0]].std() > 1e-3
  assert np.ptp(fill("blur_as_released")[0][cover[0, ..., 0]], axis=0).max() == 0


@pytest.mark.parametrize("family", ["random_patches", "periphery"])
def test_hidden_pixels_tell_three_means_and_with_black_nothing(family):
  image = images(2)
  mask = PixelMask(family, 0.6)
  cover = hidden(mask, n=2)[..., None] > 0
  other = np.where(cover, images(2, seed=9), image)
  black = dataclasses.replace(mask, fill="zero")
  np.testing.assert_array_equal(*(black.apply(keys(2), x)[0] for x in (image, other)))
  # Shuffled among themselves, hidden pixels keep their mean and the input its bits but for
  # the rounding of that mean.
  shuffled = image.copy()
  for i in range(2):
    at = cover[i, ..., 0]
    shuffled[i][at] = np.random.default_rng(i).permutation(image[i][at])
  a, b = (np.asarray(mask.apply(keys(2), x)[0]) for x in (image, shuffled))
  np.testing.assert_allclose(a, b, atol=1e-6)
  assert np.abs(np.asarray(mask.apply(keys(2), other)[0]) - a).max() > 1e-3


def test_a_plain_autoencoder_sees_all_and_predicts_all():
  image = images(2)
  seen, out = PixelMask("none").apply(keys(2), image)
  assert seen is image and np.all(out == 1) and out.shape == (2, 96, 96)


@pytest.mark.parametrize("mask, size, message", [
  (PixelMask("random_patches", 0.001), SIZE, "ratio=0.001: hides 0 of 144 patches"),
  (PixelMask("random_patches", 0.6, patch=7), SIZE, "patch=7 does not divide an image of 96 x 96"),
  (PixelMask("periphery", 1.0), SIZE, "ratio=1.0: expected a share"),
  (PixelMask("foveate", attention="random"), SIZE, "attention='random' with family='foveate'"),
])
def test_masks_that_cannot_be_are_refused(mask, size, message):
  with pytest.raises(ValueError, match=message):
    mask.apply(keys(1), images(1, size))


def test_attention_to_the_foreground_needs_a_foreground():
  with pytest.raises(ValueError, match="no foreground weights"):
    PixelMask("periphery", 0.8, attention="foreground").apply(keys(1), images(1))
