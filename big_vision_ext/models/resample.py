"""How are images, maps and selected patches resampled, exactly as PS3 was trained?

Two cubic kernels are in play and they differ: images use A = -0.75 without antialiasing and
with clamped borders (so a large reduction is aliased, and published weights rely on it);
position embeddings use A = -0.5 with antialiasing and renormalised borders. All tables are
computed in NumPy float64 while tracing; on the device there are only small gathers and matmuls.

Every output sample is a weighted sum whose weights add up to one, so a per-channel affine map
such as pixel normalisation may be applied after resampling instead of before.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num

from big_vision_ext.core import boxes

Size = tuple[int, int]

# Weights are not representable in bfloat16; the sums must not lose them on an accelerator.
_EXACT = jax.lax.Precision.HIGHEST
# Columns of an image that are made in one matmul; on a TPU, whose matrix units are large.
_COLUMNS, _WIDE = 64, 512
# XLA:TPU cuts parts of an image out one by one if they have about so many numbers or more.
_SLICED = 2048


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
  """Keys' piecewise cubic kernel with free parameter `a`."""
  d = np.abs(distance)
  near = ((a + 2) * d - (a + 3)) * d * d + 1
  far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
  return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


@functools.lru_cache(maxsize=64)
def cubic_taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
  """Source indices and weights, both (n_out, taps <= 4), of cubic resampling along an axis.

  Kernel A = -0.75, half-pixel centres, no antialiasing, border indices clamped. Taps whose
  weight is zero everywhere are left out: an odd integer reduction is a mere subsampling.
  """
  source = (np.arange(n_out) + 0.5) * n_in / n_out - 0.5
  offset = np.arange(-1, 3)
  taps = np.floor(source)[:, None] + offset
  weight = _cubic(source[:, None] - taps, -0.75)
  index = np.clip(taps, 0, n_in - 1).astype(np.int32)
  used = np.any(weight != 0, axis=0)
  return index[:, used], weight[:, used].astype(np.float32)


@functools.lru_cache(maxsize=64)
def antialias_matrix(n_in: int, n_out: int) -> np.ndarray:
  """Rows are the weights, (n_out, n_in), of antialiased cubic resampling (A = -0.5)."""
  stretch = max(n_in / n_out, 1.0)
  support = 2.0 * stretch
  centre = (np.arange(n_out) + 0.5) * n_in / n_out
  first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
  last = np.minimum((centre + support + 0.5).astype(np.int64), n_in)
  j = np.arange(n_in)
  weight = _cubic((j - centre[:, None] + 0.5) / stretch, -0.5)
  weight = np.where((j >= first[:, None]) & (j < last[:, None]), weight, 0.0)
  return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _antialias_taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
  """`antialias_matrix` without its zeros: source indices and weights, both (n_out, taps)."""
  matrix = antialias_matrix(n_in, n_out)
  used = matrix != 0
  first, last = used.argmax(axis=1), n_in - used[:, ::-1].argmax(axis=1)
  span = int((last - first).max())
  index = np.minimum(first, n_in - span)[:, None] + np.arange(span)
  return index.astype(np.int32), np.take_along_axis(matrix, index, axis=1)


def _weighted_taps(x: jax.Array, axis: int, taps: tuple[np.ndarray, np.ndarray]) -> jax.Array:
  """Resampling of one axis of `x` by source indices and weights (n_out, taps), float32."""
  index, weight = taps
  n_out = len(index)
  if x.shape[axis] == n_out:
    return x.astype(jnp.float32)
  shape = [1] * x.ndim
  shape[axis] = n_out
  total = 0.0
  for k in range(index.shape[1]):
    tap = jnp.take(x, index[:, k], axis=axis).astype(jnp.float32)
    total = total + tap * weight[:, k].reshape(shape)
  return total


def resize_cubic(image: Num[Array, "*b y x c"], size: Size) -> Float[Array, "*b h w c"]:
  """Cubic resize without antialiasing (A = -0.75, clamped borders), in float32.

  Equals PyTorch's `interpolate(mode="bicubic", align_corners=False)`; the same size is the
  identity. Integer images are converted after the gather, so no float copy of them is made.
  """
  rows = _weighted_taps(image, image.ndim - 3, cubic_taps(image.shape[-3], size[0]))
  return _weighted_taps(rows, image.ndim - 2, cubic_taps(image.shape[-2], size[1]))


