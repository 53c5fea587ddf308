import dataclasses

import numpy as np
import pytest
import simplejpeg

from input_pipeline import images, pictures, pyramid, records

W, H = 611, 403


@pytest.fixture(scope="module")
def samples():
  """The same smooth photograph as a file and as a pyramid of small tiles."""
  y, x = np.mgrid[:H, :W] / 20
  waves = np.stack([np.sin(x + y / 2), np.cos(x / 3 - y), np.sin(x / 2) * np.cos(y / 3)], -1)
  pixels = np.round(127 + 100 * waves).astype(np.uint8)
  plain = records.Sample(
    id="a", image=simplejpeg.encode_jpeg(pixels, quality=95, colorsubsampling="444"), width=W,
    height=H, boxes=np.zeros((0, 4), np.float32), texts=[], global_text="waves",
  )
  decoded = images.decode_image(plain.image)
  made = pyramid.make(decoded, full_colour=True, tile=64)
  return {"plain": plain, "pyramid": dataclasses.replace(plain, image=b"", pyramid=made)}


REGIONS = [(0, 0, W, H), (17, 5, 600, 398), (100.25, 90.5, 300.75, 310.25)]


@pytest.mark.parametrize("method", images.RESIZE_METHODS)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("size", [(420, 380), (150, 90), (40, 40)])
def test_both_layouts_show_a_region_alike(samples, method, region, size):
  got = {k: pictures.of(s, "x").region(region, size, method) for k, s in samples.items()}
  assert got["plain"].shape == got["pyramid"].shape == (*size, 3)
  off = np.abs(got["plain"].astype(int) - got["pyramid"])
  # A second JPEG costs about one grey level; on a smaller level means of squares come before the
  # kernel, which costs another half. "fast" takes areas for bilinear beyond a factor of 2 and
  # rounds their border to pixels, which moves these waves by up to five levels a pixel.
  smaller = min((region[2] - region[0]) / size[1], (region[3] - region[1]) / size[0]) >= 2
  assert off.mean() < (4.0 if method == "fast" else 1.5 if smaller else 1.0)
  if method == "bicubic":
    assert off.max() <= 8


@pytest.mark.parametrize("layout", ["plain", "pyramid"])
@pytest.mark.parametrize("method", images.RESIZE_METHODS)
def test_a_part_of_a_region_has_the_pixels_that_it_has_in_the_whole(samples, layout, method):
  """That is what makes tiles parts of one image. Both round twice, which makes two levels."""
  picture = pictures.of(samples[layout], "x")
  x0, y0, x1, y1 = 20, 10, 590, 390
  whole = picture.region((x0, y0, x1, y1), (400, 480), method)
  zoom_y, zoom_x = (y1 - y0) / 400, (x1 - x0) / 480
  for top, left, height, width in [(0, 0, 80, 80), (160, 240, 40, 120), (320, 400, 80, 80)]:
    part = picture.region(
      (x0 + left * zoom_x, y0 + top * zoom_y, x0 + (left + width) * zoom_x,
       y0 + (top + height) * zoom_y), (height, width), method)
    inner = slice(1, -1)  # "fast" ends a whole region of whole pixels at its border.
    off = np.abs(part.astype(int) - whole[top:top + height, left:left + width])[inner, inner]
    assert off.max() <= 2


def test_a_file_is_decoded_once_however_many_regions_are_asked_for(samples, monkeypatch):
  calls = []
  decode = images.decode_image
  monkeypatch.setattr(images, "decode_image", lambda *a, **k: calls.append(1) or decode(*a, **k))
  picture = pictures.of(samples["plain"], "x")
  for region in REGIONS:
    picture.region(region, (20, 20), "bicubic")
  assert len(calls) == 1


def test_a_small_region_of_a_pyramid_costs_its_own_tiles(samples):
  seen = []

  def spy(key, decode):
    seen.append(key)
    return decode()

  picture = pictures.of(samples["pyramid"], "x", cached=spy)
  picture.region((200, 200, 240, 240), (40, 40), "bicubic")
  assert seen == [(0, 3 * 10 + 3)]
  seen.clear()
  picture.region((0, 0, W, H), (40, 50), "bicubic")
  assert len(seen) == 2 and {level for level, _ in seen} == {3}


def test_all_pixels_of_both_layouts_are_at_hand(samples):
  plain, tiled = (pictures.whole(samples[k], "x").astype(int) for k in ("plain", "pyramid"))
  assert plain.shape == tiled.shape == (H, W, 3)
  assert np.abs(plain - tiled).mean() < 1


def test_the_result_can_be_written_in_place(samples):
  for sample in samples.values():
    for method in images.RESIZE_METHODS:
      for region in REGIONS:
        for size in ((300, 410), (30, 20)):
          batch = np.zeros((2, *size, 3), np.uint8)
          want = pictures.of(sample, "x").region(region, size, method)
          pictures.of(sample, "x").region(region, size, method, batch[1])
          np.testing.assert_array_equal(batch[1], want)
