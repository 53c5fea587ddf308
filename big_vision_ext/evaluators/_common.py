"""How does an evaluator run a task's output over a whole data set and get host arrays back?"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from big_vision_ext.core.feed import Intake
from input_pipeline import contents, loader


def batches(input_config, items: str, batch_size: int, batch_sharding) -> Iterator[tuple]:
  """Yields (host batch, global device batch) over the evaluation split, in order.

  `batch_size` is the global one, rounded up to what the batch sharding can divide.
  """
  batch_size = divisible(batch_size, batch_sharding)
  intake = Intake(batch_sharding, batch_size)
  stream = loader.eval_stream(
      input_config, batch_size=batch_size, items=items, rows=intake.rows)
  for batch in stream:
    yield batch, intake(batch)


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


def embed_texts(
    fn: Callable, params: Any, texts: Sequence[str], input_config, batch_size: int, batch_sharding
) -> tuple[Float[np.ndarray, "u d"], np.ndarray]:
  """Embeddings of the different ones of some texts, and which of them each text has.

  Texts are tokenised as evaluation batches are. Those with equal ids are the same text.

  Args:
    fn: `fn(params, {"text": ids (b, l)}) -> (b, d)`.
    params: of `fn`.
    texts: n texts.
    input_config: says how to tokenise.
    batch_size: texts at a time, over all processes; rounded up to what can be divided.
    batch_sharding: how a batch is laid out.

  Returns:
    (u, d) embeddings and (n,) indices into them.
  """
  ids, which = np.unique(contents.token_rows(input_config, texts), axis=0, return_inverse=True)
  batch_size = divisible(min(batch_size, len(ids)), batch_sharding)
  intake = Intake(batch_sharding, batch_size)
  out = []
  for start in range(0, len(ids), batch_size):
    part = ids[start:start + batch_size]
    filled = np.concatenate([part, np.repeat(part[-1:], batch_size - len(part), axis=0)])
    batch = intake({"text": filled[intake.rows]})
    out.append(to_host(fn(params, batch))[:len(part)])
  return np.concatenate(out), which.reshape(-1)


def divisible(batch_size: int, batch_sharding) -> int:
  """The batch size rounded up to what the batch sharding can divide."""
  # By all devices, where it is them that load the rows for the shards.
  shards = batch_shards(batch_sharding) if jax.process_count() == 1 else batch_sharding.mesh.size
  return -(-batch_size // shards) * shards
