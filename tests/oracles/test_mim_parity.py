"""I-JEPA, CrossMAE and Pixio here and as PyTorch functions of their descriptions.

Loss, predictions and every gradient, on grids that are not square. Every parameter is random,
positions included, and the masks are those that our own sampler draws.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from big_vision_ext import tasks
from big_vision_ext.convert import ijepa as ijepa_format
from big_vision_ext.convert import lazy, ours, tables, vit_mae, vit_tables
from big_vision_ext.core import trees
from big_vision_ext.models import ijepa, mae
from big_vision_ext.objectives import masks, multiblock
from tests.models import tiny_vit
from tests.oracles import harness

pytestmark = [pytest.mark.slow, pytest.mark.oracle]

# Largest difference over largest value: float32 here, float64 there, sums of at most 96 numbers
# through six blocks.
TOLERANCE = 1e-5
GRID, PATCH = (6, 8), 4
IMAGE = dict(width=48, depth=3, mlp_dim=80, num_heads=3, patch_size=PATCH, posemb_grid=GRID)
DECODER = dict(decoder_width=32, decoder_depth=2, decoder_heads=4, decoder_mlp_dim=56)
PREDICTOR = dict(width=32, depth=2, num_heads=4, mlp_dim=56)
MODELS = {
  "ijepa": dict(image=IMAGE | dict(pool_type="none"), predictor=PREDICTOR),
  "crossmae": dict(image=IMAGE | DECODER | dict(decoder="cross")),
  "pixio": dict(image=IMAGE | DECODER | dict(num_cls=4, posemb_init="normal", decoder_depth=3)),
}
CASES = {f"{kind}-{seed}": (kind, seed) for kind in MODELS for seed in range(2)}


def pixels(seed):
  return np.random.default_rng(seed).integers(0, 256, (3, GRID[0] * PATCH, GRID[1] * PATCH, 3),
                                              np.uint8)


def normalised(x):
  return ((x / 255.0 - vit_mae.MEAN) / vit_mae.STD).astype(np.float32)


def drawn_masks(kind, seed):
  keys = masks.sample_keys(jax.random.key(seed), 3)
  if kind == "ijepa":
    blocks = multiblock.make(keys, GRID, 12, 3, 9)
    return blocks.context, blocks.target
  # Pixio hides whole cells; CrossMAE predicts some of what is hidden.
  mask = masks.make("cell" if kind == "pixio" else "random", keys, GRID, 12, cell=2)
  mask = masks.subset(mask, keys, 10) if kind == "crossmae" else mask
  return mask.visible, mask.target


def cross_decoder():
  """CrossMAE's decoder: names of ours on their side, of which no other library has one."""
  block, theirs = "Decoder/block_{}", "decoder_blocks.{}"
  into = lambda part: tables.heads_in(
    f"{block}/attention", (part,), f"{theirs}.{part[0]}.weight", f"{theirs}.{part[0]}.bias")
  return [
    *vit_tables.facebook(), tables.same("mask_token", "mask_token"),
    tables.same("decoder_pos_embedding", "decoder_pos_embed"), tables.same("Decoder/mix", "mix"),
    *tables.norm("Decoder/source_norm_{}", "source_norms.{}"),
    *tables.norm(f"{block}/LayerNorm_0", f"{theirs}.norm1"),
    *into("query"), *into("key"), *into("value"),
    *tables.heads_out(f"{block}/attention/out", f"{theirs}.proj"),
    *tables.norm(f"{block}/LayerNorm_1", f"{theirs}.norm2"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_0", f"{theirs}.mlp.fc1"),
    *tables.linear(f"{block}/MlpBlock_0/Dense_1", f"{theirs}.mlp.fc2"),
    *tables.norm("Decoder/norm", "decoder_norm"), *tables.linear("decoder_pred", "decoder_pred")]


TABLES = {"ijepa": ijepa_format.table, "crossmae": cross_decoder, "pixio": vit_mae.facebook}


def under_their_names(kind, params):
  task = "ijepa" if kind == "ijepa" else "mae"
  return tables.export(TABLES[kind](), ours.shapes(task, MODELS[kind]),
                       lazy.Tensors(trees.flatten(params)), format="test")


def parameters(kind, seed):
  task = "ijepa" if kind == "ijepa" else "mae"
  shapes = ours.shapes(task, MODELS[kind])
  blank = trees.nest({n: jax.ShapeDtypeStruct(s, np.float32) for n, s in shapes.items()})
  return tiny_vit.randomize(blank, seed)


@pytest.fixture(scope="module")
def peer():
  arrays, settings = {}, []
  for name, (kind, seed) in CASES.items():
    visible, target = drawn_masks(kind, seed)
    arrays |= {f"{name}/images": normalised(pixels(seed)), f"{name}/visible": np.asarray(visible),
               f"{name}/target": np.asarray(target)}
    theirs = under_their_names(kind, parameters(kind, seed))
    arrays |= {f"{name}/param/{n}": np.ascontiguousarray(theirs[n]) for n in theirs}
    settings.append(dict(name=name, kind=kind, heads=3, decoder_heads=4, predictor_heads=4,
                         patch=PATCH, grid=GRID))
  return harness.run("mim_oracle.py", env="siglip", arrays=arrays, settings=settings)


@pytest.fixture(scope="module")
def mine():
  """{kind: compiled (params, pixels, visible, target) -> ((loss, predicted), gradients)}."""

  def of_ijepa():
    blocks = dict(num_context=12, num_blocks=3, block_size=9)
    task = square(dict(predictor=PREDICTOR, blocks=blocks), "ijepa", ijepa.Encoder)
    object.__setattr__(task, "predictor", ijepa.Predictor(out_dim=48, grid=GRID, **PREDICTOR))

    def forward(params, x, visible, target):
      drawn = multiblock.Blocks(visible, target)
      return task.loss_under(params, x, drawn)[0], task.predict(params, x, drawn)

    return forward

  def of_mae(kind):
    task = square(dict(mask=dict(num_visible=12)), kind, mae.MaskedAutoencoder)

    def forward(params, x, visible, target):
      mask = masks.Mask(visible, target, jnp.ones(target.shape))
      pred, _ = task.vision.apply({"params": params}, x, visible, target)
      return task.loss_under(params, x, mask), pred

    return forward

  forward = {"ijepa": of_ijepa(), "crossmae": of_mae("crossmae"), "pixio": of_mae("pixio")}
  return {kind: jax.jit(jax.value_and_grad(fn, has_aux=True)) for kind, fn in forward.items()}


def square(settings, kind, cls):
  """The task, with a model for a grid that its images, which are square, cannot have."""
  image = {k: v for k, v in MODELS[kind]["image"].items() if k != "posemb_grid"}
  task = tasks.make("ijepa" if kind == "ijepa" else "mae",
                    settings | {"image": image | dict(image_size=32)})
  object.__setattr__(task, "vision", cls(**MODELS[kind]["image"]))
  return task


@pytest.mark.parametrize("name", CASES)
def test_loss_predictions_and_gradients_agree(peer, mine, name):
  kind, seed = CASES[name]
  params = parameters(kind, seed)
  (loss, predicted), grads = mine[kind](params, pixels(seed), *drawn_masks(kind, seed))
  get = lambda key: peer[f"{name}/{key}"]
  assert abs(loss - get("loss")) < TOLERANCE * get("loss")
  assert np.abs(predicted - get("predicted")).max() < TOLERANCE * np.abs(get("predicted")).max()
  theirs = under_their_names(kind, jax.device_get(grads))
  compared = {n.removeprefix(f"{name}/grad/") for n in peer if n.startswith(f"{name}/grad/")}
  # Nothing is learned through the teacher, nor in CrossMAE through the encoder's last norm.
  idle = {n for n in theirs if n.startswith("target_encoder.")}
  idle |= {"norm.weight", "norm.bias"} if kind == "crossmae" else set()
  assert compared == set(theirs) - idle
  assert all(not np.any(theirs[n]) for n in idle)
  largest = max(np.abs(get(f"grad/{n}")).max() for n in compared)
  for parameter in compared:
    far = np.abs(theirs[parameter] - get(f"grad/{parameter}")).max()
    assert far < TOLERANCE * largest, (parameter, far / largest)
