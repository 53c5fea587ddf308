"""Foreground weights: what boxes and masks say of each pixel of a crop, mirrored with it."""

import dataclasses

import numpy as np
import pytest

from input_pipeline import foreground, images, loader, records
from input_pipeline.build import cli
from input_pipeline.examples import ExampleMaker
from input_pipeline.input_config import InputConfig, InputError

CONFIG = InputConfig("unused", image_size=32, captions=False, flip=True, crop_scale=(0.2, 1.0))


def by_definition(boxes, crop, size, soft):
  """Pixel by pixel in the image's own coordinates."""
  x, y, w, h = crop
  out = np.zeros((size, size))
  for i in range(size):
    for j in range(size):
      py, px = y + (i + 0.5) * h / size, x + (j + 0.5) * w / size
      for x0, y0, x1, y1 in boxes:
        share = 1.0
        for at, low, high, pixel in ((px, x0, x1, w / size), (py, y0, y1, h / size)):
          slope = max(soft * (high - low), pixel)
          share *= min(max(0.5 + min(at - low, high - at) / slope, 0.0), 1.0)
        out[i, j] = max(out[i, j], share)
  return out


@pytest.mark.parametrize("soft", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("crop", [(0, 0, 60, 40), (10, 5, 30, 35), (50, 0, 7, 40)])
def test_weights_of_boxes_are_one_inside_and_fall_off_across_their_edges(crop, soft):
  boxes = np.float32([[12, 6, 40, 30], [35.5, 20.25, 58, 39], [3, 3, 3.4, 3.4]])
  got = foreground.of_boxes(boxes, crop, 16, soft)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, by_definition(boxes, crop, 16, soft), atol=1e-6)
  if crop == (0, 0, 60, 40) and soft == 0.1:
    assert got[7, 6] == 1 and got[0, 0] == 0 and 0 < got.mean() < 1


def rows(config, sample, count=12):
  maker = ExampleMaker(config)
  batch = maker.allocate(count)
  for row in range(count):
    maker.write_train(batch, row, sample, np.random.default_rng(row), key=0, where="the record")
  return batch


@pytest.mark.parametrize("resize", images.RESIZE_METHODS)
def test_a_mask_is_cropped_and_mirrored_with_its_image(encode_image, resize):
  """Of an image that is its own mask, the weights are its pixels."""
  noise = np.random.default_rng(1).integers(0, 256, (9, 12, 1)).astype(np.uint8)
  grey = np.kron(noise, np.ones((5, 5, 1), np.uint8)).repeat(3, axis=2)
  sample = records.Sample("a", encode_image(grey), 60, 45, np.zeros((0, 4), np.float32), [],
                          mask=encode_image(grey[..., 0]))
  config = dataclasses.replace(CONFIG, foreground="mask", resize=resize)
  batch = rows(config, sample)
  assert batch["foreground"].shape == (12, 32, 32) and batch["foreground"].dtype == np.float32
  np.testing.assert_array_equal(batch["foreground"], batch["image"][..., 0] / np.float32(255))
  # Crops and flips are those of a run without weights.
  plain = rows(dataclasses.replace(config, foreground=""), sample)
  np.testing.assert_array_equal(plain["image"], batch["image"])
  assert set(plain) == {"image"}
  assert len({row.tobytes() for row in batch["image"]}) == 12


def test_boxes_are_cropped_and_mirrored_with_their_image(encode_image):
  """A white box on black: away from its edges, weights and pixels say the same."""
  pixels = np.zeros((45, 60, 3), np.uint8)
  pixels[10:30, 5:33] = 255
  sample = records.Sample("a", encode_image(pixels), 60, 45, np.float32([[5, 10, 33, 30]]), ["it"])
  config = dataclasses.replace(CONFIG, foreground="boxes", foreground_soft=0.0, resize="fast")
  batch = rows(config, sample, 20)
  white, weight = batch["image"][..., 0] / 255, batch["foreground"]
  clear = (weight == 0) | (weight == 1)
  assert clear.mean() > 0.8
  # Bilinear interpolation reaches a pixel over the edge.
  assert np.mean((white > 0.5) == (weight > 0.5)) > 0.97
  assert np.abs(white - weight)[clear].mean() < 0.02
  assert 0.05 < weight.mean() < 0.95


def boxed(encode_image, boxes, mask=b""):
  pixels = np.zeros((96, 96, 3), np.uint8)
  return records.Sample("a", encode_image(pixels), 96, 96, np.float32(boxes).reshape(-1, 4),
                        ["it"] * len(boxes), mask=mask)


