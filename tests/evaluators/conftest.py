"""Small data sets with classes and several captions, and a task that sees colours."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from big_vision_ext.core import config as config_lib
from big_vision_ext.core import sharding
from input_pipeline import loader, records
from input_pipeline.build import writer

CLASSES = ("apple_tree", "big-ship", "cloud", "door")
LENGTH = 32


@dataclasses.dataclass(frozen=True)
class ColourTask:
  """A linear task: an image is its 2 x 2 view, a text the sum of its bytes by place."""

  width: int = 12
  image_size: int = 8

  def init(self, seed=0):
    rng = np.random.default_rng(seed)
    return {"image": rng.normal(size=(12, self.width)).astype(np.float32),
            "text": rng.normal(size=(LENGTH, 259, self.width)).astype(np.float32)}

  @property
  def outputs(self):
    return {"image": self._image, "text": self._text, "region": self._region}

  def _image(self, params, batch):
    x = batch["image"].astype(jnp.float32) / 255 - 0.5
    x = x.reshape(-1, 2, 4, 2, 4, 3).mean((2, 4)).reshape(len(x), -1)
    return _unit(jnp.dot(x, params["image"], precision="highest"))

  def _text(self, params, batch):
    return _unit(params["text"][jnp.arange(LENGTH), batch["text"]].sum(1))

  def _region(self, params, batch, selection="low"):
    shift = batch["box"].sum(1, keepdims=True) / 100
    return {"zimg": _unit(self._image(params, batch) + shift), "ztxt": self._text(params, batch)}


def _unit(x):
  return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def sample(number, labelled=True):
  """Noise around a colour of the class; every sixth image has no class, every fifth no caption."""
  rng = np.random.default_rng([7, number])
  label = number % len(CLASSES)
  colour = np.random.default_rng(label).uniform(80, 180, (2, 2, 3))
  pixels = np.clip(np.kron(colour, np.ones((4, 5, 1))) + rng.normal(0, 120, (8, 10, 3)), 0, 255)
  data = io.BytesIO()
  Image.fromarray(pixels.astype(np.uint8)).save(data, "PNG")
  captions = [f"caption {j} of picture {number}." for j in range(number % 4)]
  has_text = number % 5 > 0
  return records.Sample(
    id=f"{number}", image=data.getvalue(), width=10, height=8,
    boxes=np.float32([[1, 1, 4 + j, 6] for j in range(number % 3)]),
    texts=[f"thing {j}" if j else f"thing of {number % 7}" for j in range(number % 3)],
    global_text=f"picture {number % 11}" if has_text else None,
    label=CLASSES[label] if labelled and number % 6 else None,
    captions=captions if has_text and len(captions) > 1 else [])


@pytest.fixture(scope="session")
def class_data(tmp_path_factory):
  """47 images in train, 31 in val: nothing divides them."""
  out = tmp_path_factory.mktemp("classes")
  reports = {"train": writer.write_split(out, "train", range(47), sample, progress=False),
             "val": writer.write_split(out, "val", range(100, 131), sample, progress=False)}
  writer.finish(out, reports, {})
  return str(out)


@pytest.fixture
def place(class_data):
  """A function: (devices, changes) -> the arguments every evaluator takes."""

  def make(devices=1, **changes):
    mesh = sharding.make_mesh(config_lib.Mesh(), jax.devices()[:devices])
    config = loader.InputConfig(**{
      "data": class_data, "split": "val", "image_size": 8, "text_len": LENGTH, "threads": 1,
      **changes})
    return {"input_config": config, "mesh": mesh, "batch_sharding": sharding.batch_sharding(mesh)}

  return make


@pytest.fixture
def task():
  return ColourTask()
