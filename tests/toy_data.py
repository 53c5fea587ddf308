"""A data set of a few tiny noise images, for tests that need some input but not its meaning."""

import io

import numpy as np
from PIL import Image

from input_pipeline import records
from input_pipeline.build import writer


def write(directory, count: int = 24, unusable: int = 0) -> str:
  """Writes `count` records of 16 x 12 px to the split "train" and 7 to "val".

  The first `unusable` have nothing to say about their image.
  """
  def load(index):
    rng = np.random.default_rng(index)
    data = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).save(data, "PNG")
    x, y = rng.uniform(0, 8), rng.uniform(0, 6)
    return records.Sample(
        id=f"noise{index}", image=data.getvalue(), width=16, height=12,
        boxes=np.array([[x, y, x + 4, y + 4]], np.float32),
        texts=["?!" if index < unusable else f"thing {index}"],
        global_text=None if index < unusable else f"{index} pictures of noise.")

  reports = {
      "train": writer.write_split(directory, "train", range(count), load, progress=False),
      "val": writer.write_split(directory, "val", range(1000, 1007), load, progress=False),
  }
  writer.finish(directory, reports, {"provenance": "random numbers"})
  return str(directory)
