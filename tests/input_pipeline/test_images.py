import io
import pickle

import numpy as np
import pytest
from PIL import Image, ImageOps

from input_pipeline import images


@pytest.fixture
def photo():
  """A smooth colour picture, 61 x 43 pixels: no side is even, none equals the other."""
  coarse = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
  return Image.fromarray(coarse).resize((61, 43), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_lossless_formats_give_the_pixels_that_were_stored(photo, encode_image, kind):
  photo = photo.quantize(200).convert("RGB") if kind == "GIF" else photo
  data = encode_image(photo, kind, **({"lossless": True} if kind == "WEBP" else {}))
  pixels = images.decode_image(data)
  assert pixels.dtype == np.uint8 and pixels.shape == (43, 61, 3)
  np.testing.assert_array_equal(pixels, np.asarray(photo))
  assert images.image_size(data) == (61, 43)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_rotation_is_applied(photo, encode_image, kind, orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode_image(photo, kind, exif=exif)
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  pixels = images.decode_image(data)
  # Both decode with libjpeg-turbo; builds may round the last bit of the colour conversion.
  np.testing.assert_allclose(pixels.astype(int), np.asarray(expected).astype(int), atol=2)
  assert images.image_size(data) == expected.size == pixels.shape[1::-1]


def test_grey_palette_cmyk_and_one_bit_become_rgb(photo, encode_image):
  grey = np.asarray(photo.convert("L"))
  for kind in ("PNG", "JPEG"):
    pixels = images.decode_image(
      encode_image(grey, kind, **({} if kind == "PNG" else {"quality": 100}))
    )
    np.testing.assert_allclose(pixels.astype(int), np.stack([grey] * 3, -1).astype(int), atol=2)
  palette = photo.quantize(16)
  np.testing.assert_array_equal(
    images.decode_image(encode_image(palette)), np.asarray(palette.convert("RGB"))
  )
  cmyk = images.decode_image(
    encode_image(photo.convert("CMYK"), "JPEG", quality=100, subsampling=0)
  )
  # JPEG at full quality is off by a few grey values.
  np.testing.assert_allclose(cmyk.astype(int), np.asarray(photo).astype(int), atol=8)
  bits = images.decode_image(encode_image(photo.convert("1")))
  assert set(np.unique(bits)) <= {0, 255} and bits.shape == (43, 61, 3)


def test_sixteen_bit_grey_keeps_its_high_byte(encode_image):
  grey = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
  for kind in ("PNG", "TIFF"):
    pixels = images.decode_image(encode_image(grey, kind))
    np.testing.assert_array_equal(pixels, np.stack([grey >> 8] * 3, -1))


def test_alpha_is_composited_on_white(encode_image):
  rgba = np.zeros((2, 3, 4), np.uint8)
  rgba[..., 0] = 200
  rgba[0, :, 3] = [0, 128, 255]
  pixels = images.decode_image(encode_image(rgba)).astype(int)
  alpha = rgba[..., 3:].astype(float) / 255
  # Within one: the blend is rounded.
  np.testing.assert_allclose(pixels, rgba[..., :3] * alpha + 255 * (1 - alpha), atol=1)
  transparent = Image.new("P", (2, 2), 0)
  transparent.putpalette([10, 20, 30, 40, 50, 60])
  data = encode_image(transparent, transparency=0)
  assert (images.decode_image(data) == 255).all()


def test_floating_point_pixels_are_refused(encode_image):
  data = encode_image(Image.new("F", (3, 3)), "TIFF")
  with pytest.raises(images.ImageError, match="scan: the image has floating point pixels") as error:
    images.decode_image(data, "scan")
  assert error.value.reason == "image-mode"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_refused_and_named(photo, encode_image, kind, share):
  data = encode_image(photo, kind)
  with pytest.raises(images.ImageError, match="cat.img: ") as error:
    images.decode_image(data[: int(share * len(data))], "cat.img")
  assert error.value.reason == "image-undecodable"


@pytest.mark.parametrize("data", [b"no image at all", b"<html></html>", bytes(100), b"\xff\xd8"])
def test_foreign_bytes_are_refused_and_quoted(data):
  for call in (images.decode_image, images.image_size):
    with pytest.raises(images.ImageError, match="no image in a known format"):
      call(data, "x")


def test_one_pixel_is_an_image(encode_image):
  for kind in ("JPEG", "PNG", "WEBP"):
    data = encode_image(np.full((1, 1, 3), 128, np.uint8), kind)
    pixels = images.decode_image(data, min_size=(64, 64))
    assert pixels.shape == (1, 1, 3)
    resized = images.resize_region(pixels, (0, 0, 1, 1), 5)
    assert resized.shape == (5, 5, 3) and (resized == pixels).all()


def test_long_sides_pass_and_too_many_pixels_do_not(encode_image):
  line = encode_image(Image.new("1", (30_000, 2)))
  assert images.decode_image(line).shape == (2, 30_000, 3)
  huge = encode_image(Image.new("1", (30_000, 6_000)))
  for call in (images.decode_image, images.image_size):
    with pytest.raises(images.ImageError, match=f"more than {images.MAX_PIXELS} pixels") as error:
      call(huge, "map")
    assert error.value.reason == "image-too-large"


def test_a_jpeg_with_harmless_stray_bytes_is_read(photo, encode_image):
  data = encode_image(photo, "JPEG")
  pixels = images.decode_image(data[:-2] + bytes(7) + data[-2:])
  np.testing.assert_allclose(pixels.astype(int), images.decode_image(data).astype(int), atol=2)


@pytest.mark.parametrize("orientation", [1, 6, 3])
@pytest.mark.parametrize("shape", [(333, 222), (336, 224)])
def test_a_reduced_jpeg_is_as_large_as_asked_and_in_its_place(encode_image, orientation, shape):
  coarse = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
  image = Image.fromarray(coarse).resize(shape, Image.Resampling.BICUBIC)
  exif = Image.Exif()
  exif[0x0112] = orientation
  data = encode_image(image, "JPEG", quality=95, exif=exif)
  width, height = images.image_size(data)
  full = images.decode_image(data).astype(float)
  for want in [(1, 1), (20, 20), (30, 30), (41, 41), (55, 55), (111, 111), (166, 111), (300, 5)]:
    pixels = images.decode_image(data, min_size=want)
    assert pixels.shape[1] >= min(want[0], width) and pixels.shape[0] >= min(want[1], height)
    f = images.reduction(pixels, width, height)
    fits = [1] + [g for g in (2, 4, 8) if width // g >= want[0] and height // g >= want[1]]
    assert f == max(g for g in fits if orientation == 1 or width % g == height % g == 0)
    # Each reduced pixel is about the mean of f x f pixels in the place that `reduction` states.
    y, x = height // f, width // f
    means = full[: y * f, : x * f].reshape(y, f, x, f, 3).mean((1, 3))
    assert np.abs(pixels[:y, :x] - means).mean() < 1.5
    moved = np.abs(pixels[:y, 1:x] - means[:, :-1]).mean()
    assert f == 1 or moved > 3 * np.abs(pixels[:y, :x] - means).mean()


def test_pixels_of_an_unrelated_size_are_no_reduction():
  with pytest.raises(images.ImageError, match="no reduction of an image of 10 x 20"):
    images.reduction(np.zeros((3, 3, 3), np.uint8), 10, 20)


def test_a_size_other_than_the_records_is_refused(photo, encode_image):
  with pytest.raises(images.ImageError, match="61 x 43 .* its record says 43 x 61") as error:
    images.decode_image(encode_image(photo), expect_size=(43, 61))
  assert error.value.reason == "image-size"


def _cubic(x):
  """Keys' kernel with A = -0.5."""
  x = np.abs(x)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x < 1, near, np.where(x < 2, far, 0))


def _weights(length, start, stop, size):
  """Rows of weights of an antialiased bicubic resize of the stretch [start, stop)."""
  scale = (stop - start) / size
  width = max(scale, 1.0)
  centres = start + (np.arange(size) + 0.5) * scale
  table = _cubic((np.arange(length) + 0.5 - centres[:, None]) / width)
  # As in Pillow, only whole pixels within the kernel's support count.
  low, high = np.floor(centres - 2 * width + 0.5), np.floor(centres + 2 * width + 0.5)
  position = np.arange(length)
  table = table * ((position >= low[:, None]) & (position < high[:, None]))
  return table / table.sum(1, keepdims=True)


@pytest.mark.parametrize("box", [(0, 0, 61, 43), (3, 5, 50, 40), (10.25, 2.5, 30.75, 22.5)])
@pytest.mark.parametrize("size", [8, 64])
def test_a_region_is_resized_with_antialiased_bicubic(photo, box, size):
  pixels = np.asarray(photo)
  rows = _weights(43, box[1], box[3], size)
  columns = _weights(61, box[0], box[2], size)
  wide = np.einsum("xw,hwc->hxc", columns, pixels.astype(float)).clip(0, 255)
  expected = np.einsum("yh,hxc->yxc", rows, wide).clip(0, 255)
  # Pillow rounds to 8 bits after each of its two passes, columns first.
  got = images.resize_region(pixels, box, size)
  np.testing.assert_allclose(got.astype(float), expected, atol=2)


def test_a_box_beyond_the_border_by_rounding_is_taken_as_the_border(photo):
  pixels = np.asarray(photo)
  out = images.resize_region(pixels, (-1e-9, 0, 61 + 1e-9, 43), 16)
  np.testing.assert_array_equal(out, images.resize_region(pixels, (0, 0, 61, 43), 16))


def test_errors_travel_between_processes():
  error = pickle.loads(pickle.dumps(images.ImageError("text", "why")))
  assert str(error) == "text" and error.reason == "why"


@pytest.mark.parametrize("zoom", [0.4, 0.9, 1.3, 1.95, 2.0, 3.7])
def test_the_fast_resize_shows_a_smooth_image_like_the_exact_one(zoom):
  side = 48
  y, x = np.mgrid[:260, :300] / 40
  smooth = np.stack([np.sin(x + y), np.cos(x - y / 2), np.sin(x / 3) * np.cos(y)], -1)
  pixels = np.round(127 + 120 * smooth).astype(np.uint8)
  box = (20.3, 11.7, 20.3 + side * zoom, 11.7 + side * zoom * 1.05)
  fast = images.resize_region(pixels, box, side, "fast").astype(int)
  exact = images.resize_region(pixels, box, side).astype(int)
  assert fast.shape == exact.shape == (side, side, 3)
  # Half a source pixel of rounding (beyond a zoom of 2) moves this image by 2 levels, the kernels
  # differ by less, at the borders and where it shrinks most by a few more.
  assert np.abs(fast - exact).mean() < 2.0 and np.abs(fast - exact).max() < 16


@pytest.mark.parametrize("method", images.RESIZE_METHODS)
def test_every_resize_puts_a_spot_where_its_box_goes(method):
  pixels = np.zeros((200, 240, 3), np.uint8)
  pixels[60:72, 150:166] = 255
  got = images.resize_region(pixels, (100.5, 20.25, 220.5, 180.25), 100, method)
  mass = got[..., 0].astype(float)
  rows, columns = np.mgrid[:100, :100] + 0.5
  # The spot's centre (158, 66) in pixels of the crop, which is 120 x 160 for 100 x 100.
  assert (mass * columns).sum() / mass.sum() == pytest.approx((158 - 100.5) / 1.2, abs=0.1)
  assert (mass * rows).sum() / mass.sum() == pytest.approx((66 - 20.25) / 1.6, abs=0.1)
