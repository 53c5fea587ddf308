"""Pictures show what they are given, where it is."""

import numpy as np
import pytest

from big_vision_ext import draw


def test_the_heat_map_peaks_where_the_score_does():
  score = np.zeros((4, 4), np.float32)
  score[1, 2] = 1
  picture = draw.overlay_score(np.full((80, 120, 3), 128, np.uint8), score).astype(int)
  brightest = np.unravel_index(picture.sum(-1).argmax(), (80, 120))
  # The centre of cell (1, 2) of a 4 x 4 grid over 80 x 120 pixels, to half a cell.
  assert abs(brightest[0] - 30) <= 10 and abs(brightest[1] - 75) <= 15


def test_a_constant_score_is_drawn_without_division_by_zero():
  picture = draw.overlay_score(np.zeros((8, 8, 3), np.uint8), np.full((2, 2), 0.3, np.float32))
  assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1


def test_selected_patches_stay_lit_and_the_rest_is_dimmed():
  image = np.full((64, 64, 3), 200, np.uint8)
  picture = draw.outline_patches(image, [(4, 4)], [np.array([5])])
  assert np.all(picture[24, 24] == 200)
  assert np.all(picture[40, 40] < 150)
  # The outline runs along the inner edge of patch (1, 1), which is rows and columns 16 to 31.
  assert tuple(picture[16, 24]) == draw.SCALE_COLOURS[0]
  assert tuple(picture[24, 31]) == draw.SCALE_COLOURS[0]


def test_neighbouring_patches_share_one_outline():
  image = np.full((64, 64, 3), 200, np.uint8)
  picture = draw.outline_patches(image, [(4, 4)], [np.array([5, 6])])
  assert np.all(picture[24, 30:34] == 200)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (90, 120)])
def test_sheets_and_boxes_take_any_image_size(size):
  image = np.zeros((*size, 3), np.uint8)
  boxed = draw.draw_boxes(image, np.array([[0, 0, size[1], size[0]]]), ["label"], highlight=0)
  page = draw.sheet({"one": boxed, "two": image}, title="a title " * 30, legend={"x": (1, 2, 3)})
  assert page.dtype == np.uint8 and page.ndim == 3
