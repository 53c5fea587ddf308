"""Which rows of a batch are copies of each other? Told by keys that travel with the rows.

A key is a few numbers made of a row's content: equal rows have equal keys, wherever they lie, and
different ones have different keys but for a chance of 2^-64 a pair. n rows.
"""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, UInt32

# What becomes of pairs across equal rows; see `contrastive.Contrast`.
Duplicates = Literal["negatives", "ignore", "positives"]
# Of each sort of content (texts, images) the rows' keys.
Keys = tuple[UInt32[Array, "n 2"], ...]

_SEEDS = (0x9E3779B9, 0x85EBCA77)


def of_rows(*contents: Int[Array, "n ..."]) -> Keys:
  """The keys of rows of whole numbers: token ids (n, t), numbers of images (n,)."""
  return tuple(jnp.stack([_hash(x, seed) for seed in _SEEDS], axis=1) for x in contents)


def pairs(rows: Keys, cols: Keys) -> Bool[Array, "r c"]:
  """Which rows are equal to which columns, in any sort of content."""
  found = [jnp.all(a[:, None] == b[None], axis=-1) for a, b in zip(rows, cols, strict=True)]
  return jnp.any(jnp.stack(found), axis=0)


def _hash(x, seed):
  """A sum of mixed numbers, each mixed with its place: independent of how the row is cut."""
  x = x.reshape(len(x), -1).astype(jnp.uint32)
  place = (jnp.arange(x.shape[1], dtype=jnp.uint32) + 1) * jnp.uint32(seed)
  return _mix(jnp.sum(_mix(x ^ _mix(place)), axis=1, dtype=jnp.uint32))


def _mix(x):
  """MurmurHash3's last step: each bit of the result depends on all bits."""
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    x = (x ^ (x >> shift)) * jnp.uint32(factor)
  return x ^ (x >> 16)
