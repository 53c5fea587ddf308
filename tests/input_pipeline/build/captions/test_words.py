"""Levels, prompts, measurements and the template's words."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, signal

from input_pipeline.build.captions import measures, prompts, template
from input_pipeline.build.captions.captioner import CaptionerError, Unanswered, checked


def test_levels_are_the_fifths_of_the_range():
  scores = [-0.05, 0, 0.19, 0.2, 0.4, 0.6, 0.79, 0.8, 1, 1.05]
  assert prompts.levels(scores) == [
    "bad", "bad", "bad", "poor", "fair", "good", "good", "perfect", "perfect", "perfect"]


def test_levels_by_quantile_are_fifths_of_the_pictures_whatever_their_range():
  scores = np.random.default_rng(0).permutation(np.linspace(0.4, 0.6, 50))
  words = prompts.levels(scores, "quantile")
  assert [words.count(level) for level in prompts.LEVELS] == [10] * 5
  assert words[int(scores.argmin())] == "bad" and words[int(scores.argmax())] == "perfect"
  # Equal scores have one level: that of the middle of their ranks.
  assert prompts.levels([0.5] * 7, "quantile") == ["fair"] * 7
  with pytest.raises(ValueError, match="range or quantile"):
    prompts.levels([0.5], "ranks")


def test_prompts_have_the_level_or_nothing_in_braces():
  for prompt in (*prompts.PROMPTS.values(), *template.PROMPTS.values()):
    assert prompts.asks_for_level(prompt) and "{" not in prompts.fill(prompt, "good")
  assert not prompts.asks_for_level("Describe it.")
  for wrong in ("a {mos} picture", "a {} picture", "a { picture"):
    with pytest.raises(ValueError, match="level"):
      prompts.asks_for_level(wrong)


def photo(seed=0, side=48):
  rng = np.random.default_rng(seed)
  smooth = ndimage.gaussian_filter(rng.normal(0, 300, (side, side, 3)), (2, 2, 0))
  return np.clip(128 + smooth, 0, 255).astype(np.uint8)


def test_measurements_are_those_of_their_formulas_in_float64():
  pixels = photo(1)
  found = measures.measure(pixels)
  r, g, b = np.moveaxis(pixels.astype(np.float64), -1, 0)
  luma = 0.299 * r + 0.587 * g + 0.114 * b
  laplacian = signal.convolve2d(luma, [[0, 1, 0], [1, -4, 1], [0, 1, 0]], "valid")
  mask = signal.convolve2d(luma, [[1, -2, 1], [-2, 4, -2], [1, -2, 1]], "valid")
  rg, yb = r - g, (r + g) / 2 - b
  colour = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
  # Sums of 2,304 float64 in another order.
  close = lambda a, b: a == pytest.approx(b, rel=1e-10)
  assert close(found.sharpness, laplacian.var())
  assert close(found.noise, np.sqrt(np.pi / 2) / (6 * 46 * 46) * np.abs(mask).sum())
  assert close(found.luma, luma.mean()) and close(found.contrast, luma.std())
  assert close(found.colourfulness, colour)


def test_noise_is_measured_in_grey_levels():
  flat = np.full((200, 200, 3), 128.0)
  for sigma in (3, 10):
    noisy = flat + sigma * np.random.default_rng(0).standard_normal((200, 200, 1))
    found = measures.measure(np.rint(noisy).astype(np.uint8)).noise
    assert found == pytest.approx(sigma, rel=0.05)  # Five standard errors of 40,000 pixels.


def test_blocks_of_jpeg_are_noticed_and_even_pictures_have_none():
  pixels = photo(2, 96)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, "JPEG", quality=8)
  coded = np.asarray(Image.open(data))
  assert measures.measure(coded).blockiness > 1.5 > measures.measure(pixels).blockiness
  assert measures.measure(np.full((32, 32, 3), 77, np.uint8)).blockiness == pytest.approx(1)


def encoded(pixels):
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, "PNG")
  return data.getvalue()


def test_the_template_says_the_level_and_what_is_to_be_seen():
  sharp = np.random.default_rng(0).integers(0, 2, (64, 64, 1)).repeat(3, 2).astype(np.uint8) * 255
  dark = (photo(3).astype(float) * 0.15).astype(np.uint8)
  blurred = ndimage.gaussian_filter(photo(4).astype(float), (4, 4, 0)).astype(np.uint8)
  captioner = template.TemplateCaptioner()
  said = captioner.describe([encoded(p) for p in (sharp, dark, blurred)],
                            ["iqa bad", "iqa poor", "iaa perfect"])
  assert "bad" in said[0] and "extremely sharp" in said[0] and "without colour" in said[0]
  assert "poor" in said[1] and "very dark" in said[1]
  assert "perfect" in said[2] and "aesthetics" in said[2] or "looks perfect" in said[2]
  assert "blurry" in captioner.describe([encoded(blurred)], ["iqa fair"])[0]
  assert said == captioner.describe([encoded(p) for p in (sharp, dark, blurred)],
                                    ["iqa bad", "iqa poor", "iaa perfect"])


def test_the_template_refuses_other_prompts_and_broken_pictures():
  captioner = template.TemplateCaptioner()
  with pytest.raises(CaptionerError, match="iqa {level}"):
    captioner.describe([encoded(photo())], ["Describe it."])
  with pytest.raises(Unanswered) as error:
    captioner.describe([encoded(photo())[:99]], ["iqa good"])
  assert error.value.reason == "image-undecodable" and error.value.final


@pytest.mark.parametrize("answer, reason", [
  ("", "empty"), (" \n...", "empty"), (None, "empty"),
  ("I'm sorry, but I can't help with that.", "refused"),
  ("I\u2019m sorry, I cannot.", "refused"), ("As an AI, I do not see.", "refused"),
  ("I cannot describe people.", "refused"), ('"I am unable to see it."', "refused"),
])
def test_answers_that_are_none_are_told(answer, reason):
  with pytest.raises(Unanswered) as error:
    checked(answer)
  assert error.value.reason == reason


def test_answers_that_are_some_are_kept():
  assert checked("  I can see\na sorry,  dim picture. ") == "I can see a sorry, dim picture."
  assert checked("Unfortunately blurred, the image is poor.").startswith("Unfortunately")
