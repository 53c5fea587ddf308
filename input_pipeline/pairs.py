"""How does a picture's degraded counterpart reach a batch? For restoration from pairs.

A record of a pair has a second file, of the same size in pixels. It is cropped at the same place,
resized alike and mirrored with the picture.
"""

import numpy as np
from jaxtyping import UInt8

from input_pipeline import images, records


class PairError(ValueError):
  """A record without a degraded picture; `reason` is what it is counted under."""

  reason = "no-pair"


def pixels(sample: records.Sample, where: str) -> UInt8[np.ndarray, "y x 3"]:
  """All pixels of a record's degraded picture.

  Raises:
    PairError: it has none.
    ImageError: it cannot be decoded, or has another size than the picture.
  """
  if not sample.degraded:
    raise PairError(f"{where}: the record has no degraded picture, which input.pairs asks for; "
                    "python -m input_pipeline.build --from pairs makes records that do.")
  return images.decode_image(
    sample.degraded, f"{where} (degraded)", expect_size=(sample.width, sample.height))


def write(
  sample: records.Sample,
  region: tuple[float, float, float, float],
  method: str,
  out: UInt8[np.ndarray, "s s 3"],
  where: str,
  *,
  mirrored: bool = False,
) -> None:
  """Fills in a region (x0, y0, x1, y1) of the degraded picture, resized to the size of `out`."""
  images.resize_region(pixels(sample, where), region, out.shape[:2], method, out)
  if mirrored:
    out[:] = out[:, ::-1].copy()
