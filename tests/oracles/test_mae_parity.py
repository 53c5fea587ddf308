"""A masked autoencoder here and in transformers and timm: predictions, loss, every gradient agree.

Folders that we write are loaded there, and folders that transformers writes are read here. Every
tensor is random, position tables and class positions included, and the noise that decides the mask
is shared.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import convert, tasks
from big_vision_ext.convert import lazy, ours, tables, vit_mae
from big_vision_ext.core import trees
from big_vision_ext.objectives import masks, mim
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over largest value, float32 on both sides, sums of at most 192 numbers through
# seven blocks.
PREDICTIONS, GRADIENTS = 1e-5, 1e-5

IMAGE = dict(width=48, depth=3, mlp_dim=80, num_heads=3, patch_size=8, image_size=48,
             decoder_width=32, decoder_depth=2, decoder_heads=2, decoder_mlp_dim=56)
THEIRS = dict(hidden_size=48, num_hidden_layers=3, num_attention_heads=3, intermediate_size=80,
              patch_size=8, image_size=48, decoder_hidden_size=32, decoder_num_hidden_layers=2,
              decoder_num_attention_heads=2, decoder_intermediate_size=56, layer_norm_eps=1e-6)
VISIBLE = 9  # Of 36: what a ratio of 0.75 leaves there.
CASES = {f"{kind}-{norm}-{seed}": (kind, norm, seed)
         for kind in ("load", "make") for norm in (True, False) for seed in range(3)}


def spec(norm_pix):
  return dict(image=IMAGE, mask=dict(num_visible=VISIBLE), norm_pix=norm_pix)


def inputs(seed):
  rng = np.random.default_rng(50 + seed)
  # Pixels as bytes: both sides see the same numbers after normalising.
  return rng.integers(0, 256, (3, 48, 48, 3), np.uint8), rng.random((3, 36)).astype(np.float32)


def normalised(pixels):
  return ((pixels / 255.0 - vit_mae.MEAN) / vit_mae.STD).astype(np.float32)


def drawn(norm_pix, seed):
  rng = np.random.default_rng(seed)
  params = {}
  for name, shape in ours.shapes("mae", spec(norm_pix)).items():
    scale = 1 / np.sqrt(max(np.prod(shape[:-1]), 1)) if name.endswith("kernel") else 0.3
    mean = 1.0 if name.endswith("scale") else 0.0
    params[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)
  return convert.Weights(lazy.Tensors(params), "mae", spec(norm_pix), {"image_size": 48})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  return tmp_path_factory.mktemp("mae")


@pytest.fixture(scope="module")
def peer(folders):
  """What the peer computes in all cases, run once."""
  arrays, settings = {}, []
  for name, (kind, norm, seed) in CASES.items():
    pixels, noise = inputs(seed)
    arrays |= {f"images{seed}": normalised(pixels), f"noise{seed}": noise}
    case = dict(kind=kind, name=name, folder=str(folders / name), images=f"images{seed}",
                noise=f"noise{seed}", seed=seed, model=THEIRS | dict(norm_pix_loss=norm))
    if kind == "load":
      convert.write("transformers", folders / name, drawn(norm, seed))
    settings.append(case)
  convert.write("mae", folders / "facebook", drawn(True, 7))
  settings.append(dict(
    kind="timm", name="timm", images="images0", file=str(folders / "facebook/model.safetensors"),
    architecture="vit_base_patch16_224.mae",
    model=dict(img_size=48, patch_size=8, embed_dim=48, depth=3, num_heads=3, mlp_ratio=80 / 48)))
  return harness.run("mae_oracle.py", env="siglip", arrays=arrays, settings=settings)


@pytest.fixture(scope="module")
def mine():
  """(norm_pix) -> compiled (params, pixels, noise) -> predictions by place, loss, gradients."""

  def build(norm_pix):
    task = tasks.make("mae", spec(norm_pix))

    def forward(params, pixels, noise):
      mask = masks.from_rank(noise, VISIBLE)
      apply = functools.partial(task.vision.apply, {"params": params})
      pred, _ = apply(pixels, mask.visible, mask.target)
      seen, _ = apply(pixels, mask.visible, method="see")
      shown = apply(seen, mask.visible, mask.target, True, method="predict")[:, pred.shape[1]:]
      every = jnp.zeros((len(pixels), 36, pred.shape[-1]))
      rows = jnp.arange(len(pixels))[:, None]
      every = every.at[rows, mask.target].set(pred).at[rows, mask.visible].set(shown)
      return mim.masked_mse(pred, task._targets(pixels, mask.target), mask.weight), (
        every, masks.hidden_map(mask, (6, 6)))

    return jax.jit(jax.value_and_grad(forward, has_aux=True))

  return {norm: build(norm) for norm in (True, False)}


@pytest.mark.parametrize("name", CASES)
def test_predictions_mask_loss_and_gradients_agree(peer, mine, folders, name):
  _, norm, seed = CASES[name]
  weights = convert.read(folders / name)
  assert weights.task == "mae" and weights.model["norm_pix"] == norm
  assert weights.model["mask"] == {"num_visible": VISIBLE}
  params = trees.nest({n: weights.params[n] for n in weights.params})
  pixels, noise = inputs(seed)
  (loss, (pred, hidden)), grads = mine[norm](params, pixels, noise)
  get = lambda key: peer[f"{name}/{key}"]
  np.testing.assert_array_equal(np.reshape(hidden, (3, -1)), get("mask"))
  assert np.abs(pred - get("logits")).max() < PREDICTIONS * np.abs(get("logits")).max()
  assert abs(loss - get("loss")) < PREDICTIONS * get("loss")
  theirs = tables.export(vit_mae.transformers(), ours.shapes("mae", spec(norm)),
                         lazy.Tensors(trees.flatten(jax.device_get(grads))), format="transformers")
  compared = {n.removeprefix(f"{name}/grad/") for n in peer if n.startswith(f"{name}/grad/")}
  frozen = {"vit.embeddings.position_embeddings", "decoder.decoder_pos_embed"}
  assert compared >= set(theirs) - frozen and compared <= set(theirs)
  largest = max(np.abs(get(f"grad/{n}")).max() for n in compared)
  for parameter in compared:
    far = np.abs(theirs[parameter] - get(f"grad/{parameter}")).max()
    # Softmax does not see what all keys have in common: the gradient of their bias is rounding.
    keys = parameter.endswith(("k_proj.bias", "key.bias"))
    scale = largest if keys else np.abs(get(f"grad/{parameter}")).max()
    assert far < GRADIENTS * scale, (parameter, far / scale)


def test_timm_computes_the_same_tokens_of_whole_images(peer):
  weights = drawn(True, 7)
  task = tasks.make("mae", weights.model)
  params = trees.nest({n: weights.params[n] for n in weights.params})
  _, out = jax.jit(lambda p, x: task.vision.apply({"params": p}, x))(params, inputs(0)[0])
  want = peer["timm/tokens"]
  assert np.abs(out["encoded"] - want[:, 1:]).max() < PREDICTIONS * np.abs(want).max()
  assert np.abs(out["pooled"] - want[:, 0]).max() < PREDICTIONS * np.abs(want).max()