def resize_antialias(image: Num[Array, "*b y x c"], size: Size) -> Float[Array, "*b h w c"]:
  """Cubic resize with antialiasing (A = -0.5, renormalised borders), in float32.

  Every pixel of a reduced image counts, where `resize_cubic` reads 4 x 4 pixels for a sample,
  however large the reduction. Rows are summed straight from integers, so no float copy of the image
  is made; along columns, what is left is small enough for matmuls.
  """
  rows = _weighted_taps(image, image.ndim - 3, _antialias_taps(image.shape[-3], size[0]))
  if rows.shape[-2] == size[1]:
    return rows
  return _columns(antialias_matrix(rows.shape[-2], size[1]), rows, _COLUMNS)


def _columns(
  matrix: np.ndarray, x: Float[Array, "*b x c"], at_a_time: int
) -> Float[Array, "*b w c"]:
  """Columns weighted by a matrix (w, x), exactly.

  A few columns at a time have few columns to be made of: most of the matrix is zero.
  """
  parts = []
  for start in range(0, len(matrix), at_a_time):
    weight = matrix[start : start + at_a_time]
    used = np.flatnonzero(weight.any(axis=0))
    band = slice(used[0], used[-1] + 1)
    product = jnp.einsum("wx,...xc->...wc", weight[:, band], x[..., band, :], precision=_EXACT)
    parts.append(product)
  return jnp.concatenate(parts, axis=-2)


@functools.lru_cache(maxsize=16)
def _matrix(n_in: int, n_out: int, antialias: bool) -> np.ndarray:
  """Weights (n_out, n_in) of resampling along one axis."""
  if antialias:
    return antialias_matrix(n_in, n_out)
  index, weight = cubic_taps(n_in, n_out)
  matrix = np.zeros((n_out, n_in), np.float32)
  # add.at, not assignment: clamped borders send several taps to one index.
  np.add.at(matrix, (np.arange(n_out)[:, None], index), weight)
  return matrix


