"""Targets and loss of masked image modelling against float64 NumPy written from the definition."""

import jax
import numpy as np
import pytest

from big_vision_ext.core import patches
from big_vision_ext.objectives import mim


def test_patches_are_rows_then_columns_with_the_channel_fastest_and_go_back():
  image = np.random.default_rng(0).random((2, 8, 12, 3), np.float32)
  cut = np.asarray(patches.patchify(image, 4))
  assert cut.shape == (2, 6, 48)
  np.testing.assert_array_equal(cut[1, 4], image[1, 4:8, 4:8].reshape(-1))
  np.testing.assert_array_equal(patches.unpatchify(cut, (2, 3), 4), image)
  with pytest.raises(ValueError, match="10 x 12 pixels"):
    patches.patchify(np.zeros((1, 10, 12, 3)), 4)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_picking_by_product_is_picking_by_index(dtype):
  rng = np.random.default_rng(1)
  tokens = (rng.standard_normal((2, 7, 5)) * 100).astype(dtype)
  index = np.array([[6, 0, 3], [2, 2, 5]], np.int32)
  want = np.take_along_axis(tokens, index[:, :, None], axis=1)
  for how in ("gather", "onehot"):
    got = patches.take(tokens, index, how)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, want)
  if dtype == np.float32:
    cotangent = rng.standard_normal(want.shape).astype(dtype)
    grads = [jax.grad(lambda x, how=how: (patches.take(x, index, how) * cotangent).sum())(tokens)
             for how in ("gather", "onehot")]
    np.testing.assert_allclose(*grads, rtol=1e-6)


def test_normalised_targets_use_the_unbiased_variance():
  x = np.random.default_rng(2).random((2, 3, 12))
  want = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(mim.pixel_targets(x.astype(np.float32), True), want, atol=2e-6)
  x = x.astype(np.float32)
  np.testing.assert_array_equal(mim.pixel_targets(x, False), x)


def test_the_loss_is_one_ratio_of_sums_whatever_each_sample_counts():
  rng = np.random.default_rng(3)
  pred, target = rng.random((2, 4, 5, 6))
  weight = rng.random((4, 5)) * (rng.random((4, 5)) > 0.5)
  want = (weight * ((pred - target) ** 2).mean(-1)).sum() / weight.sum()
  f32 = lambda *xs: [np.float32(x) for x in xs]
  np.testing.assert_allclose(mim.masked_mse(*f32(pred, target, weight)), want, rtol=1e-6)
  pred[weight == 0] = np.nan
  np.testing.assert_allclose(mim.masked_mse(*f32(pred, target, weight)), want, rtol=1e-6)
  assert mim.masked_mse(*f32(pred, target), np.zeros((4, 5), np.float32)) == 0


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_of_pixels_is_the_published_ratio_over_the_batch(soft):
  """sum((x - y)^2 m) / sum(m) with the mask repeated for each channel, in float64."""
  rng = np.random.default_rng(4)
  pred, target = rng.random((2, 3, 5, 7, 3))
  weight = (rng.random((3, 5, 7)) > np.array([0.2, 0.5, 0.9])[:, None, None]).astype(float)
  weight *= rng.random((3, 5, 7)) if soft else 1
  m = np.repeat(weight[..., None], 3, axis=-1)
  want = ((pred - target) ** 2 * m).sum() / m.sum()
  got = mim.pixel_mse(*(np.float32(x) for x in (pred, target, weight)))
  np.testing.assert_allclose(got, want, rtol=1e-6)
  # Not the mean of the samples' own ratios.
  each = [((p - t) ** 2 * w).sum() / w.sum() for p, t, w in zip(pred, target, m)]
  assert abs(np.mean(each) - want) > 1e-4
  # What is seen may be predicted as badly as can be.
  spoiled = np.where(m > 0, pred, 1e6)
  again = mim.pixel_mse(*(np.float32(x) for x in (spoiled, target, weight)))
  np.testing.assert_allclose(again, want, rtol=1e-6)
