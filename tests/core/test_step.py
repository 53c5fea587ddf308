import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext.core import config, sharding, step, trees
from tests import toy_task

MESHES = {"1 device": (config.Mesh(), 1), "8 data": (config.Mesh(), 8),
          "8 fsdp": (config.Mesh(1, 8, 1), 8), "4 fsdp x 2 tensor": (config.Mesh(1, 4, 2), 8)}


def batches(count, size=16):
  rng = np.random.default_rng(0)
  for _ in range(count):
    yield {"image": rng.integers(0, 255, (size, 8, 8, 3), dtype=np.uint8),
           "box": rng.uniform(0, 8, (size, 4)).astype(np.float32)}


def train(mesh=MESHES["1 device"], steps=4, task=None, **settings):
  """The metrics of each step, and the state after the last one."""
  task = task or toy_task.Toy()
  mesh = sharding.make_mesh(mesh[0], devices=jax.devices()[:mesh[1]])
  cfg = config.resolve({"task": "tests.toy_task", "batch_size": 16, "total_steps": steps,
                        "lr": 1e-2, "min_shard_size": 0, "optim": {"weight_decay": 1e-3},
                        **settings})
  rules = sharding.merge_rules(cfg.sharding_rules)
  rows = sharding.batch_sharding(mesh, 16, cfg.optim.accum_steps)
  shapes, shardings, tx, init = step.plan_state(task, cfg, mesh, rules)
  with sharding.use(mesh, ()):
    state = jax.jit(init, out_shardings=shardings)(jax.random.key(cfg.seed))
  for name, x in trees.flatten(state).items():
    assert x.sharding == trees.flatten(shardings)[name]  # sharded from birth
    assert x.shape == trees.flatten(shapes)[name].shape
  reports = []
  with sharding.use(mesh, rules):
    fn = jax.jit(step.make(task, cfg, tx, lambda t: jnp.float32(1), mesh), donate_argnums=0,
                 in_shardings=(shardings, rows), out_shardings=(shardings, None))
    for batch in batches(steps):
      state, metrics = fn(state, jax.device_put(batch, rows))
      reports.append({k: float(v) for k, v in metrics.items()})
  return reports, state


@pytest.fixture(scope="module")
def one_device():
  return train()


@pytest.fixture(scope="module")
def start():
  """The state before the first step."""
  return train(steps=0)[1]


@pytest.mark.parametrize("name", list(MESHES)[1:])
def test_every_mesh_gives_the_same_losses_and_parameters(name, one_device):
  want_reports, want = one_device
  reports, state = train(MESHES[name])
  # The order of summation differs between meshes: a few units in the last place of float32, which
  # Adam's division by small second moments can make larger.
  for got, expected in zip(reports, want_reports):
    assert got.keys() == expected.keys()
    for key in got:
      np.testing.assert_allclose(got[key], expected[key], rtol=1e-5, atol=1e-5, err_msg=key)
  for key, value in trees.flatten(state["params"]).items():
    np.testing.assert_allclose(value, trees.flatten(want["params"])[key], rtol=1e-5, atol=1e-5)


