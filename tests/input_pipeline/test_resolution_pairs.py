"""Pairs are read as they are, and what is no pair is told by its file."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline import resolution_pairs as pairs


def _write(path, size=(8, 6), mode="RGB", seed=0, **how):
  path.parent.mkdir(parents=True, exist_ok=True)
  rng = np.random.default_rng(seed)
  channels = {"RGB": 3, "RGBA": 4, "L": 1, "I;16": 1}[mode]
  dtype = np.uint16 if mode == "I;16" else np.uint8
  x = rng.integers(0, np.iinfo(dtype).max, (size[1], size[0], channels), dtype=dtype)
  Image.fromarray(x[..., 0] if channels == 1 else x).save(path, **how)
  return x


def test_pairs_are_by_name_whatever_their_format(tmp_path):
  for name in ("b.png", "a.tiff"):
    _write(tmp_path / "hr" / name, (8, 6), seed=len(name))
  small = _write(tmp_path / "lr/a.bmp", (4, 3))
  _write(tmp_path / "lr/b.png", (4, 3))
  (tmp_path / "hr/notes.txt").write_text("no picture")
  found = pairs.read(tmp_path, 2)
  assert [p.name for p in found] == ["a", "b"]
  np.testing.assert_array_equal(found[0].low, small)
  assert found[0].high.shape == (6, 8, 3) and found[0].high.dtype == np.uint8


def test_grey_and_opaque_pictures_are_rgb(tmp_path):
  grey = _write(tmp_path / "hr/grey.png", mode="L")
  opaque = np.full((6, 8, 4), 255, np.uint8)
  opaque[..., :3] = np.arange(24).reshape(1, 8, 3)
  Image.fromarray(opaque).save(tmp_path / "hr/opaque.png")
  found = {p.name: p for p in pairs.read(tmp_path, 2)}
  np.testing.assert_array_equal(found["grey"].high, np.repeat(grey, 3, 2))
  np.testing.assert_array_equal(found["opaque"].high, opaque[..., :3])
  assert found["grey"].low is None


@pytest.mark.parametrize("orientation, turns", [(3, 2), (6, -1)])
def test_pictures_are_upright(tmp_path, orientation, turns):
  exif = Image.Exif()
  exif[0x0112] = orientation
  stored = _write(tmp_path / "hr/a.png", exif=exif)
  grey = _write(tmp_path / "hr/grey.png", mode="L", exif=exif)
  # A pair fits as it is displayed: low-resolution ones are often stored without the header.
  shape = np.rot90(stored, turns).shape
  for name in ("a", "grey"):
    _write(tmp_path / f"lr/{name}.png", (shape[1] // 2, shape[0] // 2))
  found = {p.name: p.high for p in pairs.read(tmp_path, 2)}
  np.testing.assert_array_equal(found["a"], np.rot90(stored, turns))
  np.testing.assert_array_equal(found["grey"], np.rot90(grey, turns).repeat(3, 2))


def _colour_16(path):
  """A colour PNG of 16 bits, which Pillow cannot write: two pixels, by hand."""
  import struct
  import zlib

  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(
        ">I", zlib.crc32(kind + data))

  rows = b"".join(b"\0" + bytes(range(12)) for _ in range(2))
  path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(
      b"IHDR", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)) + chunk(
      b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


@pytest.mark.parametrize("make, message", [
    (lambda d: None, "there is no such folder"),
    (lambda d: (d / "hr").mkdir(), "hr: has no pictures"),
    (lambda d: _write(d / "hr/a.png", (9, 6)), r"a.png: has 9 x 6 pixels.*cut it to 8 x 6"),
    (lambda d: [_write(d / "hr/a.png", (8, 6)), _write(d / "lr/a.png", (4, 4))],
     r"8 x 6 pixels and .*a.png 4 x 4; expected 8 x 8"),
    (lambda d: [_write(d / "hr/a.png"), _write(d / "lr/b.png", (4, 3))],
     "2 pictures are in one of hr/ and lr/ alone, e.g. hr/a.png"),
    (lambda d: [_write(d / "hr/a.png"), _write(d / "hr/a.bmp")], "have the same name"),
    (lambda d: _write(d / "hr/a.png", mode="RGBA"), "a.png: is partly transparent"),
    (lambda d: _write(d / "hr/a.png", mode="I;16"), "a.png: has more than 8 bits"),
    (lambda d: [(d / "hr").mkdir(), _colour_16(d / "hr/a.png")], "a.png: has more than 8 bits"),
    (lambda d: [(d / "hr").mkdir(), (d / "hr/a.png").write_bytes(b"nothing")], "is no picture"),
    (lambda d: _write(d / "hr/a.png", exif=b"Exif\0\0nothing"), "a.png: is no picture"),
])
def test_what_is_no_pair_is_told_by_its_file(make, message, tmp_path):
  make(tmp_path)
  with pytest.raises(pairs.PairError, match=message):
    pairs.read(tmp_path, 2)
