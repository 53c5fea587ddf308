"""Bicubic resizing: Pillow's to rounding, MATLAB's as its formula says, stored as 8 bits."""

import math

import numpy as np
import pytest
from PIL import Image

from big_vision_ext.objectives import bicubic


def pillow(x, size):
  """Mode "F" is not rounded; one channel at a time."""
  channels = [Image.fromarray(x[..., c]).resize(size[::-1], Image.BICUBIC) for c in range(3)]
  return np.stack([np.asarray(c) for c in channels], axis=-1)


def imresize(x, n_out):
  """MATLAB's imresize along the first axis, sample by sample, float64: for output pixel i about
  u = i / scale + (1 - 1 / scale) / 2 (counted from 1), over all pixels the kernel can reach, with
  the picture continued by its mirror image; weights made to sum to 1."""
  n_in = len(x)
  scale = n_out / n_in
  shrink = min(scale, 1.0)
  out = np.zeros((n_out, *x.shape[1:]))
  for i in range(1, n_out + 1):
    u = i / scale + 0.5 * (1 - 1 / scale)
    taps = math.floor(u - 2 / shrink) + np.arange(math.ceil(4 / shrink) + 2)
    d = np.abs(shrink * (u - taps))
    weight = np.where(d <= 1, 1.5 * d**3 - 2.5 * d**2 + 1,
                      np.where(d <= 2, -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2, 0))
    weight /= weight.sum()
    mirror = np.concatenate([np.arange(n_in), np.arange(n_in)[::-1]])
    for w, tap in zip(weight, taps):
      out[i - 1] += w * x[mirror[(tap - 1) % (2 * n_in)]]
  return out


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_both_conventions_are_their_references_down_and_up(scale):
  x = np.random.default_rng(scale).random((2, 48, 24, 3), np.float32)
  small, large = (48 // scale, 24 // scale), (48 * scale, 24 * scale)
  for resize, size in ((bicubic.downsample, small), (bicubic.upsample, large)):
    got = np.asarray(resize(x, scale, "pillow"))
    # Both sides round sums of at most (4 x 8)^2 products in float32.
    np.testing.assert_allclose(got[0], pillow(x[0], size), atol=1e-6)
    want = imresize(imresize(x[0].astype(np.float64), size[0]).swapaxes(0, 1), size[1])
    matlab = np.asarray(resize(x, scale))
    np.testing.assert_allclose(matlab[0], want.swapaxes(0, 1), atol=1e-6)
    inside = (slice(2 * scale, -2 * scale),) * 2
    if resize is bicubic.upsample:
      np.testing.assert_allclose(got[0][inside], matlab[0][inside], atol=1e-6)
  assert 0.005 < np.abs(matlab - got).max() < 0.1


def test_any_size_is_reached_in_both_directions_at_once():
  x = np.random.default_rng(0).random((1, 30, 41, 3), np.float32)
  got = bicubic.resize(x, (44, 19), "pillow")
  np.testing.assert_allclose(got[0], pillow(x[0], (44, 19)), atol=1e-6)
  # A kernel wider than the picture is folded more than once.
  tiny = bicubic.resize(x[:, :3], (1, 41))
  np.testing.assert_allclose(tiny[0], imresize(x[0, :3].astype(np.float64), 1), atol=1e-6)


def test_stored_pictures_are_rounded_half_to_even():
  levels = np.array([0.5, 1.5, 2.5, 254.5, -3, 300, 7]) / 255
  got = np.asarray(bicubic.quantize(np.float64(levels))) * 255
  np.testing.assert_allclose(got, [0, 2, 2, 254, 0, 255, 7], atol=1e-4)


@pytest.mark.parametrize("call, message", [
  (lambda x: bicubic.downsample(x, 3), "cut it to 15 x 15"),
  (lambda x: bicubic.upsample(x, 0), "scale=0"),
  (lambda x: bicubic.upsample(x, 2.5), "whole number"),
  (lambda x: bicubic.upsample(x, 2, "torch"), "'matlab' or 'pillow'"),
])
def test_what_does_not_fit_is_said(call, message):
  with pytest.raises(ValueError, match=message):
    call(np.zeros((1, 16, 16, 3), np.float32))
