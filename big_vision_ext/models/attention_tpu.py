"""How is attention computed on a TPU without ever storing the scores? The fused kernel of jax.

Splash attention works on whole blocks of 128 lanes, one example at a time and on one device. Here
tokens and head widths are padded to what it takes, padding and masked keys are told apart from
the rest by segment ids, and a batch on a mesh goes to the kernel in the parts that each device has.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

_LANES = 128
# 512 x 512 scores in float32 are 1 MiB, and the backward pass holds some four of them: within the
# 16 MiB of fast memory that a kernel may use on every TPU.
_LARGEST_BLOCK = 512


def takes(queries: int, keys: int) -> bool:
  """Whether the kernel is worth it, by size.

  A pooling head's one query or 64 text tokens would be padded to several times their size, and
  have few scores to store: these are left to XLA. Judged by counting, not measured on a TPU.
  """
  padded = _padded(queries, _block(queries)) * _padded(keys, _block(keys))
  return queries * keys >= 256 * 256 and padded <= 2 * queries * keys


def attend(
  q: Float[Array, "b tq h k"],
  k: Float[Array, "b tk h k"],
  v: Float[Array, "b tk h k"],
  mask: Bool[Array, "b tk"] | None = None,
  interpret: bool = False,
) -> Float[Array, "b tq h k"]:
  """Attention as in `attention.attend`; every row of `mask` has a true entry.

  Args:
    q: queries, cut over the mesh in force as the rules for act_batch and act_heads say.
    k, v: keys and values.
    mask: which keys may be attended to.
    interpret: run the kernel's program step by step, on any platform.
  """
  run = functools.partial(_on_device, interpret=interpret)
  operands = (q, k, v) if mask is None else (q, k, v, mask)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or mesh.manual_axes:
    return run(*operands)
  batch, heads = _cut(mesh, q)
  tokens = PartitionSpec(batch, None, heads, None)
  specs = (tokens,) * 3 + (() if mask is None else (PartitionSpec(batch, None),))
  # The kernel cannot say over which axes its results vary, hence no check of that.
  return jax.shard_map(run, in_specs=specs, out_specs=tokens, check_vma=False)(*operands)


def _cut(mesh, q):
  """Mesh axes of the batch and of the heads; none where they do not divide."""
  axes = nn.logical_to_mesh_axes(("act_batch", "act_heads")) or (None, None)

  def fits(axes, length):
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    pieces = 1
    for name in names:
      pieces *= mesh.shape.get(name, 1)
    return axes if pieces > 1 and length % pieces == 0 else None

  return fits(axes[0], q.shape[0]), fits(axes[1], q.shape[2])


def _on_device(q, k, v, mask=None, *, interpret):
  (_, tq, h, width), tk = q.shape, k.shape[1]
  bq, bk = _block(tq), _block(tk)
  q = q * jnp.asarray(width**-0.5, q.dtype)
  heads_first = lambda x, block: jnp.pad(
    x.transpose(0, 2, 1, 3),
    ((0, 0), (0, 0), (0, _padded(x.shape[1], block) - x.shape[1]), (0, -width % _LANES)),
  )
  q, k, v = heads_first(q, bq), heads_first(k, bk), heads_first(v, bk)
  sizes = splash.BlockSizes(
    block_q=bq, block_kv=bk, block_kv_compute=bk,
    block_q_dkv=bq, block_kv_dkv=bk, block_kv_dkv_compute=bk,
    block_q_dq=bq, block_kv_dq=bk,
  )  # fmt: skip
  everything = splash.FullMask((q.shape[2], k.shape[2]))
  kernel = splash.make_splash_mha(
    splash.MultiHeadMask([everything] * h),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name="attention",  # for `remat`: the result and its normalisers
    interpret=interpret,
  )
  ids = splash.SegmentIds
  if mask is not None:
    # Queries are of segment 1, and so are the keys that they may attend to.
    keys = jnp.pad(mask, ((0, 0), (0, k.shape[2] - tk))).astype(jnp.int32)
    segments, over = ids(jnp.ones(q.shape[2], jnp.int32), keys), ids(None, 0)
  elif k.shape[2] > tk:
    keys = (jnp.arange(k.shape[2]) < tk).astype(jnp.int32)
    segments, over = ids(jnp.ones(q.shape[2], jnp.int32), keys), None
  else:
    segments = over = None
  out = jax.vmap(kernel, in_axes=(0, 0, 0, over))(q, k, v, segments)
  return out[:, :, :tq, :width].transpose(0, 2, 1, 3)


def _padded(length: int, block: int) -> int:
  return -(-length // block) * block


def _block(length: int) -> int:
  """Tokens in a block: little padding, but few blocks, each of which has a cost of its own."""
  sizes = range(_LANES, _LARGEST_BLOCK + 1, _LANES)
  return min(sizes, key=lambda block: _padded(length, block) * (1 + 64 / block))
