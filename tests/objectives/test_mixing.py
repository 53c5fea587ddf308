"""Mixed and erased images, against the published formulas by hand, pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import sharding
from big_vision_ext.objectives import mixing

SIZE = (12, 20)


def batch(n=6, classes=5, seed=0):
  rng = np.random.default_rng(seed)
  image = rng.standard_normal((n, *SIZE, 3)).astype(np.float32)
  return image, np.asarray(mixing.smoothed(rng.integers(0, classes, n), classes, 0.1))


def test_smoothed_targets_are_those_of_timm():
  got = mixing.smoothed(jnp.array([2, 0]), 4, 0.1)
  # off = s / n, on = 1 - s + off.
  np.testing.assert_allclose(got, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]],
                             rtol=1e-6)


def test_soft_cross_entropy_is_the_formula_in_float64():
  rng = np.random.default_rng(3)
  logits, target = rng.normal(0, 30, (7, 5)), rng.dirichlet(np.ones(5), 7)
  log_p = logits - logits.max(1, keepdims=True)
  log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
  want = -(target * log_p).sum(1).mean()
  got = mixing.soft_cross_entropy(jnp.float32(logits), jnp.float32(target))
  np.testing.assert_allclose(got, want, rtol=1e-5)  # float32 of sums of 5.


def test_images_and_targets_are_mixed_pixel_by_pixel():
  image, target = batch()
  own = np.float32([0.3, 0.0, 1.0, 0.75, 1 - 6 * 5 / 240, 0.25])
  cut = np.array([False, False, False, False, True, True])
  box = np.int32([[0, 0, 0, 0]] * 4 + [[2, 8, 15, 20], [0, 12, 5, 20]])
  own[5] = 1 - 12 * 15 / 240
  got, soft = mixing.mix(image, target, mixing.Draws(own, cut, box))
  for i in range(6):
    other = image[5 - i]
    if cut[i]:
      want = image[i].copy()
      top, bottom, left, right = box[i]
      want[top:bottom, left:right] = other[top:bottom, left:right]
      share = np.mean(np.all(got[i] == image[i], axis=-1))
      assert share == pytest.approx(own[i])  # What is left of it is what its target says.
    else:
      want = own[i] * image[i] + (1 - own[i]) * other
    np.testing.assert_allclose(got[i], want, atol=1e-6)
    want = own[i] * target[i] + (1 - own[i]) * target[5 - i]
    np.testing.assert_allclose(soft[i], want, atol=1e-6)
  np.testing.assert_allclose(np.sum(soft, axis=1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("mixup, cutmix", [(0.8, 1.0), (0.8, 0.0), (0.0, 1.0)])
def test_draws_have_the_published_distributions(mixup, cutmix):
  draws = jax.device_get(mixing.draw(jax.random.key(1), 4000, SIZE, mixup=mixup, cutmix=cutmix))
  cut = draws.cut
  share = {(0.8, 1.0): 0.5, (0.8, 0.0): 0.0, (0.0, 1.0): 1.0}[mixup, cutmix]
  # Of 4,000 flips 0.5 +- 0.008: four deviations.
  assert abs(cut.mean() - share) <= (0.032 if 0 < share < 1 else 0)
  assert np.all((draws.own >= 0) & (draws.own <= 1))
  if mixup:
    from scipy import stats
    # A sample of its own distribution fails this once in 10,000 keys; the key is fixed.
    assert stats.kstest(draws.own[~cut], stats.beta(mixup, mixup).cdf).pvalue > 1e-4
  if cutmix:
    top, bottom, left, right = draws.box[cut].T
    assert np.all((top >= 0) & (bottom <= SIZE[0]) & (left >= 0) & (right <= SIZE[1]))
    np.testing.assert_allclose(
      draws.own[cut], 1 - (bottom - top) * (right - left) / 240, rtol=1e-6)
    # Reference: the recipe of timm's rand_bbox in NumPy.
    rng = np.random.default_rng(0)
    lam = rng.beta(cutmix, cutmix, 40_000)
    ends = []
    for length in SIZE:
      half, centre = (length * np.sqrt(1 - lam)).astype(int) // 2, rng.integers(length, size=40_000)
      ends.append(np.clip(centre + half, 0, length) - np.clip(centre - half, 0, length))
    area = ends[0] * ends[1] / 240
    got = (bottom - top) * (right - left) / 240
    # Deviations of the mean: 0.25 / sqrt(2000) = 0.006.
    assert abs(got.mean() - area.mean()) < 0.025 and abs(got.std() - area.std()) < 0.025


def test_neither_kind_of_mixing_is_an_error():
  with pytest.raises(ValueError, match="mixup=0.0, cutmix=0"):
    mixing.draw(jax.random.key(0), 4, SIZE, mixup=0.0, cutmix=0.0)


def test_erasing_puts_noise_into_one_rectangle_of_some_images():
  image = np.full((800, *SIZE, 3), 7.0, np.float32)  # No noise is 7.
  got = np.asarray(mixing.erase(jax.random.key(2), image, 0.25))
  hole = np.any(got != 7.0, axis=-1)
  erased = hole.any(axis=(1, 2))
  # 0.25 +- 0.0153.
  assert abs(erased.mean() - 0.25) < 0.06
  heights, widths = hole.any(2).sum(1)[erased], hole.any(1).sum(1)[erased]
  np.testing.assert_array_equal(hole[erased].sum(axis=(1, 2)), heights * widths)  # A rectangle.
  share = heights * widths / 240
  # Sides are rounded to whole pixels.
  assert share.min() > 0.005 and share.max() < 0.4 and 0.1 < share.mean() < 0.25
  aspect = heights / widths
  assert aspect.min() < 0.5 and aspect.max() > 2
  noise = got[hole]
  assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
  assert abs(np.corrcoef(noise.T)[0, 1]) < 0.03  # Of each channel, as of each pixel, its own.


@pytest.mark.slow
def test_everything_is_the_same_on_eight_devices():
  image, target = batch(16)

  def run(image, target):
    image = mixing.erase(jax.random.key(5), image, 0.5)
    draws = mixing.draw(jax.random.key(6), 16, SIZE, mixup=0.8, cutmix=1.0)
    return mixing.mix(image, target, draws)

  want = jax.jit(run)(image, target)
  mesh = jax.make_mesh((4, 2, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
  with sharding.use(mesh, sharding.DEFAULT_RULES):
    rows = sharding.batch_sharding(mesh, 16)
    got = jax.jit(run, in_shardings=(rows, rows), out_shardings=(rows, rows))(
      jax.device_put(image, rows), jax.device_put(target, rows))
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
