"""What a person may say about the input of a run, and what is wrong with it if it cannot be."""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline import crops, foreground, images, randaugment, records, splits
from input_pipeline.mixture import Member
from input_pipeline.ratings import CAPTION_SOURCES


class InputError(ValueError):
  """A setting of the input that cannot be followed."""


@dataclasses.dataclass(frozen=True)
class InputConfig:
  """Settings of training and evaluation input.

  Attributes:
    data: a data set's directory, or {name: {"path": directory, "weight": number}} for a mixture
      (weights are relative and 1 if left out).
    split: the split to read.
    part: only these of its rated records, e.g. "reference_1/train"; see splits.py. "" for all.
    group: so many examples of the stream in a row are of the same data set of a mixture: tasks of
      meta-learning, each of a domain. The batch size is a multiple of it.
    first: only the first so many of these: nested subsets, the 8 being among the 16. 0 for all.
      With several data sets, of each.
    image_size: side S in pixels of the square images of a batch.
    resize: "bicubic", as published models were trained, or "fast"; see `images.resize_region`.
    tokenizer: "bytes", "sentencepiece:PATH", "tokenizers:PATH" or "clip:PATH".
    text_len: ids per caption.
    canonicalize: bring captions into PS3's canonical form first (see text.py).
    clean_captions: drop what captioning models say about their own input; see
      `transforms.clean_caption`.
    global_share: how often an image with a global caption is trained on as a whole.
    sentence_sampling: train on a random run of the caption's sentences.
    crop_scale, crop_ratio: of the random resized crop: share of the area, width / height.
    tiles: instead of the whole square, training ships a small view of it and so many tiles around
      the caption's region (see tiles.py); 0 ships the whole. Evaluation always does.
    tile_size: side of a tile in pixels; it divides image_size. PS3 wants one cell of its grid:
      patch size times the largest scale over the lowest.
    view_size: side in pixels of the view; PS3 wants at least its second largest scale.
    one_caption: an image with several captions of the whole is trained on with one of them, each as
      likely, and not with its global caption.
    caption_sources: only with captions of these, of "iqa", "iaa", "iaa_human"; () for any.
    captions_per_image: train on so many captions of each image, of other regions or of the whole:
      decoding, the crop and the low resolution serve all of them. Above 1, "text", "box" and
      "is_global" of a batch have an axis for them; evaluation has one caption a row.
    captions: False trains on pictures alone: no record needs a caption, every crop is of the whole
      image, and batches carry "image" (and "label", see num_classes) only.
    flip: mirror half of the training images, with their boxes.
    augment: what else happens to training images, e.g. "rand-m9-mstd0.5-inc1"; see
      `randaugment.parse`. "" for nothing.
    jitter: how much brightness, contrast, saturation and hue of training images vary, four numbers,
      e.g. (0.8, 0.8, 0.8, 0.2); see `jitter.ColorJitter`. () for not at all.
    jitter_share: share of the training images whose colours vary.
    foreground: batches carry "foreground" (b, S, S), float32 in 0..1, how much each pixel of a
      training image belongs to something: by the record's "boxes" or its "mask"; "" ships none.
    foreground_missing: records that have none, or too little, get "ones" everywhere, or are left
      out ("skip").
    foreground_soft: width of the slope over a box's edge, as a share of the box's side.
    crop: "resized", or "plain", with captions=False: training crops are random squares of
      image_size pixels, as they are; only an image with a smaller side is enlarged.
    crop_clamp: a training crop that was drawn too wide or too tall is cut down to the image, and
      not drawn again (the random crop of TensorFlow models, and of MAE's linear probe).
    eval_crop: evaluate on the square in the middle whose side is this share of the image's shorter
      side, e.g. 0.875 for the usual "256, then the middle 224"; 0 for the whole, squashed.
    eval_plain: evaluate on the square of image_size pixels in the middle, as it is; only an image
      with a smaller side is enlarged. For pictures alone.
    enlarge: False: an image that a plain crop (crop="plain", eval_plain) would enlarge cannot be
      used, where what is fine in pictures is what is learned or measured.
    pairs: batches carry "degraded" beside "image", the record's degraded picture, cropped at the
      same place; a record without one cannot be used. For pictures alone.
    eval_crops: what evaluation of rated images shows of each, at its own resolution: "ten_random",
      "five_crop", "grid" or "center" (see crops.py); "" for the whole, as of other images.
    features: a folder of features of crops (see crop_features.py) that batches carry in place of
      pixels, in training and in evaluation of rated images; "" for pixels.
    scores: training batches carry the image's score, 0 worst to 1 best; a record without a rating
      cannot be used.
    num_classes: training batches carry the number of the image's class; a record without one
      cannot be used. 0 ships none.
    classes: what the numbers mean: the names of the classes in their order, a file of them with one
      on each line (its name ends in ".txt"), or a split; then all classes that occur in it, in the
      order of their names. The split is read through for it, which takes long if it is large.
    max_boxes: ship up to so many boxes of the image beside the chosen one; 0 ships none.
    threads: batches made at the same time in a process (0: in the caller's thread).
    workers: processes to make batches in, each with `threads` threads; 0 for none.
    prefetch: batches held ready.
    max_skip_share: share of unusable records after which the run stops.
    cache_mb: memory for decoded images, per process or worker; 0 for none.
  """

  data: str | dict[str, dict[str, Any]]
  split: str = "train"
  part: str = ""
  group: int = 1
  first: int = 0
  image_size: int = 1512
  resize: str = "bicubic"
  tokenizer: str = "bytes"
  text_len: int = 64
  canonicalize: bool = True
  clean_captions: bool = True
  global_share: float = 0.25
  sentence_sampling: bool = True
  crop_scale: Sequence[float] = (0.9, 1.0)
  crop_ratio: Sequence[float] = (0.75, 1.3333333333333333)
  tiles: int = 0
  tile_size: int = 140
  view_size: int = 1512
  one_caption: bool = False
  caption_sources: Sequence[str] = ()
  captions_per_image: int = 1
  captions: bool = True
  flip: bool = False
  augment: str = ""
  jitter: Sequence[float] = ()
  jitter_share: float = 1.0
  foreground: str = ""
  foreground_missing: str = "ones"
  foreground_soft: float = 0.1
  crop: str = "resized"
  crop_clamp: bool = False
  eval_crop: float = 0.0
  eval_plain: bool = False
  enlarge: bool = True
  pairs: bool = False
  eval_crops: str = ""
  features: str = ""
  scores: bool = False
  num_classes: int = 0
  classes: str | Sequence[str] = "train"
  max_boxes: int = 0
  threads: int = 2
  workers: int = 0
  prefetch: int = 4
  max_skip_share: float = 0.01
  cache_mb: int = 0

  def __post_init__(self):
    sizes = ("image_size", "text_len", "tile_size", "view_size")
    least = dict.fromkeys((*sizes, "group", "prefetch", "captions_per_image"), 1)
    counts = ("tiles", "max_boxes", "num_classes", "threads", "workers", "cache_mb", "first")
    least |= dict.fromkeys(counts, 0)
    for name, low in least.items():
      value = getattr(self, name)
      if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < low:
        raise InputError(f"input.{name} is {value!r}, expected a whole number of at least {low}.")
    self._check_tiles()
    self._check_pictures()
    self._check_jitter()
    self._check_foreground()
    for name in ("global_share", "max_skip_share", "eval_crop", "jitter_share", "foreground_soft"):
      value = getattr(self, name)
      if not _is_number(value) or not 0 <= value <= 1:
        raise InputError(f"input.{name} is {value!r}, expected a share between 0 and 1.")
    for name, high in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
      pair = getattr(self, name)
      if (
        isinstance(pair, str)
        or not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(map(_is_number, pair))
        or not 0 < pair[0] <= pair[1] <= high
      ):
        raise InputError(
          f"input.{name} is {pair!r}, expected two numbers (least, greatest) above 0"
          + ("." if high == math.inf else f" and up to {high:g}.")
        )
    switches = ("canonicalize", "clean_captions", "sentence_sampling", "captions", "flip",
                "crop_clamp", "scores", "one_caption", "eval_plain", "enlarge",
                "pairs")
    for name in switches:
      if not isinstance(getattr(self, name), bool):
        raise InputError(f"input.{name} is {getattr(self, name)!r}, expected True or False.")
    if self.resize not in images.RESIZE_METHODS:
      raise InputError(f"input.resize is {self.resize!r}, expected one of {images.RESIZE_METHODS}.")
    for name in ("split", "part", "tokenizer", "augment", "features"):
      if not isinstance(getattr(self, name), str):
        raise InputError(f"input.{name} is {getattr(self, name)!r}, expected text.")
    for name, known in (("crop", ("resized", "plain")), ("eval_crops", ("", *crops.KINDS))):
      if getattr(self, name) not in known:
        raise InputError(f"input.{name} is {getattr(self, name)!r}, expected one of {known}.")
    self._check_captions()
    if self.part:
      splits.parse(self.part)
    _named_paths(self.data)

  def _check_captions(self) -> None:
    sources = self.caption_sources
    if isinstance(sources, str) or not isinstance(sources, Sequence) or not (
      set(sources) <= set(CAPTION_SOURCES)
    ):
      raise InputError(
        f"input.caption_sources is {sources!r}, expected a list of some of {CAPTION_SOURCES}."
      )
    if sources and not self.one_caption:
      raise InputError(
        f"input.caption_sources is {sources!r} with one_caption=False, which takes the global "
        "caption, whoever it is of. Set input.one_caption=True."
      )
    if self.one_caption and not self.captions:
      raise InputError("input.one_caption is True with captions=False: there are none.")

  def _check_pictures(self) -> None:
    if self.crop == "plain" and (self.captions or self.crop_clamp):
      raise InputError(
        f"input.crop is 'plain' with captions={self.captions}, crop_clamp={self.crop_clamp}: a "
        "plain crop knows neither regions nor a shape. Set them to False, or input.crop='resized'."
      )
    if not (self.enlarge or self.eval_plain or self.crop == "plain"):
      raise InputError(
        f"input.enlarge is False with crop={self.crop!r}, which resizes every image: set "
        "input.crop='plain', or leave input.enlarge=True."
      )
    if self.features and (self.captions or self.augment):
      raise InputError(
        f"input.features is {self.features!r} with captions={self.captions}, augment="
        f"{self.augment!r}: features are of crops as they were made. Set input.captions=False and "
        "input.augment=''."
      )
    if isinstance(self.augment, str) and self.augment:
      randaugment.parse(self.augment)
    if self.eval_plain and (self.eval_crop or self.eval_crops):
      raise InputError(
        f"input.eval_plain is True with eval_crop={self.eval_crop}, eval_crops="
        f"{self.eval_crops!r}: set one of them."
      )
    if self.pairs and (self.features or self.augment or self.jitter or self.eval_crops):
      raise InputError(
        f"input.pairs is True with features={self.features!r}, augment={self.augment!r}, jitter="
        f"{self.jitter!r}, eval_crops={self.eval_crops!r}: the degraded picture would not follow. "
        "Set them to their defaults."
      )
    for name in ("augment", "crop_clamp", "eval_crop", "eval_plain", "pairs"):
      if getattr(self, name) and self.captions:
        raise InputError(
          f"input.{name} is {getattr(self, name)!r} with captions=True: it would move what "
          "captions and boxes speak of. Set input.captions=False to train on pictures alone."
        )
    names = [self.classes] if isinstance(self.classes, str) else self.classes
    if not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
      raise InputError(
        f"input.classes is {self.classes!r}, expected a split, a file that ends in .txt, or the "
        "names of the classes."
      )

  def _check_jitter(self) -> None:
    values = self.jitter
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    good = listed and len(values) in (0, 4) and all(_is_number(v) and v >= 0 for v in values)
    if not good or (values and values[3] > 0.5):
      raise InputError(
        f"input.jitter is {values!r}, expected four numbers of at least 0 (brightness, contrast, "
        "saturation, and hue up to 0.5), or () for none."
      )
    if values and self.tiles:
      raise InputError(
        f"input.jitter is {values!r} with input.tiles={self.tiles}: the view and its tiles would "
        "vary each for itself. Set input.tiles=0."
      )

  def _check_foreground(self) -> None:
    kinds, missing = ("", *foreground.KINDS), ("ones", "skip")
    if self.foreground not in kinds:
      raise InputError(
        f"input.foreground is {self.foreground!r}, expected 'boxes', 'mask', or '' for none."
      )
    if self.foreground_missing not in missing:
      raise InputError(
        f"input.foreground_missing is {self.foreground_missing!r}, expected one of {missing}."
      )
    if self.foreground and (self.captions or self.augment):
      raise InputError(
        f"input.foreground is {self.foreground!r} with captions={self.captions}, augment="
        f"{self.augment!r}: it is for pictures alone, and augment would move what it speaks of. "
        "Set input.captions=False and input.augment=''."
      )

  def _check_tiles(self) -> None:
    if not self.tiles:
      return
    if self.captions_per_image > 1:
      raise InputError(
        f"input.captions_per_image is {self.captions_per_image} with input.tiles={self.tiles}: "
        "tiles are those around one caption's region. Set one of them to its default, 1 and 0."
      )
    if self.flip or not self.captions:
      raise InputError(
        f"input.tiles is {self.tiles} with flip={self.flip}, captions={self.captions}: tiles are "
        "those around a caption's region, as it lies. Set input.tiles=0, or these two to their "
        "defaults, False and True."
      )
    if self.image_size % self.tile_size:
      raise InputError(
        f"input.tile_size is {self.tile_size}, expected a divisor of input.image_size, "
        f"{self.image_size}."
      )
    if self.tiles > (most := (self.image_size // self.tile_size) ** 2):
      raise InputError(
        f"input.tiles is {self.tiles}, but {self.image_size} pixels hold {most} tiles of "
        f"{self.tile_size}. Set input.tiles=0 to ship whole images."
      )
    if self.view_size > self.image_size:
      raise InputError(
        f"input.view_size is {self.view_size}, expected no more than input.image_size, "
        f"{self.image_size}."
      )


def open_members(config: InputConfig, split: str | None = None) -> list[Member]:
  """Opens the data sets of a config, in the order they are named.

  Args:
    config: names the data sets.
    split: of each, whole; None for the config's own, or the part of it.

  Raises:
    DatasetError: one of them is no data set or has no such split.
    PartError: or no such part, or fewer records than `first`.
  """
  members = []
  for name, path, weight in _named_paths(config.data):
    source = records.open_dataset(path, config.split if split is None else split)
    if config.part and split is None:
      source = splits.select(source, config.part, config.threads)
    if config.first and split is None:
      source = splits.first(source, config.first)
    members.append(Member(name, source, weight))
  return members


def dataset_size(config: InputConfig) -> int:
  """Returns the number of records of the split, over all data sets: one epoch's examples."""
  return sum(len(member.source) for member in open_members(config))


def source_names(config: InputConfig) -> list[str]:
  """Returns the names of the data sets of a config; that of a single one is "data"."""
  return [name for name, _, _ in _named_paths(config.data)]


def _named_paths(data: Any) -> list[tuple[str, str, float]]:
  """Returns (name, path, weight) of each data set named by `InputConfig.data`."""
  if isinstance(data, str) and data:
    # One name for every single data set: moving its directory must not change the order.
    return [("data", data, 1.0)]
  if not isinstance(data, Mapping) or not data:
    raise InputError(
      f"input.data is {data!r}, expected a directory or "
      '{name: {"path": directory, "weight": number}}.'
    )
  named = []
  for name, entry in data.items():
    if not isinstance(entry, Mapping) or not isinstance(entry.get("path"), str):
      raise InputError(f'input.data.{name} is {entry!r}, expected {{"path": directory, ...}}.')
    if unknown := sorted(set(entry) - {"path", "weight"}):
      raise InputError(f"input.data.{name} has {unknown[0]!r}; known are 'path' and 'weight'.")
    weight = entry.get("weight", 1.0)
    if not _is_number(weight) or not 0 < weight < math.inf:
      raise InputError(f"input.data.{name}.weight is {weight!r}, expected a number above 0.")
    named.append((str(name), entry["path"], float(weight)))
  return named


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)
