"""Images go into few sizes, near their own shape, whose grids are whole at every scale."""

import math

import numpy as np
import pytest

from big_vision_ext import aspect
from big_vision_ext.models import selection

MODELS = [((378, 756, 1512, 3780), 14), ((384, 768, 1536, 3840), 16), ((96, 384, 768), 8)]


@pytest.mark.parametrize("scales,patch", MODELS)
@pytest.mark.parametrize("distortion", [0.0, 0.1, 0.3])
def test_every_size_has_the_same_aspect_ratio_in_whole_patches_at_every_scale(
    scales, patch, distortion):
  for h, w in aspect.sizes(scales, patch, distortion=distortion):
    assert max(h, w) == scales[-1]
    resized = selection.scale_sizes(scales, patch, (h, w))
    # The largest scale is the image as it is; the others have its shape to the pixel.
    assert resized[-1] == (h, w)
    for y, x in resized:
      assert y % patch == x % patch == 0 and y * w == x * h


@pytest.mark.parametrize("scales,patch", MODELS)
@pytest.mark.parametrize("distortion", [0.1, 0.3])
def test_no_shape_is_distorted_by_more_than_was_allowed(scales, patch, distortion):
  sizes = aspect.sizes(scales, patch, distortion=distortion)
  cells = scales[0] // patch
  rng = np.random.default_rng(0)
  # Below this the next whole number of cells is further away than the distortion allows.
  coarse = 2 / ((1 + distortion) ** 2 - 1)
  for ratio in rng.uniform(max(coarse, 1) / cells, 1, 500):
    for shape in ((1e6 * ratio, 1e6), (1e6, 1e6 * ratio)):
      size = aspect.nearest(shape, sizes)
      change = abs(math.log(size[1] / size[0] * shape[0] / shape[1]))
      assert change <= math.log(1 + distortion) + 1e-9


def test_a_larger_distortion_needs_fewer_sizes_and_none_gives_every_cell():
  count = [len(aspect.sizes((378, 3780), 14, distortion=d)) for d in (0.0, 0.05, 0.1, 0.3)]
  assert count[0] == 2 * 27 - 1
  assert count == sorted(count, reverse=True) and count[-1] < 20


def test_squash_knows_the_square_only():
  assert aspect.sizes((96, 384), 8, "squash") == [(384, 384)]
  assert aspect.nearest((1, 5000), [(384, 384)]) == (384, 384)


@pytest.mark.parametrize("kwargs,message", [
  (dict(aspect="pad"), "aspect='pad'"), (dict(distortion=-0.1), "distortion=-0.1"),
  (dict(distortion=float("nan")), "distortion=nan")])
def test_settings_that_mean_nothing_are_refused(kwargs, message):
  with pytest.raises(ValueError, match=message):
    aspect.sizes((96, 384), 8, **kwargs)
