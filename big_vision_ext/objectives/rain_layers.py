"""How does rain that was recorded fall on other pictures? Layers from a file, transplanted.

The file is an .npz with `layers`, uint8 (n, y, x), as `python -m input_pipeline.build --from
streaks` makes it of pairs: R = clip(O - B, 0, 1). That networks are tested with the rain of
Rain100L on other backgrounds is a co-author's code's [C]; the formula is ours, as is which layer a
picture gets, which part of it and whether it is mirrored. b batch, n layers, y x rows and columns.
"""

import functools
import os
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8


def load(file: str) -> UInt8[np.ndarray, "n y x"]:
  """The layers of a file, read once as long as it is not changed.

  Raises:
    ValueError: no such file, or not one of layers.
  """
  try:
    return _load(file, os.stat(file).st_mtime_ns)
  except FileNotFoundError as error:
    raise ValueError(f"file={file!r}: there is no such file; expected layers.npz as made by python "
                     "-m input_pipeline.build --from streaks") from error


@functools.lru_cache(maxsize=4)
def _load(file, stamp):
  del stamp  # A file that was written anew is read again.
  try:
    with np.load(file) as found:
      layers = found["layers"]
  except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
    raise ValueError(f"file={file!r}: expected an .npz with `layers`, uint8 (n, y, x)") from error
  if layers.dtype != np.uint8 or layers.ndim != 3 or not layers.size:
    raise ValueError(f"file={file!r}: `layers` is {layers.dtype}{layers.shape}, expected uint8 "
                     "(n, y, x)")
  return layers


def draw(
  keys: Key[Array, "b"], layers: UInt8[np.ndarray, "n Y X"], height: int, width: int
) -> Float[Array, "b y x"]:
  """A part of one of the layers for each key, perhaps mirrored, in [0, 1].

  Raises:
    ValueError: the pictures are larger than the layers.
  """
  n, rows, columns = layers.shape
  if height > rows or width > columns:
    raise ValueError(f"pictures of {height} x {width} pixels, but layers of rain of {rows} x "
                     f"{columns}: expected pictures that are no larger")
  stored = jnp.asarray(layers)

  def one(key):
    k_which, k_y, k_x, k_mirror = jax.random.split(key, 4)
    start = (jax.random.randint(k_which, (), 0, n),
             jax.random.randint(k_y, (), 0, rows - height + 1),
             jax.random.randint(k_x, (), 0, columns - width + 1))
    part = jax.lax.dynamic_slice(stored, start, (1, height, width))[0]
    part = jnp.where(jax.random.bernoulli(k_mirror), part[:, ::-1], part)
    return part.astype(jnp.float32) / 255.0

  return jax.vmap(one)(keys)
