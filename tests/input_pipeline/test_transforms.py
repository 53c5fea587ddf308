import collections

import numpy as np
import pytest
from PIL import Image

from input_pipeline import images, records, transforms

SCALE, RATIO = (0.9, 1.0), (3 / 4, 4 / 3)


def _rng(*key):
  return np.random.default_rng(key)


def _sample(texts=(), global_text=None):
  boxes = np.tile(np.float32([[0, 0, 5, 5]]), (len(texts), 1))
  return records.Sample("id", b"image", 10, 10, boxes, list(texts), global_text)


@pytest.mark.parametrize("width, height", [(100, 100), (640, 480), (481, 640), (50, 37)])
def test_crops_lie_inside_and_keep_area_and_aspect_in_range(width, height):
  seen = set()
  for i in range(300):
    x, y, w, h = transforms.random_crop(_rng(i), width, height, scale=SCALE, ratio=RATIO)
    assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height
    # Sides are rounded to pixels: half a pixel on each.
    assert (w + 0.5) * (h + 0.5) >= 0.9 * width * height
    assert RATIO[0] <= (w + 0.5) / (h - 0.5) and (w - 0.5) / (h + 0.5) <= RATIO[1]
    seen.add((x, y, w, h))
  assert len(seen) > 30


def test_area_share_is_uniform_and_log_aspect_is_uniform_when_every_draw_fits():
  # In a square, shares up to 0.5 with aspects from 1/2 to 2 always fit at the first try.
  side, share, aspect = 2000, [], []
  for i in range(2000):
    _, _, w, h = transforms.random_crop(_rng(i), side, side, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    share.append(w * h / side**2)
    aspect.append(np.log(w / h))
  for values, low, high in [(share, 0.2, 0.5), (aspect, -np.log(2), np.log(2))]:
    ranks = (np.sort(values) - low) / (high - low)
    # Kolmogorov-Smirnov at 2,000 draws: 0.044 would be exceeded once in a thousand times.
    assert np.abs(ranks - (np.arange(2000) + 0.5) / 2000).max() < 0.044


def test_offsets_reach_both_borders():
  x = [
    transforms.random_crop(_rng(i), 12, 12, scale=(0.6, 0.6), ratio=(1, 1))[0] for i in range(99)
  ]
  assert set(x) == set(range(12 - round(12 * 0.6**0.5) + 1))


@pytest.mark.parametrize(
  "size, expected",
  [
    ((400, 100), (133, 0, 133, 100)),  # too wide: the centre, as wide as 4/3 allows
    ((100, 400), (0, 133, 100, 133)),  # too high: the centre, as high as 3/4 allows
    ((1, 1), (0, 0, 1, 1)),
    ((1, 3000), (0, 1499, 1, 1)),
    ((3000, 1), (1499, 0, 1, 1)),
  ],
)
def test_images_no_crop_fits_into_fall_back_to_their_centre(size, expected):
  for i in range(5):
    assert transforms.random_crop(_rng(i), *size, scale=SCALE, ratio=RATIO) == expected


def test_clamped_crops_are_drawn_once_and_cut_down_to_the_image():
  """facebookresearch/mae, the random crop of its linear probe."""
  width, height, scale, ratio = 60, 20, (0.08, 1.0), (0.75, 4 / 3)
  lost = 0
  for i in range(300):
    x, y, w, h = transforms.random_crop(
      _rng(i), width, height, scale=scale, ratio=ratio, clamp=True)
    rng = _rng(i)
    area = width * height * rng.uniform(*scale)
    aspect = np.exp(rng.uniform(*np.log(ratio)))
    want_w, want_h = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
    assert (w, h) == (min(want_w, width), min(want_h, height))
    assert 0 <= x <= width - w and 0 <= y <= height - h
    lost += want_h > height
  assert lost > 50  # Where torchvision's rule would have drawn again.


def test_a_box_keeps_its_pixels_through_crop_and_resize():
  # Rasters are the reference: crop and enlarge a mask, then find its extent.
  rng = _rng(0)
  for _ in range(50):
    x0, y0 = rng.integers(0, 30, 2)
    box = np.array([[x0, y0, x0 + rng.integers(1, 30), y0 + rng.integers(1, 30)]], np.float32)
    crop = (int(rng.integers(0, 20)), int(rng.integers(0, 20)), 40, 20)
    mask = np.zeros((60, 60), bool)
    mask[int(y0) : int(box[0, 3]), int(x0) : int(box[0, 2])] = True
    cut = mask[crop[1] : crop[1] + 20, crop[0] : crop[0] + 40]
    big = cut.repeat(80 // 20, 0).repeat(80 // 40, 1)
    share = transforms.visible_share(box, crop)[0]
    assert share == pytest.approx(cut.sum() / mask.sum(), abs=1e-6)
    if cut.any():
      rows, columns = np.flatnonzero(big.any(1)), np.flatnonzero(big.any(0))
      expected = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
      np.testing.assert_allclose(transforms.crop_boxes(box, crop, 80)[0], expected, atol=1e-4)


def test_a_region_that_would_be_lost_makes_the_crop_the_whole_image():
  corner = np.float32([0, 0, 4, 4])
  options = {"scale": (0.05, 0.05), "ratio": (1, 1)}
  crops = [transforms.crop_for_region(_rng(i), 100, 100, corner, **options) for i in range(200)]
  assert (0, 0, 100, 100) in crops
  for crop in crops:
    assert transforms.visible_share(corner[None], crop)[0] >= transforms.MIN_VISIBLE


@pytest.mark.parametrize("size", [(100, 100), (640, 480), (300, 900), (1000, 100), (1, 1), (3, 2)])
@pytest.mark.parametrize("scale", [(0.9, 1.0), (0.3, 1.0)])
def test_no_crop_of_a_reduced_image_has_to_be_enlarged(size, scale):
  side = 64
  width, height = transforms.least_decoded_size(*size, side, scale=scale, ratio=RATIO)
  for i in range(300):
    _, _, w, h = transforms.random_crop(_rng(i), *size, scale=scale, ratio=RATIO)
    assert w * width / size[0] >= side - 1e-6 and h * height / size[1] >= side - 1e-6


def test_a_quarter_of_globally_captioned_images_is_taken_whole_and_regions_are_equally_likely():
  sample = _sample(["a", "b", "c"], "whole")
  n = 4000
  counts = collections.Counter(
    transforms.choose_region(sample, _rng(i), global_share=0.25) for i in range(n)
  )
  for region in (None, 0, 1, 2):
    # Five standard deviations of a binomial count.
    assert abs(counts[region] - n / 4) < 5 * (n * 0.25 * 0.75) ** 0.5


def test_images_with_one_kind_of_caption_use_that():
  for i in range(30):
    assert transforms.choose_region(_sample(["a"]), _rng(i), global_share=1.0) == 0
    assert transforms.choose_region(_sample([], "g"), _rng(i), global_share=0.0) is None
  with pytest.raises(transforms.CaptionError, match="'id' has neither regions nor a global"):
    transforms.choose_region(_sample(), _rng(0), global_share=0.5)


@pytest.mark.parametrize(
  "text, clean",
  [
    ("The image is a close-up of a red car.", "a red car."),
    ("The second image is a close-up of a dog. It runs.", "a dog. It runs."),
    ("A wall. There is no text visible in the image.", "A wall."),
    ("A sign. The visible Text says stop!", "A sign."),
    ("A wall. The text is red.", "A wall. The text is red."),
    ("No text is visible.", "No text is visible."),
    ("Text is visible. A wall.", "Text is visible. A wall."),
    ("  spaces \n here  ", "spaces \n here"),
    ("", ""),
  ],
)
def test_captions_lose_what_the_captioner_says_about_its_input(text, clean):
  assert transforms.clean_caption(text) == clean


def test_sentences_end_at_full_stops_before_white_space_only():
  text = "It costs 1.50 now. Really?  Yes!No. End"
  assert transforms.split_sentences(text) == ["It costs 1.50 now.", "Really?", "Yes!No.", "End"]


def test_sentence_runs_are_contiguous_start_in_the_first_three_and_are_uniform():
  n, draws = 5, 6000
  names = ["Aa.", "Bb!", "Cc?", "Dd.", "Ee"]
  counts = collections.Counter(
    transforms.sample_sentences(" ".join(names), _rng(i)) for i in range(draws)
  )
  expected = {
    " ".join(names[start : start + length]): draws / 3 / (n - start)
    for start in range(3)
    for length in range(1, n - start + 1)
  }
  assert set(counts) == set(expected)
  for run, mean in expected.items():
    assert abs(counts[run] - mean) < 5 * mean**0.5


def test_two_sentences_start_at_either_and_one_stays():
  runs = {transforms.sample_sentences("One. Two.", _rng(i)) for i in range(50)}
  assert runs == {"One.", "Two.", "One. Two."}
  assert transforms.sample_sentences(" One. ", _rng(0)) == "One."


def test_the_same_generator_gives_the_same_example():
  for call in (
    lambda r: transforms.random_crop(r, 90, 80, scale=SCALE, ratio=RATIO),
    lambda r: transforms.sample_sentences("A. B. C. D.", r),
    lambda r: transforms.choose_region(_sample(["a", "b"], "g"), r, global_share=0.5),
  ):
    assert [call(_rng(7, i)) for i in range(20)] == [call(_rng(7, i)) for i in range(20)]


@pytest.mark.parametrize("size", [(640, 427), (333, 500), (224, 224), (250, 900), (231, 229)])
@pytest.mark.parametrize("side, share", [(224, 1.0), (224, 0.875), (56, 0.9)])
def test_the_middle_square_is_what_clip_and_timm_preprocess(size, side, share):
  """torchvision's Resize (bicubic) and CenterCrop, in their own words of Pillow."""
  rng = np.random.default_rng(size[0])
  small = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3)).astype(np.uint8))
  picture = small.resize(size, Image.Resampling.BICUBIC)
  short = {(224, 1.0): 224, (224, 0.875): 256, (56, 0.9): 62}[side, share]
  scaled = [short if s == min(size) else int(short * s / min(size)) for s in size]
  left, top = (int(round((s - side) / 2.0)) for s in scaled)
  want = picture.resize(scaled, Image.Resampling.BICUBIC).crop(
    (left, top, left + side, top + side))
  box, whole = transforms.middle_square(*size, side, share)
  got = images.resize_region(np.asarray(picture), box, side)
  error = np.abs(got.astype(int) - np.asarray(want))
  # Pillow turns the order of its two passes, each of which rounds, where that saves work.
  assert list(whole) == scaled and error.max() <= 2 and error.mean() < 0.3
