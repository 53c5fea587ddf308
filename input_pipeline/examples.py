"""How one record becomes one row of a batch, in training and in evaluation."""

import collections
import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline import (
  captions,
  crop_features,
  crops,
  foreground,
  images,
  jitter,
  pairs,
  pictures,
  randaugment,
  records,
  text,
  tiles,
  transforms,
)
from input_pipeline.input_config import InputConfig


class LabelError(ValueError):
  """A record of no class or rating, or of a class not expected; `reason` as of the others."""

  def __init__(self, message: str, reason: str):
    super().__init__(message)
    self.reason = reason


# What makes a record unusable; each carries the `reason` it is counted under.
UNUSABLE = (
  records.RecordError, images.ImageError, transforms.CaptionError, LabelError,
  foreground.ForegroundError, crop_features.FeatureError, pairs.PairError,
)


@dataclasses.dataclass(frozen=True)
class Draw:
  """What chance has decided about a row.

  Attributes:
    region: number of the region, None for the whole image.
    caption: what is tokenised.
    crop: the part of the image that becomes the square.
  """

  region: int | None
  caption: str
  crop: transforms.Crop


class ExampleMaker:
  """Writes rows into the arrays of a batch. Threads may share one; workers unpickle their own.

  Args:
    config: what a row is to have.
    classes: the names of the classes in the order of their numbers, if it is to have those.
  """

  def __init__(self, config: InputConfig, classes: Sequence[str] = ()):
    self._config = config
    self._number = {name: i for i, name in enumerate(classes)}
    self._jitter = self._foreground = None
    if config.jitter:
      self._jitter = jitter.ColorJitter(*config.jitter, config.jitter_share)
    if config.foreground:
      self._foreground = foreground.Foreground(
        config.foreground, config.foreground_missing, config.foreground_soft, config.resize)
    self._augment = randaugment.parse(config.augment) if config.augment else None
    self._tokenizer = text.make_tokenizer(config.tokenizer)
    self._cache = ImageCache(config.cache_mb << 20)
    self._features = crop_features.of_config(config) if config.features else None

  def allocate(self, rows: int, *, whole: bool = False) -> dict[str, np.ndarray]:
    """Returns the arrays of a batch of `rows` rows, not yet filled; `whole`: as for evaluation."""
    size, length, boxes = self._config.image_size, self._config.text_len, self._config.max_boxes
    count, side = self._config.tiles, self._config.tile_size
    extra = {}
    if self._config.pairs:
      extra["degraded"] = images.empty((rows, size, size, 3))
    if self._config.num_classes and not whole:
      extra["label"] = np.empty((rows,), np.int32)
    if self._foreground and not whole:
      extra["foreground"] = np.empty((rows, size, size), np.float32)
    if self._config.scores and not whole:
      extra["score"] = np.empty((rows,), np.float32)
    if self._features and not whole:
      return extra | {"feature": np.empty((rows, self._features.settings.width), np.float32)}
    if not self._config.captions and not whole:
      return extra | {"image": images.empty((rows, size, size, 3))}
    if count and not whole:
      size = self._config.view_size
      extra["tiles"] = images.empty((rows, count, side, side, 3))
      extra["tile_at"] = np.empty((rows, count), np.int32)
    several = self._config.captions_per_image
    lead = (rows,) if whole or several == 1 else (rows, several)
    batch = extra | {
      "image": images.empty((rows, size, size, 3)),
      "text": np.empty((*lead, length), np.int32),
      "box": np.empty((*lead, 4), np.float32),
      "is_global": np.empty(lead, bool),
    }
    if boxes:
      batch["boxes"] = np.empty((rows, boxes, 4), np.float32)
      batch["num_boxes"] = np.empty((rows,), np.int32)
    return batch

  def write_train(
    self,
    batch: dict[str, np.ndarray],
    row: int,
    sample: records.Sample,
    rng: np.random.Generator,
    *,
    key: Any,
    where: str,
  ) -> None:
    """Fills a row with a random region (or the whole) of a sample, randomly cropped.

    Args:
      batch: arrays of `allocate`.
      row: the row to fill.
      sample: the record.
      rng: source of all randomness.
      key: identity of the record, for the cache of decoded images.
      where: name of the record, for messages.

    Raises:
      CaptionError, ForegroundError, ImageError, LabelError: the record cannot be used.
    """
    config = self._config
    if config.num_classes:
      batch["label"][row] = self._class_of(sample, where)
    if config.scores:
      batch["score"][row] = self._score_of(sample, where)
    if self._features:
      batch["feature"][row] = self._features.drawn(sample.id, rng, where)
      return
    size, shape = (sample.width, sample.height), self._crop_shape
    plain = config.crop == "plain"
    if plain:
      self._check_side(sample, where)
    # A crop that is not resized is cut from the image at its full size.
    least = None if plain else transforms.least_decoded_size(*size, config.image_size, **shape)
    picture = pictures.of(
      sample, where, least, lambda part, decode: self._cache.get((key, part), decode)
    )
    if not config.captions:
      crop = (
        transforms.plain_crop(rng, *size, config.image_size) if plain
        else transforms.random_crop(rng, *size, **shape, clamp=config.crop_clamp)
      )
      mirrored = self._write_picture(batch, row, picture, crop, rng)
      if config.pairs:
        x, y, w, h = crop
        pairs.write(sample, (x, y, x + w, y + h), config.resize, batch["degraded"][row], where,
                    mirrored=mirrored)
      if self._foreground:
        found = self._foreground.weights(sample, crop, config.image_size, where)
        batch["foreground"][row] = found[:, ::-1] if mirrored else found
      return
    drawn = self.draw(sample, rng, where)
    said = [(drawn.region, drawn.caption)]
    if config.captions_per_image > 1:
      said += captions.draw_more(config, sample, drawn.region, drawn.crop, rng, where)
    for i, (region, caption) in enumerate(said):
      at = row if len(said) == 1 else (row, i)
      self._write_caption(batch, at, sample, region, drawn.crop, caption)
    self._write_boxes(batch, row, sample, [region for region, _ in said], drawn.crop)
    mirrored = self._write_picture(batch, row, picture, drawn.crop, rng)
    if config.tiles:
      self._write_tiles(batch, row, picture, drawn.crop, rng)
    if mirrored:
      self._mirror_boxes(batch, row)

  def _class_of(self, sample: records.Sample, where: str) -> int:
    """The number of a sample's class; raises LabelError if there is none."""
    if sample.label is None:
      raise LabelError(f"{where}: the record has no class label, which training here needs.",
                       "no-label")
    if sample.label not in self._number:
      raise LabelError(
        f"{where}: the label {sample.label!r} is none of the {len(self._number)} classes of "
        "input.classes.", "unknown-class")
    return self._number[sample.label]

  def _score_of(self, sample: records.Sample, where: str) -> float:
    if sample.rating is None:
      raise LabelError(f"{where}: the record has no rating, which input.scores asks for.",
                       "no-rating")
    return sample.rating.score

  @property
  def _crop_shape(self) -> dict[str, Any]:
    return {"scale": self._config.crop_scale, "ratio": self._config.crop_ratio}

  def _write_picture(
    self,
    batch: dict[str, np.ndarray],
    row: int,
    picture: pictures.Picture,
    crop: transforms.Crop,
    rng: np.random.Generator,
  ) -> bool:
    """Fills in the crop, perhaps mirrored; returns whether it is."""
    x, y, w, h = crop
    side = self._config.view_size if self._config.tiles else self._config.image_size
    out = batch["image"][row]
    picture.region((x, y, x + w, y + h), (side, side), self._config.resize, out)
    # Nothing is drawn where nothing is mirrored: the stream of other configs stays as it is.
    mirrored = self._config.flip and bool(rng.random() < 0.5)
    if mirrored:
      out[:] = out[:, ::-1].copy()
    if self._jitter:
      out[:] = self._jitter(out, rng)
    if self._augment:
      out[:] = self._augment(out, rng)
    return mirrored

  def _mirror_boxes(self, batch: dict[str, np.ndarray], row: int) -> None:
    side = self._config.image_size
    batch["box"][row][..., [0, 2]] = side - batch["box"][row][..., [2, 0]]
    if self._config.max_boxes:
      boxes = batch["boxes"][row, : batch["num_boxes"][row]]
      boxes[:, [0, 2]] = side - boxes[:, [2, 0]]

  def draw(self, sample: records.Sample, rng: np.random.Generator, where: str) -> Draw:
    """Chooses region, caption and crop; raises CaptionError where there is nothing to say."""
    config = self._config
    region = transforms.choose_region(sample, rng, global_share=config.global_share)
    caption = captions.draw(config, sample, region, rng, where)
    size, shape = (sample.width, sample.height), self._crop_shape
    if region is None:
      crop = transforms.random_crop(rng, *size, **shape)
    else:
      crop = transforms.crop_for_region(rng, *size, sample.boxes[region], **shape)
    return Draw(region, caption, crop)

  def _write_tiles(
    self,
    batch: dict[str, np.ndarray],
    row: int,
    picture: pictures.Picture,
    crop: transforms.Crop,
    rng: np.random.Generator,
  ) -> None:
    """Fills a row with the tiles around its box."""
    config = self._config
    side, count, grid = config.tile_size, config.tiles, config.image_size // config.tile_size
    block = tiles.block_around(batch["box"][row], grid, side, count, rng)
    top, bottom, left, right = (edge * side for edge in block)
    x, y, w, h = crop
    scale_x, scale_y = w / config.image_size, h / config.image_size
    region = x + left * scale_x, y + top * scale_y, x + right * scale_x, y + bottom * scale_y
    pixels = picture.region(region, (bottom - top, right - left), config.resize)
    tiles.cut(pixels, side, batch["tiles"][row])
    batch["tile_at"][row] = tiles.places(block, grid, count)

  def write_eval(
    self, batch: dict[str, np.ndarray], row: int, sample: records.Sample, region: int | None
  ) -> None:
    """Fills a row with a given region (None: the whole), uncropped, with its whole caption.

    The picture is not written: rows of one image share one, see `eval_image`.
    """
    # An image that is shown for its class may have no caption.
    caption = sample.global_text or "" if region is None else sample.texts[region]
    whole = (0, 0, sample.width, sample.height)
    caption = captions.whole(self._config, caption)
    self._write_caption(batch, row, sample, region, whole, caption)
    self._write_boxes(batch, row, sample, [region], whole)

  def write_padding(self, batch: dict[str, np.ndarray], row: int) -> None:
    """Fills a row that stands for nothing with a grey image, no words and the whole as its box."""
    size = self._config.image_size
    batch["image"][row] = 127
    batch["text"][row] = self._tokenizer.tokenize("", self._config.text_len)
    batch["box"][row] = (0, 0, size, size)
    batch["is_global"][row] = True
    if self._config.pairs:
      batch["degraded"][row] = 127
    if self._config.max_boxes:
      batch["boxes"][row] = 0
      batch["num_boxes"][row] = 0

  def write_crop(self, pixels: np.ndarray, box: np.ndarray, out: np.ndarray) -> None:
    """Fills in a crop of an image's pixels at full size (`pictures.whole`)."""
    crops.cut(pixels, box, self._config.image_size, out)

  def eval_image(self, sample: records.Sample, where: str) -> np.ndarray:
    """Returns the whole image squashed to S x S, or the square in its middle resized to that.

    With pairs, (S, S, 6): the degraded one behind it.
    """
    side, (w, h) = self._config.image_size, (sample.width, sample.height)
    region, least = (0, 0, w, h), (side, side)
    if share := self._config.eval_crop:
      region, least = transforms.middle_square(w, h, side, share)
    if self._config.eval_plain:
      self._check_side(sample, where)
      x, y, across, down = transforms.middle_crop(w, h, side)
      region, least = (x, y, x + across, y + down), None
    picture = pictures.of(sample, where, least)
    image = picture.region(region, (side, side), self._config.resize)
    if not self._config.pairs:
      return image
    degraded = np.empty_like(image)
    pairs.write(sample, region, self._config.resize, degraded, where)
    return np.concatenate([image, degraded], axis=-1)

  def _check_side(self, sample: records.Sample, where: str) -> None:
    if not self._config.enlarge and min(sample.width, sample.height) < self._config.image_size:
      raise images.ImageError(
        f"{where}: the image has {sample.width} x {sample.height} pixels, fewer than "
        f"input.image_size={self._config.image_size}, and input.enlarge is False. Give larger "
        "images, or a smaller size.", "too-small")

  def _write_caption(
    self,
    batch: dict[str, np.ndarray],
    at: int | tuple[int, int],
    sample: records.Sample,
    region: int | None,
    crop: transforms.Crop,
    caption: str,
  ) -> None:
    """Fills in a caption and its box, `at` a row, or at a row and a number in it."""
    side = self._config.image_size
    whole = (0, 0, side, side)
    batch["text"][at] = self._tokenizer.tokenize(caption, self._config.text_len)
    batch["box"][at] = (
      whole if region is None
      else transforms.crop_boxes(sample.boxes[region : region + 1], crop, side)[0]
    )
    batch["is_global"][at] = region is None

  def _write_boxes(
    self,
    batch: dict[str, np.ndarray],
    row: int,
    sample: records.Sample,
    chosen: list[int | None],
    crop: transforms.Crop,
  ) -> None:
    """Fills in all boxes that the crop shows, if they are asked for."""
    if count := self._config.max_boxes:
      boxes = transforms.crop_boxes(sample.boxes, crop, self._config.image_size)
      # The chosen ones first, so that they are never those that do not fit.
      order = sorted(range(len(boxes)), key=lambda i: i not in chosen)
      kept = [i for i in order if np.all(boxes[i, 2:] > boxes[i, :2])][:count]
      batch["boxes"][row] = 0
      batch["boxes"][row, : len(kept)] = boxes[kept]
      batch["num_boxes"][row] = len(kept)


class ImageCache:
  """The most recently used decoded images, up to a number of bytes, shared by threads."""

  def __init__(self, capacity: int):
    self._capacity = capacity
    self._reset()

  def _reset(self) -> None:
    self._items: collections.OrderedDict[Any, np.ndarray] = collections.OrderedDict()
    self._bytes = 0
    self._lock = threading.Lock()

  def __getstate__(self) -> dict[str, int]:
    return {"capacity": self._capacity}

  def __setstate__(self, state: dict[str, int]) -> None:
    self._capacity = state["capacity"]
    self._reset()

  def get(self, key: Any, make) -> np.ndarray:
    """Returns the array kept under a key, or makes (and perhaps keeps) it."""
    with self._lock:
      if key in self._items:
        self._items.move_to_end(key)
        return self._items[key]
    # Not under the lock: two threads may decode the same image, but none waits for another's.
    item = make()
    if item.nbytes <= self._capacity:
      with self._lock:
        if key not in self._items:
          self._items[key] = item
          self._bytes += item.nbytes
        while self._bytes > self._capacity:
          _, old = self._items.popitem(last=False)
          self._bytes -= old.nbytes
    return item
