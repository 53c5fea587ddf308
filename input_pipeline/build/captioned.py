"""How do pictures get captions about quality and aesthetics? From descriptions, or UniQA's own JSON."""

import dataclasses
import os
from collections.abc import Sequence

from input_pipeline import records
from input_pipeline.build import check, durable, plan, writer
from input_pipeline.build import exclude as exclude_lib
from input_pipeline.build.captions import caption_file, uniqa_json
from input_pipeline.build.durable import BuildError
from input_pipeline.build.skips import SkipRecord


@dataclasses.dataclass(frozen=True, slots=True)
class _Described:
  """A record of a built data set, and the captions to add to it: (task, text) each."""

  id: str
  index: int
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
  threads: int = 2,
  progress: bool = True,
  shard_size: int = 256,
) -> dict[str, int]:
  """Builds a data set anew with the captions of files of descriptions; resumes an unfinished build.

  Args:
    out: directory to make.
    data: a built data set. Its splits, ratings and the captions it has are kept.
    annotations: files as `captions describe` and `captions purify` write them, joined by commas.
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
  set_aside = {"picture-without-caption": 0, "caption-for-no-image": 0}
  used, parts = set(), {}
  for split in manifest["splits"]:
    source = records.open_dataset(data, split)
    items = []
    for index in range(len(source)):
      sample = source[index]
      used.add(sample.id)
      added = tuple(captions.get(sample.id, ()))
      if added or sample.captions or sample.global_text:
        items.append(_Described(sample.id, index, added))
      else:
        set_aside["picture-without-caption"] += 1
    parts[split] = source, items
  set_aside["caption-for-no-image"] = len(captions.keys() - used)
  if not any(items for _, items in parts.values()):
    raise BuildError(f"{annotations}: has no caption of a picture of {data}; its ids are like "
                     f"{next(iter(used), 'none')!r}, those of the captions like "
                     f"{next(iter(captions), 'none')!r}")
  reports = {
    split: writer.write_split(
      out, split, items, _loader(source), shard_size=shard_size, threads=threads, progress=progress,
      settings={"from": "described", "data": source.name},
    )
    for split, (source, items) in parts.items() if items
  }
  info = {split: {**manifest["info"].get(split, {}), "captions": annotations} for split in reports}
  writer.finish(out, reports, {**manifest["info"], **info}, version=manifest["version"])
  return {reason: count for reason, count in set_aside.items() if count}


def _loader(source: records.RecordSource):
  def load(item: _Described) -> records.Sample:
    try:
      sample = source[item.index]
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
