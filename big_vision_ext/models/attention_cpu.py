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

# Scores of one tile, at most: 4 MiB in float32. The backward pass holds three such arrays.
_TILE_SCORES = 2**20


def attend(
  q: Float[Array, "b tq h k"],
  k: Float[Array, "b tk h k"],
  v: Float[Array, "b tk h k"],
  mask: Bool[Array, "b tk"] | None = None,
) -> Float[Array, "b tq h k"]:
  """Attention as in `attention.attend`; every row of `mask` has a true entry."""
  return _attend(q, k, v, mask)


@jax.custom_vjp
def _attend(q, k, v, mask):
  return _forward(q, k, v, mask)[0]


def _forward(q, k, v, mask):
  """The result, and the logarithm of each query's sum of exponentials, (h, n, b, t, 1)."""

  def head(qkv):
    tiles, k, v = qkv

    def tile(q):
      scores = _scores(q, k, mask)
      top = scores.max(axis=-1, keepdims=True)
      weights = jnp.exp(scores - top)
      total = weights.sum(axis=-1, keepdims=True)
      out = _product("bts,bsd->btd", weights.astype(v.dtype), v) / total
      return out.astype(q.dtype), top + jnp.log(total)

    return jax.lax.map(tile, tiles)

  out, lse = jax.lax.map(head, (_tiles(_scaled(q), k.shape[1]), _heads(k), _heads(v)))
  return _untile(out, q.shape[1]), lse


def _saving(q, k, v, mask):
  out, lse = _forward(q, k, v, mask)
  # Named, so that rematerialisation can keep them instead of attending once more.
  out, lse = remat.name(out, "attention"), remat.name(lse, "attention")
  return out, (q, k, v, mask, out, lse)


def _backward(saved, grad):
  q, k, v, mask, out, lse = saved
  inner = jnp.sum(out.astype(jnp.float32) * grad.astype(jnp.float32), axis=-1, keepdims=True)
  cut = functools.partial(_tiles, keys=k.shape[1])

  def head(operands):
    k, v, *tiles = operands

    def tile(sums, operands):
      q, grad, inner, lse = operands
      weights = jnp.exp(_scores(q, k, mask) - lse)
      slope = weights * (_product("btd,bsd->bts", grad, v) - inner)
      weights, slope = weights.astype(grad.dtype), slope.astype(q.dtype)
      to_k = _product("bts,btd->bsd", slope, q)
      to_v = _product("bts,btd->bsd", weights, grad)
      return (sums[0] + to_k, sums[1] + to_v), _product("bts,bsd->btd", slope, k).astype(q.dtype)

    sums, to_q = jax.lax.scan(tile, (jnp.zeros(k.shape, jnp.float32),) * 2, tuple(tiles))
    return to_q, *(x.astype(k.dtype) for x in sums)

  operands = (_heads(k), _heads(v), cut(_scaled(q)), cut(grad), cut(inner), lse)
  to_q, to_k, to_v = jax.lax.map(head, operands)
  return _scaled(_untile(to_q, q.shape[1])), *(x.transpose(1, 2, 0, 3) for x in (to_k, to_v)), None


_attend.defvjp(_saving, _backward)


def _product(terms, x, y):
  return jnp.einsum(terms, x, y, preferred_element_type=jnp.float32)


def _scores(q, k, mask):
  scores = _product("btd,bsd->bts", q, k)
  return scores if mask is None else jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)


def _scaled(q):
  return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def _heads(x):
  """(b, t, h, d) -> (h, b, t, d)."""
  return x.transpose(2, 0, 1, 3)


def _tiles(x, keys):
  """(b, t, h, d) -> n tiles of queries, (h, n, b, t, d), the last one filled up with zeros."""
  b, t, h, d = x.shape
  # A batch of no certain size, in an exported program, is judged by one of its rows.
  rows = max(_TILE_SCORES // ((b if isinstance(b, int) else 1) * keys), 1)
  count = math.ceil(t / rows)
  size = math.ceil(t / count)
  x = jnp.pad(x, ((0, 0), (0, count * size - t), (0, 0), (0, 0)))
  return x.reshape(b, count, size, h, d).transpose(3, 1, 0, 2, 4)


def _untile(x, t):
  """The inverse of `_tiles`, for `t` queries."""
  h, count, b, size, d = x.shape
  return x.transpose(2, 1, 3, 0, 4).reshape(b, count * size, h, d)[:, :t]
