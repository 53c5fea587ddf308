"""Where is the foreground of an image? Masks beside the images, as other programs make them.

The mask of `a/cat.jpg` is `a/cat.png` in the directory of masks: grey, of the size that the image
is displayed at, white where there is foreground. An image may be without one.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

from input_pipeline import images
from input_pipeline.build.durable import BuildError
from input_pipeline.build.plan import Item
from input_pipeline.build.writer import BuiltSample

Load = Callable[[Item], BuiltSample]


def added(load: Load, directory: str | os.PathLike) -> Load:
  """What loads an item with its mask, given what loads it without.

  A mask that cannot be read, or has another size than its image, is left out and counted.

  Raises:
    BuildError: no such directory.
  """
  root = pathlib.Path(directory)
  if not root.is_dir():
    raise BuildError(f"{root}: no such directory of masks")

  def with_mask(item: Item) -> BuiltSample:
    sample = load(item)
    for name in item.files:
      file = root / f"{os.path.splitext(name)[0]}.png"
      if not file.is_file():
        continue
      data = file.read_bytes()
      try:
        images.decode_image(data, str(file), expect_size=(sample.width, sample.height))
      except images.ImageError as error:
        left = (*sample.dropped, (f"mask-{error.reason.removeprefix('image-')}", str(error)))
        return dataclasses.replace(sample, dropped=left)
      return dataclasses.replace(sample, mask=data)
    return sample

  return with_mask
