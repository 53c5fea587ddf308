"""Each kind of bad image, box and caption is refused or mended, under its own reason."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline import images as images_lib
from input_pipeline.build import check
from input_pipeline.build.plan import Item, Region
from input_pipeline.build.skips import SkipRecord


def picture(width=40, height=30):
  y, x = np.mgrid[:height, :width]
  return Image.fromarray(np.stack([x * 5, y * 7, x + y], -1).astype(np.uint8))


def encoded(image=None, kind="PNG", **options):
  out = io.BytesIO()
  (image or picture()).save(out, kind, **options)
  return out.getvalue()


def checked(data=None, regions=((0, 0, 10, 10),), text="a thing", **options):
  regions = [r if isinstance(r, Region) else Region(r, text) for r in regions]
  global_text = options.pop("global_text", "whole")
  return check.sample_from("x", data or encoded(), regions, global_text, **options)


def reasons(notes):
  return [reason for reason, _ in notes]


# Images


@pytest.mark.parametrize(
  "data",
  [encoded(kind="JPEG"), encoded(kind="PNG"), encoded(kind="WEBP"),
   encoded(picture().convert("CMYK"), "JPEG"), encoded(picture().convert("L"), "JPEG"),
   encoded(Image.fromarray(np.full((30, 40), 40000, np.uint16)), "PNG"),
   encoded(picture().convert("LA"), "PNG"), encoded(picture().convert("RGBA"), "WEBP"),
   encoded(picture().convert("P"), "PNG"), encoded(picture().convert("1"), "PNG")],
  ids=["jpeg", "png", "webp", "cmyk", "grey", "16-bit", "grey-alpha", "alpha", "palette", "binary"],
)
def test_images_training_can_decode_are_stored_untouched(data):
  sample = checked(data)
  assert sample.image == data
  assert (sample.width, sample.height) == (40, 30)
  assert not sample.mended


def test_size_is_that_of_the_displayed_image():
  exif = Image.Exif()
  exif[0x0112] = 6  # Turn by a quarter.
  data = encoded(kind="JPEG", exif=exif)
  sample = checked(data, regions=[(0, 30, 30, 40)])
  assert (sample.width, sample.height) == (30, 40)
  assert sample.image == data
  np.testing.assert_array_equal(sample.boxes, [[0, 30, 30, 40]])


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "PPM"])
def test_other_formats_are_stored_as_png_of_the_same_pixels(kind):
  data = encoded(kind=kind)
  sample = checked(data)
  assert reasons(sample.mended) == ["image-stored-as-png"]
  assert Image.open(io.BytesIO(sample.image)).format == "PNG"
  np.testing.assert_array_equal(
    images_lib.decode_image(sample.image), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
  )


def test_of_an_animation_the_first_picture_counts():
  frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
  data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
  pixels = images_lib.decode_image(checked(data, regions=()).image)
  np.testing.assert_array_equal(pixels, np.broadcast_to([255, 0, 0], (8, 8, 3)))


@pytest.mark.parametrize(
  "data",
  [b"<html>404 not found</html>", b"\x00" * 100, encoded(kind="PNG")[:70],
   encoded(picture(400, 300), kind="JPEG")[:2000], encoded(kind="WEBP")[:60],
   encoded(kind="JPEG")[:20]],
  ids=["html", "zeros", "half-png", "half-jpeg", "half-webp", "header"],
)
def test_foreign_and_truncated_bytes_are_skipped(data):
  with pytest.raises(SkipRecord) as caught:
    checked(data, source="bad.jpg")
  assert caught.value.reason == "image-undecodable"
  assert "bad.jpg" in caught.value.detail


def test_an_image_beyond_the_pixel_limit_is_skipped(monkeypatch):
  monkeypatch.setattr(images_lib, "MAX_PIXELS", 1000)
  with pytest.raises(SkipRecord) as caught:
    checked()
  assert caught.value.reason == "image-too-large"


def test_an_image_of_one_pixel_is_accepted():
  sample = checked(encoded(picture(1, 1)), regions=[(0, 0, 1, 1)])
  assert (sample.width, sample.height, len(sample.texts)) == (1, 1, 1)


def test_an_image_of_another_size_than_its_annotations_is_skipped():
  assert checked(size=(40, 30)).width == 40
  with pytest.raises(SkipRecord, match="image-size-differs.*80 x 60.*40 x 30"):
    checked(size=(80, 60))
  with pytest.raises(SkipRecord, match="EXIF"):
    checked(size=(30, 40))


# Boxes


@pytest.mark.parametrize(
  "box, reason",
  [
    ((float("nan"), 0, 5, 5), "box-not-finite"),
    ((0, 0, float("inf"), 5), "box-not-finite"),
    ((0, 0, 10**400, 5), "box-not-finite"),
    ((10, 0, 5, 5), "box-inverted"),
    ((0, 10, 5, 5), "box-inverted"),
    ((5, 5, 5, 9), "box-below-one-pixel"),
    ((5, 5, 9, 5.5), "box-below-one-pixel"),
    ((40, 0, 50, 10), "box-outside"),
    ((-20, -20, -1, -1), "box-outside"),
    ((39.5, 0, 60, 10), "box-outside"),
    ((1, 2, 3), "box-malformed"),
    (("1", 2, 3, 4), "box-malformed"),
    ((None, 2, 3, 4), "box-malformed"),
    ((True, 2, 3, 4), "box-malformed"),
    ({"x": 1, "y": 2, "z": 3, "w": 4}, "box-malformed"),
    ("1234", "box-malformed"),
    (None, "box-malformed"),
  ],
)
def test_a_region_with_an_unusable_box_is_dropped_and_the_others_kept(box, reason):
  sample = checked(regions=[(0, 0, 9, 9), Region(box, "bad"), (1, 1, 8, 8)])
  assert reasons(sample.dropped) == [reason]
  assert "region 1" in sample.dropped[0][1]
  np.testing.assert_array_equal(sample.boxes, [[0, 0, 9, 9], [1, 1, 8, 8]])
  assert sample.texts == ["a thing", "a thing"]


def test_a_box_partly_outside_is_clipped_and_counted():
  sample = checked(regions=[(-3, -2, 5, 6), (30, 20, 99, 99), (0, 0, 40, 30)])
  np.testing.assert_array_equal(sample.boxes, [[0, 0, 5, 6], [30, 20, 40, 30], [0, 0, 40, 30]])
  assert reasons(sample.mended) == ["box-clipped"] * 2
  assert not sample.dropped


def test_shares_of_the_image_become_pixels():
  sample = checked(regions=[(0.25, 0.5, 1.0, 1.0)], relative=True)
  np.testing.assert_array_equal(sample.boxes, [[10, 15, 40, 30]])


# Captions


@pytest.mark.parametrize(
  "text, reason",
  [
    ("", "caption-empty"),
    (" \n\t", "caption-empty"),
    (None, "caption-not-text"),
    (7, "caption-not-text"),
    (["a"], "caption-not-text"),
    ("b\udcffd", "caption-not-utf8"),
    ("half of a pair \ud83d", "caption-not-utf8"),
    (b"b\xffd", "caption-not-utf8"),
    ("x" * 10_001, "caption-too-long"),
  ],
)
def test_an_unusable_caption_is_dropped_with_its_region(text, reason):
  sample = checked(regions=[Region((0, 0, 9, 9), text), Region((0, 0, 8, 8), "good")])
  assert reasons(sample.dropped) == [reason]
  assert sample.texts == ["good"] and len(sample.boxes) == 1
  if text is not None:
    whole = checked(global_text=text)
    assert reasons(whole.dropped) == [reason] and whole.global_text is None


def test_long_and_foreign_captions_are_kept_without_their_outer_blanks():
  for text in ("x" * 10_000, "zażółć 漢字 \U0001f600", b"caf\xc3\xa9"):
    padded = b" %b\n" % text if isinstance(text, bytes) else f" {text}\n"
    expected = text.decode() if isinstance(text, bytes) else text
    assert checked(text=padded).texts == [expected]


def test_a_record_with_nothing_left_is_skipped_and_says_what_was_lost():
  with pytest.raises(SkipRecord) as caught:
    checked(regions=[(9, 9, 1, 1)], global_text=" ")
  assert caught.value.reason == "nothing-to-learn"
  assert "box-inverted" in caught.value.detail and "caption-empty" in caught.value.detail
  with pytest.raises(SkipRecord, match="neither regions nor a global caption"):
    checked(regions=(), global_text=None)


def test_either_regions_or_a_global_caption_are_enough():
  assert checked(regions=()).boxes.shape == (0, 4)
  assert checked(global_text=None).global_text is None


# Files


def test_files_are_looked_for_in_order(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "b" / "x.png").write_bytes(encoded())
  load = check.loader_of(tmp_path)
  item = Item("x", "x.png", ("a/x.png", "b/x.png", "x.png"), global_text="t")
  assert load(item).image == encoded()
  with pytest.raises(SkipRecord, match="image-missing.*a/y.png nor b/y.png"):
    load(Item("y", "y.png", ("a/y.png", "b/y.png"), global_text="t"))
  with pytest.raises(SkipRecord, match="image-unreadable"):
    load(Item("b", "b", ("b",), global_text="t"))
  with pytest.raises(SkipRecord, match="image-unreadable"):
    load(Item("n", "n", ("a\0b.png",), global_text="t"))


def test_an_item_known_to_be_bad_is_skipped_for_its_reason(tmp_path):
  with pytest.raises(SkipRecord, match="line-not-json: line 3"):
    check.loader_of(tmp_path)(Item("x", "x", problem=("line-not-json", "line 3")))