@functools.lru_cache(maxsize=64)
def _patch_taps(
  n_in: int, n_out: int, patch: int, antialias: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
  """First source index (g,) and weights (g, patch, span) of every patch along one axis.

  `span` is the same for all patches, so that a slice of static size serves each; near the end
  of the image the slice is shifted back inside. Weights are None where a slice is the patch.
  """
  cells = n_out // patch
  if n_in == n_out:
    return np.arange(cells, dtype=np.int32) * patch, None
  matrix = _matrix(n_in, n_out, antialias)[: cells * patch].reshape(cells, patch, n_in)
  used = (matrix != 0).any(axis=1)
  low, high = used.argmax(axis=1), n_in - used[:, ::-1].argmax(axis=1)
  span = int((high - low).max())
  start = np.minimum(low, n_in - span)
  at = start[:, None, None] + np.arange(span)
  return start.astype(np.int32), np.take_along_axis(matrix, at, axis=2)


def resized_patches(
  image: Num[Array, "b y x c"], side: int, patch: int, antialias: bool = False
) -> Float[Array, "b g g k"]:
  """All patches of images squashed to squares of `side` pixels, float32.

  Each is a vector of its pixels, row by row, with the channels of a pixel together. What is left
  over beyond whole patches, at the bottom and right, is dropped.
  """
  sizes = dict(side=side, patch=patch, antialias=antialias)
  if not jnp.issubdtype(image.dtype, jnp.integer):
    return _resized_patches(image, **sizes)  # Gradients would pass through both platforms' ways.
  return jax.lax.platform_dependent(
    image,
    tpu=functools.partial(_resized_patches_tpu, **sizes),
    default=functools.partial(_resized_patches, **sizes),
  )


def _resized_patches(image, side, patch, antialias):
  image = (resize_antialias if antialias else resize_cubic)(image, (side, side))
  b, _, _, c = image.shape
  g = side // patch
  # Pixels and channels as one axis: a copy moves rows of patches, not single pixels.
  x = image[:, : g * patch, : g * patch].reshape(b, g, patch, g, patch * c)
  return x.swapaxes(2, 3).reshape(b, g, g, patch * patch * c)


def _resized_patches_tpu(image, side, patch, antialias):
  """The same, one row of patches after the other.

  Arrays whose last axis is 3 channels or a patch's pixels take many times their room there, and
  several such copies of a 4K image do not fit beside the rest: here they are of one row.
  """
  b, height, width, c = image.shape
  g = side // patch
  start, table = _patch_taps(height, side, patch, antialias)
  if table is None:
    table = np.tile(np.eye(patch, dtype=np.float32), (g, 1, 1))
  matrix = _matrix(width, side, antialias)[: g * patch] if width != side else None
  planes = jnp.moveaxis(image, -1, 1)

  def row(at):
    first, weight = at
    x = jax.lax.dynamic_slice_in_dim(planes, first, table.shape[-1], axis=2)
    x = jnp.einsum("ps,bcsx->bcpx", weight, x.astype(jnp.float32), precision=_EXACT)
    if matrix is not None:
      x = _columns(matrix, x[..., None], _WIDE)[..., 0]
    x = x[..., : g * patch].reshape(b, c, patch, g, patch)
    return x.transpose(0, 3, 2, 4, 1).reshape(b, g, -1)

  return jnp.moveaxis(jax.lax.map(row, (jnp.asarray(start), jnp.asarray(table))), 0, 1)


def _windows(image, y, x, size: Size):
  """Parts (n, *size, c) of an image (y, x, c), their first rows and columns given."""
  window = lambda y, x: jax.lax.dynamic_slice(image, (y, x, 0), (*size, image.shape[2]))
  return jax.vmap(window)(y, x)


def _windows_tpu(image, y, x, size: Size, columns: np.ndarray):
  """The same; `columns` are all that `x` may hold.

  With its channels last, XLA:TPU would fill the whole image up from 3 to 128 of them; with the
  channels first it is cut as it lies in memory. Small parts it would still gather pixel by pixel,
  from a copy as large: these are cut wider, and cut again.
  """
  height, width, c = image.shape
  wide = min(max(size[1], -(-_SLICED // (size[0] * c))), width)
  first = jnp.minimum(x, width - wide)
  planes = jnp.moveaxis(image, -1, 0)
  window = lambda y, x: jax.lax.dynamic_slice(planes, (0, y, x), (c, size[0], wide))
  cut = jax.vmap(window)(y, first)
  # At the right border the wider part begins further left than what is asked for.
  shifts = np.unique(columns - np.minimum(columns, width - wide))
  out = cut[..., : size[1]]
  for shift in shifts[shifts > 0]:
    here = (x - first == shift)[:, None, None, None]
    out = jnp.where(here, cut[..., shift : shift + size[1]], out)
  return jnp.moveaxis(out, 1, -1)


def gather_patches(
  image: Num[Array, "y x c"], size: Size, patch: int, index: Int[Array, "n"]
) -> Float[Array, "n p p c"]:
  """The patches at raster positions `index` of `resize_cubic(image, size)`, float32.

  Only the pixels under the asked patches are read and only these patches are computed: the
  image is never resized as a whole. `vmap` it over a batch.

  Args:
    image: any integer or float type.
    size: height and width of the resized image.
    patch: side of a patch; the grid has `size[0] // patch` by `size[1] // patch` patches.
    index: row-major positions in that grid.
  """
  start_y, weight_y = _patch_taps(image.shape[0], size[0], patch)
  start_x, weight_x = _patch_taps(image.shape[1], size[1], patch)
  row, col = index // len(start_x), index % len(start_x)
  span_y = patch if weight_y is None else weight_y.shape[-1]
  span_x = patch if weight_x is None else weight_x.shape[-1]

  at = jnp.asarray(start_y)[row], jnp.asarray(start_x)[col]
  out = jax.lax.platform_dependent(
    image, *at,
    tpu=functools.partial(_windows_tpu, size=(span_y, span_x), columns=start_x),
    default=functools.partial(_windows, size=(span_y, span_x)),
  )  # fmt: skip
  out = out.astype(jnp.float32)
  if weight_y is not None:
    out = jnp.einsum("nps,nsxc->npxc", jnp.asarray(weight_y)[row], out, precision=_EXACT)
  if weight_x is not None:
    out = jnp.einsum("nqs,npsc->npqc", jnp.asarray(weight_x)[col], out, precision=_EXACT)
  return out


def tile_patches(
  tiles: Num[Array, "b n s s c"],
  tile_at: Int[Array, "b n"],
  patch: int,
  columns: int,
  index: Int[Array, "b t"],
) -> Num[Array, "b t p p c"]:
  """The patches at raster positions `index` of an image of which only some tiles are there.

  Args:
    tiles: square tiles of whole patches.
    tile_at: their raster positions in the image, -1 for none.
    patch: side of a patch in pixels.
    columns: patches in a row of the image.
    index: row-major positions in the grid of patches. What is given for one that lies in no tile is
      some other patch; see `in_tiles`.
  """
  b, n, side, _, c = tiles.shape
  across = side // patch
  cut = tiles.reshape(b, n, across, patch, across, patch, c).swapaxes(3, 4)
  cut = cut.reshape(b, n * across * across, patch, patch, c)
  tile, inside = _tile_of(index, columns, across)
  slot = jnp.argmax(tile_at[:, None, :] == tile[:, :, None], axis=-1)
  at = slot * (across * across) + inside
  return jnp.take_along_axis(cut, at[:, :, None, None, None], axis=1)


def in_tiles(tile_at: Int[Array, "b n"], grid: Size, across: int) -> Bool[Array, "b y x"]:
  """Which patches of a grid lie in one of the tiles, which are `across` patches wide and high."""
  tile, _ = _tile_of(np.arange(grid[0] * grid[1]), grid[1], across)
  there = jnp.zeros((tile_at.shape[0], tile.max() + 1), bool)
  # Places of -1 are dropped: the mode drops what lies beyond the end, so they are sent there.
  place = jnp.where(tile_at < 0, there.shape[1], tile_at)
  there = jax.vmap(lambda row, at: row.at[at].set(True, mode="drop"))(there, place)
  return there[:, tile].reshape(-1, *grid)


def _tile_of(index, columns: int, across: int):
  """The tile that a patch lies in, and the patch's place in it, both in raster order."""
  row, column = index // columns, index % columns
  tile = row // across * (columns // across) + column // across
  return tile, row % across * across + column % across


def table_rows(
  table: Float[Array, "y x d"], size: Size, index: Int[Array, "*b n"]
) -> Float[Array, "*b n d"]:
  """Rows at raster positions `index` of a position table resized to `size`, float32.

  A table whose grid is `size` is only looked up. Any other is resized with antialiasing to a
  square of side max(size) and cropped at the top left, the rule of ps3 for images that are not
  square. Only the asked rows are computed, each as a product of one row of weights per axis.
  """
  height, width, depth = table.shape
  table = table.astype(jnp.float32)
  if (height, width) == tuple(size):
    return table.reshape(height * width, depth)[index]
  side = max(size)
  weight_y = jnp.asarray(antialias_matrix(height, side))[index // size[1]]
  weight_x = jnp.asarray(antialias_matrix(width, side))[index % size[1]]
  # One (n, y * x) weight per row and one matmul: cheaper than any intermediate with d columns.
  weight = weight_y[..., :, None] * weight_x[..., None, :]
  weight = weight.reshape(*index.shape, height * width)
  return jnp.einsum("...k,kd->...d", weight, table.reshape(height * width, depth), precision=_EXACT)


def nearest(x: Array, size: Size) -> Array:
  """Nearest-neighbour resize of (..., y, x), with PyTorch's index rule."""
  rows = jnp.take(x, boxes.nearest_index(x.shape[-2], size[0]), axis=-2)
  return jnp.take(rows, boxes.nearest_index(x.shape[-1], size[1]), axis=-1)


@functools.lru_cache(maxsize=64)
def _area_matrix(n_in: int, n_out: int) -> np.ndarray:
  start, end = boxes.windows(n_in, n_out)
  j = np.arange(n_in)
  inside = (j >= start[:, None]) & (j < end[:, None])
  return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def area(x: Float[Array, "*b y x"], size: Size) -> Float[Array, "*b h w"]:
  """Adaptive average pooling of (..., y, x) to `size`, float32."""
  return jnp.einsum(
    "hy,...yx,wx->...hw",
    _area_matrix(x.shape[-2], size[0]),
    x.astype(jnp.float32),
    _area_matrix(x.shape[-1], size[1]),
    precision=_EXACT,
  )


def _window_max(x: jax.Array, axis: int, n_out: int) -> jax.Array:
  start, end = boxes.windows(x.shape[axis], n_out)
  # Shorter windows repeat their last sample, which leaves a maximum as it is.
  index = np.minimum(start[:, None] + np.arange((end - start).max()), end[:, None] - 1)
  return jnp.take(x, index, axis=axis).max(axis=axis + 1)


def amax(x: Float[Array, "*b y x"], size: Size) -> Float[Array, "*b h w"]:
  """Adaptive maximum pooling of (..., y, x) to `size`."""
  rows = _window_max(x, x.ndim - 2, size[0])
  return _window_max(rows, x.ndim - 1, size[1])
