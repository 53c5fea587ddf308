"""Which outputs does `encode` make, of which images and prompts, and what are they called?

Images come from files, from folders or from records of a data set; prompts from the command line,
from a file, or from a record's own captions. A job is one image with one prompt or none.
"""

import collections
import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline import images, pictures, records

# What Pillow reads and people keep photographs and scans in.
ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_NAME_LENGTH = 100


class JobError(ValueError):
  """Images or prompts that cannot be had as they are asked for."""


@dataclasses.dataclass(frozen=True)
class Photo:
  """Pixels (h, w, 3) uint8, and the boxes (n, 4) in them that are known."""

  pixels: np.ndarray
  boxes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Source:
  """Where an image is: a file, or a record of a data set.

  Attributes:
    key: its name among the images of the run: a path below the folder that was given, without
      regard to where that folder is, or split and number of a record.
    path: of the file; None for a record.
    dataset, index: of the record.
  """

  key: str
  path: pathlib.Path | None = None
  dataset: Any = None
  index: int = 0

  def size(self) -> int | None:
    """Bytes of the file; None for a record, or if there is no file."""
    try:
      return self.path.stat().st_size if self.path else None
    except OSError:
      return None

  def read(self) -> Photo:
    """Decodes the image; raises ImageError, RecordError or OSError saying what is wrong."""
    if self.path:
      pixels = images.decode_image(self.path.read_bytes(), str(self.path))
      return Photo(pixels, np.zeros((0, 4), np.float32))
    sample = self.dataset[self.index]
    return Photo(pictures.whole(sample, self.dataset.where(self.index)), sample.boxes)

  def shape(self) -> tuple[int, int]:
    """Height and width of the image, from its header; raises as `read` does."""
    sample = None if self.path else self.dataset[self.index]
    if sample is not None and sample.pyramid is not None:
      return sample.height, sample.width
    width, height = images.image_size(
        self.path.read_bytes() if self.path else sample.image, self.key)
    return height, width


@dataclasses.dataclass(frozen=True)
class Job:
  """One output: `name` is its file's, without ending, and may have folders in it.

  Attributes:
    prompt: None to look where the model would.
    region: number of the record's box that the prompt is the caption of.
  """

  name: str
  source: Source
  prompt: str | None = None
  region: int | None = None


def of_files(paths: Sequence[str], prompts: Sequence[str] = (),
             prompt_file: str | None = None) -> tuple[list[Job], int]:
  """Jobs of image files and folders, in the order of their names, and what was passed over.

  Args:
    paths: files, which may have any ending, and folders, which are searched for `ENDINGS` at any
      depth; names that begin with a dot are left out.
    prompts: for every image.
    prompt_file: more of them, one a line; or, if its name ends in .jsonl, lines of {"image": path,
      "prompt": text or null}, where paths begin at the folder in `paths`, if that is all there is,
      else at the file's own. The images are then those of the lines.

  Returns:
    The jobs, and the number of files in folders that have other endings.

  Raises:
    JobError: a file or folder is not there, a folder holds no images, or a line cannot be used.
  """
  if prompt_file and prompt_file.endswith(".jsonl"):
    base = pathlib.Path(paths[0]) if paths else pathlib.Path(prompt_file).parent
    if len(paths) > 1 or prompts or (paths and not base.is_dir()):
      raise JobError(f"--prompts={prompt_file} names images and prompts itself; beside it give no "
                     "--prompt, and as --image at most the folder that its paths begin at")
    pairs = [(Source(image, base / image), prompt) for image, prompt in _pairs(prompt_file)]
    return _named([(source, prompt, None) for source, prompt in pairs]), 0
  every = [*prompts, *(_lines(prompt_file) if prompt_file else ())] or [None]
  sources, ignored = [], 0
  for path in map(pathlib.Path, paths):
    if path.is_dir():
      found, others = _in_folder(path)
      if not found:
        raise JobError(f"--image={path}: the folder has no images in it ({', '.join(ENDINGS)})")
      sources += found
      ignored += others
    elif path.is_file():
      sources.append(Source(path.name, path))
    else:
      raise JobError(f"--image={path}: there is no such file or folder")
  return _named([(source, prompt, None) for source in sources for prompt in every]), ignored


