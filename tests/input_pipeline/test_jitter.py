"""Colour jitter, against torchvision's definition in float64 and scikit-image's colour circle.

torchvision itself is asked in tests/oracles/test_classify_parity.py.
"""

import dataclasses

import numpy as np
import pytest
from skimage import color

from input_pipeline import jitter
from input_pipeline.examples import ExampleMaker
from input_pipeline.input_config import InputConfig, InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


def by_definition(name, x, f):
  """One change in float64; x in 0..1."""
  grey = x @ [0.2989, 0.587, 0.114]
  if name == "hue":
    hsv = color.rgb2hsv(x)
    return color.hsv2rgb(np.dstack([(hsv[..., 0] + f) % 1, hsv[..., 1], hsv[..., 2]]))
  other = {"brightness": 0.0, "contrast": grey.mean(), "saturation": grey[..., None]}[name]
  return np.clip(f * x + (1 - f) * other, 0, 1)


@pytest.mark.parametrize("name, factors", [
  ("brightness", (0.2, 1.0, 1.8)), ("contrast", (0.0, 0.3, 1.8)), ("saturation", (0.0, 0.5, 1.8)),
  ("hue", (-0.5, -0.2, 0.0, 0.13, 0.5))])
def test_a_change_is_that_of_its_definition(name, factors):
  # Greys and primaries, where the colour circle has its corners, as well as noise.
  corners = np.uint8([[[v, v, v] for v in (0, 7, 128, 255)]
                      + [[255 * a, 255 * b, 255 * c] for a in (0, 1) for b in (0, 1)
                         for c in (0, 1)]])
  for pixels in (PIXELS, corners):
    x = pixels / 255
    for f in factors:
      got = jitter.change(name, x.astype(np.float32), f)
      assert got.dtype == np.float32
      # float32 against float64; hue goes through degrees and back.
      np.testing.assert_allclose(got, by_definition(name, x, f), atol=5e-6)


def drawn(policy, seed):
  """The factors and the order that a policy draws, read off the generator by the same rules."""
  rng = np.random.default_rng(seed)
  if rng.random() >= policy.share:
    return None
  low = lambda v: max(0.0, 1 - v)
  factors = [rng.uniform(low(v), 1 + v) for v in dataclasses.astuple(policy)[:3]]
  return [*factors, rng.uniform(-policy.hue, policy.hue)], rng.permutation(4)


@pytest.mark.parametrize("policy", [
  jitter.ColorJitter(0.8, 0.8, 0.8, 0.2, 0.8), jitter.ColorJitter(0.0, 1.5, 0.0, 0.5)])
def test_an_image_goes_through_all_changes_in_a_random_order_and_is_rounded_once(policy):
  same, orders = 0, set()
  for seed in range(30):
    got = policy(PIXELS, np.random.default_rng(seed))
    found = drawn(policy, seed)
    if found is None:
      same += 1
      np.testing.assert_array_equal(got, PIXELS)
      continue
    factors, order = found
    orders.add(tuple(order))
    x = PIXELS / 255
    for i in order:
      if getattr(policy, jitter.CHANGES[i]):
        x = by_definition(jitter.CHANGES[i], x, factors[i])
    # What lies between two bytes may be rounded to either, for float32's last digits.
    assert np.abs(got - 255 * x).max() < 0.5 + 1e-2
  assert (same > 0) == (policy.share < 1) and len(orders) > 8


def test_draws_are_uniform_in_their_ranges():
  policy = jitter.ColorJitter(0.8, 0.5, 1.5, 0.2)
  rng = np.random.default_rng(0)
  for name, low, high in (("brightness", 0.2, 1.8), ("contrast", 0.5, 1.5),
                          ("saturation", 0.0, 2.5), ("hue", -0.2, 0.2)):
    found = np.sort([policy._factor(name, rng) for _ in range(4000)])
    # Kolmogorov's distance: 1.95 / sqrt(n) is passed by one of a thousand.
    at = (found - low) / (high - low)
    assert np.abs(at - np.linspace(0, 1, 4000)).max() < 1.95 / 4000**0.5, name


def test_rows_vary_in_colour_with_the_position_alone_and_nothing_else_moves(make_sample):
  sample = make_sample(3)
  plain = InputConfig("unused", image_size=32, captions=False, crop_scale=(0.3, 1.0))
  vivid = dataclasses.replace(plain, jitter=(0.8, 0.8, 0.8, 0.2))
  rows = []
  for config in (plain, vivid, vivid):
    maker = ExampleMaker(config)
    batch = maker.allocate(1)
    maker.write_train(batch, 0, sample, np.random.default_rng(5), key=0, where="x")
    rows.append(batch["image"][0])
  np.testing.assert_array_equal(rows[1], rows[2])
  assert not np.array_equal(rows[0], rows[1])
  # The same crop: its jittered version is what the policy makes of it.
  rng = np.random.default_rng(5)
  from input_pipeline import transforms
  transforms.random_crop(rng, sample.width, sample.height, scale=(0.3, 1.0), ratio=plain.crop_ratio)
  np.testing.assert_array_equal(jitter.ColorJitter(0.8, 0.8, 0.8, 0.2)(rows[0], rng), rows[1])


@pytest.mark.parametrize("changes, says", [
  (dict(jitter=(0.8, 0.8, 0.8)), "input.jitter is .* expected four numbers"),
  (dict(jitter=(0.8, 0.8, 0.8, 0.6)), "hue up to 0.5"),
  (dict(jitter=(0.8, -0.1, 0.8, 0.1)), "input.jitter"),
  (dict(jitter="strong"), "input.jitter is 'strong'"),
  (dict(jitter=(0.1,) * 4, tiles=4, view_size=700), "with input.tiles=4"),
  (dict(jitter_share=1.2), "input.jitter_share is 1.2"),
])
def test_settings_that_cannot_be_are_errors(changes, says):
  with pytest.raises(InputError, match=says):
    InputConfig("unused", image_size=1400, **changes)