def test_a_record_without_enough_foreground_gets_ones_or_is_left_out(encode_image):
  tiny = np.zeros((96, 96), np.uint8)
  tiny[:9, :11] = 255  # 99 of 9,216 pixels: one too few.
  enough = tiny.copy()
  enough[9, 0] = 204
  cases = [("boxes", boxed(encode_image, []), False),
           ("boxes", boxed(encode_image, [[0, 0, 5, 5]]), False),
           ("boxes", boxed(encode_image, [[10, 10, 60, 60]]), True),
           ("mask", boxed(encode_image, [[10, 10, 60, 60]]), False),
           ("mask", boxed(encode_image, [], encode_image(tiny)), False),
           ("mask", boxed(encode_image, [], encode_image(enough)), True)]
  for kind, sample, good in cases:
    ones = rows(dataclasses.replace(CONFIG, foreground=kind), sample, 3)["foreground"]
    assert (ones.min() == 1) == (not good)
    skip = dataclasses.replace(CONFIG, foreground=kind, foreground_missing="skip")
    if good:
      np.testing.assert_array_equal(rows(skip, sample, 3)["foreground"], ones)
    else:
      with pytest.raises(foreground.ForegroundError, match=f"has no {kind} of enough foreground"):
        rows(skip, sample, 1)


def test_a_mask_of_another_size_is_refused(encode_image):
  sample = boxed(encode_image, [], encode_image(np.zeros((96, 90), np.uint8)))
  with pytest.raises(images.ImageError, match=r"\(mask\): the image is 90 x 96 pixels"):
    rows(dataclasses.replace(CONFIG, foreground="mask"), sample, 1)


def test_a_mask_is_kept_in_the_record_and_only_there(make_sample):
  plain = make_sample(0)
  assert b"mask" not in records.encode_sample(plain)
  with_mask = dataclasses.replace(plain, mask=b"grey")
  assert records.decode_sample(records.encode_sample(with_mask)).mask == b"grey"
  assert records.decode_sample(records.encode_sample(plain)).mask == b""


def test_a_stream_ships_weights_that_depend_on_the_position_alone(make_dataset, make_sample):
  data = make_dataset({"train": [make_sample(i, regions=i % 3) for i in range(7)]})
  config = dataclasses.replace(CONFIG, data=data, foreground="boxes", foreground_missing="skip",
                               max_skip_share=1.0, threads=1)
  a = loader.train_stream(config, batch_size=6, seed=1)
  first, second = next(a), next(a)
  assert a.skipped["no-foreground"] > 0
  b = next(loader.train_stream(dataclasses.replace(config, threads=2), batch_size=6, seed=1,
                               start_step=1))
  np.testing.assert_array_equal(b["foreground"], second["foreground"])
  assert set(first) == {"image", "foreground"}
  whole = next(iter(loader.eval_stream(dataclasses.replace(config, split="train"), batch_size=2,
                                       items="all")))
  assert "foreground" not in whole


def test_masks_that_lie_beside_the_images_are_built_in(tmp_path, encode_image):
  for name, side in (("a/cat", 20), ("a/dog", 21), ("b/elk", 0)):
    (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
    image = encode_image(np.full((20, 20, 3), 9, np.uint8))
    (tmp_path / "images" / f"{name}.png").write_bytes(image)
    if side:
      mask = encode_image(np.full((side, side), 200, np.uint8))
      (tmp_path / "masks" / f"{name}.png").write_bytes(mask)
  argv = ["--from", "folder", "--images", str(tmp_path / "images"), "--quiet", "--split", "train",
          "--masks", str(tmp_path / "masks"), "--out", str(tmp_path / "out")]
  assert cli.main(argv) == 0
  found = {s.id: s.mask for s in records.open_dataset(tmp_path / "out", "train")}
  assert found["a/cat.png"] == (tmp_path / "masks/a/cat.png").read_bytes()
  # One of another size is left out and counted, one that is not there is no fault.
  assert found["a/dog.png"] == found["b/elk.png"] == b""
  manifest = records.read_manifest(tmp_path / "out")
  assert manifest["splits"]["train"]["dropped"] == {"mask-size": 1}
  assert cli.main([*argv[:-3], str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 1


@pytest.mark.parametrize("changes, says", [
  (dict(foreground="box"), "input.foreground is 'box', expected 'boxes', 'mask'"),
  (dict(foreground="boxes", foreground_missing="drop"), "input.foreground_missing is 'drop'"),
  (dict(foreground="boxes", captions=True), "is for pictures alone"),
  (dict(foreground="mask", augment="rand-m9-inc1"), "augment would move"),
  (dict(foreground_soft=-1), "input.foreground_soft is -1"),
])
def test_settings_that_cannot_be_are_errors(changes, says):
  with pytest.raises(InputError, match=says):
    dataclasses.replace(CONFIG, **changes)
