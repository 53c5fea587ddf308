"""Resampling against jax.image, plain definitions, and the dense way of doing the same."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_vision_ext.models import resample
from big_vision_ext.planning import topologies
from tests.models import ps3_reference, vit_reference

RATIOS = [(40, 40), (40, 20), (40, 16), (40, 8), (40, 4), (15, 40), (40, 37), (7, 3), (3, 7)]


def image(h, w, seed=0, dtype=np.uint8, b=()):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (*b, h, w, 3)).astype(dtype)


@pytest.mark.parametrize("n_in, n_out", RATIOS)
def test_cubic_resize_equals_its_definition(n_in, n_out):
  x = image(n_in, 2 * n_in + 1)
  ours = resample.resize_cubic(jnp.asarray(x), (n_out, n_out + 2))
  # Pixels reach 255 and weights 1.2: float32 leaves about 1e-4 of an intensity level.
  np.testing.assert_allclose(ours, ps3_reference.resize(x[None], (n_out, n_out + 2))[0], atol=2e-4)


@pytest.mark.parametrize("n_in, n_out", RATIOS)
def test_cubic_resize_is_pytorchs(n_in, n_out):
  x = image(n_in, n_in, dtype=np.float32)
  theirs = jax.image.resize(x, (n_out, n_out, 3), "cubic-pytorch", antialias=False)
  np.testing.assert_allclose(resample.resize_cubic(x, (n_out, n_out)), theirs, atol=2e-3)


def test_resizing_to_the_same_size_is_the_identity():
  x = image(9, 13)
  np.testing.assert_array_equal(resample.resize_cubic(x, (9, 13)), x.astype(np.float32))


def test_an_odd_integer_reduction_is_subsampling():
  x = image(35, 35)
  np.testing.assert_array_equal(resample.resize_cubic(x, (7, 7)), x[2::5, 2::5].astype(np.float32))
  assert resample.cubic_taps(3780, 756)[0].shape == (756, 1)


@pytest.mark.parametrize("n_in, n_out", RATIOS)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_antialiased_resize_equals_its_definition(n_in, n_out, dtype):
  x = image(n_in, 2 * n_in + 1, dtype=dtype, b=(2,))
  size = (n_out, n_out + 2)
  ours = resample.resize_antialias(jnp.asarray(x), size)
  np.testing.assert_allclose(ours, ps3_reference.resize_antialias(x, size), atol=2e-4)


def test_antialiased_resize_is_pillows_up_to_its_rounding():
  x = image(40, 56)
  pil = np.asarray(Image.fromarray(x).resize((12, 9), Image.BICUBIC), np.float32)
  ours = np.clip(resample.resize_antialias(jnp.asarray(x), (9, 12)), 0, 255)
  # Pillow rounds to whole levels, between the axes as well.
  np.testing.assert_allclose(ours, pil, atol=1.01)


def test_antialiased_resize_counts_every_pixel_and_plain_resize_few():
  def seen(resize):
    grad = jax.grad(lambda x: jnp.sum(resize(x, (8, 8))))(jnp.zeros((80, 80, 3)))
    return float(np.mean(np.asarray(grad) != 0))

  assert seen(resample.resize_cubic) == 0.16 and seen(resample.resize_antialias) > 0.99


def test_antialiased_resize_makes_no_float_copy_of_the_image():
  x = jax.ShapeDtypeStruct((2, 640, 640, 3), jnp.uint8)
  f = jax.jit(lambda im: resample.resize_antialias(im, (64, 64)))
  temp = f.lower(x).compile().memory_analysis().temp_size_in_bytes
  assert temp < 2 * 640 * 640 * 3


@pytest.mark.parametrize("n_in, n_out", RATIOS)
def test_weights_of_every_sample_add_up_to_one(n_in, n_out):
  np.testing.assert_allclose(resample.cubic_taps(n_in, n_out)[1].sum(1), 1, atol=1e-6)
  np.testing.assert_allclose(resample.antialias_matrix(n_in, n_out).sum(1), 1, atol=1e-6)


def test_normalisation_commutes_with_resampling():
  x = image(40, 40)
  after = (resample.resize_cubic(x, (16, 16)) / 255 - 0.4) / 0.3
  before = resample.resize_cubic((jnp.asarray(x, jnp.float32) / 255 - 0.4) / 0.3, (16, 16))
  np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(
  "hw, size, patch",
  [
    ((60, 60), (60, 60), 6),  # identity: a pure gather
    ((60, 60), (24, 24), 6),  # 2.5, as 3780 to 1512
    ((60, 60), (12, 12), 4),  # 5, as 3780 to 756
    ((60, 44), (24, 16), 4),
    ((40, 60), (32, 48), 8),
    ((20, 20), (32, 32), 4),  # enlarged
    ((31, 77), (16, 24), 8),  # no common factor
    ((16, 304), (16, 304), 8),  # wider than what is cut at a time for a TPU
    ((16, 304), (8, 152), 8),
  ],
)
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_gathered_patches_equal_those_of_the_resized_image(
  hw, size, patch, dtype, platform, monkeypatch
):
  if platform == "tpu":
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, **_: tpu(*args))
  x = image(*hw, dtype=dtype, b=(2,))
  gh, gw = size[0] // patch, size[1] // patch
  rng = np.random.default_rng(1)
  index = np.stack([rng.permutation(gh * gw)[: max(gh * gw // 2, 1)] for _ in range(2)])
  full = ps3_reference.resize(x, size).reshape(2, gh, patch, gw, patch, 3)
  full = full.transpose(0, 1, 3, 2, 4, 5).reshape(2, gh * gw, patch, patch, 3)
  gather = functools.partial(resample.gather_patches, size=size, patch=patch)
  ours = jax.jit(jax.vmap(lambda im, at: gather(im, index=at)))(x, index)
  expected = np.stack([f[i] for f, i in zip(full, index)])
  # In units of the normalised image, 1e-5 of 255.
  np.testing.assert_allclose(ours / 255, expected / 255, rtol=0, atol=1e-5)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("hw, side, patch", [
  ((60, 60), 24, 6), ((60, 44), 24, 5), ((40, 24), 24, 8), ((20, 32), 32, 4),
])  # fmt: skip
def test_all_patches_of_the_resized_image_lie_side_by_side(
  hw, side, patch, platform, antialias, monkeypatch
):
  if platform == "tpu":
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, tpu, **_: tpu(*args))
    monkeypatch.setattr(resample, "_WIDE", 7)
  x = image(*hw, b=(2,))
  ours = jax.jit(lambda x: resample.resized_patches(x, side, patch, antialias))(x)
  resize = ps3_reference.resize_antialias if antialias else ps3_reference.resize
  full = resize(x, (side, side))
  for i, row, column in np.ndindex(*ours.shape[:3]):
    part = full[i, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
    # In units of the normalised image, 1e-5 of 255.
    np.testing.assert_allclose(ours[i, row, column] / 255, part.ravel() / 255, rtol=0, atol=1e-5)


def test_gathering_a_few_patches_never_holds_the_resized_image():
  x = jax.ShapeDtypeStruct((1000, 1000, 3), jnp.uint8)
  at = jax.ShapeDtypeStruct((4,), jnp.int32)
  f = jax.jit(lambda im, at: resample.gather_patches(im, (800, 800), 10, at))
  temp = f.lower(x, at).compile().memory_analysis().temp_size_in_bytes
  assert temp < 800 * 800 * 3 / 4


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs requirements-tpu.txt")
@pytest.mark.slow
@pytest.mark.parametrize("size", [3780, 1512, 756])
def test_a_tpu_cuts_patches_from_an_image_of_4k_without_a_copy_of_it(size):
  topologies.set_up_environment()
  device = topologies.describe("v5e:2x2").devices[0]
  place = jax.sharding.SingleDeviceSharding(device)
  images = jax.ShapeDtypeStruct((2, 3780, 3780, 3), jnp.uint8, sharding=place)
  at = jax.ShapeDtypeStruct((2, 512), jnp.int32, sharding=place)
  cut = jax.vmap(lambda im, at: resample.gather_patches(im, (size, size), 14, at))
  memory = jax.jit(cut).trace(images, at).lower().compile().memory_analysis()
  # The images are 82 MiB as they are, and were 7 GiB where the channels came last.
  assert memory.argument_size_in_bytes < 90 * 2**20
  assert memory.temp_size_in_bytes < 80 * 2**20


def test_antialiased_positions_equal_pillow_up_to_its_rounding():
  # Pillow's bicubic is the same kernel and border rule, for float images in one channel.
  table = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
  pil = Image.fromarray(table).resize((20, 20), Image.BICUBIC)
  ours = resample.table_rows(jnp.asarray(table)[..., None], (20, 20), jnp.arange(400))
  np.testing.assert_allclose(ours[:, 0].reshape(20, 20), np.asarray(pil), atol=1e-4)


@pytest.mark.parametrize("grid", [(4, 4), (8, 8), (20, 20), (12, 7), (5, 16), (3, 2)])
def test_table_rows_are_rows_of_the_resized_cropped_table(grid):
  table = np.random.default_rng(0).standard_normal((4, 4, 5)).astype(np.float32)
  side = max(grid)
  full = vit_reference.positions(np.float64(table), (4, 4), (side, side)).reshape(side, side, 5)
  if grid == (4, 4):
    full = table
  full = full[: grid[0], : grid[1]].reshape(-1, 5)
  index = np.random.default_rng(1).integers(0, grid[0] * grid[1], (3, 6))
  ours = resample.table_rows(jnp.asarray(table), grid, jnp.asarray(index))
  np.testing.assert_allclose(ours, full[index], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 5), (10, 20), (7, 3), (13, 29)])
def test_pooling_and_nearest_equal_their_definitions(size):
  x = np.random.default_rng(0).standard_normal((2, 10, 10)).astype(np.float32)
  np.testing.assert_allclose(
    resample.area(x, size), ps3_reference.pool(np.float64(x), size, np.mean), atol=1e-6
  )
  np.testing.assert_array_equal(resample.amax(x, size), ps3_reference.pool(x, size, np.max))
  np.testing.assert_array_equal(resample.nearest(x, size), ps3_reference.nearest(x, size))


def test_patches_of_tiles_are_those_of_the_image_they_were_cut_from():
  """Grids whose rows and columns differ, tiles in any order, some places empty."""
  grid, across, patch = (6, 9), 3, 4
  x = image(24, 36, b=(2,))
  places = np.array([[5, -1, 0, 2], [1, 4, -1, 3]], np.int32)
  side = across * patch
  tiles = np.stack([[im[at // 3 * side:][:side, at % 3 * side:][:, :side] if at >= 0 else
                     np.full((side, side, 3), 7, np.uint8) for at in row]
                    for im, row in zip(x, places)])
  there = np.asarray(resample.in_tiles(jnp.asarray(places), grid, across))
  tile_of = np.arange(6)[:, None] // 3 * 3 + np.arange(9)[None] // 3
  for row in range(2):
    np.testing.assert_array_equal(there[row], np.isin(tile_of, places[row]))
  index = np.stack([np.flatnonzero(m)[::-1][:27] for m in there])
  got = resample.tile_patches(jnp.asarray(tiles), jnp.asarray(places), patch, 9, index)
  want = jax.vmap(lambda im, at: resample.gather_patches(im, (24, 36), patch, at))(x, index)
  assert got.dtype == np.uint8
  np.testing.assert_array_equal(got, want)
