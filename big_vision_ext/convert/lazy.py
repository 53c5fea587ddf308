"""How can weights be renamed, cut and turned without holding them all in memory?

A `Lazy` is an array that is read when asked for; its shape and dtype are known before. Reshaping,
transposing, joining and cutting give another `Lazy`. A `Tensors` is a mapping of names to arrays
that reads one when it is indexed.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


class ConvertError(ValueError):
  """Weights that cannot be read, written or named; what is wrong is listed by name."""


class Lazy:
  """An array to come."""

  def __init__(self, shape: Sequence[int], dtype: Any, read: Callable[[], np.ndarray]):
    """`read` gives the array; it is called every time that the values are asked for."""
    self.shape = tuple(int(n) for n in shape)
    self.dtype = np.dtype(dtype)
    self._read = read

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def nbytes(self) -> int:
    """Size in bytes."""
    return self.size * self.dtype.itemsize

  def read(self) -> np.ndarray:
    """The values; from a file that is mapped into memory, a view of it where that is possible."""
    x = np.asarray(self._read())
    if x.shape != self.shape or x.dtype != self.dtype:
      raise ConvertError(f"an array of {x.dtype}{list(x.shape)} came where {self} was announced")
    return x

  def __array__(self, dtype=None, copy=None):
    x = self.read()
    return x.astype(dtype) if dtype is not None and dtype != x.dtype else x

  def __repr__(self) -> str:
    return f"{self.dtype}{list(self.shape)}"

  def transpose(self, *axes: int) -> "Lazy":
    """Axes in another order; the reverse order if none are given."""
    axes = axes or tuple(reversed(range(len(self.shape))))
    return Lazy([self.shape[a] for a in axes], self.dtype, lambda: self.read().transpose(axes))

  def reshape(self, *shape: int) -> "Lazy":
    """The same elements in row-major order in another shape; one size may be -1."""
    if -1 in shape:
      rest = -math.prod(shape)
      shape = [self.size // rest if n == -1 else n for n in shape]
    if math.prod(shape) != self.size:
      raise ConvertError(f"{self} cannot take the shape {list(shape)}")
    return Lazy(shape, self.dtype, lambda: self.read().reshape(tuple(shape)))

  def split(self, count: int, axis: int = 0) -> list["Lazy"]:
    """`count` equal parts along an axis."""
    if self.shape[axis] % count:
      raise ConvertError(f"{self} cannot be cut into {count} equal parts along axis {axis}")
    return self.cut([self.shape[axis] // count] * count, axis)

  def cut(self, sizes: Sequence[int], axis: int = 0) -> list["Lazy"]:
    """Consecutive parts of these sizes along an axis."""
    if sum(sizes) != self.shape[axis]:
      raise ConvertError(f"{self} cannot be cut into parts of {list(sizes)} along axis {axis}")
    starts = [sum(sizes[:i]) for i in range(len(sizes))]

    def part(start, size):
      shape = [size if a == axis else n for a, n in enumerate(self.shape)]
      index = (slice(None),) * axis + (slice(start, start + size),)
      return Lazy(shape, self.dtype, lambda: self.read()[index])
    return [part(start, size) for start, size in zip(starts, sizes)]

  def take(self, i: int) -> "Lazy":
    """Element `i` of the first axis."""
    return Lazy(self.shape[1:], self.dtype, lambda: self.read()[i])

  def astype(self, dtype: Any) -> "Lazy":
    """Other dtype; the same `Lazy` if it is that already."""
    dtype = np.dtype(dtype)
    return self if dtype == self.dtype else Lazy(
        self.shape, dtype, lambda: self.read().astype(dtype))


def of(x: Any) -> Lazy:
  """A `Lazy` of an array that is there already, or of one that is lazy."""
  return x if isinstance(x, Lazy) else Lazy(np.shape(x), x.dtype, lambda: np.asarray(x))


def concat(parts: Sequence[Lazy], axis: int = 0) -> Lazy:
  """Arrays one after another along an axis."""
  first = parts[0]
  for part in parts:
    if _without(part.shape, axis) != _without(first.shape, axis) or part.dtype != first.dtype:
      raise ConvertError(f"{first} and {part} cannot be joined along axis {axis}")
  shape = [sum(p.shape[axis] for p in parts) if a == axis else n
           for a, n in enumerate(first.shape)]
  return Lazy(shape, first.dtype, lambda: np.concatenate([p.read() for p in parts], axis))


def stack(parts: Sequence[Lazy]) -> Lazy:
  """Arrays along a new first axis."""
  return concat([p.reshape(1, *p.shape) for p in parts])


class Tensors(Mapping):
  """Names and arrays. Indexing reads the array; `lazy` gives it unread, `specs` tells of all."""

  def __init__(self, arrays: Mapping[str, Any]):
    """`arrays` may be lazy or not."""
    self._lazy = dict(arrays._lazy) if isinstance(arrays, Tensors) else {
        name: of(x) for name, x in arrays.items()}

  def __getitem__(self, name: str) -> np.ndarray:
    return self._lazy[name].read()

  def __iter__(self) -> Iterator[str]:
    return iter(self._lazy)

  def __len__(self) -> int:
    return len(self._lazy)

  def __contains__(self, name: Any) -> bool:
    return name in self._lazy

  def lazy(self, name: str) -> Lazy:
    """The array under this name, unread."""
    return self._lazy[name]

  def specs(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """{name: (shape, dtype)}, without reading anything."""
    return {name: (x.shape, x.dtype) for name, x in self._lazy.items()}

  def map(self, change: Callable[[Lazy], Lazy]) -> "Tensors":
    """The same names with other arrays."""
    return Tensors({name: change(x) for name, x in self._lazy.items()})


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
  return shape[:axis] + shape[axis + 1:]
