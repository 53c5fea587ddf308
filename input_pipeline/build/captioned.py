"""How do pictures get captions of quality and aesthetics? From descriptions, or UniQA's JSON."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from input_pipeline import records, splits, text
from input_pipeline.build import check, durable, plan, writer
from input_pipeline.build import exclude as exclude_lib
from input_pipeline.build.captions import caption_file, uniqa_json
from input_pipeline.build.durable import BuildError
from input_pipeline.build.skips import SkipRecord


@dataclasses.dataclass(frozen=True, slots=True)
class _Described:
  """A record of a built data set, and the captions to add to it: (task, text) each."""

  id: str
  split: str
  index: int
  group: str
  captions: tuple[tuple[str, str], ...]


def read_uniqa(images: str, annotations: str, exclude: str | None = None) -> plan.Plan:
  """Plans the build of UniQA's JSON (several files joined by commas) and the pictures it names.

  `exclude` is a file of names not to use.

  Raises:
    BuildError: a file that is none.
  """
  found = uniqa_json.read(annotations.split(","))
  items = [
    plan.Item(
      id=plan.readable(image), image=image, files=(image,),
      global_text=captions[0] if captions else None, captions=tuple(captions),
    )
    for image, captions in found.items()
  ]
  made = plan.Plan(items, check.loader_of(images))
  if exclude:
    made.items = exclude_lib.without(items, exclude, made)
  if unmentioned := plan.count_unmentioned(images, items):
    made.set_aside["image-file-without-annotation"] += unmentioned
  return made


def build_described(
  out: str | os.PathLike,
  data: str,
  annotations: str,
  *,
  part: str = "",
  split: str = "",
  val_share: float = 0.02,
  threads: int = 2,
  progress: bool = True,
  shard_size: int = 256,
) -> dict[str, int]:
  """Builds a data set anew with the captions of files of descriptions; resumes an unfinished build.

  Args:
    out: directory to make.
    data: a built data set. Its ratings, and the captions it has, are kept.
    annotations: files as `captions describe` and `captions purify` write them, joined by commas.
    part: only these of its rated pictures (`splits.parse`), of all its splits: what is to be
      tested on must not be pretrained on.
    split: the split to put all into; "" for "train" and "val".
    val_share: the share of "val", whole groups of pictures by a hash of their names.
    threads: records at once.
    progress: whether to report on standard error.
    shard_size: records of a file.

  Returns:
    what was not used, by reason: pictures without a caption, captions of no picture.

  Raises:
    BuildError, DatasetError: no data set, no captions for it.
  """
  captions = caption_file.read(annotations.split(","))
  manifest = records.read_manifest(data)
  sources = {name: records.open_dataset(data, name) for name in manifest["splits"]}
  if part:
    sources = {name: splits.select(source, part) for name, source in sources.items()}
  set_aside = {"picture-without-caption": 0, "caption-for-no-image": 0}
  used, items = set(), []
  for name, source in sources.items():
    for index in range(len(source)):
      sample = source[index]
      used.add(sample.id)
      added = tuple(captions.get(sample.id, ()))
      if added or sample.captions or sample.global_text:
        group = sample.rating.group if sample.rating else sample.id
        items.append(_Described(sample.id, name, index, group, added))
      else:
        set_aside["picture-without-caption"] += 1
  set_aside["caption-for-no-image"] = len(captions.keys() - used)
  if not items:
    raise BuildError(f"{annotations}: has no caption of a picture of {data}; its ids are like "
                     f"{next(iter(used), 'none')!r}, those of the captions like "
                     f"{next(iter(captions), 'none')!r}")
  if split:
    parts = {split: items}
  else:
    train, val = plan.split_by_hash(items, val_share, key=lambda item: item.group)
    parts = {"train": train, "val": val}
  reports = {
    name: writer.write_split(
      out, name, some, _loader(sources), shard_size=shard_size, threads=threads, progress=progress,
      settings={"from": "described", "data": data, "part": part},
    )
    for name, some in parts.items() if some
  }
  about = {"from": "described", "input": data, "part": part, "captions": annotations}
  info = {**manifest["info"], **{name: about for name in reports}}
  writer.finish(out, reports, info, version=manifest["version"])
  return {reason: count for reason, count in set_aside.items() if count}


def _loader(sources: Mapping[str, records.RecordSource | splits.PartSource]):
  def load(item: _Described) -> records.Sample:
    try:
      sample = sources[item.split][item.index]
    except records.RecordError as error:
      raise SkipRecord(error.reason, str(error)) from error
    return with_captions(sample, item.captions)

  return load


def with_captions(
  sample: records.Sample, captions: Sequence[tuple[str, str]]
) -> records.Sample:
  """A sample with further captions, (task, text) each; of one task and text, once.

  A caption that no one is known to speak for goes, where others come whose source is known.
  """
  both = dict.fromkeys([*zip(sample.caption_sources, sample.captions), *captions])
  if not both:
    return sample
  return dataclasses.replace(
    sample,
    captions=[text for _, text in both],
    caption_sources=[task for task, _ in both],
    global_text=sample.global_text if sample.caption_sources else next(iter(both))[1],
  )


def count_cut(data: str, split: str, tokenizer: str, length: int) -> dict[str, tuple[int, int]]:
  """How many captions are longer than what is read of them: {source: (longer, all)}.

  Args:
    data, split: a built data set, and which of its splits.
    tokenizer: as `input.tokenizer`.
    length: ids that are read.

  Raises:
    BuildError: there are no captions.
    TokenizerError: no such tokenizer.
  """
  words = text.make_tokenizer(tokenizer)
  found: dict[str, list[int]] = {}
  for sample in records.open_dataset(data, split):
    whole = [sample.global_text] if sample.global_text is not None else []
    captions = sample.captions or whole
    for task, caption in zip(sample.caption_sources or ["captions"] * len(captions), captions):
      counts = found.setdefault(task, [0, 0])
      # Whatever ends a text: of one that is cut, it stands where longer rows have a word.
      short, long = (words.tokenize(caption, n) for n in (length, length + 1))
      counts[0] += not np.array_equal(short, long[:length])
      counts[1] += 1
  if not found:
    raise BuildError(f"{data} [{split}]: no picture has a caption")
  return {task: (longer, count) for task, (longer, count) in sorted(found.items())}


def export_uniqa(data: str, out: str, *, split: str | None = None) -> int:
  """Writes the captions of a data set as UniQA's JSON, with the paths the pictures were read from.

  Args:
    data: a built data set.
    out: the file.
    split: only this one.

  Returns:
    how many pictures it names.
  """
  splits = records.read_manifest(data)["splits"] if split is None else [split]
  pictures = []
  for name in splits:
    for sample in records.open_dataset(data, name):
      whole = [sample.global_text] if sample.global_text is not None else []
      pictures.append((sample.source or sample.id, sample.captions or whole))
  count = uniqa_json.write(out, pictures)
  if not count:
    raise durable.BuildError(f"{data}: no picture has a caption to export")
  return count
