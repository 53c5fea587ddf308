"""Real record files of tiny images, written without the builder: readers are tested alone."""

import io
import json
import os

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from input_pipeline import records


@pytest.fixture
def encode_image():
  """Returns a function: (array or Pillow image, format, options) -> bytes."""

  def encode(pixels, kind="PNG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()

  return encode


@pytest.fixture
def make_sample(encode_image):
  """Returns a function that makes the i-th of a family of small, all different samples."""

  def make(i=0, *, regions=2, global_text="auto", kind="JPEG") -> records.Sample:
    rng = np.random.default_rng(i)
    width, height = (int(v) for v in rng.integers(40, 90, 2))
    coarse = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    low = rng.uniform(0, 0.6, (regions, 2)) * [width, height]
    high = low + rng.uniform(0.1, 0.4, (regions, 2)) * [width, height]
    return records.Sample(
      id=f"image-{i}",
      image=encode_image(image, kind),
      width=width,
      height=height,
      boxes=np.concatenate([low, high], 1).astype(np.float32),
      texts=[f"thing {j} of image {i}. It is small." for j in range(regions)],
      global_text=(f"the whole of image {i}" if i % 2 else None)
      if global_text == "auto"
      else global_text,
      source="made up",
    )

  return make


@pytest.fixture
def make_dataset(tmp_path):
  """Returns a function that writes {split: samples or raw records} and returns the directory."""

  def make(splits, name="data", shards=2) -> str:
    directory = tmp_path / name
    directory.mkdir()
    manifest = {"format": "bve-regions", "version": 1, "splits": {}, "info": {"licence": "none"}}
    for split, items in splits.items():
      parts = [list(items)[k::shards] for k in range(shards)]
      entry = {"shards": [], "records": len(items), "regions": 0, "skipped": {}}
      for k, part in enumerate(parts):
        path = directory / f"{split}-{k:05d}-of-{shards:05d}.arrayrecord"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for item in part:
          writer.write(item if isinstance(item, bytes) else records.encode_sample(item))
          entry["regions"] += 0 if isinstance(item, bytes) else len(item.texts)
        writer.close()
        size = os.path.getsize(path)
        entry["shards"].append({"file": path.name, "records": len(part), "bytes": size})
      manifest["splits"][split] = entry
    (directory / "dataset.json").write_text(json.dumps(manifest))
    return str(directory)

  return make


@pytest.fixture
def data(make_dataset, make_sample):
  """Eleven images in train, five in val: no batch size divides them."""
  return make_dataset(
    {
      "train": [make_sample(i, regions=i % 4 + 1) for i in range(11)],
      "val": [make_sample(i, regions=i % 3) for i in range(20, 25)],
    }
  )
