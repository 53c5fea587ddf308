"""How does an evaluator run a task's output over a whole data set and get host arrays back?"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from input_pipeline import loader


def batches(input_config, items: str, batch_size: int, batch_sharding) -> Iterator[tuple]:
  """Yields (host batch, global device batch) over the evaluation split, in order.

  `batch_size` is the global one, rounded up to what the batch sharding can divide.
  """
  shards = batch_shards(batch_sharding)
  batch_size = -(-batch_size // shards) * shards
  stream = loader.eval_stream(
      input_config, batch_size=batch_size, items=items,
      process_index=jax.process_index(), process_count=jax.process_count())
  for batch in stream:
    yield batch, loader.to_global(batch, batch_sharding)


def batch_shards(batch_sharding) -> int:
  """The number of pieces that the leading axis of a batch is cut into."""
  axes = batch_sharding.spec[0] if batch_sharding.spec else None
  axes = () if axes is None else (axes,) if isinstance(axes, str) else axes
  return int(np.prod([batch_sharding.mesh.shape[a] for a in axes], initial=1))


def to_host(tree: Any) -> Any:
  """Global device arrays -> numpy arrays of the whole batch, on every process."""
  if jax.process_count() == 1:
    return jax.tree.map(np.asarray, tree)
  from jax.experimental import multihost_utils
  return jax.tree.map(
      lambda x: np.asarray(multihost_utils.process_allgather(x, tiled=True)), tree)


def collect(fn: Callable, params: Any, stream: Iterator[tuple]) -> dict[str, np.ndarray]:
  """Runs `fn(params, batch) -> {name: (b, ...)}` over a stream; padding rows are dropped.

  The batch's own `index`, `image_index` and `text` are added under their names.
  """
  rows = []
  for _, batch in stream:
    out = dict(fn(params, batch))
    out |= {k: batch[k] for k in ("index", "image_index", "text", "mask")}
    out = to_host(out)
    keep = out.pop("mask").astype(bool)
    rows.append({k: v[keep] for k, v in out.items()})
  if not rows:
    raise ValueError("the evaluation split has no examples: nothing can be measured on it")
  return {k: np.concatenate([r[k] for r in rows]) for k in rows[0]}
