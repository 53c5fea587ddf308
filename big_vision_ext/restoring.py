"""How is a picture of any size restored? Tile by tile, blended without seams.

A picture is cut into tiles of one size, so that one program serves all; the last ones begin
earlier, so that they end where the picture does. A side shorter than a tile gets a tile of one, two
or three quarters of the length, which few programs serve, and is continued by its mirror image. So
what becomes of a picture depends on it alone.

Neighbours overlap. Of an overlap, the outer quarters are not used, as a network sees them without
what lies around; in the middle half one tile fades into the next. So a network of convolutions
gives what it gives of the whole picture, if the overlap is at least four times as wide as it looks
to either side.

A model that is steered by what a picture shows (task "cdasr": the output "condition") is told it of
the whole, once, and not of each tile. Where it makes a map of that, the map lies over each tile, as
it lay over each crop in training.
"""

import collections
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from big_vision_ext import weights
from big_vision_ext.core import bicubic
from big_vision_ext.loaded_model import LoadedModel

OUTPUT = "restore"
Pixels = Num[np.ndarray, "y x 3"]


class Restorer(LoadedModel):
  """A model with the output "restore", ready to restore pictures.

  Attributes:
    scale: how many times larger sides become.
    multiple: sides of tiles are multiples of it.
    tile: longest side of tiles in pixels of the degraded picture; see `sides`.
    overlap: of neighbouring tiles.
    ensemble: whether every tile is restored in all eight positions and the mean is taken.
    settings: what decides on results, beside the weights.
  """

  def __init__(self, source: str | os.PathLike | weights.Loaded, *, step: int | None = None,
               tile: int = 256, overlap: int = 32, ensemble: bool = False, batch_size: int = 1,
               member: int = 0):
    """Loads the model.

    Args:
      source, step: see `weights.load`.
      tile, overlap, ensemble: see the class.
      batch_size: tiles that go through the model together.
      member: which network of a population.

    Raises:
      ValueError: no such model, one that restores nothing, or tiles that cannot be.
    """
    super().__init__(source, step, batch_size)
    if OUTPUT not in self.task.outputs:
      raise ValueError(f"{self.source}: is of task {self.task_name!r}, which restores no pictures "
                       f"(it has the outputs {', '.join(self.task.outputs)})")
    self._restore = self.task.outputs[OUTPUT]
    members = getattr(self.task, "members", 1)
    if not 0 <= member < members:
      raise ValueError(f"member={member}: {self.source} has {members} "
                       f"network{'s' if members > 1 else ''}; expected 0 to {members - 1}")
    if members > 1:
      self._restore = functools.partial(self._restore, member=member)
    self._jitted = jax.jit(self._restore)
    self._condition = self._condition_of_whole()
    self.multiple = getattr(getattr(self.task, "net", None), "multiple", 1)
    self.overlap, self.ensemble = overlap, ensemble
    self.tile = self._checked(tile)
    self.sizes = [(tile, tile)]
    self.scale = self._scale()
    self.settings = {"tile": tile, "overlap": overlap, "ensemble": ensemble, "member": member}

  def sides(self, shape: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the tiles that a picture (height, width) is cut into."""
    quarter = _up(-(-self.tile // 4), self.multiple)
    height, width = (min(self.tile, _up(n, quarter)) for n in shape)
    # Turned, a tile must be a tile.
    return (max(height, width),) * 2 if self.ensemble else (height, width)

  def count(self, shape: tuple[int, int]) -> int:
    """How many tiles a picture (height, width) is cut into."""
    return math.prod(len(self._starts(n, side)) for n, side in zip(shape, self.sides(shape)))

  def restore(self, pixels: Pixels, tick: Callable[[], None] = lambda: None
              ) -> Float[np.ndarray, "h w 3"]:
    """The restored picture, in 0..1; for arguments see `bands`."""
    return np.concatenate(list(self.bands(pixels, tick)))

  def bands(self, pixels: Pixels, tick: Callable[[], None] = lambda: None
            ) -> Iterator[Float[np.ndarray, "h w 3"]]:
    """The restored picture as bands of its rows from top to bottom, float32 in 0..1, clipped.

    Args:
      pixels: uint8, uint16, or floats in 0..1.
      tick: called after every tile.

    Raises:
      ValueError: no such pixels.
    """
    if getattr(pixels, "ndim", 0) != 3 or pixels.shape[2] != 3 or not pixels.size:
      raise ValueError(f"pixels are {getattr(pixels, 'shape', type(pixels).__name__)}, expected "
                       "(height, width, 3)")
    white = {"u1": 255.0, "u2": 65535.0}.get(pixels.dtype.str[1:], 1.0)
    if white == 1.0 and pixels.dtype.kind != "f":
      raise ValueError(f"pixels are of {pixels.dtype}, expected uint8, uint16 or floats")
    shape, s = pixels.shape[:2], self.scale
    high, wide = sides = self.sides(shape)
    whole = _continued(pixels, [self._padded(n, side) for n, side in zip(shape, sides)])
    rows, columns = (self._starts(n, side) for n, side in zip(shape, sides))
    fade_y, fade_x = (_fades(starts, side, self.overlap, s)
                      for starts, side in zip((rows, columns), sides))
    steer = self._steer(pixels, white)
    carry, ends = np.zeros((0, whole.shape[1] * s, 3), np.float32), [*rows[1:], whole.shape[0]]
    height = shape[0] * s
    for y, end, weight in zip(rows, ends, fade_y):
      band = np.zeros((high * s, whole.shape[1] * s, 3), np.float32)
      cut = lambda x, y=y: whole[y:y + high, x:x + wide].astype(np.float32) / white
      for x, fade, tile in zip(columns, fade_x, self._restored(map(cut, columns), steer)):
        band[:, x * s:(x + wide) * s] += tile * fade[:, None]
        tick()
      band *= weight[:, None, None]
      band[:len(carry)] += carry
      done, carry = band[:(end - y) * s], band[(end - y) * s:]
      yield np.clip(done[:max(height - y * s, 0), :shape[1] * s], 0.0, 1.0)

  def _restored(self, tiles, steer) -> Iterator[np.ndarray]:
    """Restored tiles in turn; the device works on the next while one is taken."""
    turns = range(8) if self.ensemble else (0,)
    jobs = ((turn, tile) for tile in tiles for turn in turns)
    pending, done = collections.deque(), []
    while True:
      group = [job for _, job in zip(range(self.batch_size), jobs)]
      if group:
        pending.append((group, self._run(group, steer)))
      if not pending:
        return
      if len(pending) > 1 or not group:
        of, found = pending.popleft()
        done += [turned_back(y, turn) for (turn, _), y in zip(of, np.asarray(found))]
        while len(done) >= len(turns):
          yield np.mean(done[:len(turns)], axis=0, dtype=np.float32)
          done = done[len(turns):]

  def _run(self, group, steer):
    """Restored tiles of a batch, which is filled up with the first."""
    full = [*group, *[group[0]] * (self.batch_size - len(group))]
    batch = {"image": np.stack([turned(tile, turn) for turn, tile in full])}
    if steer is not None:
      batch["vector"] = np.stack([steer[turn] for turn, _ in full])
    return self.run(self._jitted, batch, (OUTPUT, *batch["image"].shape))

  def _condition_of_whole(self):
    if "condition" not in self.task.outputs or getattr(self.task, "align", None) is None:
      return None
    return jax.jit(self.task.outputs["condition"])

  def _steer(self, pixels, white) -> dict[int, np.ndarray] | None:
    """What steers, by the position of the picture; None if nothing does."""
    if self._condition is None:
      return None
    encoder = getattr(self.task, "encoder", None)
    framed = pixels.astype(np.float32) / white
    framed = framed if encoder is None else _framed(framed, encoder.size)
    out = {}
    for turn in range(8) if self.ensemble else (0,):
      batch = {"image": np.repeat(turned(framed, turn)[None], self.batch_size, axis=0)}
      found = self.run(self._condition, batch, ("condition", *batch["image"].shape))
      out[turn] = np.asarray(found)[0]
    return out

  def _scale(self) -> int:
    image = jax.ShapeDtypeStruct((1, *self.sizes[0], 3), jnp.float32)
    return jax.eval_shape(self._restore, self.params, {"image": image}).shape[1] // self.tile

  def _checked(self, tile: int) -> int:
    m = self.multiple
    if tile < 1 or tile % m:
      raise ValueError(f"tile={tile}: expected a multiple of {m}, as sides of what this model "
                       f"takes are, e.g. {max(_up(tile, m), m)}")
    most = min(tile // 2, tile - m)
    if not 0 <= self.overlap <= most:
      raise ValueError(f"overlap={self.overlap}: expected 0 to {most} for tile={tile}, half of it "
                       f"at most, and tiles begin {m} px apart at least")
    return tile

  def _padded(self, n: int, side: int) -> int:
    """The length that an axis of n pixels is continued to."""
    return max(_up(n, self.multiple), side)

  def _starts(self, n: int, side: int) -> list[int]:
    """Where tiles begin along an axis of n pixels: at multiples, the last as late as can be."""
    last = self._padded(n, side) - side
    if not last:
      return [0]
    # Of more than one, the side is the longest.
    return [*range(0, last, (side - self.overlap) // self.multiple * self.multiple), last]


def turned(x: np.ndarray, turn: int) -> np.ndarray:
  """A picture (y, x, c) in one of its eight positions; 0 is as it is."""
  x = np.rot90(x, turn % 4)
  return x[:, ::-1] if turn >= 4 else x


def turned_back(x: np.ndarray, turn: int) -> np.ndarray:
  """The inverse of `turned`."""
  x = x[:, ::-1] if turn >= 4 else x
  return np.rot90(x, -turn % 4)


def _up(n: int, unit: int) -> int:
  """The least multiple of `unit` that is not below n."""
  return -(-n // unit) * unit


def _continued(pixels: np.ndarray, size: Sequence[int]) -> np.ndarray:
  """The picture continued at the bottom and on the right by its mirror image."""
  more = [(0, target - n) for target, n in zip(size, pixels.shape)]
  return np.pad(pixels, [*more, (0, 0)], mode="reflect") if np.any(more) else pixels


def _fades(starts: Sequence[int], side: int, overlap: int, scale: int) -> list[np.ndarray]:
  """Weights (side * scale,) of each tile along an axis; they add up to one everywhere."""
  width = min(overlap, side // 2) / 2
  at = (np.arange(side * scale) + 0.5) / scale
  # Where a tile takes over from the one before: the middle of what they share.
  middle = [(b + a + side) / 2 for a, b in zip(starts, starts[1:])]

  def taken(position, i):
    if not 0 < i < len(starts):
      return np.full(position.shape, float(i == 0))
    if not width:
      return (position >= middle[i - 1]).astype(np.float64)
    return np.clip((position - middle[i - 1]) / width + 0.5, 0.0, 1.0)

  return [(taken(at + start, i) - taken(at + start, i + 1)).astype(np.float32)
          for i, start in enumerate(starts)]


def _framed(image: np.ndarray, side: int) -> np.ndarray:
  """The square in the middle as `tasks._encoder` has it, so that one program serves all sizes."""
  h, w = image.shape[:2]
  size = [max(side, round(n * side / min(h, w))) for n in (h, w)]
  rows, columns = (bicubic.matrix(n, m, "pillow")[(m - side) // 2:][:side]
                   for n, m in zip((h, w), size))
  return np.einsum("oy,yxc,px->opc", rows, image, columns, optimize=True)
