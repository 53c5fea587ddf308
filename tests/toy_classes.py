"""A data set of tiny labelled images whose class is their colour, for tests that classify."""

import io

import numpy as np
from PIL import Image

from input_pipeline import records
from input_pipeline.build import writer

CLASSES = ("ash", "beech", "cedar")
_COLOURS = np.uint8([[200, 60, 40], [40, 180, 60], [50, 60, 210]])


def sample(number: int, label: str | None = "") -> records.Sample:
  """A noisy image of 40 x 36 px in the colour of class `number` % 3, which is its label, too."""
  rng = np.random.default_rng(number)
  kind = number % len(CLASSES)
  pixels = np.clip(_COLOURS[kind] + rng.normal(0, 25, (36, 40, 3)), 0, 255).astype(np.uint8)
  data = io.BytesIO()
  Image.fromarray(pixels).save(data, "PNG")
  return records.Sample(
      id=f"tree{number}", image=data.getvalue(), width=40, height=36,
      boxes=np.zeros((0, 4), np.float32), texts=[], global_text=CLASSES[kind],
      label=CLASSES[kind] if label == "" else label)


def write(directory, train: int = 24, val: int = 7) -> str:
  """Writes the splits "train" and "val", every record with its class."""
  reports = {
      "train": writer.write_split(directory, "train", range(train), sample, progress=False),
      "val": writer.write_split(directory, "val", range(1000, 1000 + val), sample, progress=False),
  }
  writer.finish(directory, reports, {"provenance": "random numbers"})
  return str(directory)