def test_parameters_and_moments_are_really_cut():
  _, state = train((config.Mesh(1, 4, 2), 8), steps=1)
  for kernel in (state["params"]["fc1"]["kernel"], state["opt"][1].mu["fc1"]["kernel"]):
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(192 // 4, 16 // 2)}


@pytest.mark.parametrize("mesh", ["1 device", "8 data"])
def test_accumulation_equals_the_whole_batch(mesh):
  task = toy_task.Toy(noise=0.0)  # noise is drawn for each micro-batch
  accum = 4 if mesh == "1 device" else 2
  whole_reports, whole = train(MESHES[mesh], task=task)
  reports, state = train(MESHES[mesh], task=task,
                         optim={"weight_decay": 1e-3, "accum_steps": accum})
  for got, want in zip(reports, whole_reports):
    np.testing.assert_allclose(got["loss"], want["loss"], rtol=1e-5)
    np.testing.assert_allclose(got["grad_norm"], want["grad_norm"], rtol=1e-5)
  for key, value in trees.flatten(state["params"]).items():
    np.testing.assert_allclose(value, trees.flatten(whole["params"])[key], rtol=1e-5, atol=1e-6)


def test_frozen_parameters_do_not_change_and_the_hook_is_applied(start):
  _, state = train(optim={"freeze": ["fc1/.*"]}, lr=1.0)
  for name in ("kernel", "bias"):
    np.testing.assert_array_equal(state["params"]["fc1"][name], start["params"]["fc1"][name])
  assert not np.array_equal(state["params"]["fc2"]["kernel"], start["params"]["fc2"]["kernel"])
  assert float(state["params"]["t"][0]) <= 0.2  # the toy's after_update


def test_an_update_that_is_not_finite_is_left_out_and_counted(start):
  reports, state = train(task=toy_task.Toy(nan_at=0.0), steps=3)
  for key, value in trees.flatten(state["params"]).items():
    np.testing.assert_array_equal(value, trees.flatten(start["params"])[key])
  assert int(state["opt"][1].count) == 0 and int(state["step"]) == 3
  assert [r["skipped_updates"] for r in reports] == [1, 2, 3]
  assert reports[-1]["skipped_in_row"] == 3 and np.isnan(reports[-1]["loss"])


def test_the_moving_average_is_of_the_trained_parameters_and_cut_as_they_are(start):
  task, frozen = toy_task.Toy(nan_at=-1.0), {"freeze": ["fc1/bias"]}
  states = [train((config.Mesh(1, 4, 2), 8), steps=n, ema=0.5, optim=frozen, task=task)[1]
            for n in (0, 1, 2)]
  at = [{n: np.float64(x) for n, x in trees.flatten(s["params"]).items()} for s in states]
  average = trees.flatten(states[2]["ema"])
  assert average.keys() == at[0].keys() - {"fc1/bias"}
  for name, value in average.items():
    want = at[0][name] + 0.9 * (at[1][name] - at[0][name])  # decays of 1/10 and 2/11
    want += 9 / 11 * (at[2][name] - want)
    np.testing.assert_allclose(value, want, atol=1e-6, err_msg=name)
    assert value.sharding == trees.flatten(states[2]["params"])[name].sharding
  seen = trees.flatten(step.evaluated(states[2]))
  assert seen.keys() == at[0].keys() and seen["fc1/kernel"] is average["fc1/kernel"]
  assert trees.flatten(step.evaluated(start)) == trees.flatten(start["params"])


def test_an_average_forgets_what_was_initialised_when_weights_are_loaded():
  state = {"params": {"a": jnp.zeros(2), "b": jnp.zeros(2)}, "ema": {"a": jnp.zeros(2), "b": None}}
  state = step.with_params(state, {"a": jnp.ones(2), "b": jnp.ones(2)})
  np.testing.assert_array_equal(state["ema"]["a"], 1.0)
  assert state["ema"]["b"] is None and state["ema"]["a"] is not state["params"]["a"]


def test_the_noise_of_a_step_depends_on_seed_and_step_only():
  first, _ = train(task=toy_task.Toy(noise=1.0), steps=2)
  again, _ = train(task=toy_task.Toy(noise=1.0), steps=2)
  silent, _ = train(task=toy_task.Toy(noise=0.0), steps=2)
  assert first == again and first[0]["loss"] != silent[0]["loss"]


def test_norms_are_those_of_what_is_reported(one_device):
  reports, state = one_device
  flat = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(state["params"])]
  np.testing.assert_allclose(reports[-1]["param_norm"], np.linalg.norm(np.concatenate(flat)),
                             rtol=1e-6)  # one sum of squares in float32
  assert reports[-1]["lr"] == pytest.approx(1e-2)


def test_a_batch_that_does_not_fit_the_task_says_what_is_wrong():
  spec = toy_task.Toy().batch_spec(16)
  batch = next(batches(1))
  assert step.check_batch(spec, {**batch, "more": 1}).keys() == spec.keys()
  assert step.check_batch(spec, {k: v[:8] for k, v in batch.items()}, processes=2)
  with pytest.raises(ValueError, match=r"box: the task wants float32\(16, 4\), the input has no"):
    step.check_batch(spec, {"image": batch["image"]})
  with pytest.raises(ValueError, match=r"image: the task wants uint8\(16, 9, 9, 3\), the input"):
    step.check_batch(dataclasses.replace(toy_task.Toy(), size=9).batch_spec(16), batch)


@dataclasses.dataclass(frozen=True)
class Counting(toy_task.Toy):
  """Counts its examples in a frozen parameter."""

  frozen_name: str = "seen/sum"

  def init(self, rng, batch):
    return {**super().init(rng, batch), "seen": {"sum": jnp.zeros(())}}

  def loss(self, params, batch, rng, train):
    own = {k: v for k, v in params.items() if k != "seen"}
    loss, metrics = super().loss(own, batch, rng, train)
    total = params["seen"]["sum"] + jnp.mean(batch["box"])
    return loss, {**metrics, f"params/{self.frozen_name}": total}


@pytest.mark.parametrize("accum", [1, 4])
def test_a_loss_can_give_the_next_value_of_a_frozen_parameter(accum):
  reports, state = train(task=Counting(noise=0.0), steps=3,
                         optim={"freeze": ("seen/.*",), "accum_steps": accum})
  want = sum(b["box"].mean() for b in batches(3))
  # Of micro-batches the mean, which of means is that of the batch.
  np.testing.assert_allclose(state["params"]["seen"]["sum"], want, rtol=1e-6)
  assert not any(name.startswith("params/") for name in reports[0])
  if accum > 1:
    return
  # Nothing else is different for it.
  plain, other = train(task=toy_task.Toy(noise=0.0), steps=3, optim={"accum_steps": accum})
  np.testing.assert_allclose([r["loss"] for r in reports], [r["loss"] for r in plain], rtol=1e-6)
  np.testing.assert_allclose(state["params"]["fc1"]["kernel"], other["params"]["fc1"]["kernel"],
                             rtol=1e-5, atol=1e-7)


def test_an_update_that_is_left_out_leaves_that_parameter_as_well():
  reports, state = train(task=Counting(nan_below=300.0), steps=2,
                         optim={"freeze": ("seen/.*",)})
  assert reports[-1]["skipped_updates"] == 2 and float(state["params"]["seen"]["sum"]) == 0.0


def test_a_parameter_that_the_optimiser_trains_cannot_be_given():
  with pytest.raises(config.ConfigError, match="the task itself computes seen/sum"):
    train(task=Counting(), steps=1)
