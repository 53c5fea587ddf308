"""Weights for measuring: random, of every array of a model, in no framework's own way."""

import math
from collections.abc import Mapping

import numpy as np

from big_vision_ext.convert import ours
from big_vision_ext.convert.lazy import Lazy, Tensors


def draw(task: str, model: Mapping, seed: int = 0) -> Tensors:
  """Arrays by our names, each made when it is read: as large as trained ones, none of them zero.

  Args:
    task, model: as of `convert.ours.shapes`.
    seed: other numbers for another seed.
  """
  shapes = ours.shapes(task, model)
  return Tensors({
      name: Lazy(shape, np.float32, lambda i=i, n=name, s=shape: _array(n, s, [seed, i]))
      for i, (name, shape) in enumerate(shapes.items())})


def _array(name: str, shape: tuple[int, ...], seed: list[int]) -> np.ndarray:
  *parents, last = name.split("/")
  into_heads = parents and parents[-1] in ("query", "key", "value")
  fan = shape[0] if into_heads else math.prod(shape[:-1])
  size = 1 / math.sqrt(fan) if last == "kernel" else 0.1
  x = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(size)
  return x + np.float32(1.0) if last == "scale" else x
