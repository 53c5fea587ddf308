"""What may a block of a transformer keep for its backward pass, and what is computed again?

A policy is named in a config (`remat_policy`), from the least memory to the most:

  nothing_saveable                     everything is computed again
  save:NAME,...                        the named results are kept, see `NAMES`
  offload:NAME,...                     they are kept in the host's memory
  dots_with_no_batch_dims_saveable     results of projections are kept
  dots_saveable                        of all matrix products, XLA's attention scores among them
  everything_saveable                  nothing is computed again, only freed between blocks
  none                                 no rematerialisation
"""

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

# Of a block with width d and mlp m, per token: 3 d, d (with the fused kernel: padded heads, and
# normalisers, so that the kernel does not run again), d, m and d numbers.
NAMES = ("qkv", "attention", "attention_out", "mlp_hidden", "mlp_out")

_PLAIN = (
  "nothing_saveable",
  "everything_saveable",
  "dots_saveable",
  "dots_with_no_batch_dims_saveable",
)


def name(x: jax.Array, what: str) -> jax.Array:
  """Marks a result, so that a policy can keep it."""
  assert what in NAMES, what
  return checkpoint_name(x, what)


def policy(spec: str) -> Callable | None:
  """The policy that `spec` names; None for "none".

  Raises:
    ValueError: there is no such policy, or no such name.
  """
  if spec == "none":
    return None
  if spec in _PLAIN:
    return getattr(jax.checkpoint_policies, spec)
  verb, colon, rest = spec.partition(":")
  names = rest.split(",")
  unknown = [n for n in names if n not in NAMES]
  if not colon or verb not in ("save", "offload"):
    raise ValueError(
      f"remat_policy={spec!r} is unknown; it is one of none, {', '.join(_PLAIN)}, save:NAME,... "
      f"and offload:NAME,..., with names out of {', '.join(NAMES)}."
    )
  if unknown:
    raise ValueError(
      f"remat_policy={spec!r}: there is no {unknown[0]!r}; names are {', '.join(NAMES)}."
    )
  if verb == "save":
    return jax.checkpoint_policies.save_only_these_names(*names)
  return jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=names,
    offload_src="device",
    offload_dst="pinned_host",
  )
