"""How is attention computed on a CPU when the scores of all heads are too many to keep?

Head by head and tile by tile of queries, so that the scores of a tile stay in the processor's
cache from the product with the keys to the product with the values. The backward pass keeps the
result and one number per query, and computes a tile's scores again: five products, where
differentiating the forward pass takes six.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from big_vision_ext.models import remat

# Scores of one tile, at most: 16 MiB in float32. The backward pass holds three such arrays.
_TILE_SCORES = 2**22


def attend(
  q: Float[Array, "b tq h k"],
  k: Float[Array, "b tk h k"],
  v: Float[Array, "b tk h k"],
  mask: Bool[Array, "b tk"] | None = None,
  causal: bool = False,
) -> Float[Array, "b tq h k"]:
  """Attention as in `attention.attend`; every row of `mask` has a true entry."""
  return _attend(causal, q, k, v, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(causal, q, k, v, mask):
  return _forward(causal, q, k, v, mask)[0]


def _forward(causal, q, k, v, mask):
  """The result, and the logarithm of each query's sum of exponentials, (h, n, b, t, 1)."""

  def head(out, i):
    keys, values = _head(k, i), _head(v, i)

    def tile(operands):
      q, at = operands
      scores = _scores(q, keys, mask, at if causal else None)
      top = scores.max(axis=-1, keepdims=True)
      weights = jnp.exp(scores - top)
      total = weights.sum(axis=-1, keepdims=True)
      out = _product("bts,bsd->btd", weights.astype(v.dtype), values) / total
      return out.astype(q.dtype), top + jnp.log(total)

    tiles = _tiles(_scaled(_head(q, i)), k.shape[1])
    one, lse = jax.lax.map(tile, (tiles, _places(tiles)))
    return _put(out, one, i), lse

  return jax.lax.scan(head, jnp.zeros_like(q), jnp.arange(q.shape[2]))


def _saving(causal, q, k, v, mask):
  out, lse = _forward(causal, q, k, v, mask)
  # Named, so that rematerialisation can keep them instead of attending once more.
  out, lse = remat.name(out, "attention"), remat.name(lse, "attention")
  return out, (q, k, v, mask, out, lse)


def _backward(causal, saved, grad):
  q, k, v, mask, out, lse = saved
  inner = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1, keepdims=True)
  cut = functools.partial(_tiles, keys=k.shape[1])

  def head(grads, operands):
    i, lse = operands
    keys, values = _head(k, i), _head(v, i)

    def tile(sums, operands):
      q, grad, inner, lse, at = operands
      weights = jnp.exp(_scores(q, keys, mask, at if causal else None) - lse)
      slope = weights * (_product("btd,bsd->bts", grad, values) - inner)
      weights, slope = weights.astype(grad.dtype), slope.astype(q.dtype)
      to_k = _product("bts,btd->bsd", slope, q)
      to_v = _product("bts,btd->bsd", weights, grad)
      return (sums[0] + to_k, sums[1] + to_v), _product("bts,bsd->btd", slope, keys).astype(q.dtype)

    tiles = (cut(_scaled(_head(q, i))), cut(_head(grad, i)), cut(_head(inner, i)), lse)
    tiles += (_places(tiles[0]),)
    (to_k, to_v), to_q = jax.lax.scan(tile, (jnp.zeros(keys.shape, jnp.float32),) * 2, tiles)
    to_q, to_k, to_v = _scaled(to_q), to_k[None].astype(k.dtype), to_v[None].astype(v.dtype)
    return tuple(_put(x, one, i) for x, one in zip(grads, (to_q, to_k, to_v))), None

  start = tuple(jnp.zeros_like(x) for x in (q, k, v))
  return *jax.lax.scan(head, start, (jnp.arange(q.shape[2]), lse))[0], None


_attend.defvjp(_saving, _backward)


def _product(terms, x, y):
  return jnp.einsum(terms, x, y, preferred_element_type=jnp.float32)


def _scores(q, k, mask, at):
  """Scores of the queries at the places `at` (t,), None where it does not matter."""
  scores = _product("btd,bsd->bts", q, k)
  if at is not None:
    mask = (jnp.arange(k.shape[1]) <= at[:, None])[None]
  elif mask is not None:
    mask = mask[:, None]
  return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


def _places(tiles):
  """The place among all queries of each query of `tiles` (n, b, t, d), (n, t)."""
  count, _, size, _ = tiles.shape
  return jnp.arange(count * size).reshape(count, size)


def _scaled(q):
  return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _head(x, i):
  """(b, t, h, d) -> (b, t, d): copied row by row, faster than the whole is transposed."""
  return jax.lax.dynamic_index_in_dim(x, i, axis=2, keepdims=False)


def _put(x, tiles, i):
  """`x` (b, t, h, d) with `tiles` (n, b, t, d), which may be longer, as its head `i`."""
  count, b, size, d = tiles.shape
  one = tiles.transpose(1, 0, 2, 3).reshape(b, count * size, d)[:, : x.shape[1]]
  return jax.lax.dynamic_update_index_in_dim(x, one, i, axis=2)


def _tiles(x, keys):
  """(b, t, d) -> n tiles of queries, (n, b, t, d), the last one filled up with zeros."""
  b, t, d = x.shape
  # A batch of no certain size, in an exported program, is judged by one of its rows.
  rows = max(_TILE_SCORES // ((b if isinstance(b, int) else 1) * keys), 1)
  count = math.ceil(t / rows)
  size = math.ceil(t / count)
  x = jnp.pad(x, ((0, 0), (0, count * size - t), (0, 0)))
  return x.reshape(b, count, size, d).transpose(1, 0, 2, 3)
