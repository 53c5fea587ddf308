"""What is written on the sample data can be read at the top scale and not at the low one.

Classifiers that have nothing to do with this project learn the content of tags painted one by one,
and are asked about tags on finished canvases, decoded from their records. They are told each box
exactly, so they know more than a model does.
"""

import io

import numpy as np
import pytest
from PIL import Image
from sklearn.svm import SVC

from input_pipeline import records
from input_pipeline.build import sample, sample_glyphs, sample_items, sample_photos

SCALES = ("top", "low, antialiased", "low, as models resize")
TOP, LOW = sample_items.TOP_SCALE, sample_items.LOW_SCALE
UNIT = 2.0


def bicubic(pixels, factor):
  """Shrinks (h, w, c) like a model's own bicubic: kernel -0.75, 4 x 4 taps, no antialiasing."""
  for axis in (0, 1):
    size = pixels.shape[axis]
    centres = (np.arange(size // factor) + 0.5) * factor - 0.5
    out = 0
    for offset in range(-1, 3):
      taps = np.floor(centres).astype(int) + offset
      d, a = np.abs(centres - taps), -0.75
      near = (a + 2) * d**3 - (a + 3) * d**2 + 1
      far = a * (d**3 - 5 * d**2 + 8 * d - 4)
      shape = [1, 1, 1]
      shape[axis] = -1
      weights = np.where(d <= 1, near, far).reshape(shape)
      out = out + weights * np.take(pixels, np.clip(taps, 0, size - 1), axis)
    pixels = out
  return pixels


def views(top):
  """The image at the top scale, sides multiples of TOP // LOW -> the image at each of SCALES."""
  low = (top.width * LOW // TOP, top.height * LOW // TOP)
  rough = np.clip(np.rint(bicubic(np.asarray(top, np.float64), TOP // LOW)), 0, 255)
  return top, top.resize(low, Image.Resampling.BICUBIC), Image.fromarray(rough.astype(np.uint8))


def ink(view, box, size):
  """A piece of the view as ink strength (h, w): its main direction of colour, ink positive."""
  limits = (view.width, view.height) * 2
  box = np.clip(box, 0, limits)
  pixels = np.asarray(view.resize(size, Image.Resampling.BICUBIC, box=tuple(box)), np.float64)
  flat = pixels.reshape(-1, 3)
  flat = flat - np.median(flat, 0)
  strength = flat @ np.linalg.eigh(flat.T @ flat)[1][:, -1]
  # There is less ink than tag: the long tail is ink.
  strength *= np.sign(np.mean(strength**3)) or 1.0
  return (strength / (strength.std() + 1e-6)).reshape(size[::-1])


def digit_features(view, box, size=(20, 20)):
  """The ink in the middle half of a tag, shifted so that its centre of mass is in the middle."""
  middle, extent = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
  reach = 0.3 * extent
  weight = np.clip(ink(view, np.append(middle - reach, middle + reach), size), 0, None) ** 2
  y, x = np.indices(weight.shape) + 0.5
  mass = np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum() / size
  middle = middle + (2 * mass - 1) * reach
  reach = 0.26 * extent
  return ink(view, np.append(middle - reach, middle + reach), size).ravel()


def word_features(view, box, size=(42, 12)):
  """The ink of a tag without its rim, and the tag's outline, which tells the length of the word."""
  extent = box[2:] - box[:2]
  inside = np.append(box[:2] + 0.12 * extent, box[2:] - 0.12 * extent)
  return np.append(ink(view, inside, size), 10 * extent[0] / extent[1])


FEATURES = {"digit": digit_features, "word": word_features}


def painted(rng, kind, content, glyph):
  """The features of one tag, painted alone over a piece of a photograph, at each scale."""
  tag = str(rng.choice(list(sample_items.TAG_COLOURS)))
  ink = str(rng.choice(sample_items.inks_for(tag)))
  shape = str(rng.choice(["label", "tag", "sticker"]))
  item = sample_items.Item(kind, content, tag, ink, shape, glyph, "")
  patch = sample_items.paint_item(rng, item, UNIT)
  stretch = np.sqrt(rng.choice([3 / 4, 4 / 5, 1, 5 / 4, 4 / 3]))
  small = (168, 72)
  large = (round(small[0] * UNIT * stretch), round(small[1] * UNIT / stretch))
  photo = sample_photos.load_photo(sample_photos.PHOTOS[rng.integers(len(sample_photos.PHOTOS))])
  canvas = photo.resize(large)
  x, y = (int(rng.integers(0, big - own)) for big, own in zip(large, patch.size))
  canvas.paste(patch, (x, y), patch.getchannel("A"))
  box = np.array([x, y, x + patch.width, y + patch.height], np.float64)
  box *= np.tile(np.divide(small, large), 2)
  top = canvas.resize(small, Image.Resampling.BICUBIC)
  return [FEATURES[kind](v, box * v.width / small[0]) for v in views(top)]


def on_canvases(directory, kind):
  """Contents and features of all items of a kind on the val canvases, at each scale."""
  names = set(sample_glyphs.DIGIT_NAMES)
  rows, contents = [], []
  for record in records.open_dataset(directory, "val"):
    top = Image.open(io.BytesIO(record.image)).resize((TOP, TOP), Image.Resampling.BICUBIC)
    shown = views(top)
    for box, text in zip(record.boxes, record.texts):
      words = text.lower().replace(",", "").replace(".", "").split()
      if ("handwritten" in words) != (kind == "digit"):
        continue
      content = (
        next(w for w in words if w in names) if kind == "digit" else words[words.index("word") + 1]
      )
      contents.append(content)
      box = box * np.tile(np.divide(TOP, (record.width, record.height)), 2)
      rows.append([FEATURES[kind](v, box * v.width / TOP) for v in shown])
  return contents, np.array(rows)


def accuracies(labels, known, contents, rows):
  known = np.array(known)
  return {
    scale: SVC(C=5).fit(known[:, i], labels).score(rows[:, i], contents)
    for i, scale in enumerate(SCALES)
  }


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
  out = tmp_path_factory.mktemp("sample")
  sample.build(out, train=1, val=36, max_side=2048, progress=False)
  return out


def test_handwritten_digits_can_be_read_at_the_top_scale_only(directory):
  rng = np.random.default_rng(1)
  chosen = sample_glyphs.split_pools(0)["train"].digits[:900]
  labels = [sample_glyphs.DIGIT_NAMES[sample_glyphs.digits()[1][i]] for i in chosen]
  known = [painted(rng, "digit", n, i) for n, i in zip(labels, chosen)]
  contents, rows = on_canvases(directory, "digit")
  assert len(contents) > 150
  found = accuracies(labels, known, contents, rows)
  print(found)
  # Chance is 0.1; with about 200 digits the standard error is at most 0.035.
  assert found["top"] >= 0.85, found
  assert max(found["low, antialiased"], found["low, as models resize"]) <= 0.35, found


def test_printed_words_can_be_read_at_the_top_scale_only(directory):
  rng = np.random.default_rng(2)
  # Even told which words there are, and shown each of them many times.
  labels = [word for word in sample_glyphs.split_pools(0)["val"].words for _ in range(12)]
  fonts = sample_glyphs.FONT_COUNT
  known = [painted(rng, "word", word, i % fonts) for i, word in enumerate(labels)]
  contents, rows = on_canvases(directory, "word")
  assert len(contents) > 60
  found = accuracies(labels, known, contents, rows)
  print(found)
  # Chance is 0.012. Some words differ in one letter, hence the lower bar at the top scale.
  assert found["top"] >= 0.6, found
  assert max(found["low, antialiased"], found["low, as models resize"]) <= 0.35, found
