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


def test_second_moments_can_be_kept_in_bfloat16_where_that_can_work():
  optim = Optim(b2=0.95, nu_dtype="bfloat16", clip_norm=None)
  tx, exact = (optimizers.make(o, 0.1, PARAMS) for o in (optim, Optim(b2=0.95, clip_norm=None)))
  state, want_state = tx.init(PARAMS), exact.init(PARAMS)
  for t in range(20):
    updates, state = tx.update(grads(t), state, PARAMS)
    want, want_state = exact.update(grads(t), want_state, PARAMS)
  assert {str(x.dtype) for x in jax.tree.leaves(state[0].nu)} == {"bfloat16"}
  for a, b in zip(jax.tree.leaves(updates), jax.tree.leaves(want)):
    # A relative rounding of 2^-9 in each of some 20 steps that count, halved by the root.
    np.testing.assert_allclose(a, b, rtol=0.02)
    assert not np.array_equal(a, b)
  with pytest.raises(ConfigError, match="nu_dtype='bfloat16' with b2=0.999"):
    optimizers.make(Optim(nu_dtype="bfloat16"), 0.1, PARAMS)


def adafactor_reference(params, all_grads, lr, cap, momentum, clip_rms):
  """Shazeer and Stern 2018, algorithm 4, with the changes of Zhai et al. 2022, in float64."""
  rows, cols, full, mean = {}, {}, {}, {}
  params = {n: np.float64(p) for n, p in params.items()}
  for t, g in enumerate(all_grads, 1):
    beta = min(cap, 1 - t**-0.8)
    for n in params:
      x = np.float64(g[n])
      square = x**2 + 1e-30
      if x.ndim >= 2 and min(sorted(x.shape)[-2:]) >= 32:
        small, large = np.argsort(x.shape)[-2:]
        rows[n] = beta * rows.get(n, 0) + (1 - beta) * square.mean(axis=large, keepdims=True)
        cols[n] = beta * cols.get(n, 0) + (1 - beta) * square.mean(axis=small, keepdims=True)
        second = rows[n] * cols[n] / rows[n].mean(axis=small, keepdims=True)
      else:
        second = full[n] = beta * full.get(n, 0) + (1 - beta) * square
      update = x / np.sqrt(second)
      if clip_rms:
        update /= max(1, np.sqrt((update**2).mean()) / clip_rms)
      mean[n] = momentum * mean.get(n, 0) + (1 - momentum) * update
      params[n] = params[n] - lr * mean[n]
  return params


@pytest.mark.parametrize("clip_rms", [None, 0.5])
def test_adafactor_is_that_of_scaling_vision_transformers(clip_rms):
  rng = np.random.default_rng(0)
  shapes = {"kernel": (40, 48), "heads": (48, 4, 36), "bias": (48,), "few": (8, 64)}
  params = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
  all_grads = [{n: rng.standard_normal(s).astype(np.float32) * 10**rng.uniform(-2, 1)
                for n, s in shapes.items()} for _ in range(6)]
  # The cap is low, so that it counts within six steps.
  optim = Optim("adafactor", b1=0.8, b2=0.6, mu_dtype="float32", clip_norm=None, clip_rms=clip_rms)
  tx = optimizers.make(optim, 0.05, params)
  got, state = params, tx.init(params)
  for g in all_grads:
    updates, state = jax.jit(tx.update)(g, state, got)
    got = optax.apply_updates(got, updates)
  want = adafactor_reference(params, all_grads, 0.05, 0.6, 0.8, clip_rms)
  for name in params:
    # float32 against float64 over six steps.
    np.testing.assert_allclose(got[name], want[name], atol=2e-5, err_msg=name)


def test_adafactor_keeps_little_and_its_momentum_in_bfloat16():
  params = {"kernel": jnp.zeros((64, 96)), "bias": jnp.zeros(96)}
  state = optimizers.make(Optim("adafactor"), 0.1, params).init(params)
  kept = trees.flatten(state)
  momentum = {n for n in kept if kept[n].dtype == jnp.bfloat16}
  assert sum(kept[n].size for n in momentum) == 65 * 96
  # Row and column, the bias's full moment, and one number for what there is not, and counters.
  assert sum(x.size for n, x in kept.items() if n not in momentum) == 64 + 96 + 96 + 1 + 2 + 2


