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


def output(grids, scale, index, shape):
  """What an encoder says of an image, as far as a picture shows it."""
  return {
      "grids": np.array([(4, 4), *grids], np.int32), "scales": np.array([32, 64, 128]),
      "selected_scale": np.array(scale), "selected_index": np.array(index),
      "score_bottomup": np.eye(4, dtype=np.float32), "image_size": np.array(shape, np.int32)}


def test_patches_of_flat_images_lie_where_their_grid_says():
  image = np.full((100, 400, 3), 200, np.uint8)
  # Patch (1, 6) of a grid of 2 x 8: rows 50 to 100, columns 300 to 350.
  picture = draw.outline_patches(image, [(2, 8)], [np.array([14])])
  lit = np.argwhere((picture == 200).all(-1))
  assert lit.min(0) == pytest.approx([50, 300], abs=2)
  assert lit.max(0) == pytest.approx([99, 349], abs=2)


def test_a_sheet_has_a_panel_for_each_score_and_grows_with_none(tmp_path):
  image = np.full((60, 240, 3), 90, np.uint8)
  found = output([(2, 8), (4, 16)], [0, 1, 1], [3, 7, 8], (600, 2400))
  plain = draw.selection_sheet(image, found, name="x")
  found["score_topdown"] = 1 - found["score_bottomup"]
  boxes = np.array([[10, 10, 100, 50]])
  prompted = draw.selection_sheet(image, found, name="x", prompt="a cat", boxes=boxes, highlight=0)
  assert plain.shape[1] * 4 == pytest.approx(prompted.shape[1] * 3, rel=0.01)
  assert (prompted == draw.BOX_COLOUR).all(-1).any()
  assert not (plain == draw.BOX_COLOUR).all(-1).any()


def test_scores_of_each_scale_have_panels_of_their_own():
  image = np.full((60, 240, 3), 90, np.uint8)
  found = output([(2, 8), (4, 16)], [0], [3], (600, 2400))
  one = draw.selection_sheet(image, found, name="x")
  found["score_bottomup"] = np.stack([np.eye(4), 1 - np.eye(4)]).astype(np.float32)
  two = draw.selection_sheet(image, found, name="x")
  assert two.shape[1] * 3 == pytest.approx(one.shape[1] * 4, rel=0.01)


def test_pictures_shrink_to_a_side_and_never_grow():
  assert draw.shrink(np.zeros((30, 60, 3), np.uint8), 20).shape == (10, 20, 3)
  assert draw.shrink(np.zeros((30, 60, 3), np.uint8), 100).shape == (30, 60, 3)
  assert draw.shrink(np.zeros((1, 900, 3), np.uint8), 20).shape == (1, 20, 3)
