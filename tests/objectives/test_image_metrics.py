"""Metrics of pictures: scikit-image's numbers, the specification's fixture, sums that add up."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import ndimage
from skimage import color, metrics

from big_vision_ext.objectives import image_metrics

PSNR = jax.jit(image_metrics.psnr, static_argnames=("crop", "channel"))
SSIM = jax.jit(image_metrics.ssim, static_argnames=("crop", "channel"))


def unit(x):
  return np.asarray(x, np.float32) / 255


@pytest.fixture(scope="module")
def fixture():
  rng = np.random.default_rng(0)
  a = rng.integers(0, 256, (64, 80, 3)).astype(np.uint8)
  b = np.clip(a.astype(int) + rng.integers(-20, 21, a.shape), 0, 255).astype(np.uint8)
  return a, b


@pytest.mark.parametrize("channel, psnr, ssim", [
  ("rgb", 26.884876284118747, 0.9873678044432491),
  ("y", 31.6466980313367, 0.9869215337758768),
  ("y_rounded", 31.6283736, None),
])
def test_the_specifications_fixture(fixture, channel, psnr, ssim):
  a, b = (unit(x)[None] for x in fixture)
  # Sums of 15,360 squares in float32: 1e-6 of the mean is 4e-6 dB; luma adds as much.
  assert float(PSNR(a, b, channel=channel)[0]) == pytest.approx(psnr, abs=1e-5)
  if ssim is not None:
    assert float(SSIM(a, b, channel=channel)[0]) == pytest.approx(ssim, abs=1e-6)


@pytest.mark.parametrize("crop", [0, 3])
def test_metrics_are_those_of_scikit_image(crop):
  rng = np.random.default_rng(1)
  smooth = np.cumsum(rng.normal(size=(3, 40, 33, 3)), axis=2) * 12 + 128
  # A picture that is flat and bright, where second moments lose most digits, is among them.
  smooth[2] = 250
  a = np.clip(np.round(smooth), 0, 255)
  b = np.clip(a + np.round(rng.normal(0, [[[[2]]], [[[20]]], [[[1]]]], a.shape)), 0, 255)
  inner = (slice(None), slice(crop, 40 - crop), slice(crop, 33 - crop))
  for channel in ("rgb", "y"):
    x, y = (v[inner] / 255 for v in (a, b))
    x, y = (v * 255 if channel == "rgb" else color.rgb2ycbcr(v)[..., :1] for v in (x, y))
    psnr = [metrics.peak_signal_noise_ratio(p, q, data_range=255) for p, q in zip(x, y)]
    ssim = [metrics.structural_similarity(
        p, q, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False) for p, q in zip(x, y)]
    ours = SSIM(unit(a), unit(b), crop=crop, channel=channel)
    np.testing.assert_allclose(PSNR(unit(a), unit(b), crop=crop, channel=channel), psnr, atol=2e-5)
    # The bright flat one: variances of 1 beside second moments of 122^2, 1e-7 of which is 1e-3.
    np.testing.assert_allclose(ours[:2], ssim[:2], atol=2e-6)
    np.testing.assert_allclose(ours[2], ssim[2], atol=2e-4)


def test_pictures_are_measured_as_they_would_be_stored():
  a = np.full((1, 12, 12, 3), 100 / 255, np.float32)
  assert np.isinf(image_metrics.psnr(a, a + 0.4 / 255))
  raw = image_metrics.psnr(a, a + 0.4 / 255, quantize=False)
  np.testing.assert_allclose(raw, 20 * np.log10(255 / 0.4), atol=1e-3)
  white, over = np.ones_like(a), np.full_like(a, 1.7)
  assert np.isinf(PSNR(white, over)) and SSIM(white, over) == 1


@pytest.fixture(scope="module")
def rainy():
  """Eight pictures and rain, made here: clean, degraded, layer."""
  rng = np.random.default_rng(2)
  clean = unit(rng.integers(0, 256, (8, 24, 24, 3)))
  layer = unit(np.where(rng.random((8, 24, 24)) < 0.5, rng.integers(0, 256, (8, 24, 24)), 0))
  return clean, np.clip(clean + layer[..., None], 0, 1), layer


@pytest.mark.parametrize("strict", [False, True])
def test_doing_nothing_removes_nothing_and_perfection_everything(rainy, strict):
  clean, degraded, layer = rainy
  nothing = image_metrics.rain_measures(
      image_metrics.rain_sums(degraded, degraded, clean, layer, strict))
  perfect = image_metrics.rain_measures(
      image_metrics.rain_sums(clean, degraded, clean, layer, strict))
  wet = np.round(layer * 255) > 50
  rms = np.sqrt(np.mean(((degraded - clean).astype(np.float64)[wet] * 255) ** 2))
  assert nothing["E_R"] == 0 and nothing["rho"] == 0
  assert nothing["E_R_gt"] == pytest.approx(rms, rel=1e-6)
  # At the loose threshold weak rain is background: hence the strict one.
  assert nothing["E_B"] <= 2 if strict else nothing["E_B"] > 5
  assert perfect["E_B"] == perfect["E_R_gt"] == 0 and perfect["rho"] == 1
  assert perfect["E_R"] == pytest.approx(rms, rel=1e-6)


def test_measures_are_the_formulas_and_do_not_depend_on_how_the_set_is_cut(rainy):
  clean, degraded, layer = rainy
  rng = np.random.default_rng(3)
  restored = np.clip(0.5 * (clean + degraded) + rng.normal(0, 0.1, clean.shape), 0, 1)
  restored = restored.astype(np.float32)
  whole = image_metrics.rain_sums(restored, degraded, clean, layer)
  measures = image_metrics.rain_measures(whole)
  r, o, b = (np.round(x.astype(np.float64) * 255) for x in (restored, degraded, clean))
  wet = layer * 255 > 50.5
  assert measures["E_R"] == pytest.approx(np.sqrt(np.mean((r - o)[wet] ** 2)), rel=1e-6)
  assert measures["E_B"] == pytest.approx(np.sqrt(np.mean((r - b)[~wet] ** 2)), rel=1e-6)
  assert measures["E_R_gt"] == pytest.approx(np.sqrt(np.mean((r - b)[wet] ** 2)), rel=1e-6)
  rho = 1 - np.linalg.norm((r - b)[wet]) / np.linalg.norm((o - b)[wet])
  assert measures["rho"] == pytest.approx(rho, rel=1e-6)

  parts = [image_metrics.rain_sums(*(x[cut] for x in (restored, degraded, clean, layer)))
           for cut in (slice(0, 3), slice(3, 8))]
  added = {k: sum(np.asarray(p[k], np.float64).sum() for p in parts) for k in whole}
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  on = NamedSharding(mesh, PartitionSpec("data"))
  over_devices = jax.jit(image_metrics.rain_sums)(
      *(jax.device_put(x, on) for x in (restored, degraded, clean, layer)))
  # Sums of whole numbers below 2^24 are exact in float32, in any order.
  assert image_metrics.rain_measures(added) == measures
  assert image_metrics.rain_measures(over_devices) == measures


def test_without_rain_there_is_no_removal_to_speak_of(rainy):
  clean, _, layer = rainy
  out = image_metrics.rain_measures(
      image_metrics.rain_sums(clean, clean, clean, np.zeros_like(layer)))
  assert np.isnan(out["E_R"]) and np.isnan(out["rho"]) and out["E_B"] == 0


def test_noise_is_measured_where_the_clean_picture_is_flat():
  rng = np.random.default_rng(0)
  clean = np.full((2, 40, 60, 3), 90.0)
  clean[0, :, 30:] = rng.integers(0, 256, (40, 30, 3))
  clean[1] += np.linspace(0, 100, 60)[:, None]  # 1.7 levels a pixel: 6 or 7 over five.
  clean[1, :, :20] = 200
  restored = clean + rng.normal(4, 5, clean.shape)
  restored, clean = np.clip(np.round(restored), 0, 255), np.round(clean)
  sums = jax.jit(image_metrics.flat_sums)(unit(restored), unit(clean))
  span = (ndimage.maximum_filter(clean, (1, 5, 5, 1)) - ndimage.minimum_filter(clean, (1, 5, 5, 1)))
  flat = (span <= 6).all(-1)
  assert 0.4 < flat[0].mean() < 0.5 and 0.3 < flat[1].mean() < 0.95
  # Whole numbers: their sums in float32 are exact here.
  np.testing.assert_array_equal(sums["count"], 3 * flat.sum((1, 2)))
  want = np.std((restored - clean)[flat])
  assert image_metrics.flat_noise(sums) == pytest.approx(want, rel=1e-6)
  assert want == pytest.approx(5, abs=0.2)
  assert np.isnan(image_metrics.flat_noise(image_metrics.flat_sums(
    unit(clean[:1, :, 35:]), unit(clean[:1, :, 35:]))))


@pytest.mark.parametrize("shape, kwargs, message", [
  ((1, 12, 12, 3), dict(crop=1), "too small"),
  ((1, 16, 16, 3), dict(channel="v"), "'rgb', 'y' or 'y_rounded'"),
  ((1, 16, 16, 1), dict(channel="y"), "needs RGB"),
  ((16, 16, 3), {}, "expected the same"),
])
def test_what_cannot_be_measured_is_said(shape, kwargs, message):
  x = np.zeros(shape, np.float32)
  with pytest.raises(ValueError, match=message):
    image_metrics.ssim(x, x, **kwargs)
