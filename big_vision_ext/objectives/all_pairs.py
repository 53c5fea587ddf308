"""How does every row of one array meet every row of another, when nobody may hold all pairs?

Both arrays lie cut over the devices. Each device keeps its rows and the columns travel round a
ring, with what has been gathered for them; a device's rows meet the columns at hand in chunks. So
a device never holds more than (chunk, columns at hand) pairs, and sends and receives each column
once. Between slices, whose network is slow, columns are exchanged once before and results once
after, and the ring stays within the slice.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from big_vision_ext.core.sharding import Ring

# How partial results become one: by this function, starting from this value.
_MERGES = {
  "sum": (jnp.add, 0.0),
  "max": (jnp.maximum, -jnp.inf),
  "logsumexp": (jnp.logaddexp, -jnp.inf),
}


def meet(
  visit: Callable[[Any, Any], tuple[dict, dict, dict]],
  rows: Any,
  cols: Any,
  how: dict[str, str],
  chunk: int,
  ring: Ring | None,
) -> tuple[dict, dict, dict]:
  """Merges what `visit` gives for blocks of pairs, until all pairs have been seen.

  With a ring it is to be called within `jax.shard_map`, on a device's own rows and columns.

  Args:
    visit: `visit(rows, cols) -> (of each row, of each column, totals)`, dicts of arrays with a
      leading axis of rows, of columns, and without one. It is not differentiated.
    rows, cols: trees of arrays with a leading axis of rows and of columns.
    how: for every name that `visit` returns, how parts are merged: "sum", "max" or "logsumexp".
    chunk: rows that meet the columns at once.
    ring: the devices that the arrays lie on; None if on one.

  Returns:
    As `visit`, for this device's rows and columns with all others. Totals are of this device's
    rows: their merge over the devices is left to the caller.
  """
  merge = functools.partial(_merge, how)
  block = functools.partial(_in_chunks, visit, how=how, chunk=chunk, ring=ring)
  if ring is None:
    return block(rows, cols)
  cols = jax.tree.map(functools.partial(_gather_slices, ring), cols)
  shift = functools.partial(jax.tree.map, functools.partial(_shift, ring))

  def hop(carry, _):
    cols, (of_rows, of_cols, totals) = carry
    # Sent off before the block is computed, and so under way meanwhile.
    ahead, arrived = shift(cols), shift(of_cols)
    return (ahead, merge((of_rows, arrived, totals), block(rows, cols))), None

  carry = cols, _empty(how, ring, jax.eval_shape(block, rows, cols))
  (_, (of_rows, of_cols, totals)), _ = jax.lax.scan(hop, carry, None, ring.size // ring.slices)
  of_cols = {n: _return_slices(ring, how[n], x) for n, x in shift(of_cols).items()}
  return of_rows, of_cols, totals


def _in_chunks(visit, rows, cols, how, chunk, ring):
  """All rows with the columns at hand."""
  count = jax.tree.leaves(rows)[0].shape[0]
  if count <= chunk:
    return visit(rows, cols)
  whole = count // chunk * chunk

  def body(carry, part):
    of_rows, of_cols, totals = visit(part, cols)
    return _merge(how, carry, (of_cols, totals)), of_rows

  cut = lambda x: x[:whole].reshape(whole // chunk, chunk, *x.shape[1:])
  chunks = jax.tree.map(cut, rows)
  shapes = jax.eval_shape(visit, jax.tree.map(lambda x: x[0], chunks), cols)
  (of_cols, totals), of_rows = jax.lax.scan(body, _empty(how, ring, shapes[1:]), chunks)
  of_rows = jax.tree.map(lambda x: x.reshape(whole, *x.shape[2:]), of_rows)
  if whole < count:
    last = visit(jax.tree.map(lambda x: x[whole:], rows), cols)
    of_cols, totals = _merge(how, (of_cols, totals), last[1:])
    of_rows = jax.tree.map(lambda *x: jnp.concatenate(x), of_rows, last[0])
  return of_rows, of_cols, totals


def _merge(how, some, more):
  """Merges tuples of dicts, name by name."""
  return tuple(
    {n: _MERGES[how[n]][0](a[n], b[n]) for n in a} for a, b in zip(some, more, strict=True)
  )


def _empty(how, ring, shapes):
  """What every merge may start from."""
  start = tuple(
    {n: jnp.full(x.shape, _MERGES[how[n]][1], x.dtype) for n, x in d.items()} for d in shapes
  )
  if ring is None:
    return start
  return jax.tree.map(lambda x: jax.lax.pcast(x, ring.axes, to="varying"), start)


def _shift(ring: Ring, x):
  """Everything one device further, round the ring of each slice."""
  inner = ring.size // ring.slices
  pairs = [
    (s * inner + i, s * inner + (i + 1) % inner) for s in range(ring.slices) for i in range(inner)
  ]
  return jax.lax.ppermute(x, ring.axes, pairs) if inner > 1 else x


def _groups(ring: Ring):
  """Devices at the same place of every slice. Slices come first in the order of devices."""
  inner = ring.size // ring.slices
  return [[s * inner + i for s in range(ring.slices)] for i in range(inner)]


def _gather_slices(ring: Ring, x):
  if ring.slices == 1:
    return x
  return jax.lax.all_gather(x, ring.axes, axis_index_groups=_groups(ring), tiled=True)


def _return_slices(ring: Ring, how: str, x):
  """The inverse: every slice gets its part of the columns from all slices, and merges them."""
  if ring.slices == 1:
    return x
  x = x.reshape(ring.slices, -1, *x.shape[1:])
  x = jax.lax.all_to_all(x, ring.axes, 0, 0, axis_index_groups=_groups(ring))
  return functools.reduce(_MERGES[how][0], list(x))
