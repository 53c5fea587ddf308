"""How does a prepared TensorFlow Datasets directory become items, without TensorFlow?

Examples are read through TFDS's random-access data source, which needs the array_record file
format; encoded images are taken as they are. Which feature is what is said by keys: "objects/bbox"
is the "bbox" inside of "objects". TFDS boxes are [ymin, xmin, ymax, xmax] as shares of the image.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from input_pipeline.build import check
from input_pipeline.build.durable import BuildError
from input_pipeline.build.plan import Plan, Region, sentences
from input_pipeline.build.skips import SkipRecord


@dataclasses.dataclass(frozen=True)
class Keys:
  """Which feature holds what; an empty key means there is none.

  Attributes:
    image: an Image feature.
    text: a Text or ClassLabel of the whole image, or a sequence of them.
    label: the ClassLabel (or Text) that says which class the whole image is of.
    box: a sequence of BBoxFeature.
    box_text: a sequence of Text or ClassLabel, one for each box.
  """

  image: str = "image"
  text: str = ""
  label: str = ""
  box: str = ""
  box_text: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Example:
  """One example by its place; its content is read when it is built."""

  id: str
  image: str
  index: int


def read(dataset: str, split: str, keys: Keys) -> Plan:
  """Plans the build of one split of a TFDS data set.

  Args:
    dataset: a prepared directory (with dataset_info.json), or the name of a prepared data set.
    split: a TFDS split, slices allowed: "train", "validation[:10%]".
    keys: which feature holds what.

  Raises:
    BuildError: no such data set, split or feature, or a format only TensorFlow can read.
  """
  if not keys.text and not keys.label and not (keys.box and keys.box_text):
    raise BuildError(
      "--from tfds needs to know where captions are: --text-key or --label-key for the whole "
      "image, or --box-key with --box-text-key for regions"
    )
  builder = _open(dataset)
  features = builder.info.features
  for key in filter(None, dataclasses.astuple(keys)):
    _feature(features, key)
  if type(_feature(features, keys.image)).__name__ != "Image":
    raise BuildError(f"feature {keys.image!r} is no image; give --image-key, one of {features}")
  source = _source(builder, split, keys.image)
  items = [
    Example(f"{builder.info.name}-{split}-{index}", f"{split}[{index}]", index)
    for index in range(len(source))
  ]
  settings = {"dataset": builder.info.full_name, "split": split, "keys": dataclasses.asdict(keys)}
  return Plan(items, _loader(source, features, keys), settings)


def _loader(source: Any, features: Any, keys: Keys) -> Callable[[Example], Any]:
  def texts_at(example, key):
    value = _value(example, key)
    values = value if isinstance(value, list) else [value]
    feature = _feature(features, key)
    feature = getattr(feature, "feature", feature)
    if hasattr(feature, "int2str"):
      # TFDS marks an unknown label by -1.
      return [feature.int2str(int(v)) if int(v) >= 0 else "" for v in values]
    return [v.item() if hasattr(v, "item") else v for v in values]

  def load(item: Example):
    example = source[item.index]
    regions = []
    if keys.box:
      boxes, texts = _value(example, keys.box), texts_at(example, keys.box_text)
      if len(boxes) != len(texts):
        raise SkipRecord("regions-malformed", f"{len(boxes)} boxes, but {len(texts)} captions")
      for (y0, x0, y1, x1), text in zip(boxes, texts):
        regions.append(Region((x0, y0, x1, y1), text))
    text, found = None, ()
    if keys.text:
      found = texts_at(example, keys.text)
      text = found[0] if len(found) == 1 else sentences(found)
    label = None
    if keys.label:
      labels = texts_at(example, keys.label)
      if len(labels) != 1:
        raise SkipRecord("label-not-one", f"{len(labels)} labels {labels[:3]}, expected one")
      # An unknown label is none.
      label = labels[0] or None
    data = _value(example, keys.image)
    return check.sample_from(
      item.id, data, regions, text, label=label, captions=found, source=item.image, relative=True
    )

  return load


def _open(dataset: str):
  try:
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise BuildError("--from tfds needs a package: pip install tensorflow-datasets") from error
  path = pathlib.Path(dataset)
  if path.is_dir():
    if not (path / "dataset_info.json").exists():
      raise BuildError(
        f"{path}: no dataset_info.json; expected the directory of one version of a prepared TFDS "
        "data set, like .../coco/2017/1.1.0"
      )
    builder = tfds.builder_from_directory(path)
  else:
    try:
      builder = tfds.builder(dataset)
    except Exception as error:  # TFDS raises many unrelated types for a wrong name.
      raise BuildError(
        f"{dataset!r} is neither a directory nor a data set TFDS knows: {error}"
      ) from error
    if not builder.data_path.exists():
      raise BuildError(
        f"{dataset!r} is not prepared in {builder.data_path}; run there, where TensorFlow is "
        f"installed: tfds build {dataset} --file_format=array_record"
      )
  file_format = builder.info.file_format
  if file_format is None or file_format.value != "array_record":
    name = getattr(file_format, "value", "unknown")
    raise BuildError(
      f"{builder.data_path} is stored as {name}, which only TensorFlow reads. Convert it once, "
      f"where TensorFlow is installed: tfds convert_format --dataset_version_dir="
      f"{builder.data_path} --out_file_format=array_record --out_dir=DIR, and give --images DIR"
    )
  return builder


def _source(builder: Any, split: str, image_key: str):
  import tensorflow_datasets as tfds

  decoders: Any = tfds.decode.SkipDecoding()
  if image_key in builder.info.features:
    decoders = {image_key: decoders}
  else:
    for part in reversed(image_key.split("/")):
      decoders = {part: decoders}
  try:
    return builder.as_data_source(split=split, decoders=decoders)
  except Exception as error:  # A wrong split raises ValueError, KeyError or AssertionError.
    raise BuildError(
      f"TFDS split {split!r} of {builder.info.full_name} cannot be opened: {error}. It has "
      f"{sorted(builder.info.splits)}."
    ) from error


def _feature(features: Any, key: str) -> Any:
  """The feature under a key: a name, which may contain "/", or a path of names."""
  if key in features:
    return features[key]
  inner = features
  for part in key.split("/"):
    try:
      inner = inner[part]
    except (KeyError, TypeError) as error:
      raise BuildError(f"no feature {key!r}; the data set has {features}") from error
  return inner


def _value(example: dict[str, Any], key: str) -> Any:
  if key in example:
    return example[key]
  value = example
  for part in key.split("/"):
    value = value[part]
  return value
