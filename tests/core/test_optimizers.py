import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_ext.core import optimizers, trees
from big_vision_ext.core.config import ConfigError, Optim

PARAMS = {"a": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.ones(3)},
          "b": {"kernel": jnp.full((3,), 2.0)}}


def grads(step):
  rng = np.random.default_rng(step)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), PARAMS)


def reference(optim, lr, steps, lr_mult, wd_mult):
  """AdamW in float64, from Loshchilov and Hutter 2019, algorithm 2, with big_vision's decay."""
  params = {n: np.asarray(p, np.float64) for n, p in trees.flatten(PARAMS).items()}
  m = {n: np.zeros_like(p) for n, p in params.items()}
  v = {n: np.zeros_like(p) for n, p in params.items()}
  for t in range(1, steps + 1):
    g = {n: np.asarray(x, np.float64) for n, x in trees.flatten(grads(t)).items()}
    norm = np.sqrt(sum((x**2).sum() for x in g.values()))
    scale = 1.0 if optim.clip_norm is None else min(1.0, optim.clip_norm / norm)
    for n in params:
      x = g[n] * scale
      m[n] = optim.b1 * m[n] + (1 - optim.b1) * x
      v[n] = optim.b2 * v[n] + (1 - optim.b2) * x**2
      adam = (m[n] / (1 - optim.b1**t)) / (np.sqrt(v[n] / (1 - optim.b2**t)) + optim.eps)
      decay = optim.weight_decay * wd_mult.get(n, 0.0)
      params[n] -= lr * lr_mult.get(n, 1.0) * adam + decay * params[n]
  return params


@pytest.mark.parametrize("clip_norm", [None, 0.5])
def test_adamw_is_that_of_the_paper_with_clipping_multipliers_and_decay(clip_norm):
  optim = Optim(b1=0.9, b2=0.95, eps=1e-6, weight_decay=0.01, clip_norm=clip_norm,
                wd_mults=(("a/kernel", 2.0), (".*/kernel", 1.0)), lr_mults=(("b/.*", 0.1),))
  tx = optimizers.make(optim, 0.02, PARAMS)
  params, state = PARAMS, tx.init(PARAMS)
  for t in range(1, 6):
    updates, state = tx.update(grads(t), state, params)
    params = optax.apply_updates(params, updates)
  want = reference(optim, 0.02, 5, {"b/kernel": 0.1}, {"a/kernel": 2.0, "b/kernel": 1.0})
  for name, value in trees.flatten(params).items():
    # float32 against float64 over five steps.
    np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_frozen_parameters_have_no_state_and_do_not_count_in_the_norm():
  trained, frozen = optimizers.split(PARAMS, ("a/.*",))
  assert trees.names(trained) == ["b/kernel"] and trees.names(frozen) == ["a/bias", "a/kernel"]
  assert trees.names(optimizers.merge(trained, frozen)) == trees.names(PARAMS)
  state = optimizers.make(Optim(), 0.1, trained).init(trained)
  assert trees.count(state) == 2 * 3 + 1  # two moments of b and a counter


def test_moments_can_be_kept_in_bfloat16():
  state = optimizers.make(Optim(mu_dtype="bfloat16"), 0.1, PARAMS).init(PARAMS)
  dtypes = {name: x.dtype for name, x in trees.flatten(state).items()}
  assert dtypes["1/mu/a/kernel"] == jnp.bfloat16 and dtypes["1/nu/a/kernel"] == jnp.float32


@pytest.mark.parametrize("optim,message", [
    (Optim(lr_mults=(("c/.*", 1.0),)), "config.optim.lr_mults: the pattern 'c/"),
    (Optim(weight_decay=0.1, wd_mults=(("c", 1.0),)), "config.optim.wd_mults: the pattern 'c'"),
    (Optim(clip_norm=-1.0), "config.optim.clip_norm=-1.0"),
    (Optim(b1=1.0), "config.optim.b1=1.0"),
])
def test_settings_that_cannot_be_are_errors(optim, message):
  with pytest.raises(ValueError, match=message):
    optimizers.make(optim, 0.1, PARAMS)


def test_freezing_nothing_that_exists_or_everything_is_an_error():
  with pytest.raises(trees.PatternError, match="config.optim.freeze: the pattern 'c/"):
    optimizers.split(PARAMS, ("c/.*",))
  with pytest.raises(ConfigError, match="every parameter is frozen"):
    optimizers.split(PARAMS, (".*",))
