"""Policies by name keep what they say, and change no number."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.models import attention, blocks, remat
from tests.models import tiny_vit

B, T, D, M = 2, 12, 16, 40


def make(policy, scan=True):
  encoder = blocks.Encoder(2, M, 2, scan=scan, remat_policy=policy)
  x = np.random.default_rng(0).standard_normal((B, T, D)).astype(np.float32)
  params = nn.unbox(encoder.init(jax.random.key(0), x))
  return lambda params: jnp.sum(encoder.apply(params, x)[0] ** 3), params


def kept(policy):
  """Numbers of tokens that the traced forward pass hands to the backward pass.

  Parameters are handed over too, those that are still needed: what has no axis of tokens.
  """
  loss, params = make(policy)
  residuals = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
  return sum(math.prod(x.shape) for x in jax.tree.leaves(residuals) if T in x.shape)


@pytest.mark.parametrize("policy, numbers", [
  ("save:attention", D),
  # What the MLP adds is in the next block's input, which is kept anyway: nobody asks for it.
  ("save:attention,attention_out,mlp_out", 2 * D),
  ("save:qkv", 3 * D),
  ("save:mlp_hidden", M),
  ("offload:attention,mlp_hidden", D + M),
])  # fmt: skip
def test_what_is_named_is_kept_of_every_block_and_nothing_else(policy, numbers):
  assert kept(policy) - kept("nothing_saveable") == 2 * B * T * numbers


def test_attention_head_by_head_is_kept_with_its_normalisers(monkeypatch):
  monkeypatch.setattr(attention, "_MAX_STORED_SCORES", 0)
  # Two heads: two numbers per token. Without these its backward pass would attend once more.
  assert kept("save:attention") - kept("nothing_saveable") == 2 * B * T * (D + 2)


@pytest.mark.parametrize("scan", [True, False])
def test_saved_and_offloaded_results_change_no_gradient(scan):
  def grads(policy):
    loss, params = make(policy, scan)
    return jax.jit(jax.grad(loss))(params)

  want = grads("none")
  for policy in ("save:attention,mlp_out", "offload:qkv"):
    # The same float32 sums, computed twice; XLA may fuse them otherwise.
    tiny_vit.assert_close(grads(policy), want)


@pytest.mark.parametrize("policy, message", [
  ("some", "'some' is unknown; it is one of none, nothing_saveable"),
  ("save", "'save' is unknown"),
  ("keep:qkv", "'keep:qkv' is unknown"),
  ("save:qkv,mlp", "there is no 'mlp'; names are qkv, attention"),
  ("offload:", "there is no ''"),
])  # fmt: skip
def test_a_policy_that_does_not_exist_is_refused_with_those_that_do(policy, message):
  with pytest.raises(ValueError, match=message):
    remat.policy(policy)
  with pytest.raises(ValueError, match=message):
    blocks.Encoder(2, M, 2, remat_policy=policy).init(jax.random.key(0), jnp.zeros((1, T, D)))
