"""What are the embeddings of labelled images, and which class is each of?"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from big_vision_ext.evaluators import _common
from input_pipeline import contents


def embedding(task, looks: int = 0) -> Callable:
  """A jitted `fn(params, batch) -> {"x": (b, d)}` of whole images.

  Args:
    task: the task.
    looks: 0 for the task's `image` output. Above, for tasks that select: bottom-up looks; the
      pooled low-resolution pass and the pooled selected tokens, each of unit length, side by side.
      For tasks that look around (`num_looks`): what is known after so many looks.

  Raises:
    ValueError: looks of a task that selects nothing.
  """
  if not looks:
    image = task.outputs["image"]
    return jax.jit(lambda params, batch: {"x": image(params, batch)})
  if hasattr(task, "num_looks"):
    image = task.outputs["image"]
    return jax.jit(lambda params, batch: {"x": image(params, batch, looks=looks)})
  if "encode" not in task.outputs:
    raise ValueError(f"looks={looks}: this task has one scale and selects nothing; expected 0")
  encode = task.outputs["encode"]

  def fn(params, batch):
    out = encode(params, {"image": batch["image"]}, num_looks=looks)
    unit = lambda z: z / jnp.maximum(jnp.linalg.norm(z, axis=-1, keepdims=True), 1e-12)
    return {"x": jnp.concatenate([unit(out["pooled_low"]), unit(out["pooled"])], axis=-1)}

  return jax.jit(fn)


def collect(fn: Callable, params: Any, input_config, batch_size: int, batch_sharding
            ) -> tuple[Float[np.ndarray, "n d"], list[str]]:
  """Embeddings and class names of the labelled images of a split, in record order."""
  stream = _common.batches(input_config, "labelled", batch_size, batch_sharding)
  rows = _common.collect(fn, params, stream)
  entries = contents.of_config(input_config)
  return rows["x"].astype(np.float32), [entries[i].label for i in rows["image_index"]]


@dataclasses.dataclass(frozen=True)
class Split:
  """Embeddings x (n, d), classes y (n,) as numbers into `classes`."""

  x: Float[np.ndarray, "n d"]
  y: Int[np.ndarray, "n"]
  classes: Sequence[str]


class Probe:
  """What the probes share: embeddings of training and test images, with their classes.

  Args:
    task, input_config, mesh, batch_sharding: as for every evaluator; the split of the input is the
      one to test on.
    train_split: the split to learn from.
    train_data: its data set, if it is another one.
    looks: see `embedding`.
    features: the task's embedding ("image"), or the pixels themselves ("pixels"), a baseline.
    batch_size: images at a time, over all processes.

  Raises:
    ValueError: the split to learn from is the one to test on.
  """

  def __init__(self, *, task, input_config, mesh, batch_sharding, train_split: str = "train",
               train_data: str | None = None, looks: int = 0, features: str = "image",
               batch_size: int = 32):
    if features not in ("image", "pixels"):
      raise ValueError(f"features={features!r}: expected 'image' or 'pixels'")
    if features == "pixels" and looks:
      raise ValueError(f"looks={looks} with features='pixels': expected 0")
    self._mesh = mesh
    self._test = input_config
    self._train = dataclasses.replace(
        input_config, split=train_split, data=train_data or input_config.data)
    if self._train == self._test:
      raise ValueError(f"train_split={train_split!r} is what is tested on as well; give another "
                       "train_split, train_data, or input.split")
    fn = jax.jit(_pixels) if features == "pixels" else embedding(task, looks)
    self._collect = functools.partial(
        collect, fn, batch_size=batch_size, batch_sharding=batch_sharding)

  def run(self, params) -> dict[str, float]:
    with jax.set_mesh(self._mesh):
      train = self._collect(params, input_config=self._train)
      test = self._collect(params, input_config=self._test)
    train, test = number(train, test, f"{self._train.data} [{self._train.split}]")
    sizes = {"classes": len(train.classes), "train_images": len(train.y),
             "test_images": len(test.y)}
    return self.measure(train, test) | {k: float(v) for k, v in sizes.items()}

  def measure(self, train: Split, test: Split) -> dict[str, float]:
    """The probe's own part."""
    raise NotImplementedError


def _pixels(params, batch):
  del params
  image = batch["image"].astype(jnp.float32) / 255.0
  return {"x": image.reshape(image.shape[0], -1)}


def number(train: tuple, test: tuple, where: str) -> tuple[Split, Split]:
  """Names of classes as numbers, in the order of their names.

  Raises:
    ValueError: a class of the test images that the training images lack.
  """
  classes = sorted(set(train[1]))
  unknown = sorted(set(test[1]) - set(classes))
  if unknown:
    raise ValueError(f"{where}: no image of {len(unknown)} of the classes to test on, e.g. "
                     f"{unknown[0]!r}; expected every class in both splits")
  index = {name: i for i, name in enumerate(classes)}
  as_split = lambda x, names: Split(x, np.array([index[n] for n in names]), classes)
  return as_split(*train), as_split(*test)
