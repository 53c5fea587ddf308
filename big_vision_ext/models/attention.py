"""How are attention weights computed here? One function, one implementation per platform.

The layout decides the speed: on a CPU the heads must lie before the tokens, and the division by
the softmax's sum is cheapest after the product with the values. On a TPU the fused kernel never
stores the scores; where it would mostly compute padding, and on GPU where cuDNN does not take the
shapes, XLA does better with the tokens in front.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Float

from big_vision_ext.models import attention_cpu, attention_tpu, remat

IMPLEMENTATIONS = ("einsum", "heads", "xla", "cudnn", "splash", "portable")

# What each of a row of groups of tokens may read: (queries, keys), the next so many queries attend
# to the first so many keys. A causal order of groups is lengths and running sums of lengths.
Spans = Sequence[tuple[int, int]]

# Above this many scores (16 MiB) the CPU goes head by head and recomputes the scores in the
# backward pass. Measured on two cores: below, the loop costs more than it saves; above, training
# is 1.1 to 2 times faster with it and needs a third to a sixth of the memory.
_MAX_STORED_SCORES = 2**22

_portable = contextvars.ContextVar("portable", default=False)


def attend(
  q: Float[Array, "b tq h k"],
  k: Float[Array, "b tk h k"],
  v: Float[Array, "b tk h k"],
  *,
  mask: Bool[Array, "b tk"] | None = None,
  spans: Spans | None = None,
  causal: bool = False,
  implementation: str | None = None,
) -> Float[Array, "b tq h k"]:
  """Scaled dot-product attention, softmax in float32, result in the type of `q`.

  Args:
    q: queries.
    k: keys.
    v: values.
    mask: which keys may be attended to. A row without any true entry counts as all true.
    spans: see `Spans`; None if every query may attend to every key. Each group is attended to for
      itself, so that nothing is computed for keys that it may not read, in any implementation.
    causal: no query attends to a key behind its own place. There are as many keys as queries then,
      and neither `mask` nor `spans`.
    implementation: one of `IMPLEMENTATIONS`, or None for the best one of the platform that the
      mesh in force (`jax.set_mesh`) names, else of the default backend.

  Raises:
    ValueError: shapes or types do not fit together, or the implementation is unknown.
  """
  _check(q, k, v, mask)
  if causal:
    return _causally(q, k, v, mask, spans, implementation)
  if spans is not None:
    return _by_spans(q, k, v, mask, spans, implementation)
  if mask is not None:
    mask = mask | ~mask.any(axis=1, keepdims=True)
  if implementation is None:
    implementation = _choose(q, k, mask)
  if implementation == "splash":
    # What the backward pass needs is named within.
    return attention_tpu.attend(q, k, v, mask, interpret=platform() != "tpu")
  if implementation == "heads":
    return attention_cpu.attend(q, k, v, mask)  # as there
  return remat.name(_attend(implementation, q, k, v, mask), "attention")


@contextlib.contextmanager
def portable() -> Iterator[None]:
  """What is traced inside chooses at lowering: for programs made for several platforms at once."""
  token = _portable.set(True)
  try:
    yield
  finally:
    _portable.reset(token)


def platform() -> str:
  """Platform the current trace is for: "cpu", "gpu" or "tpu".

  A program compiled ahead of time for another machine names it by its mesh.
  """
  device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
  if device is None:
    return jax.default_backend()
  kind = device.device_kind.lower()
  if kind == "cpu" or kind.startswith("tpu"):
    return kind[:3]
  return getattr(device, "platform", None) or jax.default_backend()


def _causally(q, k, v, mask, spans, implementation):
  if mask is not None or spans is not None or q.shape[1] != k.shape[1]:
    raise ValueError(
      f"Causal attention is of tokens to themselves, without mask or spans; got {q.shape[1]} "
      f"queries, {k.shape[1]} keys, mask={'none' if mask is None else mask.shape}, spans={spans}."
    )
  if implementation is None:
    # What is causal here is short, texts; the fused kernels are for long sequences.
    implementation = {"splash": "xla", "cudnn": "xla"}.get(chosen := _choose(q, k, mask), chosen)
  if implementation == "heads":
    return attention_cpu.attend(q, k, v, causal=True)
  if implementation == "splash":
    raise ValueError("Attention implementation 'splash' is not causal here; use 'xla'.")
  return remat.name(_attend(implementation, q, k, v, None, True), "attention")


def _by_spans(q, k, v, mask, spans, implementation):
  if sum(n for n, _ in spans) != q.shape[1] or not all(
    n > 0 and 0 < m <= k.shape[1] for n, m in spans
  ):
    raise ValueError(
      f"spans={tuple(spans)} do not divide {q.shape[1]} queries into groups that each read some of "
      f"{k.shape[1]} keys."
    )
  parts, start = [], 0
  for queries, keys in spans:
    ask = q[:, start : start + queries]
    seen = None if mask is None else mask[:, :keys]
    given = dict(mask=seen, implementation=implementation)
    parts.append(attend(ask, k[:, :keys], v[:, :keys], **given))
    start += queries
  return jnp.concatenate(parts, axis=1)


def _attend(implementation, q, k, v, mask, causal=False):
  if implementation == "einsum":
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
    mask = None if mask is None else mask[:, None, None, :]
    mask = jnp.tri(q.shape[2], dtype=bool) if causal else mask
    return _heads_major(q, k, v, mask).transpose(0, 2, 1, 3)
  if implementation == "heads":
    return attention_cpu.attend(q, k, v, mask, causal)
  if implementation == "portable":
    return _portably(q, k, v, mask, causal)
  if implementation in ("xla", "cudnn"):
    mask = None if mask is None else mask[:, None, None, :]
    return jax.nn.dot_product_attention(
      q, k, v, mask=mask, is_causal=causal, implementation=implementation
    )
  raise ValueError(
    f"Attention implementation {implementation!r} is unknown; it is one of {IMPLEMENTATIONS}."
  )


def _choose(q, k, mask) -> str:
  if _portable.get():
    return "portable"
  where = platform()
  if where == "cpu":
    return _choose_cpu(q, k)
  if where in ("gpu", "cuda") and mask is None and _cudnn_takes(q, k):
    return "cudnn"
  if where == "tpu" and attention_tpu.takes(q.shape[1], k.shape[1]):
    return "splash"
  return "xla"


def _choose_cpu(q, k) -> str:
  b, tq, h, _ = q.shape
  # A batch of no certain size, in an exported program, is judged by one of its rows.
  b = b if isinstance(b, int) else 1
  return "einsum" if b * h * tq * k.shape[1] <= _MAX_STORED_SCORES else "heads"


def _portably(q, k, v, mask, causal):
  """Each platform its own, of those that need nothing of the machine that traces."""

  def use(implementation):
    return lambda q, k, v, *mask: _attend(
      implementation, q, k, v, mask[0] if mask else None, causal
    )

  operands = (q, k, v) if mask is None else (q, k, v, mask)
  others = dict.fromkeys(("tpu", "cuda", "rocm"), use("xla"))
  return jax.lax.platform_dependent(*operands, cpu=use(_choose_cpu(q, k)), **others)


def _cudnn_takes(q, k) -> bool:
  """Whether cuDNN's fused kernel exists here and accepts these shapes, by asking jax."""
  if q.dtype not in (jnp.bfloat16, jnp.float16) or q.shape[-1] % 8 or q.shape[-1] > 128:
    return False

  def ask(q, k):
    return jax.nn.dot_product_attention(q, k, k, implementation="cudnn")

  try:
    jax.eval_shape(ask, q, k)
  except (RuntimeError, NotImplementedError, ValueError) as e:
    logging.log_first_n(logging.INFO, "Attention runs without cuDNN: %s", 1, e)
    return False
  return True


