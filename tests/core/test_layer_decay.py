"""The learning rate of each tensor when a pretrained encoder is fine-tuned, against MAE's rule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from big_vision_ext.core import layer_decay, optimizers, sharding, trees
from big_vision_ext.core.config import ConfigError, Optim
from big_vision_ext.models import classifier, layouts

DEPTH, DECAY = 3, 0.65
# facebookresearch/mae: id 0 for what makes tokens, i + 1 for block i, depth + 1 for the rest;
# a rate of decay^(depth + 1 - id).
IDS = {
  "cls": 0, "cls_pos_embedding": 0, "pos_embedding": 0, "embedding/kernel": 0, "embedding/bias": 0,
  "fc_norm/scale": 4, "fc_norm/bias": 4, "head/kernel": 4, "head/bias": 4,
}


def shapes(scan):
  model = classifier.Classifier(
    width=24, depth=DEPTH, mlp_dim=40, num_heads=3, posemb_grid=(4, 4), patch_size=4, classes=5,
    final_norm=False, scan=scan)
  return sharding.unbox(jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3))))["params"]


def expected(name):
  part = name.split("/")
  number = int(part[1].removeprefix("encoderblock_")) + 1 if part[0] == "Transformer" else IDS[name]
  return DECAY ** (DEPTH + 1 - number)


def test_every_tensor_has_the_rate_of_its_layer():
  got = layer_decay.scales(shapes(scan=False), DECAY)
  assert set(IDS) == {n for n in got if not n.startswith("Transformer")}
  assert sum(n.startswith("Transformer") for n in got) == 16 * DEPTH
  assert got == {n: pytest.approx(expected(n)) for n in got}


def test_the_rates_of_the_published_depth_are_those_of_the_paper():
  # Base rate 1 at the head; 0.65^13 for the patch embedding of a ViT-B.
  params = {f"Transformer/encoderblock_{i}/x": jnp.zeros(2) for i in range(12)}
  got = layer_decay.scales({"embedding": {"kernel": jnp.zeros(2)}, "head": {"x": jnp.zeros(1)},
                            **trees.nest(params)}, 0.65)
  assert got["embedding/kernel"] == pytest.approx(0.65**13)
  assert got["Transformer/encoderblock_0/x"] == pytest.approx(0.65**12)
  assert got["Transformer/encoderblock_11/x"] == pytest.approx(0.65)
  assert got["head/x"] == 1.0


def updates_of(params, grads, optim):
  tx = optimizers.make(optim, 0.1, params)
  return jax.jit(tx.update)(grads, tx.init(params), params)[0]


@pytest.mark.parametrize("optim", [
  Optim("sgd", layer_decay=DECAY, clip_norm=None),
  Optim("adamw", layer_decay=DECAY, clip_norm=None, weight_decay=0.01),
  Optim("adamw", layer_decay=DECAY, clip_norm=1.0, lr_mults=(("head/.*", 3.0),)),
], ids=["sgd", "adamw with decay", "adamw with multipliers"])
def test_stacked_blocks_learn_as_separate_ones_do(optim):
  rng = np.random.default_rng(0)
  draw = lambda tree: jax.tree.map(
    lambda s: jnp.asarray(rng.standard_normal(s.shape), jnp.float32), tree)
  params, grads = draw(shapes(scan=False)), draw(shapes(scan=False))
  loop = updates_of(params, grads, optim)
  scan = updates_of(layouts.loop_to_scan(params), layouts.loop_to_scan(grads), optim)
  for (name, want), got in zip(trees.flatten(loop).items(),
                               trees.flatten(layouts.scan_to_loop(scan)).values(), strict=True):
    # The global norm of clipping is summed in another order.
    np.testing.assert_allclose(got, want, rtol=1e-5, err_msg=name)


def test_both_terms_of_an_update_are_scaled():
  """As in PyTorch, where a group's rate multiplies its decay."""
  params = trees.nest({f"Transformer/encoderblock_{i}/kernel": jnp.full((2, 2), 3.0)
                       for i in range(2)})
  grads = jax.tree.map(lambda x: jnp.full_like(x, 0.5), params)
  optim = Optim("sgd", layer_decay=0.5, weight_decay=0.01, clip_norm=None)
  got = trees.flatten(optax.apply_updates(params, updates_of(params, grads, optim)))
  for i, scale in enumerate((0.25, 0.5)):
    want = 3.0 - scale * (0.1 * 0.5 + 0.01 * 3.0)
    np.testing.assert_allclose(got[f"Transformer/encoderblock_{i}/kernel"], want, rtol=1e-6)


@pytest.mark.parametrize("params, decay, message", [
  ({"img/encoderblock_0/x": 1, "txt/encoderblock_0/x": 1}, 0.5, "found .'img/', 'txt/'."),
  ({"head/x": 1}, 0.5, "found none"),
  ({"encoderblock_0/x": 1}, 0.0, "layer_decay=0.0: expected above 0"),
])
def test_what_has_no_layers_is_refused(params, decay, message):
  with pytest.raises(ConfigError, match=message):
    layer_decay.scales(trees.nest({n: jnp.zeros(1) for n in params}), decay)
