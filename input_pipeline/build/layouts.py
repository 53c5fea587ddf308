"""How is an image stored: as the file it was, or as tiles of which a reader takes what it needs?"""

import dataclasses
from collections.abc import Callable
from typing import Any

import simplejpeg

from input_pipeline import pictures, pyramid, records

Load = Callable[[Any], records.Sample]


@dataclasses.dataclass(frozen=True)
class Layout:
  """One way to store images.

  Attributes:
    load: turns what loads a sample with its file into what loads it in this layout.
    version: of the records.
    settings: what identifies a build in this layout, and is noted in the manifest.
  """

  load: Callable[[Load], Load]
  version: int = records.VERSION
  settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def tiled(sample: records.Sample) -> records.Sample:
  """The sample with a pyramid in place of its file; as it is if the image is too small for one.

  Raises:
    ImageError: the image cannot be decoded.
  """
  if max(sample.width, sample.height) <= pyramid.WORTH_IT:
    return sample
  pixels = pictures.whole(sample, f"sample {sample.id!r}")
  made = pyramid.make(pixels, full_colour=not _has_halved_colours(sample.image))
  return dataclasses.replace(sample, image=b"", pyramid=made)


def _has_halved_colours(data: bytes) -> bool:
  """Whether a file is a JPEG whose colour planes are smaller than the image."""
  try:
    return simplejpeg.decode_jpeg_header(data, strict=False)[3] not in ("444", "Gray")
  except ValueError:
    return False


LAYOUTS = {
  "plain": Layout(load=lambda load: load),
  "pyramid": Layout(
    load=lambda load: lambda item: tiled(load(item)),
    version=records.PYRAMID_VERSION,
    settings={
      "layout": "pyramid",
      "pyramid": {
        "tile": pyramid.TILE,
        "quality": pyramid.QUALITY,
        "images_above": pyramid.WORTH_IT,
      },
    },
  ),
}
