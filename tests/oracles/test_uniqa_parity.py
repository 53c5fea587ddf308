"""UniQA's adapter here and in PyTorch: scores, every gradient, steps of Adam, and its file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import convert, tasks
from big_vision_ext.convert import uniqa
from big_vision_ext.core import config, optimizers, trees
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over largest value, float32 on both sides, logits up to 100 before a softmax.
SCORES, GRADIENTS = 1e-5, 1e-4
WIDTH = 24
FREEZE = ("(?!adapter/).*",)


def given():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(0, 2, shape).astype(np.float32)
  arrays = {"feature": draw(9, WIDTH), "texts": draw(4, 5, WIDTH),
            "log_scale": np.log(np.float32(30)), "score": rng.random(9).astype(np.float32)}
  params = {n: rng.normal(0, 0.3, s).astype(np.float32)
            for n, s in uniqa.shapes(WIDTH, 2, 5).items()}
  return arrays, params


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
  folder = tmp_path_factory.mktemp("uniqa")
  arrays, params = given()
  convert.write("uniqa", folder / "e", convert.Weights(params, "quality", {"width": WIDTH}))
  found = harness.run("uniqa_oracle.py", env="siglip", arrays=arrays, settings={
      "ours": str(folder / "e/adapter.pt"), "theirs": str(folder / "theirs.pt")})
  return found, folder


def theirs_of(flat):
  params = {n: np.asarray(x) for n, x in flat.items() if n.startswith("adapter/")}
  found = uniqa.export(convert.Weights(params, "quality", {}))
  return {n: found[n] for n in found}


def test_scores_gradients_and_steps_agree(peer):
  want, _ = peer
  arrays, params = given()
  task = tasks.make("quality", {"width": WIDTH, "prompts": "uniqa_ensemble"})
  whole = trees.nest(params) | {"texts": arrays["texts"][:, :, None],
                                "t": arrays["log_scale"].reshape(1)}
  batch = {"feature": arrays["feature"], "score": arrays["score"]}
  found = task.rate(whole, batch)
  assert np.abs(found["score"] - want["score"]).max() < SCORES
  assert np.abs(found["group_probs"] - want["probs"]).max() < SCORES
  trained, frozen = optimizers.split(whole, FREEZE)
  tx = optimizers.make(config.Optim(name="adam", clip_norm=None), 2e-4, trained)
  value = jax.jit(jax.value_and_grad(
      lambda t: task.loss(optimizers.merge(t, frozen), batch, None, True)[0]))
  state = tx.init(trained)
  for step in range(5):
    loss, grads = value(trained)
    if not step:
      assert loss == pytest.approx(float(want["loss"]), rel=SCORES)
      for name, g in theirs_of(trees.flatten(grads)).items():
        far = np.abs(g - want[f"grad/{name}"]).max() / np.abs(want[f"grad/{name}"]).max()
        assert far < GRADIENTS, (name, far)
    updates, state = tx.update(grads, state, trained)
    trained = jax.tree.map(jnp.add, trained, updates)
  for name, x in theirs_of(trees.flatten(trained)).items():
    # Adam's steps are 1e-3 in all; a gradient near zero may turn one of them round.
    far = np.abs(x - want[f"after/{name}"])
    assert np.quantile(far, 0.99) < 1e-6 and far.max() < 1e-4, name


def test_what_pytorch_saves_is_read_bit_by_bit(peer):
  want, folder = peer
  found = convert.read(folder / "theirs.pt")
  assert found.meta["format"] == "uniqa"
  for name, x in theirs_of(dict(found.params)).items():
    np.testing.assert_array_equal(x, want[f"init/{name}"])


def test_it_begins_within_the_bounds_that_torchs_does(peer):
  want, _ = peer
  task = tasks.make("quality", {"width": WIDTH})
  params = task.init(jax.random.key(0), task.batch_spec(1))["adapter"]
  for name, ours in (("0", "fc_0"), ("2", "fc_2")):
    theirs, mine = want[f"init/adapter.fc.{name}.weight"].T, np.asarray(params[ours]["kernel"])
    assert theirs.shape == mine.shape
    assert np.abs(theirs).max() == pytest.approx(np.abs(mine).max(), rel=0.02)
