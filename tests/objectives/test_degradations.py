"""Degradations by name: statistics, other programs' results, no picture seen by another."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage import data

from big_vision_ext.core.typed import ConfigError
from big_vision_ext.objectives import blur, degradations, haze, jpeg, masks, noise, rain

N, SIZE = 6, 32
KINDS = {
  "rain": dict(kind="rain", range=["small", dict(amount=(0.01, 0.02), width=[3], length=[5, 9],
                                                 angle=[[-5, 5]])], beta=(0.7, 1.0),
               probability=0.5),
  "segments": dict(kind="segments", segments=dict(depths=(1.0,)), beta=(0.7, 1.0)),
  **{family: dict(kind="noise", family=family) for family in noise.LEVELS},
  **{f"blur {family}": dict(kind="blur", family=family, window=(7, 9), motion=[(3, 2.0), (2, 1.0)])
     for family in ("gaussian", "anisotropic", "motion", "defocus")},
  "jpeg": dict(kind="jpeg"),
  "haze": dict(kind="haze"),
  "mixture": dict(kind="mixture", of=[dict(kind="segments"), dict(kind="haze")], share=(0.4, 0.6)),
}


def keys(n=N, seed=0):
  return masks.sample_keys(jax.random.key(seed), n)


def pictures(n=N):
  """Parts of photographs that scikit-image ships."""
  cut = [data.astronaut()[100 + 8 * i:][:SIZE, 180:180 + SIZE] for i in range(n)]
  return np.stack(cut).astype(np.float32) / 255


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_spoils_each_picture_by_its_own_key_alone(name):
  make = degradations.make(KINDS[name])
  assert make == degradations.make(KINDS[name]) and hash(make) == hash(degradations.make(make))
  clean = pictures()
  program = jax.jit(make)
  degraded, aux = program(keys(), clean)
  assert degraded.shape == clean.shape and degraded.dtype == jnp.float32
  assert degraded.min() >= 0 and degraded.max() <= 1
  spoilt = np.abs(np.asarray(degraded) - clean).mean(axis=(1, 2, 3))
  assert (spoilt > 1e-3).any() and len(set(spoilt.tolist())) > 1
  turned, turned_aux = program(keys()[::-1], clean[::-1])
  # Pictures of a batch may be computed together, which rounds in another order: at most a level.
  np.testing.assert_allclose(turned[::-1], degraded, atol=1.001 / 255)
  assert np.mean(np.abs(np.asarray(turned[::-1]) - degraded) > 1e-5) < 1e-3
  assert set(aux) == ({"layer"} if name in ("rain", "segments", "mixture") else set())
  if aux:
    wet = np.asarray(aux["layer"].max(axis=(1, 2)) > 0)
    np.testing.assert_allclose(turned_aux["layer"][::-1], aux["layer"], atol=1.001 / 255)
    # Every picture of segments is wet; on some of the others no rain was to fall.
    assert wet.all() if name == "segments" else 0 < wet.sum() < N
    if name != "mixture":
      np.testing.assert_array_equal(degraded[~wet], clean[~wet])
      added = np.asarray(degraded) - clean
      where = (np.asarray(aux["layer"])[..., None] > 0.05) & (degraded < 1)
      beta = np.where(where, added / np.maximum(aux["layer"][..., None], 0.05), np.nan)
      low, high = (f(beta[wet], axis=(1, 2, 3)) for f in (np.nanmin, np.nanmax))
      # One brightness for each picture, from its interval.
      np.testing.assert_allclose(low, high, atol=1e-4)
      assert 0.7 <= low.min() and high.max() <= 1 and len(set(np.round(low, 3))) == wet.sum()


@pytest.mark.parametrize("family, level, std", [
  ("gaussian", 20, 20 / 255), ("speckle", 0.2, 0.1), ("correlated", 20, 20 / 255),
  # A count of mean 128 has a standard deviation of sqrt(128), and twice that is asked for.
  ("poisson", 2, 2 * 128**0.5 / 256),
  # Half of the 8 % becomes 0 and half 1, half a unit away each.
  ("salt_pepper", 0.08, 0.5 * 0.08**0.5),
])
def test_noise_has_the_level_that_is_asked_for(family, level, std):
  gray = np.full((8, SIZE, SIZE, 3), 0.5, np.float32)
  fixed = degradations.make(dict(kind="noise", family=family, level=(level, level)))
  added = np.asarray(jax.jit(fixed)(keys(8), gray)[0]) - 0.5
  # 24,576 numbers, of correlated ones a twentieth as many independent ones: 2 % and less.
  assert added.std() == pytest.approx(std, rel=0.06) and abs(added.mean()) < std / 10
  next_one = np.mean(added[:, :, 1:] * added[:, :, :-1]) / added.var()
  # White noise smoothed by a Gaussian of sigma 1.5 correlates by exp(-1 / (4 * 1.5^2)).
  want = np.exp(-1 / 9) if family == "correlated" else 0
  assert next_one == pytest.approx(want, abs=0.05)
  border = added[:, [0, -1]].std()
  assert border == pytest.approx(std, rel=0.25)
  if family == "salt_pepper":
    assert (np.ptp(added, axis=-1) == 0).all()


def test_kernels_of_blur_have_the_widths_and_directions_that_are_asked_for():
  sigma, angle = jnp.asarray([[2.0, 1.0], [1.5, 1.5]]), jnp.radians(jnp.asarray([30.0, 0.0]))
  kernel = np.asarray(blur.gaussian(sigma, angle, jnp.asarray([25, 25]), 12))
  np.testing.assert_allclose(kernel.sum(axis=(1, 2)), 1, atol=1e-6)
  y, x = np.mgrid[-12:13, -12:13]
  sin, cos = np.sin(np.pi / 6), np.cos(np.pi / 6)
  along, across = x * sin + y * cos, x * cos - y * sin
  # Sampled, a Gaussian of one pixel has its variance to 1e-4; the window cuts at six of them.
  np.testing.assert_allclose([np.sum(kernel[0] * v**2) for v in (along, across)], [4, 1], rtol=1e-3)
  np.testing.assert_allclose(np.sum(kernel[1] * x**2), 2.25, rtol=1e-3)
  cut = np.asarray(blur.gaussian(sigma, angle, jnp.asarray([7, 5]), 12)) > 0
  assert cut.sum(axis=(1, 2)).tolist() == [49, 25]
  disk = np.asarray(blur.defocus(jnp.asarray([3.0]), 5))[0]
  assert disk.max() * np.pi * 3.0**2 == pytest.approx(1, rel=0.03) and disk[5, 8:].tolist()[1:] == [
      0, 0]
  # The point goes down and to the right, two pixels across for every one down.
  path = np.asarray(blur.motion(jnp.asarray([4.0]), jnp.asarray([3.0]),
                                jnp.asarray([np.arctan2(2, 1)]), 10))[0]
  y, x = np.mgrid[-10:11, -10:11]
  assert np.sum(path * x) == pytest.approx(2 * np.sum(path * y), rel=0.1) and np.sum(path * y) > 0.5
  assert path[:9].sum() < 1e-6 and path[10, 10] == path.max()


def test_blur_is_what_scipy_does_with_its_kernel():
  clean = pictures()
  motion = degradations.make(KINDS["blur motion"])
  got, _ = motion(keys(), clean)
  kernel = np.asarray(motion.kernel(keys()), np.float64)
  for i in (0, 3):
    want = ndimage.convolve(clean[i].astype(np.float64), kernel[i][..., None], mode="mirror")
    np.testing.assert_allclose(got[i], want, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 96), (51, 37)])
def test_jpeg_is_pillows_within_half_a_level(size):
  photo = np.stack([data.astronaut()[90:][:size[0], 160:][:, :size[1]],
                    data.coffee()[90:][:size[0], 160:][:, :size[1]]] * 3)
  quality = np.array([10, 35, 50, 75, 90, 95], np.float32)
  got = np.asarray(jax.jit(jpeg.compress)(photo.astype(np.float32) / 255, quality)) * 255
  for ours, pixels, q in zip(got, photo, quality):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=int(q), subsampling="4:2:0")
    theirs = np.asarray(Image.open(file)).astype(float)
    # Its transforms are of whole numbers: a coefficient here and there is rounded the other way,
    # by a step of the table. The loss itself is 2 to 8 levels.
    assert np.abs(ours - theirs).mean() < 0.65 < 0.5 * np.abs(theirs - pixels).mean() + 0.2, q


def test_jpeg_passes_gradients_only_if_it_is_asked_to():
  x = jnp.asarray(pictures(1)) * 0.8 + 0.1

  def loss(straight):
    total = lambda v: jnp.sum(jpeg.compress(v, jnp.asarray([80.0]), straight))
    return jax.jit(jax.grad(total))(x)

  assert not np.any(loss(False))
  # Each channel goes on by 1 as a whole: luma by one, chroma by none of it.
  np.testing.assert_allclose(np.asarray(loss(True)).sum(-1).mean(), 3, atol=0.05)


def test_haze_follows_its_law_and_is_thick_where_it_is_far():
  clean = pictures()
  depth = np.asarray(haze.depth(keys(), SIZE, SIZE))
  np.testing.assert_allclose(depth.min(axis=(1, 2)), 0, atol=1e-6)
  np.testing.assert_allclose(depth.max(axis=(1, 2)), 1, atol=1e-6)
  assert (depth[:, 0].mean(1) > depth[:, -1].mean(1) + 0.3).all()
  beta, light = np.linspace(0, 2, N, dtype=np.float32), np.linspace(0.7, 1, N, dtype=np.float32)
  got = haze.apply(clean, depth, jnp.asarray(beta), jnp.asarray(light))
  t = np.exp(-beta[:, None, None] * depth)[..., None]
  np.testing.assert_allclose(got, clean * t + light[:, None, None, None] * (1 - t), atol=1e-6)
  np.testing.assert_array_equal(got[0], clean[0])


def test_a_mixture_takes_its_parts_as_often_as_said():
  whole = degradations.make(dict(kind="mixture", share=(0.25, 0.75), of=[
      dict(kind="segments", segments=dict(density=(0.05, 0.05))),
      dict(kind="haze", beta=(0, 0))]))
  clean = np.full((400, 8, 8, 3), 0.25, np.float32)
  degraded, aux = jax.jit(whole)(keys(400), clean)
  wet = np.asarray(aux["layer"].max(axis=(1, 2)) > 0)
  # 400 draws: a standard error of 0.022.
  assert wet.mean() == pytest.approx(0.25, abs=0.07)
  np.testing.assert_allclose(degraded[~wet], clean[~wet], atol=1e-6)
  # The layer is of those pictures alone on which rain fell.
  np.testing.assert_allclose(
      degraded[wet], np.minimum(clean + aux["layer"][..., None], 1)[wet], atol=1e-6)


@pytest.mark.parametrize("config, message", [
  (dict(family="gaussian"), "config.x=.*'kind'"),
  (dict(kind="rains"), "config.x.kind='rains'.*did you mean 'rain'"),
  (dict(kind="rain", range="smal"), "config.x: range='smal'.*did you mean 'small'"),
  (dict(kind="rain", range=[]), "at least one range"),
  (dict(kind="rain", range=dict(amount=(0, 2), width=[3], length=(3, 4), angle=[(0, 1)])),
   "amount"),
  (dict(kind="rain", betta=(0, 1)), "config.x.betta.*did you mean 'beta'"),
  (dict(kind="rain", probability=1.5), "probability=1.5: expected between 0 and 1"),
  (dict(kind="rain", geometry="old"), "config.x.geometry='old'"),
  (dict(kind="noise", family="gauss"), "did you mean 'gaussian'"),
  (dict(kind="noise", family="salt_pepper", level=(0.5, 5)), "level"),
  (dict(kind="blur", window=(6, 8)), "odd numbers"),
  (dict(kind="blur", sigma=(0, 1)), "sigma"),
  (dict(kind="jpeg", quality=(90, 30)), "quality"),
  (dict(kind="haze", airlight=(0.5, 2)), "airlight"),
  (dict(kind="mixture", of=[]), "at least one degradation"),
  (dict(kind="bicubic", scale=1), "scale=1: expected at least 2"),
  (dict(kind="mixture", of=[dict(kind="jpeg"), dict(kind="bicubic", scale=2)]),
   "all leave pictures of one size, not by 1, 2 times"),
  (dict(kind="mixture", of=[dict(kind="jpg")]), r"config.x.of\[0\].kind='jpg'"),
  (dict(kind="mixture", of=[dict(kind="jpeg")], share=(0.5, 0.5)), "share"),
])
def test_bad_settings_are_named_with_their_place(config, message):
  with pytest.raises(ConfigError, match=message):
    degradations.make(config, "config.x")


def test_ranges_may_be_named_or_given_in_numbers():
  own = dict(amount=(0.01, 0.02), width=[3], length=[5, 9], angle=[[-5, 5]])
  made = degradations.make(dict(kind="rain", range=["dev_small", own]))
  assert made.range == (rain.RANGES["dev_small"], rain.Rain((0.01, 0.02), (3,), (5, 9), ((-5, 5),)))
  assert degradations.make(dict(kind="rain", range=own)).range == made.range[1:]