def _heads_major(q, k, v, mask):
  """Attention over the last two axes (..., t, k); `mask` broadcasts against (..., tq, tk)."""
  q = q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)
  scores = jnp.einsum("...td,...sd->...ts", q, k, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  # The largest score only shifts the exponent, it does not change the result: no gradient.
  weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
  total = weights.sum(axis=-1, keepdims=True)
  out = jnp.einsum(
    "...ts,...sd->...td", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
  )
  return (out / total).astype(q.dtype)


def _check(q, k, v, mask):
  if q.ndim != 4 or k.ndim != 4 or v.shape != k.shape:
    raise ValueError(
      f"Attention wants (batch, tokens, heads, width) arrays and values shaped like the keys, "
      f"got query {q.shape}, key {k.shape}, value {v.shape}."
    )
  if q.shape[0] != k.shape[0] or q.shape[2:] != k.shape[2:] or not math.prod(k.shape):
    raise ValueError(
      f"Query {q.shape} and key {k.shape} must agree in batch, heads and head width, and there "
      "must be at least one key."
    )
  if q.dtype != k.dtype or k.dtype != v.dtype:
    raise ValueError(
      f"Query, key and value must be of one type, got {q.dtype}, {k.dtype}, {v.dtype}; cast the "
      "cached keys and values to the compute type."
    )
  if mask is not None and (mask.shape != (k.shape[0], k.shape[1]) or mask.dtype != jnp.bool_):
    raise ValueError(
      f"The key mask must be boolean of shape {(k.shape[0], k.shape[1])}, got {mask.dtype} "
      f"{mask.shape}."
    )