def of_records(data: str, split: str, indices: Sequence[int], prompts: Sequence[str] = (),
               prompt_file: str | None = None, region: int | None = None) -> list[Job]:
  """Jobs of records; with `region`, the caption of that box is a prompt as well.

  Raises:
    JobError: an index or region that is not there; DatasetError: no such data set or split.
  """
  if prompt_file and prompt_file.endswith(".jsonl"):
    raise JobError(f"--prompts={prompt_file} names image files; records take one prompt a line")
  dataset = records.open_dataset(data, split)
  every = [*prompts, *(_lines(prompt_file) if prompt_file else ())]
  wanted = []
  for i in indices:
    if not 0 <= i < len(dataset):
      raise JobError(f"--index={i}: split {split!r} of {data} has records 0 to {len(dataset) - 1}")
    source = Source(f"{split}-{i}", dataset=dataset, index=i)
    own: list[tuple[str | None, int | None]] = [(prompt, None) for prompt in every]
    if region is not None:
      texts = dataset[i].texts
      if not 0 <= region < len(texts):
        raise JobError(f"--region={region}: {source.key} has {len(texts)} regions")
      own.append((texts[region], region))
    wanted += [(source, *pair) for pair in own or [(None, None)]]
  return _named(wanted)


def _named(wanted: Sequence[tuple[Source, str | None, int | None]]) -> list[Job]:
  """Jobs with names that no two share, not even where capital letters make no difference."""
  plain = [_plain_name(source.key, prompt) for source, prompt, _ in wanted]
  # Asked for twice is one output; the same name for two is none.
  count = collections.Counter(name.casefold() for _, name in set(zip(wanted, plain)))
  jobs, seen = [], set()
  for (source, prompt, region), name in zip(wanted, plain):
    if (source, prompt, region) in seen:
      continue
    seen.add((source, prompt, region))
    if count[name.casefold()] > 1 or len(pathlib.PurePosixPath(name).name) > _NAME_LENGTH:
      identity = f"{source.path or source.key}\n{prompt}\n{region}"
      digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
      parent = pathlib.PurePosixPath(name)
      name = str(parent.with_name(f"{parent.name[:_NAME_LENGTH]}-{digest}"))
    jobs.append(Job(name, source, prompt, region))
  return jobs


def _plain_name(key: str, prompt: str | None) -> str:
  """Folders as they are, the rest in letters, digits, "_" and "-": a file name anywhere."""
  path = pathlib.PurePosixPath(key.replace("\\", "/"))
  stem = path.stem if path.suffix.lower() in ENDINGS else path.name
  last = _plain(f"{stem} {prompt or ''}") or "image"
  folders = [_plain(part) or "_" for part in path.parts[:-1] if part not in ("/", ".")]
  return "/".join([*folders, last])


def _plain(text: str) -> str:
  return re.sub(r"[^\w-]+", "_", text).strip("_")


def _in_folder(folder: pathlib.Path) -> tuple[list[Source], int]:
  found, others = [], 0
  for path in sorted(folder.rglob("*")):
    inside = path.relative_to(folder)
    if any(part.startswith(".") for part in inside.parts) or not path.is_file():
      continue
    if path.suffix.lower() in ENDINGS:
      found.append(Source(inside.as_posix(), path))
    else:
      others += 1
  return found, others


def _lines(path: str) -> Iterator[str]:
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise JobError(f"--prompts={path}: cannot be read as UTF-8 text ({error})") from error
  lines = [line.strip() for line in text.splitlines()]
  if not any(lines):
    raise JobError(f"--prompts={path}: has no line with a prompt")
  return filter(None, lines)


def _pairs(path: str) -> Iterator[tuple[str, str | None]]:
  for number, line in enumerate(_lines(path), 1):
    try:
      entry = json.loads(line)
      image, prompt = entry["image"], entry.get("prompt")
      good = isinstance(image, str) and image and isinstance(prompt, (str, type(None)))
    except (ValueError, KeyError, TypeError, AttributeError):
      good = False
    if not good:
      raise JobError(f'--prompts={path}: entry {number} is {line[:60]!r}, expected '
                     '{"image": "path.jpg", "prompt": "text"}')
    yield image, prompt