STACKED = {
  "Transformer": {"encoderblock": {"kernel": (3, 4, 2, 5), "bias": (3, 2, 5), "scale": (3, 4)}},
  "head": {"kernel": (5, 7), "bias": (7,)}, "idle": {"kernel": (4, 4)}, "table": (1, 6, 4)}


def momentum_reference(params, all_grads, rates, momentum, trust):
  """LARS of MAE's linear probe, in float64: kernels' gradients scaled by trust |p| / |g|, of each
  layer alone; m = momentum m + g; p -= rate m. Without trust SGD, as PyTorch's."""
  params = {n: np.float64(p) for n, p in params.items()}
  m = {n: np.zeros_like(p) for n, p in params.items()}
  for g, rate in zip(all_grads, rates, strict=True):
    for n, p in params.items():
      x = np.float64(g[n])
      if trust and not n.endswith(("bias", "scale")):
        # A stack is cut into its layers, anything else is one.
        parts = zip(x, p) if "encoderblock/" in n else [(x, p)]
        lengths = [(np.linalg.norm(a), np.linalg.norm(b)) for a, b in parts]
        q = np.array([trust * b / a if a > 0 and b > 0 else 1.0 for a, b in lengths])
        x = x * q.reshape(-1, *[1] * (x.ndim - 1)) if "encoderblock/" in n else x * q[0]
      m[n] = momentum * m[n] + x
      params[n] = p - rate * m[n]
  return params


def momentum_case():
  rng = np.random.default_rng(1)
  names = trees.names(jax.tree.map(np.zeros, STACKED, is_leaf=lambda x: isinstance(x, tuple)))
  shapes = dict(zip(names, jax.tree.leaves(STACKED, is_leaf=lambda x: isinstance(x, tuple))))
  draw = lambda scale: {n: np.float32(scale * rng.standard_normal(s)) for n, s in shapes.items()}
  params, all_grads = draw(1.0), [draw(10 ** rng.uniform(-2, 1)) for _ in range(5)]
  params["idle/kernel"][:] = 0.0  # No length to go by.
  all_grads[1]["head/kernel"][:] = 0.0
  return params, all_grads


@pytest.mark.parametrize("name, trust", [("lars", 0.02), ("sgd", 0.0)])
def test_momentum_and_trust_are_those_of_the_linear_probe_under_a_changing_rate(name, trust):
  params, all_grads = momentum_case()
  rates = [0.3, 0.1, 0.4, 0.2, 0.05]
  optim = Optim(name, b1=0.9, clip_norm=None, trust_coefficient=trust)
  tx = optimizers.make(optim, 2.0, trees.nest(params))
  got = trees.nest(params)
  state = tx.init(got)
  for g, rate in zip(all_grads, rates, strict=True):
    updates, state = jax.jit(tx.update)(trees.nest(g), state, got)
    got = optax.apply_updates(got, jax.tree.map(lambda u, r=rate: u * r, updates))
  want = momentum_reference(params, all_grads, [2 * r for r in rates], 0.9, trust)
  for n, value in trees.flatten(got).items():
    # float32 against float64 over five steps.
    np.testing.assert_allclose(value, want[n], rtol=1e-5, atol=1e-5 * np.abs(want[n]).max())


def test_lars_is_optax_s_at_a_constant_rate():
  params, all_grads = momentum_case()
  # It knows no stacks.
  params = {n: x for n, x in params.items() if "encoderblock" not in n}
  all_grads = [{n: g[n] for n in params} for g in all_grads]
  mine = optimizers.make(Optim("lars", b1=0.9, clip_norm=None), 0.5, params)
  peer = optax.lars(0.5, momentum=0.9, trust_coefficient=0.001,
                    trust_ratio_mask=lambda p: {n: not n.endswith("bias") for n in p})
  got, want = dict(params), dict(params)
  states = mine.init(got), peer.init(want)
  for g in all_grads:
    a, b = mine.update(g, states[0], got), peer.update(g, states[1], want)
    got, want = optax.apply_updates(got, a[0]), optax.apply_updates(want, b[0])
    states = a[1], b[1]
  for n in params:
    # Both float32; the rate is multiplied on in another place.
    np.testing.assert_allclose(got[n], want[n], rtol=1e-5, atol=1e-6)


def test_weight_decay_can_rise_along_half_a_cosine():
  """I-JEPA: the n-th of T steps decays by last + (first - last) (1 + cos(pi n / T)) / 2."""
  optim = Optim("sgd", weight_decay=0.04, weight_decay_end=0.4, weight_decay_steps=8,
                wd_mults=(("a/kernel", 1.0),), clip_norm=None)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  tx = optimizers.make(optim, 0.1, PARAMS)
  state = tx.init(PARAMS)
  for n in range(11):
    updates, state = tx.update(zeros, state, PARAMS)
    want = 0.4 + (0.04 - 0.4) * (1 + np.cos(np.pi * min(n, 8) / 8)) / 2
    np.testing.assert_allclose(updates["a"]["kernel"], -want * PARAMS["a"]["kernel"], rtol=1e-5)
    assert not np.any(updates["b"]["kernel"]) and not np.any(updates["a"]["bias"])


def test_a_moving_average_follows_at_first_and_then_remembers():
  average, want = {"a": jnp.zeros(3)}, np.zeros(3)
  for t in range(200):
    value = np.random.default_rng(t).standard_normal(3)
    decay = min(0.95, (1 + t) / (10 + t))
    want = decay * want + (1 - decay) * value
    average = optimizers.update_average(average, {"a": jnp.float32(value)}, 0.95, jnp.int32(t))
  np.testing.assert_allclose(average["a"], want, atol=1e-6)


@pytest.mark.parametrize("optim,message", [
    (Optim(lr_mults=(("c/.*", 1.0),)), "config.optim.lr_mults: the pattern 'c/"),
    (Optim(weight_decay=0.1, wd_mults=(("c", 1.0),)), "config.optim.wd_mults: the pattern 'c'"),
    (Optim(clip_norm=-1.0), "config.optim.clip_norm=-1.0"),
    (Optim(b1=1.0), "config.optim.b1=1.0"),
  (Optim(weight_decay_end=0.2, weight_decay_steps=5), "weight_decay=0.0, weight_decay_end=0.2"),
  (Optim(weight_decay=0.1, weight_decay_end=0.2), "weight_decay_end=0.2, weight_decay_steps=0"),
  (Optim("lars", trust_coefficient=-1.0), "config.optim.trust_coefficient=-1.0"),
  (Optim("adafactor", clip_rms=-1.0), "config.optim.clip_rms=-1.0"),
])
def test_settings_that_cannot_be_are_errors(optim, message):
  with pytest.raises(ValueError, match=message):
    optimizers.make(optim, 0.1, PARAMS)


def test_freezing_nothing_that_exists_or_everything_is_an_error():
  with pytest.raises(trees.PatternError, match="config.optim.freeze: the pattern 'c/"):
    optimizers.split(PARAMS, ("c/.*",))
  with pytest.raises(ConfigError, match="every parameter is frozen"):
    optimizers.split(PARAMS, (".*",))


def test_adam_has_its_decay_in_the_gradient_as_pytorch_does():
  """PyTorch's documented algorithm in float64; decay far larger than in use, to be seen."""
  optim = Optim(name="adam", b1=0.9, b2=0.99, eps=1e-6, weight_decay=0.3, clip_norm=None,
                wd_mults=(("b/.*", 2.0), (".*", 1.0)), lr_mults=(("b/.*", 0.1),))
  tx = optimizers.make(optim, 0.02, PARAMS)
  params, state = PARAMS, tx.init(PARAMS)
  want = {n: np.asarray(p, np.float64) for n, p in trees.flatten(PARAMS).items()}
  m, v = ({n: np.zeros_like(p) for n, p in want.items()} for _ in range(2))
  for t in range(1, 6):
    updates, state = tx.update(grads(t), state, params)
    params = optax.apply_updates(params, updates)
    for n, g in trees.flatten(grads(t)).items():
      g = np.asarray(g, np.float64) + 0.3 * (2.0 if n.startswith("b/") else 1.0) * want[n]
      m[n] = 0.9 * m[n] + 0.1 * g
      v[n] = 0.99 * v[n] + 0.01 * g**2
      lr = 0.002 if n.startswith("b/") else 0.02
      want[n] -= lr * (m[n] / (1 - 0.9**t)) / (np.sqrt(v[n] / (1 - 0.99**t)) + 1e-6)
  for name, value in trees.flatten(params).items():
    # float32 against float64 over five steps.
    np.testing.assert_allclose(value, want[name], rtol=1e-5, atol=1e-6, err_msg=name)
